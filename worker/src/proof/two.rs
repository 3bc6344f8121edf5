//! Line 2: two processes on one device, by NCCL, against one; and one of them killed.
//!
//! ```text
//! coordinator ── worker a, worker b     a NCCL_HOSTID each: NCCL takes them for two hosts
//!      kill b in the second half ─► a gives up ─► worker c takes b's place, healed out of a's memory ─► the end
//! ```
//! In fp64 two orders of summation stay within 1e-9 of one another, so that one wrong number in the weights shows.

use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde_json::{Value, json};

use super::child::{Running, Spec};
use super::lab::{Lab, Reason};
use super::line::DEADLINE_S;
use super::read;

/// A worker finds its device, a world opens: no longer than this.
const START: Duration = Duration::from_secs(120);
/// Workers that were told of the end leave within this.
const GOODBYE: Duration = Duration::from_secs(20);

const FP64: [&str; 7] = [
    "model.n=1",
    "train.batch=32",
    "train.chunk=16",
    "schedule.lr=0.1",
    "train.precision=fp64",
    "train.reduction=fast",
    "train.evaluate_first=false",
];

/// Measures all of it.
pub async fn run(lab: &mut Lab) {
    if let Err(why) = fp64(lab).await {
        lab.could_not("two_fp64_losses", &why);
        lab.could_not("two_fp64_parameters", &why);
    }
    if let Err(why) = killed(lab).await {
        for key in ["kill_committed", "kill_final", "kill_seconds", "kill_audit"] {
            if lab.table.row(key).is_some_and(|row| row.why == "not reached") {
                lab.could_not(key, &why);
            }
        }
    }
    if let Err(why) = fp32(lab).await {
        lab.could_not("two_fp32_loss", &why);
        lab.could_not("two_fp32_parameters", &why);
    }
}

fn fp64_sets(lab: &Lab) -> Vec<String> {
    let steps = format!("train.max_steps={}", lab.sizes().two_steps);
    let timeout = format!("elastic.collective_timeout_s={DEADLINE_S}");
    let rest = [&*steps, &timeout, "data.test_limit=32", "checkpoint.every_steps=1", "checkpoint.keep=0"];
    FP64.into_iter().chain(rest).map(str::to_owned).collect()
}

async fn fp64(lab: &mut Lab) -> Result<(), Reason> {
    let sets = fp64_sets(lab);
    let sets: Vec<&str> = sets.iter().map(String::as_str).collect();
    let alone = lab.train_cifar("two-alone", &sets)?;
    lab.run(&alone).await?;
    let mut pair = Pair::open(lab, "two", &sets, false).await?;
    pair.join(lab, "a")?;
    pair.join(lab, "b")?;
    pair.end(lab).await?;
    let (one, two) = (lab.run_dir("two-alone"), lab.run_dir("two"));
    let steps = lab.sizes().two_steps;
    let (a, b) = (read::losses(&one, steps as usize)?, read::losses(&two, steps as usize)?);
    let both = read::steps(&two)?.iter().all(|step| step.world_size == 2);
    if !both {
        return Err("not every step was of two ranks".into());
    }
    let apart = read::relative(&a, &b);
    lab.report("two_fp64_losses", apart, format!("{apart:.1e}, {steps} losses"), json!({ "one": a, "two": b }));
    let apart = read::distance(&read::checkpoint(&one, steps), &read::checkpoint(&two, steps))?.worst;
    lab.report("two_fp64_parameters", apart, format!("{apart:.1e}"), Value::Null);
    Ok(())
}

async fn killed(lab: &mut Lab) -> Result<(), Reason> {
    let (one, run) = (lab.run_dir("two-alone"), lab.run_dir("killed"));
    let last = lab.sizes().two_steps;
    if !read::checkpoint(&one, last).is_dir() {
        return Err("there is no undisturbed run to compare with".into());
    }
    let sets = fp64_sets(lab);
    let sets: Vec<&str> = sets.iter().map(String::as_str).collect();
    let mut pair = Pair::open(lab, "killed", &sets, false).await?;
    pair.join(lab, "a")?;
    pair.join(lab, "b")?;
    let half = last / 2;
    let reached = || read::steps(&run).is_ok_and(|steps| steps.last().is_some_and(|step| step.step >= half));
    lab.watch(START, &format!("step {half} of two processes"), reached).await?;
    let at = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |time| time.as_secs_f64());
    pair.kill("b");
    pair.join(lab, "c")?;
    pair.end(lab).await?;

    let steps = read::steps(&run)?;
    let first = steps.first().map_or(0, |step| step.generation);
    let committed = steps.iter().filter(|step| step.generation == first).map(|step| step.step).max().unwrap_or(0);
    if committed >= last {
        return Err(format!("the run was over before the kill told: {committed} steps of {last} in its first world"));
    }
    let apart = read::distance(&read::checkpoint(&one, committed), &read::checkpoint(&run, committed))?.worst;
    let figure = format!("{apart:.1e}, at step {committed} of {last}");
    lab.report("kill_committed", apart, figure, json!({ "committed": committed }));
    let apart = read::distance(&read::checkpoint(&one, last), &read::checkpoint(&run, last))?.worst;
    lab.report("kill_final", apart, format!("{apart:.1e}"), Value::Null);

    let events = lab.run(&pair.lockstep(lab, "killed-events", &["events", "--json"])).await?;
    let events: Vec<Value> = events.lines().filter_map(|line| serde_json::from_str(line).ok()).collect();
    // Its survivor has given up when it waits for another, or another world opens.
    let is_over = |event: &&Value| {
        let kind = event["kind"].as_str().unwrap_or_default();
        (kind == "waiting" || kind == "generation_opened") && event["time"].as_f64().is_some_and(|time| time >= at)
    };
    let over = events.iter().find(is_over).and_then(|event| event["time"].as_f64());
    let recovered = events.iter().find(|event| event["kind"] == "recovered").cloned().unwrap_or_default();
    match over {
        None => lab.could_not("kill_seconds", "no event tells of it"),
        Some(over) => {
            let figure = format!(
                "{:.2} s; another world trained {} s after the trouble",
                over - at,
                recovered["detail"]["seconds"]
            );
            lab.report("kill_seconds", over - at, figure, json!({ "recovered": recovered }));
        }
    }
    match lab.run(&pair.lockstep(lab, "killed-audit", &["audit"])).await {
        Ok(said) => lab.report("kill_audit", 0.0, said.trim(), Value::Null),
        Err(why) => lab.report("kill_audit", f64::NAN, why, Value::Null),
    }
    Ok(())
}

async fn fp32(lab: &mut Lab) -> Result<(), Reason> {
    let (mut losses, mut parameters) = (Vec::new(), Vec::new());
    let mut why = String::new();
    for state in 1..=lab.sizes().states {
        match fp32_once(lab, state).await {
            Ok((loss, apart)) => {
                losses.push(loss);
                parameters.push(apart);
            }
            Err(reason) => {
                why = reason;
                break;
            }
        }
    }
    if losses.is_empty() {
        return Err(why);
    }
    for (key, values) in [("two_fp32_loss", losses), ("two_fp32_parameters", parameters)] {
        let most = values.iter().copied().fold(0.0, f64::max);
        let figure = format!("{most:.1e}, {} saved states {why}", values.len());
        lab.report(key, most, figure.trim_end(), json!({ "states": values }));
    }
    Ok(())
}

/// Trains to a state alone, then one step from copies of it, alone and by two; differences of loss and parameters.
async fn fp32_once(lab: &mut Lab, state: u64) -> Result<(f64, f64), Reason> {
    let from = if lab.config.is_trial() { 2 * state } else { 20 * state };
    let stop = |steps: u64| format!("train.max_steps={steps}");
    let base = ["train.precision=fp32", "train.reduction=fast", "train.evaluate_first=false", "data.test_limit=32"];
    let resumed = state > 1;
    let spec = lab.train_cifar("states", &base)?.sets([stop(from)]);
    lab.run(&if resumed { spec.arg("--resume") } else { spec }).await?;
    let next = from + 1;
    let (alone, two) = (format!("state-{from}-alone"), format!("state-{from}-two"));
    for copy in [&alone, &two] {
        read::copy(&lab.run_dir("states"), &lab.run_dir(copy))?;
    }
    let spec = lab.train_cifar(&alone, &base)?.sets([stop(next)]).arg("--resume");
    lab.run(&spec).await?;
    let stop = stop(next);
    let sets = [&base[..], &[&*stop]].concat();
    let mut pair = Pair::open(lab, &two, &sets, true).await?;
    pair.join(lab, "a")?;
    pair.join(lab, "b")?;
    pair.end(lab).await?;
    let (alone, two) = (lab.run_dir(&alone), lab.run_dir(&two));
    let last = |run: &Path| -> Result<f64, Reason> {
        let steps = read::steps(run)?;
        let step = steps.last().filter(|step| step.step == next).ok_or("the last step is missing")?;
        step.loss.ok_or_else(|| "the loss is not a number".into())
    };
    let loss = read::relative(&[last(&alone)?], &[last(&two)?]);
    Ok((loss, read::distance(&read::checkpoint(&alone, next), &read::checkpoint(&two, next))?.norm))
}

/// A coordinator and its workers, started by hand.
struct Pair {
    coordinator: Running,
    workers: Vec<Running>,
    url: String,
    run: PathBuf,
}

impl Pair {
    /// Starts a coordinator that waits for two.
    async fn open(lab: &mut Lab, name: &str, sets: &[&str], resume: bool) -> Result<Self, Reason> {
        let (recipe, base) = lab.cifar("cifar10/resnet20")?;
        let run = lab.run_dir(name);
        let shown = run.display().to_string();
        let args = ["coordinator", &recipe, "--listen", "127.0.0.1:0", "--json", "--run-dir", &shown];
        let mut spec = Spec::new(format!("{name}-coordinator"), &lab.config.lockstep, &args);
        spec = spec.sets(base).sets(sets).sets(["elastic.min_workers=2"]);
        if resume {
            spec = spec.arg("--resume");
        }
        let coordinator = lab.start(&spec)?;
        let listening = || read::last_json(&coordinator.stdout()).is_ok();
        let heard = lab.watch(START, "the coordinator's address", listening).await;
        heard.map_err(|why| format!("{why}; {}", coordinator.last_words()))?;
        let url = read::last_json(&coordinator.stdout())?["url"].as_str().unwrap_or_default().to_owned();
        Ok(Self { coordinator, workers: Vec::new(), url, run })
    }

    /// Starts a worker of its own host, as far as NCCL can tell.
    fn join(&mut self, lab: &mut Lab, name: &str) -> Result<(), Reason> {
        let device = lab.device().to_owned();
        let run = self.run.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let args = ["worker", "--coordinator", &self.url, "--devices", &device, "--id", name, "--until-stdin-closes"];
        let mut spec = Spec::new(format!("{run}-worker-{name}"), &lab.config.worker, &args);
        for (variable, value) in [
            ("NCCL_HOSTID", &*format!("lockstep-{name}")),
            ("NCCL_SOCKET_IFNAME", "lo"),
            ("NCCL_IB_DISABLE", "1"),
            ("NCCL_MNNVL_ENABLE", "0"),
        ] {
            spec = spec.env(variable, value);
        }
        if lab.config.is_trial() {
            spec = spec.arg("--threads").arg("1");
        }
        self.workers.push(lab.start(&spec)?);
        Ok(())
    }

    fn kill(&mut self, name: &str) {
        let suffix = format!("-worker-{name}");
        let those = self.workers.iter().filter(|worker| worker.name.ends_with(&suffix));
        those.for_each(Running::kill);
    }

    /// Waits until the run is over.
    async fn end(&mut self, lab: &mut Lab) -> Result<(), Reason> {
        let ended = lab.finish(&mut self.coordinator, Duration::MAX).await;
        // Workers are told of the end; without a coordinator they would wait for another.
        let patience = if ended.is_ok() { GOODBYE } else { Duration::from_secs(1) };
        let mut why: Vec<Reason> = ended.err().into_iter().collect();
        for worker in &mut self.workers {
            // Those that were killed have nothing to say.
            let result = lab.finish(worker, patience).await;
            why.extend(result.err().filter(|why| why.contains("error: ")));
        }
        if why.is_empty() { Ok(()) } else { Err(why.join("; ")) }
    }

    /// A command of `lockstep` about this run.
    fn lockstep(&self, lab: &Lab, name: &str, args: &[&str]) -> Spec {
        Spec::new(name, &lab.config.lockstep, args).arg(self.run.display().to_string())
    }
}
