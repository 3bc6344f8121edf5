//! `deploy/docker` on a real Docker.

mod daemon;
mod fleet;
mod images;
#[cfg(test)]
mod mirror;

use std::fs;
use std::path::PathBuf;

use anyhow::{Context as _, Result, ensure};
use lockstep_chaos::{Course, Table, Watch};

use self::daemon::Daemon;
use self::fleet::Fleet;
use self::images::{BASE, IMAGES};
use crate::program::{Program, RECIPE, sets};
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
    /// Steps of the run.
    pub steps: u64,
    /// libtorch of the worker.
    pub libtorch: PathBuf,
    /// The base image as a tar file.
    pub base: PathBuf,
}

/// A Docker, and where everything lies.
struct Site {
    daemon: Daemon,
    dir: PathBuf,
    steps: u64,
}

const CHECKS: &[Check<Site>] = &[
    Check { what: "both images built from prebuilt executables", bound: "non-root, labelled, entry point", run: built },
    Check { what: "both built again, from nothing", bound: "the same layers", run: reproduced },
    Check { what: "`lockstep train` in the worker image", bound: "complete, read-only, uid 65532", run: alone },
    Check {
        what: "coordinator and three workers on a bridge network, one killed, one added",
        bound: "complete, audit, the state of one process; read-only, no capabilities, uid 65532",
        run: fleet_run,
    },
];

/// Builds both images and runs them.
///
/// # Errors
/// There is no Docker, or no base image.
pub fn run(options: &Options) -> Result<Table> {
    Program::new(&options.bin_dir)?;
    let temporary = tempfile::Builder::new().prefix("lockstep-docker-").tempdir()?;
    let dir = options.dir.as_deref().unwrap_or(temporary.path());
    fs::create_dir_all(dir).with_context(|| dir.display().to_string())?;
    let dir = fs::canonicalize(dir)?;
    images::context(&dir.join("context"), &options.bin_dir, &options.libtorch)?;
    let daemon = Daemon::start(&dir.join("docker"))?;
    images::import_base(&daemon, &options.base)?;
    let runs = dir.join("runs");
    fs::create_dir_all(&runs)?;
    std::os::unix::fs::chown(&runs, Some(fleet::UID), Some(fleet::UID))?;
    let site = Site { daemon, dir, steps: options.steps };
    let mut table = table(("8.4", &options.only), CHECKS, &site);
    // Which of the two ways of deploy/docker this was.
    for line in &mut table.lines {
        line.what.push_str(" (EXECUTABLES=prebuilt, LIBTORCH=prebuilt)");
    }
    Ok(table)
}

impl Site {
    fn runs(&self) -> PathBuf {
        self.dir.join("runs")
    }

    fn context(&self) -> PathBuf {
        self.dir.join("context")
    }
}

fn built(site: &Site) -> Result<String> {
    let mut figures = vec![format!("base {}", megabytes(images::size(&site.daemon, BASE)?))];
    for image in IMAGES {
        let (layers, bytes) = images::build(&site.daemon, &site.context(), image)?;
        images::check(&site.daemon, image.1)?;
        fs::write(site.dir.join(format!("{}.layers", image.0)), layers)?;
        figures.push(format!("{} {}", image.0, megabytes(bytes)));
    }
    Ok(figures.join(", "))
}

fn megabytes(bytes: u64) -> String {
    format!("{:.0} MB", bytes as f64 / 1e6)
}

fn reproduced(site: &Site) -> Result<String> {
    for image in IMAGES {
        let before = fs::read_to_string(site.dir.join(format!("{}.layers", image.0)))?;
        let (after, _) = images::build(&site.daemon, &site.context(), image)?;
        ensure!(before == after, "{}: {before}, then {after}", image.0);
    }
    Ok("2 images".into())
}

fn alone(site: &Site) -> Result<String> {
    let fleet = Fleet::new(&site.daemon, site.runs())?;
    let mut args = vec!["train".to_owned(), RECIPE.into(), "--run-dir".into(), "/runs/alone".into()];
    args.extend(["--workers".to_owned(), "1".into(), "--threads".into(), "1".into()]);
    args.extend(sets(site.steps));
    fleet.finish("worker", &args)?;
    let course = Course::read(&site.runs().join("alone"))?;
    Ok(format!("{} steps, state {}", course.last_step(), &course.state_sha256[..12]))
}

fn fleet_run(site: &Site) -> Result<String> {
    let fleet = Fleet::new(&site.daemon, site.runs())?;
    let run = site.runs().join("run");
    fleet.coordinator(RECIPE, &sets(site.steps))?;
    for worker in ["w1", "w2", "w3"] {
        fleet.worker(worker)?;
    }
    let third = site.steps / 3;
    let step = fleet.reaches(|step| step >= third)?;
    let healthy = fleet.ask("/healthz")?;
    ensure!(healthy == 200, "/healthz says {healthy}");
    ensure!(fleet.ask("/readyz")? == 200 && fleet.ask("/metrics")? == 200, "/readyz or /metrics is not there");
    fleet.kill("w2")?;
    let watch = Watch::open(&run)?;
    let fewer =
        |step: u64| watch.count("SELECT count(*) FROM steps WHERE world_size = 2").is_ok_and(|n| n > 0) && step > 0;
    let without = fleet.reaches(fewer)?;
    fleet.worker("w4")?;
    let code = fleet.wait("lockstep")?;
    ensure!(code == 0, "the coordinator ended with {code}: {}", fleet.logs());
    let last = watch.count("SELECT world_size FROM steps ORDER BY step DESC LIMIT 1")?;
    ensure!(last == 3 && watch.joins_of("w4")? == 1, "{last} ranks in the end");
    for worker in ["w1", "w3", "w4"] {
        let code = fleet.wait(worker)?;
        ensure!(code == 0, "{worker} ended with {code}: {}", fleet.logs());
    }
    fleet.finish("coordinator", &["audit".into(), "/runs/run".into()])?;
    let course = Course::read(&run)?;
    course.must_equal(&Course::read(&site.runs().join("alone")).context("the run in one container")?)?;
    Ok(format!(
        "killed at step {step}, 2 ranks at {without}, 3 in the end; {} steps, state {}",
        course.last_step(),
        &course.state_sha256[..12]
    ))
}

/// The checkout.
#[cfg(test)]
fn root() -> PathBuf {
    std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}
