//! Shows 3: from kill −9 of one of three workers to the next step: Lockstep, beside DDP restarted by `torchrun`.

use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, Result};

use super::kill::kill_one;
use crate::arena::{Plan, try_all};
use crate::cluster::PATIENCE;
use crate::figures::Samples;
use crate::lab::Lab;
use crate::process::{Process, unix_s, until};
use crate::random::Random;
use crate::recipe::Recipe;
use crate::table::Line;
use crate::trials::Trials;

const SCRIPT: &str = include_str!("../../peer/ddp.py");
const BATCH: u64 = 24;
/// Steps between two checkpoints, of both.
const SAVE_EVERY: u64 = 50;

pub fn run(lab: &Lab, count: u32) -> Result<Vec<Line>> {
    let what = "kill −9 of one of 3 workers, checkpoints every 50 steps";
    let Some(torchrun) = lab.options.torchrun.clone() else {
        return Ok(vec![Line::left_out("shows 3", what, "needs --torchrun FILE, of a Python with PyTorch")]);
    };
    let mut random = lab.random("torchrun");
    let recipe = Recipe::endless(&lab.options.sets).with("checkpoint.every_steps", SAVE_EVERY);
    let plan = Plan { name: "beside", recipe, workers: 3, in_namespaces: false };
    let mut trials = Trials::new("shows 3", &format!("{what}: Lockstep"), "side by side");
    let (mut seconds, mut samples) = (Samples::default(), Samples::default());
    try_all(lab, &plan, count, &mut trials, |arena| {
        let (took, redone) = kill_one(arena, &mut random)?;
        seconds.push(took);
        samples.push((redone.max(1) * BATCH) as f64); // the step in flight
        Ok(Ok(()))
    });
    let mut lines = vec![trials.line(figures(&seconds, &samples))];

    let mut trials = Trials::new("shows 3", &format!("{what}: DDP with torchrun"), "side by side");
    let (mut seconds, mut samples, mut stuck) = (Samples::default(), Samples::default(), 0);
    for _ in 0..count {
        trials.record(restart(lab, &torchrun, &mut random).map(|seen| match seen {
            Some((took, repeated)) => {
                seconds.push(took);
                samples.push((repeated * BATCH) as f64);
            }
            // The peer's affair, and no promise of ours.
            None => stuck += 1,
        }));
    }
    let stuck = if stuck > 0 { format!("; not going on within 180 s: {stuck}") } else { String::new() };
    lines.push(trials.line(figures(&seconds, &samples) + &stuck));
    Ok(lines)
}

fn figures(seconds: &Samples, samples: &Samples) -> String {
    let (p50, max) = (samples.quantile(0.5), samples.max());
    format!(
        "next step {}, max {:.1} s; samples repeated p50 {p50}, max {max}; lost 0",
        seconds.seconds(),
        seconds.max()
    )
}

/// What rank 0 wrote of a step: when, after how many restarts, which.
fn steps(dir: &Path) -> Vec<(f64, u64, u64)> {
    let text = std::fs::read_to_string(dir.join("steps")).unwrap_or_default();
    let parse = |line: &str| {
        let mut words = line.split_whitespace();
        Some((words.next()?.parse().ok()?, words.next()?.parse().ok()?, words.next()?.parse().ok()?))
    };
    text.lines().filter_map(parse).collect()
}

/// Seconds to the first step after a kill, and steps that are taken again, the one in flight included; `None` when no
/// restart goes on.
fn restart(lab: &Lab, torchrun: &Path, random: &mut Random) -> Result<Option<(f64, u64)>> {
    let dir = lab.fresh("torchrun")?;
    let script = dir.join("ddp.py");
    std::fs::write(&script, SCRIPT)?;
    let mut command = Command::new(torchrun);
    command.args(["--standalone", "--max-restarts", "3", "--nproc-per-node", "3"]).arg(&script).arg("--dir").arg(&dir);
    command.args(["--steps", "100000", "--save-every", &SAVE_EVERY.to_string()]).env("OMP_NUM_THREADS", "1");
    let mut agent = Process::start("torchrun", command, &dir.join("torchrun.log"))?;
    let target = SAVE_EVERY + random.between(1, SAVE_EVERY);
    let result = (|| {
        until("DDP takes steps", PATIENCE, || Ok(steps(&dir).last().filter(|last| last.2 >= target).map(drop)))?;
        let pids = pids(&dir, 0)?;
        let victim = *random.choose(&pids).context("no process")?;
        let at = unix_s();
        crate::process::signal(victim, rustix::process::Signal::KILL);
        let next = until("DDP takes steps again", PATIENCE, || Ok(steps(&dir).into_iter().find(|step| step.1 > 0)));
        let Ok(next) = next else { return Ok(None) };
        let done = steps(&dir).into_iter().filter(|step| step.1 == 0).map(|step| step.2).max().unwrap_or(0);
        Ok(Some((next.0 - at, (done + 2).saturating_sub(next.2))))
    })();
    agent.signal(rustix::process::Signal::TERM);
    let _ = agent.wait(std::time::Duration::from_secs(30));
    for restart in 0..4 {
        for pid in pids(&dir, restart)? {
            crate::process::signal(pid, rustix::process::Signal::KILL);
        }
    }
    result
}

fn pids(dir: &Path, restart: u64) -> Result<Vec<u32>> {
    let text = std::fs::read_to_string(dir.join("pids"))?;
    let own = text.lines().filter(|line| line.starts_with(&format!("{restart} ")));
    Ok(own.filter_map(|line| line.rsplit(' ').next()?.parse().ok()).collect())
}
