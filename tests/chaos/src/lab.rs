//! What all scenarios share: executables, folders, the undisturbed runs that others are compared with, the audits.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use anyhow::{Context as _, Result, bail};
use tempfile::TempDir;

use crate::cluster::{Cluster, Place};
use crate::course::Course;
use crate::options::Options;
use crate::random::Random;
use crate::recipe::Recipe;

/// How a run directory in a temporary folder begins: the process that made it follows.
pub const PREFIX: &str = "lockstep-chaos-";

/// Made once a call.
#[derive(Debug)]
pub struct Lab {
    /// What was asked for.
    pub options: Options,
    root: PathBuf,
    _temporary: Option<TempDir>,
    num_runs: Cell<u32>,
    references: RefCell<BTreeMap<String, Course>>,
    audits: Cell<u32>,
    audited_steps: Cell<u64>,
}

impl Lab {
    /// Makes its folder.
    pub fn new(options: Options) -> Result<Self> {
        for program in [&options.lockstep, &options.worker] {
            if !program.is_file() {
                bail!("{}: no such program; build it, or name another --bin-dir", program.display());
            }
        }
        let (root, temporary) = match &options.dir {
            Some(dir) => (dir.clone(), None),
            None => {
                let dir = tempfile::Builder::new().prefix(&format!("{PREFIX}{}-", std::process::id())).tempdir()?;
                (dir.path().to_owned(), Some(dir))
            }
        };
        std::fs::create_dir_all(&root).with_context(|| format!("cannot make {}", root.display()))?;
        Ok(Self {
            options,
            root: root.canonicalize()?,
            _temporary: temporary,
            num_runs: Cell::new(0),
            references: RefCell::default(),
            audits: Cell::new(0),
            audited_steps: Cell::new(0),
        })
    }

    /// A folder that nobody has used.
    pub fn fresh(&self, name: &str) -> Result<PathBuf> {
        self.num_runs.set(self.num_runs.get() + 1);
        let dir = self.root.join(format!("{:04}-{name}", self.num_runs.get()));
        std::fs::create_dir_all(&dir)?;
        Ok(dir)
    }

    /// Draws for one purpose.
    pub fn random(&self, purpose: &str) -> Random {
        Random::new(self.options.seed, purpose)
    }

    /// Whether namespaces, mounts and control groups can be had.
    pub fn is_root(&self) -> bool {
        rustix::process::geteuid().is_root()
    }

    /// `lockstep` with these arguments, to its end.
    pub fn lockstep(&self, args: &[&str]) -> Result<Output> {
        let mut command = Command::new(&self.options.lockstep);
        command.env("LOCKSTEP_WORKER", &self.options.worker).args(args);
        command.output().with_context(|| format!("cannot start {}", self.options.lockstep.display()))
    }

    /// `lockstep audit RUN`, which must find nothing.
    pub fn audit(&self, run: &Path) -> Result<()> {
        let output = self.lockstep(&["audit", "--json", &run.to_string_lossy()])?;
        if !output.status.success() {
            bail!("the audit of {}: {}", run.display(), String::from_utf8_lossy(&output.stderr).trim());
        }
        let report: serde_json::Value = serde_json::from_slice(&output.stdout)?;
        self.audits.set(self.audits.get() + 1);
        self.audited_steps.set(self.audited_steps.get() + report["steps"].as_u64().unwrap_or(0));
        Ok(())
    }

    /// Audits so far that found nothing, and the steps in them.
    pub fn audits(&self) -> (u32, u64) {
        (self.audits.get(), self.audited_steps.get())
    }

    /// The course of a recipe up to a step, as one undisturbed worker takes it.
    pub fn reference(&self, recipe: &Recipe, steps: u64) -> Result<Course> {
        let recipe = recipe.course_of(steps);
        let key = recipe.toml();
        if let Some(course) = self.references.borrow().get(&key) {
            return Ok(course.clone());
        }
        let mut cluster = Cluster::start(self, "reference", recipe, Place::Loopback)?;
        cluster.start_worker(&["--threads", "1"])?;
        cluster.finish().context("the undisturbed run")?;
        let course = Course::read(&cluster.run)?;
        self.references.borrow_mut().insert(key, course.clone());
        Ok(course)
    }

    /// Audits a run that has ended, and compares it with an undisturbed one, to the bit.
    pub fn prove(&self, recipe: &Recipe, run: &Path) -> Result<Course> {
        self.audit(run)?;
        let course = Course::read(run)?;
        let reference = self.reference(recipe, course.last_step())?;
        course.must_equal(&reference)?;
        Ok(course)
    }
}
