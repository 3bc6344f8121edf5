//! What all hosts of one simulation share: who saw what, and when.

use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use lockstep_proto::recipe::Recipe;

use crate::course::Course;
use crate::rules::Rules;
use crate::states::States;

/// One run, seen from outside. Only one thread is ever awake, so the locks are free.
#[derive(Debug)]
pub struct Witness {
    pub recipe: Recipe,
    pub course: Course,
    pub run_dir: PathBuf,
    pub states: Mutex<States>,
    pub rules: Mutex<Rules>,
    violations: Mutex<Vec<String>>,
    history: Mutex<Vec<String>>,
    now_ms: AtomicU64,
}

impl Witness {
    pub fn new(recipe: Recipe, run_dir: &Path) -> Self {
        let course = Course::new(&recipe);
        Self {
            rules: Mutex::new(Rules::new(course.clone(), run_dir)),
            recipe,
            course,
            run_dir: run_dir.to_owned(),
            states: Mutex::default(),
            violations: Mutex::default(),
            history: Mutex::default(),
            now_ms: AtomicU64::new(0),
        }
    }

    pub fn set_now(&self, now: Duration) {
        self.now_ms.store(now.as_millis() as u64, Ordering::Relaxed);
    }

    /// Something happened.
    pub fn log(&self, what: impl AsRef<str>) {
        let line = format!("{:>9} ms  {}", self.now_ms.load(Ordering::Relaxed), what.as_ref());
        self.history.lock().unwrap().push(line);
    }

    /// Something must be so. What is not comes out at the end of the simulation's step.
    pub fn check(&self, result: Result<(), String>) {
        if let Err(what) = result {
            self.log(format!("VIOLATION {what}"));
            self.violations.lock().unwrap().push(what);
        }
    }

    /// The first rule that was broken, if any.
    pub fn violation(&self) -> Option<String> {
        self.violations.lock().unwrap().first().cloned()
    }

    pub fn history(&self) -> Vec<String> {
        self.history.lock().unwrap().clone()
    }
}
