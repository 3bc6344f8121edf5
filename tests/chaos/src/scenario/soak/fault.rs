//! What can happen in a soak.

use std::time::Duration;

use anyhow::{Result, ensure};
use rustix::process::Signal;

use super::Soak;
use crate::arena::LEFT;
use crate::cluster::PATIENCE;
use crate::proxy::Way;
use crate::random::Random;

/// More workers than this are not started.
const MOST: usize = 4;

/// A fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    KillWorker,
    KillTwo,
    KillAllWorkers,
    KillCoordinator,
    KillEverything,
    Pause,
    Silence,
    Leave,
    Join,
    Cut,
    Delay,
    OneWay,
}

use Fault::{
    Cut, Delay, Join, KillAllWorkers, KillCoordinator, KillEverything, KillTwo, KillWorker, Leave, OneWay, Pause,
    Silence,
};

const GENTLE: [Fault; 9] = [KillWorker, KillTwo, Pause, Silence, Leave, Join, Cut, Delay, OneWay];
const ROUGH: [Fault; 12] = [
    KillWorker,
    KillTwo,
    KillAllWorkers,
    KillCoordinator,
    KillEverything,
    Pause,
    Silence,
    Leave,
    Join,
    Cut,
    Delay,
    OneWay,
];

impl Fault {
    /// Any; a gentle one leaves the coordinator and the first worker alive.
    pub fn draw(random: &mut Random, is_gentle: bool) -> Self {
        let from: &[Self] = if is_gentle { &GENTLE } else { &ROUGH };
        random.choose(from).copied().unwrap_or(KillWorker)
    }

    /// In a line of the table.
    pub fn name(self) -> &'static str {
        match self {
            KillWorker => "kill a worker",
            KillTwo => "kill two",
            KillAllWorkers => "kill all workers",
            KillCoordinator => "kill the coordinator",
            KillEverything => "kill everything",
            Pause => "pause",
            Silence => "silence",
            Leave => "leave",
            Join => "join",
            Cut => "cut",
            Delay => "delay",
            OneWay => "one-way loss",
        }
    }

    /// Does it; gives the moment from which the next commit is waited for.
    pub fn strike(self, soak: &mut Soak<'_>) -> Result<f64> {
        let mut at = soak.now();
        match self {
            KillWorker => kill(soak, 1)?,
            KillTwo => kill(soak, 2)?,
            KillAllWorkers => {
                soak.cluster.workers.clear();
                soak.cluster.start_workers(super::WORKERS as u32)?;
            }
            KillCoordinator => {
                soak.cluster.coordinator = None;
                wait(soak, 0, 3000);
                soak.cluster.resume()?;
            }
            KillEverything => {
                soak.cluster.coordinator = None;
                soak.cluster.workers.clear();
                soak.cluster.resume()?;
                soak.cluster.start_workers(super::WORKERS as u32)?;
            }
            Pause => at = stop(soak, 50, 2000)?,
            Silence => at = stop(soak, 8_000, 25_000)?,
            Leave => {
                for name in take(soak, 1) {
                    let mut worker = soak.cluster.take_worker(&name)?;
                    worker.signal(if soak.random.below(2) == 0 { Signal::TERM } else { Signal::USR1 });
                    let status = worker.wait(PATIENCE)?;
                    ensure!(status.code() == LEFT, "{name} ended with {status}: {}", worker.last_words());
                }
            }
            Join => {
                if soak.cluster.workers.len() < MOST {
                    soak.cluster.start_worker(&[])?;
                }
            }
            Cut => {
                soak.proxy.cut(true);
                wait(soak, 50, 3000);
                soak.proxy.cut(false);
                at = soak.now();
            }
            Delay => {
                soak.proxy.delay(Duration::from_millis(soak.random.between(50, 300)));
                wait(soak, 500, 5000);
                soak.proxy.delay(Duration::ZERO);
                at = soak.now();
            }
            OneWay => {
                let way = if soak.random.below(2) == 0 { Way::Up } else { Way::Down };
                soak.proxy.lose(way, true);
                wait(soak, 200, 25_000);
                soak.proxy.lose(way, false);
                at = soak.now();
            }
        }
        Ok(at)
    }
}

/// The fault lasts.
fn wait(soak: &mut Soak<'_>, least_ms: u64, most_ms: u64) {
    let most_ms = most_ms.min(soak.longest_ms);
    std::thread::sleep(Duration::from_millis(soak.random.between(least_ms.min(most_ms), most_ms)));
}

fn take(soak: &mut Soak<'_>, count: usize) -> Vec<String> {
    let mut names = soak.victims();
    soak.random.shuffle(&mut names);
    names.truncate(count);
    names
}

fn kill(soak: &mut Soak<'_>, count: usize) -> Result<()> {
    for name in take(soak, count) {
        soak.cluster.take_worker(&name)?.kill();
    }
    Ok(())
}

fn stop(soak: &mut Soak<'_>, least_ms: u64, most_ms: u64) -> Result<f64> {
    let names = take(soak, 1);
    let signal = |soak: &mut Soak<'_>, signal| -> Result<()> {
        for name in &names {
            soak.cluster.worker(name)?.signal(signal);
        }
        Ok(())
    };
    signal(soak, Signal::STOP)?;
    wait(soak, least_ms, most_ms);
    signal(soak, Signal::CONT)?;
    Ok(soak.now())
}
