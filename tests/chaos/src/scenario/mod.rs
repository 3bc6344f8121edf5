//! The scenarios: each shows one promise, or a few, and gives lines of the table.

mod balance;
mod bits;
mod coordinator;
mod disk;
mod flips;
mod hung;
mod join;
mod kill;
mod resume;
mod rollback;
mod signals;
mod silent;
mod soak;
mod straggler;
mod torchrun;
mod worlds;

use anyhow::Result;

use crate::lab::Lab;
use crate::options::Amount;
use crate::table::Line;

/// One of them.
pub struct Scenario {
    /// How it is called.
    pub name: &'static str,
    /// Numbers of the promises it shows.
    pub promises: &'static [&'static str],
    /// In a line.
    pub about: &'static str,
    /// Trials: few, as usual, as the goals ask.
    counts: [u32; 3],
    run: fn(&Lab, u32) -> Result<Vec<Line>>,
}

impl Scenario {
    /// Whether it was asked for: by name, or by a promise.
    pub fn is_in(&self, only: &[String]) -> bool {
        only.is_empty() || only.iter().any(|wanted| wanted == self.name || self.promises.contains(&wanted.as_str()))
    }

    /// How many trials it makes.
    pub fn count(&self, lab: &Lab) -> u32 {
        let usual = match lab.options.amount {
            Amount::Few => self.counts[0],
            Amount::Usual => self.counts[1],
            Amount::Goal => self.counts[2],
        };
        lab.options.trials.get(self.name).copied().unwrap_or(usual)
    }

    /// Carries it through. What breaks it is its error.
    pub fn run(&self, lab: &Lab) -> Result<Vec<Line>> {
        (self.run)(lab, self.count(lab))
    }
}

/// All, in the order of the promises.
pub const ALL: &[Scenario] = &[
    Scenario {
        name: "resume",
        promises: &["2"],
        about: "kill −9 of everything at a random step, resumed on another number of workers",
        counts: [2, 20, 100],
        run: resume::run,
    },
    Scenario {
        name: "worlds",
        promises: &["3"],
        about: "worlds of 1 to 8 replicas, in one process or several, uneven and empty shards",
        counts: [3, 8, 8],
        run: worlds::run,
    },
    Scenario {
        name: "kill",
        promises: &["4"],
        about: "kill −9 of one of three workers",
        counts: [3, 40, 200],
        run: kill::run,
    },
    Scenario {
        name: "silent",
        promises: &["5"],
        about: "SIGSTOP, a pulled cable, loss in one direction; and back",
        counts: [1, 5, 25],
        run: silent::run,
    },
    Scenario {
        name: "hung",
        promises: &["6"],
        about: "a stalled and a dead rank are named; delay, pauses and slow cables are left alone",
        counts: [1, 5, 25],
        run: hung::run,
    },
    Scenario {
        name: "coordinator",
        promises: &["7"],
        about: "kill −9 of the coordinator, restarted soon, and after a long absence",
        counts: [2, 15, 50],
        run: coordinator::run,
    },
    Scenario {
        name: "join",
        promises: &["8"],
        about: "workers join a run, over a slow cable too; a joiner is killed half-way",
        counts: [2, 10, 50],
        run: join::run,
    },
    Scenario {
        name: "disk",
        promises: &["9"],
        about: "death while a checkpoint is written; a full disk",
        counts: [2, 10, 50],
        run: disk::run,
    },
    Scenario {
        name: "flips",
        promises: &["10"],
        about: "flipped bits and truncations of a checkpoint's files",
        counts: [200, 2_000, 10_000],
        run: flips::run,
    },
    Scenario {
        name: "signals",
        promises: &["11"],
        about: "SIGTERM and SIGUSR1 to one worker, to all, to the coordinator, at random moments",
        counts: [1, 8, 50],
        run: signals::run,
    },
    Scenario {
        name: "straggler",
        promises: &["12"],
        about: "a worker that computes for a third of the time is named",
        counts: [1, 3, 10],
        run: straggler::run,
    },
    Scenario {
        name: "soak",
        promises: &["14", "1"],
        about: "random faults for as long as --minutes says",
        counts: [1, 1, 1],
        run: soak::run,
    },
    Scenario {
        name: "bits",
        promises: &["shows-1"],
        about: "300 steps with 8 kills, 4 joins and 2 coordinator kills, against one undisturbed worker",
        counts: [1, 3, 25],
        run: bits::run,
    },
    Scenario {
        name: "balance",
        promises: &["shows-2"],
        about: "speed and bits beside a throttled worker, with elastic.balance and without",
        counts: [1, 1, 3],
        run: balance::run,
    },
    Scenario {
        name: "versus-torchrun",
        promises: &["shows-3"],
        about: "from kill −9 to the next step, beside torchrun and DDP",
        counts: [1, 5, 10],
        run: torchrun::run,
    },
    Scenario {
        name: "rollback",
        promises: &["shows-4"],
        about: "all workers die between two checkpoints, the coordinator lives",
        counts: [1, 5, 20],
        run: rollback::run,
    },
];
