//! Lines 3, 4 and 9: images a second, ours ÷ the peer's, in turn.

use std::time::{Duration, Instant};

use serde_json::json;

use super::lab::{Lab, Reason, Spread};
use super::ours::EPOCH;
use super::pairs::{Contender, Series, interleave};
use super::{child::Spec, read};

/// Counts the kernels between two lengths of a peer's script: what a step has, without what only the start has.
const KERNELS: &str = "\
import contextlib, io, json, runpy, sys
import torch
from torch.profiler import ProfilerActivity, profile
script, args = sys.argv[1], sys.argv[2:]
def kernels(steps):
    sys.argv = [script, *args, '--epochs', '1', '--limit-steps', str(steps), '--no-eval']
    with profile(activities=[ProfilerActivity.CUDA]) as seen, contextlib.redirect_stdout(io.StringIO()):
        runpy.run_path(script, run_name='__main__')
    names = [e.name for e in seen.events() if e.device_type == torch.autograd.DeviceType.CUDA]
    return sum(not name.startswith(('Memcpy', 'Memset')) for name in names)
kernels(4)
print(json.dumps({'kernels': (kernels(30) - kernels(10)) / 20}))";

/// Line 3. ResNet-20, for which there are goals, has most of the time.
pub async fn cifar(lab: &mut Lab) {
    for (blocks, name, share) in [(3, "resnet20", 0.6), (9, "resnet56", 0.5), (18, "resnet110", 1.0)] {
        let until = Instant::now() + lab.left().mul_f64(share);
        cifar_one(lab, blocks, name, until).await;
        if blocks == 3 {
            if let Err(why) = kernels_of_peer(lab).await {
                lab.could_not("resnet20_kernels_eager", &why);
            }
            if let Err(why) = bench_agrees(lab).await {
                lab.could_not("bench_agrees", &why);
            }
        }
    }
}

async fn cifar_one(lab: &mut Lab, blocks: u32, name: &'static str, until: Instant) {
    let peer = |lab: &Lab, mode: &str| {
        let warm_up = mode == "compile";
        Contender { spec: lab.peer_cifar(mode, blocks), key: "images_per_s_median", warm_up }
    };
    let ours = Contender::new(lab.bench_cifar(&format!("bench-{name}"), blocks, &[]), "images_per_s");
    let contenders = [ours, peer(lab, "eager"), peer(lab, "graph"), peer(lab, "compile")];
    let [ours, eager, graph, compile] = interleave(lab, contenders, until).await;
    let key = |what: &str| format!("{name}_{what}");
    match Spread::of(&ours.present()) {
        None => lab.could_not(&key("epoch_s"), ours.out.as_deref().unwrap_or("no time was left")),
        Some(rate) => {
            let seconds = [EPOCH / rate.median, EPOCH / rate.most, EPOCH / rate.least];
            let figure =
                format!("{:.3} s ({:.3}–{:.3}), {:.0} images/s", seconds[0], seconds[1], seconds[2], rate.median);
            lab.report(&key("epoch_s"), seconds[0], figure, json!({ "images_per_s": ours.values }));
        }
    }
    for (mode, peer) in [("eager", &eager), ("graph", &graph), ("compile", &compile)] {
        ratios(lab, &key(mode), &ours, peer);
    }
    match read::number(&ours.last, "kernels") {
        Ok(kernels) => lab.report(&key("kernels"), kernels, format!("{kernels}"), json!(null)),
        Err(_) if ours.last.is_empty() => {
            lab.could_not(&key("kernels"), ours.out.as_deref().unwrap_or("no time was left"))
        }
        Err(_) => lab.could_not(&key("kernels"), "`bench step` does not say"),
    }
}

/// Ours ÷ the peer's, and the peer's own figure in the detail.
fn ratios(lab: &mut Lab, key: &str, ours: &Series, peer: &Series) {
    lab.report_ratios(key, &ours.over(peer), ours.why(peer));
    if let Some(row) = lab.table.row(key) {
        row.detail = json!({ "ours": ours.values, "peer": peer.values });
    }
    lab.save();
}

async fn kernels_of_peer(lab: &mut Lab) -> Result<(), Reason> {
    if lab.config.is_trial() {
        return Err("needs a GPU".into());
    }
    let peer = lab.peer_cifar_whole("eager", 3)?;
    let mut spec = Spec::new("peer-kernels", &lab.config.python.clone(), &["-c", KERNELS]);
    spec.args.extend(peer.args);
    spec.env = peer.env;
    let kernels = read::number(&lab.run_within(&spec, Duration::from_secs(120)).await?, "kernels")?;
    lab.report("resnet20_kernels_eager", kernels, format!("{kernels}"), json!(null));
    Ok(())
}

/// A run has a coordinator, checkpoints and evaluations; a step of it must cost what `bench step` says.
async fn bench_agrees(lab: &mut Lab) -> Result<(), Reason> {
    let bench = lab.bench_cifar("bench-again", 3, &[])?;
    let rate = read::number(&lab.run(&bench).await?, "images_per_s")?;
    let ran = rate_of_run(lab, "bench-run").await?;
    let apart = (rate / ran - 1.0).abs();
    let figure = format!("{:.1} %: {rate:.0} by bench, {ran:.0} by the run", 100.0 * apart);
    lab.report("bench_agrees", apart, figure, json!({ "bench": rate, "run": ran }));
    Ok(())
}

/// Images a second of a bf16 run of ResNet-20, by its `metrics.jsonl`, without its first steps.
///
/// # Errors
/// It does not run.
pub async fn rate_of_run(lab: &mut Lab, name: &str) -> Result<f64, Reason> {
    let steps = format!("train.max_steps={}", lab.sizes().run_steps);
    let sets = ["train.precision=bf16", "train.reduction=fast", "train.evaluate_first=false", &steps];
    let spec = lab.train_cifar(name, &sets)?;
    lab.run(&spec).await?;
    read::rate(&read::steps(&lab.run_dir(name))?, lab.sizes().warm_up as usize)
}

/// Line 4.
pub async fn imagenet(lab: &mut Lab) {
    let ours = synthetic(lab, "bench-resnet50");
    let peer = |lab: &Lab, mode: &str| {
        let spec = lab.peer_imagenet(&format!("peer-resnet50-{mode}"), mode);
        Contender { spec, key: "images_per_s", warm_up: mode == "compile" }
    };
    let contenders = [Contender::new(Ok(ours), "images_per_s"), peer(lab, "eager"), peer(lab, "compile")];
    let until = lab.deadline;
    let [ours, eager, compile] = interleave(lab, contenders, until).await;
    match Spread::of(&ours.present()) {
        None => lab.could_not("resnet50_images_per_s", ours.out.as_deref().unwrap_or("no time was left")),
        Some(rate) => {
            let figure = format!("{:.0} ({:.0}–{:.0})", rate.median, rate.least, rate.most);
            lab.report("resnet50_images_per_s", rate.median, figure, json!({ "images_per_s": ours.values }));
        }
    }
    ratios(lab, "resnet50_eager", &ours, &eager);
    ratios(lab, "resnet50_compile", &ours, &compile);
}

/// ResNet-50 on images of noise, in memory: no file is read, no JPEG decoded.
fn synthetic(lab: &Lab, name: &str) -> Spec {
    let mut spec = lab.bench(name, "imagenet/resnet50-90").sets(lab.imagenet_sets()).arg("--synthetic");
    fewer_steps(lab, &mut spec);
    spec
}

/// A step of ResNet-50 is long: a third of the steps is as good a median.
fn fewer_steps(lab: &Lab, spec: &mut Spec) {
    if !lab.config.is_trial()
        && let Some(at) = spec.args.iter().position(|arg| arg == "--steps")
        && let Some(steps) = spec.args.get_mut(at + 1)
    {
        *steps = "100".into();
    }
}

/// Line 9.
pub async fn fed(lab: &mut Lab) {
    let folder = match images(lab) {
        Ok(folder) => folder,
        Err(why) => {
            for key in ["fed", "fed_data_s", "fed_compute_s", "fed_comm_s", "fed_images_per_s"] {
                lab.could_not(key, &why);
            }
            return;
        }
    };
    // Each photograph many times in an epoch, cut out anew: an epoch of many full batches.
    let sets = [format!("data.path={folder}"), "data.repeats=100".to_owned()];
    let mut jpeg = lab.bench("bench-jpeg", "imagenet/resnet50-90").sets(lab.imagenet_sets()).sets(&sets);
    fewer_steps(lab, &mut jpeg);
    let contenders = [
        Contender::new(Ok(jpeg), "images_per_s"),
        Contender::new(Ok(synthetic(lab, "bench-synthetic")), "images_per_s"),
    ];
    let until = Instant::now() + lab.left().mul_f64(0.6);
    let [jpeg, noise] = interleave(lab, contenders, until).await;
    ratios(lab, "fed", &jpeg, &noise);
    if let Err(why) = breakdown(lab, &sets).await {
        for key in ["fed_data_s", "fed_compute_s", "fed_comm_s", "fed_images_per_s"] {
            lab.could_not(key, &why);
        }
    }
}

async fn breakdown(lab: &mut Lab, sets: &[String]) -> Result<(), Reason> {
    let steps = if lab.config.is_trial() { 3 } else { 600 };
    let max_steps = format!("train.max_steps={steps}");
    let spec = lab.train("imagenet-shaped", "imagenet/resnet50-torchvision-v1", lab.device());
    let spec = spec.sets(lab.imagenet_sets()).sets(sets);
    let spec = spec.sets(["train.precision=bf16", "train.evaluate_first=false", "data.test_limit=32", &max_steps]);
    lab.run(&spec).await?;
    let all = read::steps(&lab.run_dir("imagenet-shaped"))?;
    let skip = (all.len() / 4).min(60);
    for (key, value) in [
        ("fed_data_s", read::middle(&all, skip, |step| step.data_s)),
        ("fed_compute_s", read::middle(&all, skip, |step| step.compute_s)),
        ("fed_comm_s", read::middle(&all, skip, |step| step.comm_s)),
        ("fed_images_per_s", read::rate(&all, skip)?),
    ] {
        lab.report(key, value, format!("{value:.4}, {} steps", all.len() - skip), json!(null));
    }
    Ok(())
}

/// A folder with `train/` and `val/`, both of the photographs.
fn images(lab: &Lab) -> Result<String, Reason> {
    let given = lab.config.images.as_ref().ok_or("no --images: a folder of photographs")?;
    if given.join("train").is_dir() && given.join("val").is_dir() {
        return Ok(given.display().to_string());
    }
    let source = [given.join("val"), given.clone()].into_iter().find(|folder| folder.is_dir()).unwrap_or_default();
    let folder = lab.config.out.join("images");
    let cannot = |error: std::io::Error| format!("cannot make {}: {error}", folder.display());
    std::fs::create_dir_all(&folder).map_err(cannot)?;
    for split in ["train", "val"] {
        let link = folder.join(split);
        if !link.exists() {
            std::os::unix::fs::symlink(&source, &link).map_err(cannot)?;
        }
    }
    Ok(folder.display().to_string())
}
