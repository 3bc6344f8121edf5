//! Line 1: the first losses of a device are those of the CPU, and those with CUDA graphs those without.

use serde_json::json;

use super::lab::{Lab, Reason};
use super::read;

const STEPS: usize = 20;
/// Some are eager before a step is captured.
const STEPS_OF_GRAPHS: usize = 60;

/// Measures both.
pub async fn run(lab: &mut Lab) {
    if let Err(why) = fp32(lab).await {
        lab.could_not("losses_fp32", &why);
    }
    if let Err(why) = graphs(lab).await {
        lab.could_not("losses_graph", &why);
    }
}

const COMMON: [&str; 3] = ["schedule.lr=0.01", "train.reduction=fast", "train.evaluate_first=false"];

async fn fp32(lab: &mut Lab) -> Result<(), Reason> {
    let count = if lab.config.is_trial() { 4 } else { STEPS };
    let max_steps = format!("train.max_steps={count}");
    let (recipe, base) = lab.cifar("cifar10/resnet20")?;
    let device = lab.device().to_owned();
    for (name, device) in [("losses-cpu", "cpu"), ("losses-device", &*device)] {
        let spec = lab.train(name, &recipe, device).sets(&base).sets(COMMON).sets(["train.precision=fp32", &max_steps]);
        // Few test images: only the training's losses matter.
        lab.run(&spec.sets(["data.test_limit=32"])).await?;
    }
    let [cpu, device] = ["losses-cpu", "losses-device"].map(|name| read::losses(&lab.run_dir(name), count));
    let (cpu, device) = (cpu?, device?);
    let apart = read::relative(&cpu, &device);
    lab.report("losses_fp32", apart, format!("{apart:.1e}, {count} losses"), json!({ "cpu": cpu, "device": device }));
    Ok(())
}

async fn graphs(lab: &mut Lab) -> Result<(), Reason> {
    if lab.config.is_trial() {
        return Err("needs a GPU: on a CPU there are no graphs".into());
    }
    let max_steps = format!("train.max_steps={STEPS_OF_GRAPHS}");
    let sets = [&COMMON[..], &["train.precision=bf16", &max_steps, "data.test_limit=32"]].concat();
    let with = lab.train_cifar("losses-graph", &sets)?;
    lab.run(&with).await?;
    let without = lab.train_cifar("losses-eager", &sets)?.env("LOCKSTEP_GRAPHS", "off");
    lab.run(&without).await?;
    let [with, without] =
        ["losses-graph", "losses-eager"].map(|name| read::losses(&lab.run_dir(name), STEPS_OF_GRAPHS));
    let (with, without) = (with?, without?);
    let apart = read::relative(&without, &with);
    let bits = if with == without { "the same bits" } else { "not the same bits" };
    // Equal figures prove nothing if no graph was there.
    let log = std::fs::read_to_string(lab.run_dir("losses-graph").join("logs/worker-0.log")).unwrap_or_default();
    let said = log.lines().find(|line| line.contains("captur") || line.contains("graph"));
    let said = said.map_or("the worker's log speaks of no graph".to_owned(), |line| format!("the worker says: {line}"));
    let figure = format!("{apart:.1e}, {STEPS_OF_GRAPHS} losses, {bits}; {said}");
    lab.report("losses_graph", apart, figure, json!({ "with": with, "without": without }));
    Ok(())
}
