//! A whole run.

use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use lockstep_deploy::policy::Component;
use lockstep_deploy::process::until;
use lockstep_deploy::sandbox::Running;
use lockstep_deploy::tools::executables;
use rustix::process::Signal;
use serde_json::Value;

use crate::site::{PATIENCE, Site};

/// A small net, and enough steps for all that happens to the Pods.
const SETS: [&str; 11] = [
    "data.train_size=400",
    "data.test_size=40",
    "model.n=1",
    "model.width=8",
    "schedule.kind=constant",
    "train.batch=32",
    "train.chunk=8",
    "train.epochs=40",
    "train.evaluate_every_epochs=0",
    "checkpoint.every_steps=200",
    "log.every_s=0.1",
];

/// The committed steps: their numbers and the world sizes at them.
fn steps(run: &Path) -> Vec<(u64, u64)> {
    let text = std::fs::read_to_string(run.join("metrics.jsonl")).unwrap_or_default();
    let lines = text.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    lines.filter_map(|line| Some((line["step"].as_u64()?, line["world_size"].as_u64()?))).collect()
}

/// Waits until some more steps were committed by so many workers.
fn await_world(run: &Path, size: u64, pods: &mut [&mut Running]) {
    let from = steps(run).len();
    until(&format!("steps of {size} workers"), PATIENCE, || {
        for pod in pods.iter_mut() {
            let ended = pod.ended()?;
            assert!(ended.is_none(), "{} ended with {ended:?}: {}", pod.identity.name, pod.log());
        }
        let new = steps(run);
        Ok((new.iter().skip(from).filter(|(_, world)| *world == size).count() >= 3).then_some(()))
    })
    .unwrap();
}

#[test]
fn a_run_of_the_cpu_overlay_loses_replaces_and_gains_pods_and_is_whole() {
    let Some(mut site) = Site::new(&[]) else { return };
    let began = Instant::now();
    let identity = site.identity(Component::Coordinator);
    let ip = identity.ip.clone();
    let mut container = site.container(Component::Coordinator, &identity);
    container.command.extend(SETS.iter().map(|set| format!("--set={set}")));
    let mut coordinator = site.start(Component::Coordinator, &container, identity, "");
    let run = site.run_dir();

    let mut first = site.worker(&ip);
    let mut second = site.worker(&ip);
    await_world(&run, 2, &mut [&mut coordinator, &mut first, &mut second]);

    // Deleted: leaves with the code that is not counted, within its grace period.
    let grace = Duration::from_secs(container.grace_s);
    assert_eq!(first.stop(grace).unwrap(), 75, "{}", first.log());
    let mut third = site.worker(&ip);
    await_world(&run, 2, &mut [&mut coordinator, &mut second, &mut third]);

    // Added.
    let mut fourth = site.worker(&ip);
    await_world(&run, 3, &mut [&mut coordinator, &mut second, &mut third, &mut fourth]);

    // Deleted while it hangs: SIGTERM does nothing, SIGKILL comes after the grace period, here a short one.
    second.signal(Signal::STOP);
    assert_eq!(second.stop(Duration::from_secs(1)).unwrap(), 137);
    await_world(&run, 2, &mut [&mut coordinator, &mut third, &mut fourth]);

    for pod in [&mut coordinator, &mut third, &mut fourth] {
        assert_eq!(pod.wait(PATIENCE).unwrap(), 0, "{}: {}", pod.identity.name, pod.log());
    }
    let [lockstep, _] = executables().unwrap();
    let audit = Command::new(lockstep).arg("audit").arg(&run).output().unwrap();
    let said = String::from_utf8_lossy(&audit.stdout);
    assert!(audit.status.success(), "{said}{}", String::from_utf8_lossy(&audit.stderr));
    println!("{} steps in {:.1} s; {}", steps(&run).len(), began.elapsed().as_secs_f64(), said.trim());
}
