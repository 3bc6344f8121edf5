//! The run directory: one folder that is the run.
//!
//! ```text
//! runs/<name>/<UTC time>/   recipe.toml  provenance.json  run.db  metrics.jsonl  epochs.csv  .nonce
//! runs/<name>/latest ──►    checkpoints/step-N/  tensorboard/  logs/  report/     coordinator.json while it runs
//! ```

use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use lockstep_proto::exit::ExitCode;
use lockstep_proto::recipe::{Recipe, RecipeError};
use uuid::Uuid;

use crate::artifacts::replace;
use crate::clock;
use crate::provenance::{Provenance, build};
use crate::store::{self, StoreError};

const RECIPE: &str = "recipe.toml";
const NONCE: &str = ".nonce";

/// Nobody writes at one checkpoint for so long.
const LEFT_BEHIND: Duration = Duration::from_secs(3600);

/// Why a run directory cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum RunDirError {
    /// It holds a run of the same recipe.
    #[error("run directory {} holds a run already; continue it with --resume, or choose another --run-dir", path.display())]
    HoldsRun {
        /// The directory.
        path: PathBuf,
    },
    /// It holds a run of another recipe.
    #[error(
        "run directory {} holds another recipe ({}); choose another --run-dir",
        path.display(),
        differences.join("; ")
    )]
    HoldsOther {
        /// The directory.
        path: PathBuf,
        /// Keys with their values, there and here.
        differences: Vec<String>,
    },
    /// Keys differ that may not differ on resume.
    #[error(
        "cannot resume {}: {}; only elastic.*, checkpoint.*, log.*, data.path, model.weights once it has begun, and a \
         larger train.epochs or train.max_steps may change",
        path.display(),
        differences.join("; ")
    )]
    Changed {
        /// The directory.
        path: PathBuf,
        /// Keys with their values, there and here.
        differences: Vec<String>,
    },
    /// Its recipe is no longer the one that the run began with.
    #[error(
        "{} is not the recipe that this run began with: put the original back, or start another run with it in a new \
         --run-dir",
        path.display()
    )]
    Edited {
        /// The recipe.
        path: PathBuf,
    },
    /// It has a database and no recipe: nothing can be compared, so nothing may be continued.
    #[error("run directory {} has lost its recipe.toml; put it back, or choose another --run-dir", path.display())]
    NoRecipe {
        /// The directory.
        path: PathBuf,
    },
    /// It has checkpoints and no database: a new run in it would bury what is there.
    #[error("run directory {} has checkpoints but lost its run.db; put it back, or choose another --run-dir", path.display())]
    NoDatabase {
        /// The directory.
        path: PathBuf,
    },
    /// There is no run to continue.
    #[error("no run to resume below {}; leave --resume out, or name the run with --run-dir", path.display())]
    NoLatest {
        /// Where was looked.
        path: PathBuf,
    },
    /// Its recipe does not parse.
    #[error("{}", error)]
    Recipe {
        /// What is wrong with it.
        error: RecipeError,
    },
    /// It cannot be written or read.
    #[error("cannot write run directory {}: {error}; choose another --run-dir", path.display())]
    Io {
        /// File or folder.
        path: PathBuf,
        /// What the system says.
        error: io::Error,
    },
}

impl RunDirError {
    /// 64 for what was asked wrongly, 73 for what cannot be written.
    pub fn exit_code(&self) -> ExitCode {
        match self {
            Self::HoldsRun { .. }
            | Self::HoldsOther { .. }
            | Self::Changed { .. }
            | Self::Edited { .. }
            | Self::NoLatest { .. } => ExitCode::Usage,
            Self::NoRecipe { .. } | Self::NoDatabase { .. } => ExitCode::NoInput,
            Self::Recipe { error } => error.exit_code(),
            Self::Io { .. } => ExitCode::CantCreate,
        }
    }
}

fn has_checkpoints(path: &Path) -> bool {
    let is_one = |entry: fs::DirEntry| entry.file_name().to_string_lossy().starts_with("step-");
    fs::read_dir(path.join("checkpoints")).is_ok_and(|entries| entries.flatten().any(is_one))
}

/// A directory made ready for a coordinator.
#[derive(Clone, Debug)]
pub struct RunDir {
    path: PathBuf,
    nonce: String,
    resumed: bool,
}

impl RunDir {
    /// Makes `path` a run directory of `recipe`, or with `resume` continues the run in it. With `resume` and nothing
    /// there a new run begins: a job that a scheduler starts again needs one command for both.
    ///
    /// # Errors
    /// When it holds a run and `resume` is not set, or another run than asked for, or cannot be written.
    pub fn prepare(path: &Path, recipe: &Recipe, resume: bool) -> Result<Self, RunDirError> {
        let resumed = holds_run(path);
        if has_checkpoints(path) && !path.join("run.db").exists() {
            return Err(RunDirError::NoDatabase { path: path.to_owned() });
        }
        if resumed {
            check(path, recipe, resume)?;
        } else if resume {
            tracing::warn!(run_dir = %path.display(), "nothing to resume there, a new run begins");
        }
        for folder in [path.to_owned(), path.join("checkpoints"), path.join("logs")] {
            fs::create_dir_all(&folder).map_err(|error| RunDirError::Io { path: folder, error })?;
        }
        let path = fs::canonicalize(path).map_err(|error| RunDirError::Io { path: path.to_owned(), error })?;
        let nonce = nonce(&path)?;
        let directory = Self { path, nonce, resumed };
        if !resumed {
            Provenance::gather(recipe).write(&directory.path).map_err(RunDirError::from)?;
            directory.save_recipe(recipe)?;
        }
        Ok(directory)
    }

    /// Takes over a recipe that differs in keys that may differ. Only whoever holds the store's lease may.
    pub(crate) fn resume(&self, recipe: &Recipe) -> Result<(), RunDirError> {
        if self.resumed {
            self.save_recipe(recipe)?;
            Provenance::update(&self.path, Provenance::resume).map_err(RunDirError::from)?;
        }
        Ok(())
    }

    /// Removes what transfers and deletions left behind when a coordinator was killed. Only whoever holds the store's
    /// lease may.
    pub(crate) fn sweep(&self) {
        let Ok(entries) = fs::read_dir(self.path.join("checkpoints")) else { return };
        for entry in entries.flatten() {
            let name = entry.file_name();
            let name = name.to_string_lossy();
            // A worker that outlived the last coordinator may be writing: what is in hand is young.
            let is_left_behind = name.contains(".tmp-") && is_older(&entry, LEFT_BEHIND);
            let is_ours = [".upload-", ".old-", ".deleted-"].iter().any(|prefix| name.starts_with(prefix));
            if is_ours || is_left_behind {
                let _ = fs::remove_dir_all(entry.path());
            }
        }
    }

    fn save_recipe(&self, recipe: &Recipe) -> Result<(), RunDirError> {
        replace(&self.path.join(RECIPE), recipe.to_toml().as_bytes()).map_err(RunDirError::from)
    }

    /// Absolute, without links.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Content of `.nonce`: whoever reads the same sees the same directory.
    pub fn nonce(&self) -> &str {
        &self.nonce
    }

    /// Whether it held a run before.
    pub fn resumed(&self) -> bool {
        self.resumed
    }
}

impl From<StoreError> for RunDirError {
    fn from(error: StoreError) -> Self {
        match error {
            StoreError::File { path, error } => Self::Io { path, error },
            other => Self::Io { path: PathBuf::new(), error: io::Error::other(other.to_string()) },
        }
    }
}

/// Whether there is a run in `path`.
pub fn holds_run(path: &Path) -> bool {
    path.join(RECIPE).exists() || path.join(store::FILE_NAME).exists()
}

/// The recipe of a run directory.
///
/// # Errors
/// When there is none, or it does not parse.
pub fn recipe_of(path: &Path) -> Result<Recipe, RunDirError> {
    let file = path.join(RECIPE);
    let text = fs::read_to_string(&file).map_err(|error| RunDirError::Io { path: file.clone(), error })?;
    Recipe::from_toml(&text, &file.display().to_string()).map_err(|error| RunDirError::Recipe { error })
}

/// `recipe` as the run in `path` goes on with it: weights that the run began with are in its checkpoints, so where they
/// lie now does not matter, and the run keeps the path that it began with.
pub fn gone_on_with(path: &Path, mut recipe: Recipe) -> Recipe {
    let Ok(kept) = recipe_of(path) else { return recipe };
    let (then, now) = (kept.model.weights, &mut recipe.model.weights);
    if has_checkpoints(path) && *now != then && !now.is_empty() && !then.is_empty() {
        tracing::info!(run_dir = %path.display(), "the run has begun with model.weights = {then}; {now} is not read");
        *now = then;
    }
    recipe
}

/// A new directory's path, `root/<name>/<UTC time>`, that does not exist yet.
pub fn fresh(root: &Path, name: &str) -> PathBuf {
    let stamp = clock::utc_stamp(clock::unix_s() as u64);
    let first = root.join(name).join(&stamp);
    let later = (2..).map(|count: u32| root.join(name).join(format!("{stamp}-{count}")));
    // invariant: the range of names is without end, that of existing folders is not.
    std::iter::once(first.clone()).chain(later).find(|path| !path.exists()).unwrap_or(first)
}

/// The newest run of a name: where `root/<name>/latest` points.
///
/// # Errors
/// When there is none.
pub fn latest(root: &Path, name: &str) -> Result<PathBuf, RunDirError> {
    let link = root.join(name).join("latest");
    fs::canonicalize(&link).map_err(|_| RunDirError::NoLatest { path: root.join(name) })
}

/// Points `latest`, beside a run directory, at it.
///
/// # Errors
/// When the link cannot be made, or something that is no link has its name.
pub fn link_latest(run_dir: &Path) -> Result<(), RunDirError> {
    let (Some(folder), Some(name)) = (run_dir.parent(), run_dir.file_name()) else { return Ok(()) };
    let temporary = folder.join(format!(".latest-{}", Uuid::new_v4().simple()));
    let link = folder.join("latest");
    let io = |error| RunDirError::Io { path: link.clone(), error };
    std::os::unix::fs::symlink(name, &temporary).map_err(io)?;
    fs::rename(&temporary, &link).map_err(|error| {
        let _ = fs::remove_file(&temporary);
        io(error)
    })
}

fn check(path: &Path, recipe: &Recipe, resume: bool) -> Result<(), RunDirError> {
    if !path.join(RECIPE).exists() {
        return Err(RunDirError::NoRecipe { path: path.to_owned() });
    }
    let kept = recipe_of(path)?;
    if resume && was_edited(path, &kept) {
        return Err(RunDirError::Edited { path: path.join(RECIPE) });
    }
    let differences = kept.differences(recipe);
    let path = path.to_owned();
    match (resume, differences.is_empty()) {
        (true, true) => Ok(()),
        (true, false) => Err(RunDirError::Changed { path, differences }),
        (false, true) => Err(RunDirError::HoldsRun { path }),
        (false, false) => Err(RunDirError::HoldsOther { path, differences }),
    }
}

/// Whether someone changed the recipe in a run directory: keys that decide the course stay for the life of a run.
/// Another version of the program may know more keys, so its hash says nothing.
fn was_edited(path: &Path, kept: &Recipe) -> bool {
    let began = Provenance::read(path).filter(|began| began.build == build() && !began.recipe_sha256.is_empty());
    began.is_some_and(|began| began.recipe_sha256 != kept.sha256())
}

/// Reads `.nonce`, or makes one.
fn nonce(path: &Path) -> Result<String, RunDirError> {
    let file = path.join(NONCE);
    let io = |error| RunDirError::Io { path: file.clone(), error };
    match fs::File::create_new(&file) {
        Ok(mut created) => {
            let nonce = Uuid::new_v4().simple().to_string();
            created.write_all(nonce.as_bytes()).and_then(|()| created.sync_all()).map_err(io)?;
            Ok(nonce)
        }
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
            let nonce = fs::read_to_string(&file).map_err(io)?;
            if nonce.is_empty() {
                // Cut off while it was made.
                fs::remove_file(&file).map_err(io)?;
                return self::nonce(path);
            }
            Ok(nonce)
        }
        Err(error) => Err(io(error)),
    }
}

fn is_older(entry: &fs::DirEntry, than: Duration) -> bool {
    let age = entry.metadata().and_then(|found| found.modified()).map(|at| at.elapsed().unwrap_or_default());
    age.is_ok_and(|age| age > than)
}
