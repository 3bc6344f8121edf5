//! Line 6: whole trainings, ours and the peer's in turn, seed by seed.

use serde_json::json;

use super::lab::{Lab, Reason, Spread};
use super::read;

/// What a seed gave.
#[derive(Default)]
struct Half {
    errors: Vec<f64>,
    seconds: Vec<f64>,
    why: Option<Reason>,
}

/// Trains all seeds that there is time for.
pub async fn run(lab: &mut Lab) {
    let (mut ours, mut peer) = (Half::default(), Half::default());
    for seed in 0..lab.sizes().seeds {
        if ours.why.is_none() {
            ours.take(train(lab, seed).await);
        }
        if peer.why.is_none() {
            peer.take(train_peer(lab, seed).await);
        }
        tell(lab, &ours, &peer);
        if ours.why.is_some() && peer.why.is_some() {
            break;
        }
    }
}

impl Half {
    fn take(&mut self, result: Result<(f64, f64), Reason>) {
        match result {
            Ok((error, seconds)) => {
                self.errors.push(error);
                self.seconds.push(seconds);
            }
            Err(why) => self.why = Some(why),
        }
    }
}

async fn train(lab: &mut Lab, seed: u64) -> Result<(f64, f64), Reason> {
    let name = format!("seed-{seed}");
    let seed = format!("train.seed={seed}");
    let mut spec = lab.train_cifar(&name, &["train.precision=bf16", "train.reduction=fast", &seed])?;
    if lab.config.is_trial() {
        spec = spec.sets(["train.max_steps=4"]);
    }
    lab.run(&spec).await?;
    let seconds = lab.table.commands.last().map_or(f64::NAN, |ran| ran.seconds);
    Ok((read::test_error(&lab.run_dir(&name))?, seconds))
}

async fn train_peer(lab: &mut Lab, seed: u64) -> Result<(f64, f64), Reason> {
    let mode = if lab.config.is_trial() { "eager" } else { "graph" };
    let mut spec = lab.peer_cifar_whole(mode, 3)?.arg("--seed").arg(seed.to_string());
    spec.name = format!("peer-seed-{seed}");
    spec = spec.arg("--epochs").arg(if lab.config.is_trial() { "1" } else { "200" });
    if lab.config.is_trial() {
        spec = spec.arg("--limit-steps").arg("2");
    }
    let stdout = lab.run(&spec).await?;
    let seconds = lab.table.commands.last().map_or(f64::NAN, |ran| ran.seconds);
    Ok((read::peer_error(&stdout)?, seconds))
}

fn tell(lab: &mut Lab, ours: &Half, peer: &Half) {
    let mean = |values: &[f64]| values.iter().sum::<f64>() / values.len() as f64;
    for (key, half) in [("error", ours), ("error_peer", peer)] {
        let why = half.why.clone().unwrap_or_default();
        if half.errors.is_empty() {
            lab.could_not(key, &why);
            continue;
        }
        let each: Vec<_> = half.errors.iter().map(|error| format!("{error:.4}")).collect();
        let figure = format!("{:.4}: {} {why}", mean(&half.errors), each.join(", "));
        lab.report(
            key,
            mean(&half.errors),
            figure.trim_end(),
            json!({ "errors": half.errors, "seconds": half.seconds }),
        );
    }
    let why = ours.why.as_ref().or(peer.why.as_ref()).cloned().unwrap_or_default();
    let pairs: Vec<(f64, f64)> = ours.errors.iter().copied().zip(peer.errors.iter().copied()).collect();
    if pairs.is_empty() {
        lab.could_not("error_difference", &why);
    } else {
        let difference = mean(&pairs.iter().map(|(ours, peer)| ours - peer).collect::<Vec<_>>());
        let figure = format!("{:+.2} points, {} seeds", 100.0 * difference, pairs.len());
        lab.report("error_difference", difference, figure, json!({ "pairs": pairs }));
    }
    match Spread::of(&ours.seconds) {
        None => lab.could_not("wall_s", &why),
        Some(wall) => {
            let figure = format!("{:.1} s ({:.1}–{:.1})", wall.median, wall.least, wall.most);
            lab.report("wall_s", wall.median, figure, json!({ "seconds": ours.seconds }));
        }
    }
    let ratios: Vec<f64> = peer.seconds.iter().zip(&ours.seconds).map(|(peer, ours)| peer / ours).collect();
    lab.report_ratios("wall_ratio", &ratios, &why);
}
