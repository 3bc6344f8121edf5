//! From `Welcome` to `Ready`: everything that a worker loads.

use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use lockstep_collective::Listener;
use lockstep_proto::exit::ExitCode;
use lockstep_proto::ids::StateId;
use lockstep_proto::message::{CheckpointSaved, DataIdentity, FromWorker, Sha256, Welcome};
use lockstep_proto::plan::Course;
use lockstep_proto::recipe::Recipe;
use tokio::runtime::Handle as Runtime;
use tokio::sync::mpsc::UnboundedSender;

use super::Config;
use crate::checkpoint::{CheckpointError, Place, RemoteDepot, Saved, Saver, Snapshot, Writer};
use crate::compute::{Compute, ComputeError};
use crate::exit::Exit;
use crate::replica::{Event, Handle, Shared, Thread};

/// Data on the way, with their identity.
pub type Loading<D> = Pin<Box<dyn Future<Output = Result<(D, DataIdentity), Exit>> + Send>>;

/// What a saver does after each checkpoint.
pub type Done = Box<dyn FnMut(&Snapshot, Result<Saved, CheckpointError>) + Send>;

/// Makes what computes, and gives it a place to run: a thread for each replica, which
/// meets others by the transport of its device, and one that saves.
/// The product has one; tests have one of integers, a simulation one that runs in virtual time.
pub trait Workshop: Send + Sync + Sized + 'static {
    /// What replicas load from.
    type Data: Clone + Send + 'static;

    /// Prepares the process for an instruction set, before anything is computed. Called once.
    ///
    /// # Errors
    /// The library knows no such set.
    fn limit_isa(&self, isa: &str) -> Result<(), Exit>;

    /// Opens the recipe's data. Slow.
    ///
    /// # Errors
    /// Missing or wrong data.
    fn load(&self, recipe: &Recipe) -> Result<(Self::Data, DataIdentity), Exit>;

    /// Calls [`load`](Self::load) where it holds up nobody: in a thread of its own.
    fn load_aside(self: Arc<Self>, recipe: Recipe) -> Loading<Self::Data> {
        Box::pin(async move {
            let loaded = tokio::task::spawn_blocking(move || self.load(&recipe)).await;
            loaded.unwrap_or_else(|error| Err(Exit::new(ExitCode::Software, error.to_string())))
        })
    }

    /// Builds a replica, in its thread.
    ///
    /// # Errors
    /// The device or the library refuses.
    fn build(&self, recipe: &Recipe, data: Self::Data) -> Result<Box<dyn Compute>, ComputeError>;

    /// Starts replica `index` of the process. Gives its handle, and the address at which its collectives listen.
    ///
    /// # Errors
    /// No thread, no socket.
    fn employ(
        self: &Arc<Self>,
        index: u32,
        config: &Config,
        shared: Arc<Shared>,
        data: Self::Data,
    ) -> Result<(Box<dyn Handle>, String), Exit> {
        let listener = Listener::bind(&config.advertise).map_err(|error| {
            Exit::new(
                ExitCode::CantCreate,
                format!("{error}; is --advertise {} an address of this machine?", config.advertise),
            )
        })?;
        let address = listener.address();
        let (workshop, recipe) = (Arc::clone(self), shared.recipe.clone());
        let build = move || workshop.build(&recipe, data);
        let device = config.devices.get(index as usize).map_or("cpu", String::as_str);
        let door = config.transport.door(listener, device)?;
        let thread = Thread::spawn(index, door, shared, build).map_err(no_thread)?;
        Ok((Box::new(thread), address))
    }

    /// Starts what saves checkpoints in `place`.
    ///
    /// # Errors
    /// No thread.
    fn saver(&self, place: Place, done: Done) -> Result<Box<dyn Saver>, Exit> {
        Ok(Box::new(Writer::spawn(place, done).map_err(no_thread)?))
    }
}

fn no_thread(error: std::io::Error) -> Exit {
    Exit::new(ExitCode::Software, format!("cannot start a thread: {error}"))
}

/// The run that this worker has joined.
pub struct Run {
    /// What the coordinator said of it.
    pub welcome: Welcome,
    /// Its recipe.
    pub recipe: Recipe,
    /// Where its checkpoints are.
    pub place: Place,
    /// Once loaded.
    pub data: Option<DataIdentity>,
    /// Once data is loaded.
    pub replicas: Vec<Replica>,
    /// Once data is loaded.
    pub shared: Option<Arc<Shared>>,
    /// From replica 0, once built.
    pub canary: Option<Sha256>,
}

/// What the session knows of a replica.
pub struct Replica {
    /// Its other end.
    pub handle: Box<dyn Handle>,
    /// Where its collectives listen.
    pub address: String,
    /// Whether its model is built.
    pub is_built: bool,
    /// What it held when it last halted.
    pub state: Option<StateId>,
}

impl Run {
    /// Reads the welcome.
    ///
    /// # Errors
    /// The recipe makes no sense to this version.
    pub fn new(config: &Config, welcome: Welcome) -> Result<Self, Exit> {
        let recipe = Recipe::from_toml(&welcome.recipe_toml, "the coordinator's recipe")
            .map_err(|error| Exit::new(error.exit_code(), error.to_string()))?;
        let place = match seen(&welcome) {
            Some(run_dir) => Place::Folder(run_dir.join("checkpoints")),
            None => Place::Remote(Arc::new(RemoteDepot {
                coordinator: config.coordinator.clone(),
                runtime: Runtime::current(),
                run_id: welcome.run_id.clone(),
                worker: config.worker.clone(),
                patience: Duration::from_secs_f64(recipe.elastic.reconnect_timeout_s),
            })),
        };
        Ok(Self { welcome, recipe, place, data: None, replicas: Vec::new(), shared: None, canary: None })
    }

    /// Starts the replicas, and what saves their checkpoints.
    ///
    /// # Errors
    /// No thread, no socket.
    pub fn start<W: Workshop>(
        &mut self,
        config: &Config,
        workshop: &Arc<W>,
        (data, identity): (W::Data, DataIdentity),
        events: &UnboundedSender<Event>,
    ) -> Result<(), Exit> {
        let saver = {
            let events = events.clone();
            let done: Done = Box::new(move |snapshot, result| {
                if let Some(event) = saved(snapshot, result) {
                    let _ = events.send(event);
                }
            });
            workshop.saver(self.place.clone(), done)?
        };
        let shared = Arc::new(Shared {
            worker: config.worker.clone(),
            recipe: self.recipe.clone(),
            course: Course::new(&self.recipe, identity.num_train),
            place: self.place.clone(),
            saver,
            fault_canary: config.fault_canary,
            events: events.clone(),
        });
        for index in 0..config.devices.len() as u32 {
            let (handle, address) = workshop.employ(index, config, Arc::clone(&shared), data.clone())?;
            self.replicas.push(Replica { handle, address, is_built: false, state: None });
        }
        self.shared = Some(shared);
        self.data = Some(identity);
        Ok(())
    }

    /// Whether this machine sees the run directory.
    pub fn sees_run_dir(&self) -> bool {
        matches!(self.place, Place::Folder(_))
    }

    /// Whether every replica could compute.
    pub fn is_built(&self) -> bool {
        self.data.is_some() && self.replicas.iter().all(|replica| replica.is_built)
    }

    /// The least of what the replicas hold; `None` if one holds nothing.
    pub fn state(&self) -> Option<StateId> {
        self.replicas.iter().map(|replica| replica.state).min().flatten()
    }
}

/// The run directory, if the nonce of this very run is in it.
fn seen(welcome: &Welcome) -> Option<PathBuf> {
    let run_dir = Path::new(&welcome.run_dir);
    let nonce = std::fs::read_to_string(run_dir.join(".nonce")).ok()?;
    (!nonce.trim().is_empty() && nonce.trim() == welcome.run_nonce.trim()).then(|| run_dir.to_owned())
}

fn saved(snapshot: &Snapshot, result: Result<Saved, CheckpointError>) -> Option<Event> {
    match result {
        Ok(Saved { dir, bytes }) => Some(Event::Message(FromWorker::CheckpointSaved(CheckpointSaved {
            generation: snapshot.generation,
            state: snapshot.id,
            epoch: snapshot.epoch,
            dir,
            bytes,
            state_sha256: snapshot.state_sha256.clone(),
        }))),
        // Its generation is over: nobody waits for it any more.
        Err(error @ CheckpointError::Transfer { code: ExitCode::TempFail, .. }) => {
            tracing::warn!("{error}");
            None
        }
        Err(error) => Some(Event::Failed(error.into())),
    }
}
