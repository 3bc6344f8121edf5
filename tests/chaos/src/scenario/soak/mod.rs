//! Promise 14: random faults for a long time; and 1: audits of every run that this call made.
//!
//! ```text
//! ┌─► fill up to 3 workers ─► wait ─► a fault ─► a step is committed again, within a deadline ─┐
//! └────────────────────────────────────────────────────────────────────────────────────────────┘
//! at the end: audit, every loss and the final state against an undisturbed run, growth of memory
//! ```

mod fault;
mod memory;

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};

use self::fault::Fault;
use self::memory::Memory;
use crate::cluster::{Cluster, PATIENCE, Place};
use crate::figures::Samples;
use crate::lab::Lab;
use crate::process::{unix_s, until};
use crate::proxy::Proxy;
use crate::random::Random;
use crate::recipe::Recipe;
use crate::table::Line;
use crate::trials::Trials;
use crate::watch::Watch;

/// Workers that it is filled up to.
const WORKERS: usize = 3;
/// Of the time; afterwards coordinator and first worker are spared, so that their memory can be followed.
const ROUGH: f64 = 0.4;

/// A soak under way.
struct Soak<'a> {
    cluster: Cluster<'a>,
    watch: Watch,
    proxy: Proxy,
    random: Random,
    memory: Memory,
    /// Whether coordinator and first worker are spared.
    is_gentle: bool,
    /// No fault lasts longer: a short soak has many all the same.
    longest_ms: u64,
}

pub fn run(lab: &Lab, _: u32) -> Result<Vec<Line>> {
    let minutes = lab.options.soak.as_secs_f64() / 60.0;
    let (least, most) = lab.options.fault_every_s;
    let what = format!("{minutes:.1} min of chaos, a fault every {least} to {most} s");
    let mut trials = Trials::new("14", &what, "goes on after each; audit; same bits as undisturbed");
    let mut soak = Soak::start(lab)?;
    let begun = Instant::now();
    let mut kinds: BTreeMap<&'static str, Samples> = BTreeMap::new();
    let mut all = Samples::default();
    let mut failures = 0;
    while begun.elapsed() < lab.options.soak && failures < 5 {
        soak.is_gentle = begun.elapsed().as_secs_f64() > ROUGH * lab.options.soak.as_secs_f64();
        let fault = Fault::draw(&mut soak.random, soak.is_gentle);
        let pause = Duration::from_millis(soak.random.between(least * 1000, most * 1000));
        let result = soak.wait(pause).and_then(|()| soak.suffer(fault));
        match &result {
            Ok(seconds) => {
                kinds.entry(fault.name()).or_default().push(*seconds);
                all.push(*seconds);
            }
            Err(_) => failures += 1,
        }
        let is_good = trials.record(result.map(drop).map_err(|error| error.context(fault.name())));
        if !is_good && let Err(error) = soak.mend() {
            trials.note(format!("could not be mended: {error:#}"));
            break;
        }
    }
    let proved = soak.fill().and_then(|()| soak.cluster.stop_and_prove());
    let steps = proved.as_ref().copied().unwrap_or(0);
    trials.must("the bits of the undisturbed run, and the audit", proved.map(drop));
    let names: Vec<String> = kinds.iter().map(|(name, seen)| format!("{name} {}", seen.len())).collect();
    let figures =
        format!("{steps} steps; next commit {}, max {:.1} s ({})", all.seconds(), all.max(), names.join(", "));
    let mut lines = vec![trials.line(figures)];
    lines.push(soak.memory.line());
    Ok(lines)
}

impl<'a> Soak<'a> {
    fn start(lab: &'a Lab) -> Result<Self> {
        let mut cluster = Cluster::start(lab, "soak", Recipe::endless(&lab.options.sets), Place::Loopback)?;
        let proxy = Proxy::start(cluster.address())?;
        cluster.through = Some(proxy.url());
        let watch = cluster.watch()?;
        let random = lab.random("soak");
        let longest_ms = (lab.options.soak.as_millis() as u64 / 10).min(25_000);
        let mut soak = Self { cluster, watch, proxy, random, memory: Memory::default(), is_gentle: false, longest_ms };
        soak.fill()?;
        Ok(soak)
    }

    /// Replaces workers that are gone; waits until whoever is there trains together.
    fn fill(&mut self) -> Result<()> {
        let what = "all workers train together";
        let end = Instant::now() + PATIENCE;
        loop {
            self.cluster.workers.retain_mut(|worker| worker.is_alive());
            while self.cluster.workers.len() < WORKERS {
                self.cluster.start_worker(&[])?;
            }
            let world = self.cluster.workers.len() as u64;
            let step = self.watch.step()? + 1;
            let left = end.saturating_duration_since(Instant::now());
            ensure!(!left.is_zero(), "{what}: not within {PATIENCE:?}");
            if self.cluster.wait_within(&self.watch, step, world, left.min(Duration::from_secs(10))).is_ok() {
                return Ok(());
            }
            self.coordinator_must_live()?;
        }
    }

    fn coordinator_must_live(&mut self) -> Result<()> {
        let Some(coordinator) = &mut self.cluster.coordinator else { anyhow::bail!("no coordinator") };
        if let Some(status) = coordinator.ended() {
            anyhow::bail!("the coordinator ended with {status}: {}", coordinator.last_words());
        }
        Ok(())
    }

    /// Lets it train, and looks at everyone's memory.
    fn wait(&mut self, pause: Duration) -> Result<()> {
        self.fill()?;
        let end = Instant::now() + pause;
        while Instant::now() < end {
            self.memory.sample(self.cluster.coordinator.iter().chain(&self.cluster.workers));
            let left = end.saturating_duration_since(Instant::now());
            std::thread::sleep(left.min(Duration::from_secs(1))); // faults come at random moments
        }
        Ok(())
    }

    /// One fault; seconds from its end, or from the death that it is, to the next commit.
    fn suffer(&mut self, fault: Fault) -> Result<f64> {
        let before = self.watch.step()?;
        let since = fault.strike(self)?;
        until(&format!("a step is committed after {}", fault.name()), PATIENCE, || {
            self.coordinator_must_live()?;
            let last = self.watch.last_commit()?;
            Ok(last.filter(|last| last.time > since && last.step > before).map(|last| last.time))
        })
        .map(|time| time - since)
    }

    /// After a fault that was not survived: everyone anew, on the same run.
    fn mend(&mut self) -> Result<()> {
        self.proxy.cut(false);
        self.proxy.delay(Duration::ZERO);
        self.cluster.workers.clear();
        self.cluster.coordinator = None;
        self.cluster.resume()?;
        self.fill()
    }

    /// Workers that may be hurt.
    fn victims(&self) -> Vec<String> {
        let spared = usize::from(self.is_gentle);
        self.cluster.workers.iter().skip(spared).map(|worker| worker.name().to_owned()).collect()
    }

    fn now(&self) -> f64 {
        unix_s()
    }
}
