//! Promise 8: workers join a run that goes on.

use std::time::Duration;

use anyhow::{Result, ensure};
use rustix::process::Signal;

use crate::arena::{Arena, LEFT, Plan, try_all, within};
use crate::cluster::{PATIENCE, Place};
use crate::figures::Samples;
use crate::lab::Lab;
use crate::process::until;
use crate::random::Random;
use crate::recipe::Recipe;
use crate::table::Line;
use crate::trials::Trials;

const BOUND_S: f64 = 2.0;
/// Of a joiner's cable, and in bits a second.
const RATE: (&str, f64) = ("4mbit", 4e6);

pub fn run(lab: &Lab, count: u32) -> Result<Vec<Line>> {
    let plan =
        |name, in_namespaces| Plan { name, recipe: Recipe::endless(&lab.options.sets), workers: 2, in_namespaces };
    let mut random = lab.random("join");
    let bound = "nobody restarts, pause ≤ 2 s, states equal";
    let mut trials = Trials::new("8", "a third worker joins a run", bound);
    let mut pauses = Samples::default();
    try_all(lab, &plan("join", false), count, &mut trials, |arena| {
        let pause = join(arena, &mut random, None)?;
        pauses.push(pause);
        Ok(within("going on", pause, BOUND_S))
    });
    let mut lines = vec![trials.line(format!("pause {}, max {:.2} s", pauses.seconds(), pauses.max()))];

    let what = format!("the same over a cable of {}", RATE.0);
    if lab.is_root() {
        let mut trials = Trials::new("8", &what, "nobody restarts, pause ≤ 2 s plus transfer");
        let mut pauses = Samples::default();
        try_all(lab, &plan("join-slowly", true), count.div_ceil(3), &mut trials, |arena| {
            let pause = join(arena, &mut random, Some(RATE.0))?;
            let bytes = arena.watch.count("SELECT max(bytes) FROM checkpoints")?;
            pauses.push(pause);
            Ok(within("going on", pause, BOUND_S + bytes as f64 * 8.0 / RATE.1))
        });
        lines.push(trials.line(format!("pause {}, max {:.2} s", pauses.seconds(), pauses.max())));
    } else {
        lines.push(Line::left_out("8", &what, "network namespaces need root"));
    }

    let mut trials = Trials::new("8", "a joiner is killed half-way", "nobody restarts, pause ≤ 5 s");
    let mut pauses = Samples::default();
    try_all(lab, &plan("join-killed", false), count, &mut trials, |arena| {
        let pause = join_and_die(arena, &mut random)?;
        pauses.push(pause);
        Ok(within("going on", pause, 5.0))
    });
    lines.push(trials.line(format!("pause {}, max {:.2} s", pauses.seconds(), pauses.max())));
    Ok(lines)
}

/// The longest pause between two commits while a third worker came in; it leaves again.
fn join(arena: &mut Arena<'_>, random: &mut Random, rate: Option<&str>) -> Result<f64> {
    let before = arena.fill_and_run(random, 60)?.step;
    let name = arena.cluster.next_name();
    if let Place::Namespaces(net) = &mut arena.cluster.place {
        net.add_host(&name)?;
        net.rate(&name, rate)?;
    }
    let joiner = arena.cluster.start_worker(&[])?;
    let joined = arena.cluster.wait_for(&arena.watch, before, 3)?;
    let pause = longest_pause(arena, before, joined.step + 3)?;
    let mut joiner = arena.cluster.take_worker(&joiner)?;
    joiner.signal(Signal::TERM);
    let status = joiner.wait(PATIENCE)?;
    ensure!(status.code() == LEFT, "the joiner ended with {status}: {}", joiner.last_words());
    arena.cluster.must_live()?;
    Ok(pause)
}

fn join_and_die(arena: &mut Arena<'_>, random: &mut Random) -> Result<f64> {
    let before = arena.fill_and_run(random, 60)?.step;
    let joiner = arena.cluster.start_worker(&[])?;
    std::thread::sleep(Duration::from_millis(random.below(700))); // somewhere between its start and its first steps
    arena.cluster.take_worker(&joiner)?.kill();
    let now = arena.watch.step()?;
    let pause = longest_pause(arena, before, now + 30)?;
    arena.cluster.must_live()?;
    Ok(pause)
}

/// Between commits from one step to another, once that is committed.
fn longest_pause(arena: &mut Arena<'_>, from: u64, to: u64) -> Result<f64> {
    let watch = &arena.watch;
    until("the run goes on", PATIENCE, || Ok((watch.step()? >= to).then_some(())))?;
    let times = watch.commit_times(from, to)?;
    Ok(times.windows(2).map(|pair| pair[1].1 - pair[0].1).fold(0.0, f64::max))
}
