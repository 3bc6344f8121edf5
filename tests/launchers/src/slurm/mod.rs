//! `deploy/slurm` on a real Slurm.

mod cluster;
mod job;
#[cfg(test)]
mod scripts;

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, ensure};
use lockstep_chaos::{Course, Table, Watch, signal};
use rustix::process::Signal;

use self::cluster::Cluster;
use self::job::{Job, Order};
use crate::program::{EPOCH, PATIENCE, Program, RECIPE, said, sets};
use crate::wait::until;
use crate::{Check, table};

/// A call.
#[derive(Clone, Debug)]
pub struct Options {
    /// Where the executables are.
    pub bin_dir: PathBuf,
    /// Where everything is kept; `None`: in a temporary folder, which goes.
    pub dir: Option<PathBuf>,
    /// Words: checks with none of them are left out; empty: all are made.
    pub only: Vec<String>,
    /// Steps of each run.
    pub steps: u64,
}

/// A started cluster, and what its runs must come to.
struct Site {
    cluster: Cluster,
    program: Program,
    steps: u64,
    /// One process, no Slurm.
    reference: Course,
}

const CHECKS: &[Check<Site>] = &[
    Check {
        what: "`sbatch cifar.sbatch`, 2 nodes × 2 tasks",
        bound: "COMPLETED, 4 ranks, audit, the state of one process",
        run: completes,
    },
    Check {
        what: "`scancel --signal=USR1` in the middle of an epoch",
        bound: "saved, requeued by the script, resumed there, the state of one process",
        run: requeued,
    },
    Check { what: "kill −9 of one task", bound: "goes on with 3, COMPLETED, the state of one process", run: killed },
    Check { what: "two jobs at once on the same nodes", bound: "both COMPLETED, own ports", run: two_at_once },
    Check { what: "a recipe with an unknown key", bound: "FAILED with 64, no requeue", run: wrong_recipe },
    Check { what: "`scancel`", bound: "saved, no requeue; a later job goes on with the run", run: cancelled },
    Check { what: "`salloc … srun lockstep train`, no script", bound: "the state of one process", run: allocation },
];

/// Starts a cluster and makes all checks.
///
/// # Errors
/// It cannot be started, or the run alone fails.
pub fn run(options: &Options) -> Result<Table> {
    let program = Program::new(&options.bin_dir)?;
    let temporary = tempfile::Builder::new().prefix("lockstep-slurm-").tempdir()?;
    let dir = options.dir.as_deref().unwrap_or(temporary.path());
    fs::create_dir_all(dir).with_context(|| dir.display().to_string())?;
    let dir = fs::canonicalize(dir)?;
    let reference = program.alone(options.steps, &dir.join("alone")).context("the run as one process")?;
    let mut site = Site { cluster: Cluster::start(&dir)?, program, steps: options.steps, reference };
    let table = table(("8.1", &options.only), CHECKS, &site);
    site.cluster.check()?;
    Ok(table)
}

impl Site {
    /// `sbatch cifar.sbatch` as its header says.
    fn submit(&self, change: impl FnOnce(&mut Order<'_>)) -> Result<Job<'_>> {
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../deploy/slurm/cifar.sbatch");
        let mut order = Order {
            options: &["--nodes=2", "--ntasks-per-node=2", "--cpus-per-task=1"],
            variables: vec![
                ("LOCKSTEP_BIN", self.program.lockstep.display().to_string()),
                ("LOCKSTEP_RECIPE", RECIPE.into()),
                ("LOCKSTEP_ARGS", sets(self.steps).join(" ")),
            ],
        };
        change(&mut order);
        Job::submit(&self.cluster, &script, order)
    }

    /// Whether a run is the one that one process made, and its audit passes.
    fn is_the_same(&self, run: &Path) -> Result<String> {
        let course = Course::read(run)?;
        course.must_equal(&self.reference)?;
        self.program.audit(run)?;
        Ok(format!("{} steps audited, state {}", course.last_step(), &course.state_sha256[..12]))
    }

    /// The middle of an epoch, with steps left.
    fn is_midway(&self, step: u64) -> bool {
        step > EPOCH && (20..70).contains(&(step % EPOCH)) && step + EPOCH < self.steps
    }
}

fn worlds(run: &Path) -> Result<(u64, u64)> {
    let watch = Watch::open(run)?;
    let most = watch.count("SELECT max(world_size) FROM steps")?;
    let last = watch.count("SELECT world_size FROM steps ORDER BY step DESC LIMIT 1")?;
    Ok((most, last))
}

fn completes(site: &Site) -> Result<String> {
    let job = site.submit(|_| ())?;
    job.reaches(&job.run_dir(), |_| true)?;
    let mode = fs::metadata(job.token()).context("the token's file")?.permissions().mode() & 0o777;
    ensure!(mode == 0o600, "the token's file has mode {mode:o}");
    let shown = job.complete(PATIENCE)?;
    ensure!(shown.restarts() == 0, "{} restarts", shown.restarts());
    let (most, last) = worlds(&job.run_dir())?;
    ensure!((most, last) == (4, 4), "{most} ranks at most, {last} in the end");
    ensure!(!job.token().exists(), "the token's file is still there");
    Ok(format!("{last} ranks, {}", site.is_the_same(&job.run_dir())?))
}

fn requeued(site: &Site) -> Result<String> {
    let job = site.submit(|_| ())?;
    let run = job.run_dir();
    job.reaches(&run, |step| site.is_midway(step))?;
    job.cancel(&["--signal=USR1"])?;
    job.wait("back in the queue", PATIENCE, |shown| shown.restarts() == 1)?;
    let at = job.wait("its first start is over", PATIENCE, |shown| shown.state() == "PENDING");
    let watch = Watch::open(&run)?;
    let (step, generation) = (watch.step()?, watch.generation()?);
    let saved = run.join(format!("checkpoints/step-{step}")).is_dir();
    // It may have been started again already; then these are of the second start.
    ensure!(at.is_err() || saved, "no checkpoint of step {step}, the last before the requeue");
    job.complete(PATIENCE)?;
    let base = watch.count(&format!("SELECT base_step FROM generations WHERE generation = {}", generation + 1))?;
    ensure!(base == step, "saved at step {step}, resumed at {base}");
    ensure!(base % EPOCH != 0, "resumed at step {base}, the end of an epoch");
    let log = job.log();
    ensure!(log.contains("ended with 75 after 0 restarts; back into the queue"), "the script did not requeue: {log}");
    Ok(format!("resumed at step {base} of epochs of {EPOCH}, {}", site.is_the_same(&run)?))
}

fn killed(site: &Site) -> Result<String> {
    let job = site.submit(|_| ())?;
    let run = job.run_dir();
    let step = job.reaches(&run, |step| site.is_midway(step))?;
    signal(job.worker(3)?, Signal::KILL);
    let shown = job.complete(PATIENCE)?;
    ensure!(shown.restarts() == 0, "{} restarts", shown.restarts());
    let (most, last) = worlds(&run)?;
    ensure!((most, last) == (4, 3), "{most} ranks at most, {last} in the end");
    let log = job.log();
    ensure!(log.contains("Killed"), "srun tells of no task that was killed: {log}");
    Ok(format!("killed at step {step}, {last} ranks in the end, {}", site.is_the_same(&run)?))
}

fn two_at_once(site: &Site) -> Result<String> {
    let jobs = [site.submit(|_| ())?, site.submit(|_| ())?];
    let mut urls = Vec::new();
    for job in &jobs {
        let text = until("a token's file", PATIENCE, || Ok(fs::read_to_string(job.token()).ok()))
            .with_context(|| job.log())?;
        let url = text.split('"').find(|word| word.starts_with("http://")).context("no address in the token's file")?;
        urls.push(url.to_owned());
    }
    ensure!(urls[0] != urls[1], "both coordinators at {}", urls[0]);
    let mut spans = Vec::new();
    let mut figures = Vec::new();
    for job in &jobs {
        job.complete(PATIENCE)?;
        let watch = Watch::open(&job.run_dir())?;
        let times = watch.commit_times(1, site.steps)?;
        let (first, last) = (times.first().context("no step")?.1, times.last().context("no step")?.1);
        spans.push((first, last));
        figures.push(site.is_the_same(&job.run_dir())?);
    }
    let both = spans[0].1.min(spans[1].1) - spans[0].0.max(spans[1].0);
    ensure!(both > 0.0, "they did not run at the same time");
    let ports: Vec<&str> = urls.iter().filter_map(|url| url.rsplit(':').next()).collect();
    Ok(format!("{both:.0} s side by side, ports {}; each {}", ports.join(" and "), figures[0]))
}

fn wrong_recipe(site: &Site) -> Result<String> {
    let args = format!("{} --set train.epoch=3", sets(site.steps).join(" "));
    let job = site.submit(|order| order.variables.push(("LOCKSTEP_ARGS", args)))?;
    let shown = job.wait("FAILED", PATIENCE, |shown| shown.state() == "FAILED")?;
    ensure!((shown.code(), shown.restarts()) == (64, 0), "code {}, {} restarts", shown.code(), shown.restarts());
    let log = job.log();
    let error = log.lines().find(|line| line.contains("train.epoch")).context("the log does not name the key")?;
    Ok(format!("“{}”", error.trim()))
}

fn cancelled(site: &Site) -> Result<String> {
    let job = site.submit(|_| ())?;
    let run = job.run_dir();
    job.reaches(&run, |step| site.is_midway(step))?;
    job.cancel(&[])?;
    let shown = job.wait("CANCELLED", PATIENCE, |shown| shown.state() == "CANCELLED")?;
    ensure!(shown.restarts() == 0, "{} restarts", shown.restarts());
    let step = until("the state is saved", PATIENCE, || {
        let step = Watch::open(&run)?.step()?;
        Ok(run.join(format!("checkpoints/step-{step}")).is_dir().then_some(step))
    })
    .with_context(|| job.log())?;
    let dir = run.display().to_string();
    let later = site.submit(|order| order.variables.push(("LOCKSTEP_RUN_DIR", dir)))?;
    later.complete(PATIENCE)?;
    Ok(format!("saved at step {step}; {}", site.is_the_same(&run)?))
}

fn allocation(site: &Site) -> Result<String> {
    let run = site.cluster.jobs().join("by-hand");
    let options = ["--nodes=2", "--ntasks-per-node=2", "--cpus-per-task=1", "srun", "--cpus-per-task=1"];
    let mut command = site.cluster.command("salloc", &options);
    command
        .arg(&site.program.lockstep)
        .args(["train", RECIPE, "--resume", "--run-dir"])
        .arg(&run)
        .args(sets(site.steps));
    said(&mut command)?;
    let (_, last) = worlds(&run)?;
    ensure!(last == 4, "{last} ranks");
    Ok(format!("{last} ranks, {}", site.is_the_same(&run)?))
}
