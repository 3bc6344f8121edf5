//! The thread that saves while training goes on. One checkpoint at a time: handing over the next one waits.

use std::path::PathBuf;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;

use crossbeam_channel::{Sender, bounded};

use super::{CheckpointError, Depot, Saved, Snapshot, dir_name, write};

/// Where checkpoints of a run are.
#[derive(Clone)]
pub enum Place {
    /// `RUN/checkpoints`, which this machine sees.
    Folder(PathBuf),
    /// The coordinator takes and gives them: this machine does not see the run directory.
    Remote(Arc<dyn Depot>),
}

/// Saves checkpoints while training goes on.
pub trait Saver: Send + Sync {
    /// Hands over a snapshot; waits while the one before is still being saved. After [`finish`](Self::finish) it is
    /// dropped.
    fn save(&self, snapshot: Snapshot);

    /// Waits for what is in hand.
    fn finish(&self) -> Pin<Box<dyn Future<Output = ()> + Send>>;
}

/// A saver with a thread of its own.
pub struct Writer {
    jobs: Mutex<Option<Sender<Snapshot>>>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

impl Writer {
    /// Starts the thread. `done` is called in it after each checkpoint.
    ///
    /// # Errors
    /// The system gives no thread.
    pub fn spawn(
        place: Place,
        mut done: impl FnMut(&Snapshot, Result<Saved, CheckpointError>) + Send + 'static,
    ) -> std::io::Result<Self> {
        // No queue: a sender waits until the thread is free.
        let (jobs, queue) = bounded::<Snapshot>(0);
        let thread = std::thread::Builder::new().name("checkpoint".into()).spawn(move || {
            for snapshot in queue {
                let result = save(&place, &snapshot);
                done(&snapshot, result);
            }
        })?;
        Ok(Self { jobs: Mutex::new(Some(jobs)), thread: Mutex::new(Some(thread)) })
    }
}

impl Saver for Writer {
    fn save(&self, snapshot: Snapshot) {
        let jobs = self.jobs.lock().unwrap_or_else(PoisonError::into_inner).clone();
        if let Some(jobs) = jobs {
            // It fails only when the thread is gone, and a panic there has ended the process.
            let _ = jobs.send(snapshot);
        }
    }

    fn finish(&self) -> Pin<Box<dyn Future<Output = ()> + Send>> {
        self.jobs.lock().unwrap_or_else(PoisonError::into_inner).take();
        let thread = self.thread.lock().unwrap_or_else(PoisonError::into_inner).take();
        Box::pin(async {
            if let Some(thread) = thread {
                let _ = tokio::task::spawn_blocking(move || thread.join()).await;
            }
        })
    }
}

fn save(place: &Place, snapshot: &Snapshot) -> Result<Saved, CheckpointError> {
    match place {
        Place::Folder(folder) => write(folder, snapshot),
        Place::Remote(depot) => {
            let dir = dir_name(snapshot.id.step);
            let temporary = std::env::temp_dir().join(format!("lockstep-{}-{dir}", uuid::Uuid::new_v4()));
            let result = super::write::stage(&temporary, snapshot)
                .and_then(|bytes| depot.upload(&temporary, &dir, snapshot).map(|()| Saved { dir, bytes }));
            let _ = std::fs::remove_dir_all(&temporary);
            result
        }
    }
}
