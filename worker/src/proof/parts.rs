//! Line 5: what SyncBN costs, what the coordinator costs, and that a resumed run has the bits of a whole one.

use serde_json::json;

use super::child::Spec;
use super::lab::{Lab, Reason};
use super::pairs::{Contender, Series, interleave};
use super::read;
use super::speed::rate_of_run;

/// Measures all of it.
pub async fn run(lab: &mut Lab) {
    if let Err(why) = resume(lab).await {
        lab.could_not("resume", &why);
    }
    syncbn(lab).await;
    coordinator(lab).await;
    syncbn_peer(lab).await;
}

async fn resume(lab: &mut Lab) -> Result<(), Reason> {
    let (half, whole) = if lab.config.is_trial() { (2, 4) } else { (30, 60) };
    let stop = |steps: u32| format!("train.max_steps={steps}");
    // Whole chunks, their own order: what makes kernels deterministic.
    let sets = ["train.reduction=canonical", "train.evaluate_first=false", "data.test_limit=32"];
    let hash = |stdout: &str| -> Result<String, Reason> {
        let summary = read::last_json(stdout)?;
        summary["state_sha256"].as_str().map(str::to_owned).ok_or_else(|| format!("no hash: {summary}"))
    };
    let spec = lab.train_cifar("resume-whole", &sets)?.sets([stop(whole)]);
    let uninterrupted = hash(&lab.run(&spec).await?)?;
    let spec = lab.train_cifar("resume-cut", &sets)?.sets([stop(half)]);
    lab.run(&spec).await?;
    let spec = lab.train_cifar("resume-cut", &sets)?.sets([stop(whole)]).arg("--resume");
    let resumed = hash(&lab.run(&spec).await?)?;
    let same = if uninterrupted == resumed { 1.0 } else { 0.0 };
    let short = |hash: &str| hash.chars().take(12).collect::<String>();
    let figure = format!("{} and {}", short(&uninterrupted), short(&resumed));
    lab.report("resume", same, figure, json!({ "whole": uninterrupted, "resumed": resumed }));
    Ok(())
}

async fn syncbn(lab: &mut Lab) {
    let [on, off] = ["global", "local"].map(|batch_norm| {
        let set = format!("train.batch_norm={batch_norm}");
        Contender::new(lab.bench_cifar(&format!("bench-bn-{batch_norm}"), 3, &[&set]), "seconds")
    });
    let until = std::time::Instant::now() + lab.left().mul_f64(0.4);
    let [on, off] = interleave(lab, [on, off], until).await;
    lab.report_ratios("syncbn", &on.over(&off), on.why(&off));
}

/// Runs and benchmarks in turn: what a run takes longer is the coordinator, with all that it has workers do.
async fn coordinator(lab: &mut Lab) {
    let (mut shares, mut why) = (Vec::new(), String::new());
    for round in 0..lab.config.pairs {
        let pair = async {
            let bench = lab.bench_cifar("bench-alone", 3, &[])?;
            let alone = read::number(&lab.run(&bench).await?, "images_per_s")?;
            Ok::<_, Reason>(1.0 - rate_of_run(lab, &format!("coordinated-{round}")).await? / alone)
        };
        match pair.await {
            Ok(share) => shares.push(share),
            Err(reason) => {
                why = reason;
                break;
            }
        }
    }
    lab.report_ratios("coordinator", &shares, &why);
}

/// One rank in a process group of its own, with and without SyncBatchNorm.
async fn syncbn_peer(lab: &mut Lab) {
    let peer = |lab: &Lab, name: &str| -> Result<Spec, Reason> {
        let spec = lab.peer_imagenet(name, "eager")?;
        let group = [("RANK", "0"), ("LOCAL_RANK", "0"), ("WORLD_SIZE", "1"), ("MASTER_ADDR", "127.0.0.1")];
        let spec = group.into_iter().fold(spec, |spec, (variable, value)| spec.env(variable, value));
        Ok(spec.env("MASTER_PORT", &free_port()?.to_string()))
    };
    let on = peer(lab, "peer-syncbn").map(|spec| spec.arg("--sync-bn"));
    let off = peer(lab, "peer-bn");
    let until = lab.deadline;
    let contenders = [Contender::new(off, "images_per_s"), Contender::new(on, "images_per_s")];
    let [off, on]: [Series; 2] = interleave(lab, contenders, until).await;
    // Images a second the other way round are seconds.
    lab.report_ratios("syncbn_peer", &off.over(&on), off.why(&on));
}

fn free_port() -> Result<u16, Reason> {
    let listener = std::net::TcpListener::bind("127.0.0.1:0");
    let port = listener.and_then(|listener| listener.local_addr()).map(|address| address.port());
    port.map_err(|error| format!("no free port: {error}"))
}
