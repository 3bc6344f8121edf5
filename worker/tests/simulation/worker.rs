//! A simulated worker process: the product's session and replica on a host of the simulated network.

use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Duration;

use hyper_util::rt::TokioIo;
use lockstep_proto::exit::ExitCode;
use lockstep_proto::ids::{Generation, WorkerId};
use lockstep_proto::message::DataIdentity;
use lockstep_proto::recipe::Recipe;
use lockstep_worker::abort::AbortSlot;
use lockstep_worker::checkpoint::{Place, Saver, Snapshot, write};
use lockstep_worker::compute::{Compute, ComputeError};
use lockstep_worker::connect::{Coordinator, Dial};
use lockstep_worker::door::{Door, Transport};
use lockstep_worker::exit::Exit;
use lockstep_worker::replica::{Command, Event, Handle, Replica, Shared};
use lockstep_worker::session::{Config, Done, Loading, Session, Signal, Workshop};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tonic::transport::{Endpoint as Target, Uri};

use crate::coroutine::{Answer, Coroutine, Request, SimulatedDoor};
use crate::integer::{Integer, identity};
use crate::mesh::Endpoint;
use crate::random::Random;
use crate::witness::Witness;

/// Where the coordinator listens.
pub const COORDINATOR: &str = "coordinator";
pub const PORT: u16 = 7000;

/// One life of a process.
#[derive(Clone, Debug)]
pub struct Process {
    /// Counts the processes of a simulation, from 1.
    pub number: u64,
    pub host: String,
    pub num_replicas: u32,
    pub seed: u64,
}

impl Process {
    /// Names in no order, so that rank 0 changes hands.
    pub fn worker(&self) -> WorkerId {
        WorkerId(format!("w{}-{}", Random::new(self.seed ^ self.number).below(10), self.number))
    }
}

/// Lives on the host that calls it; gives the end that the process would make.
pub async fn live(witness: Arc<Witness>, process: Process, signals: mpsc::Receiver<Signal>) -> Exit {
    let coordinator = Coordinator::new(&format!("{COORDINATOR}:{PORT}"), None).expect("an address");
    let config = Config {
        coordinator: coordinator.dialed_by(dial()),
        worker: process.worker(),
        devices: vec!["cpu".into(); process.num_replicas as usize],
        transport: Transport::Tcp,
        advertise: process.host.clone(),
        isa: "avx2".into(),
        patience: Duration::from_secs_f64(witness.recipe.elastic.reconnect_timeout_s),
        halt: Duration::from_secs(60),
        fault_canary: false,
    };
    Session::live(config, Integers { witness, process }, signals).await
}

/// Connections over the simulated network.
fn dial() -> Arc<Dial> {
    Arc::new(|target: Target| {
        Box::pin(async move {
            let connector = tower::service_fn(|uri: Uri| async move {
                let host = uri.host().unwrap_or_default().to_owned();
                let stream = turmoil::net::TcpStream::connect((host, uri.port_u16().unwrap_or(0))).await?;
                Ok::<_, io::Error>(TokioIo::new(stream))
            });
            target.connect_with_connector(connector).await
        })
    })
}

/// Makes replicas of integers, and tasks where the product has threads.
struct Integers {
    witness: Arc<Witness>,
    process: Process,
}

impl Integers {
    fn random(&self, purpose: u64) -> Random {
        Random::new(self.process.seed ^ self.process.number << 16 ^ purpose)
    }
}

impl Workshop for Integers {
    type Data = ();

    fn limit_isa(&self, _isa: &str) -> Result<(), Exit> {
        Ok(())
    }

    fn load(&self, recipe: &Recipe) -> Result<((), DataIdentity), Exit> {
        Ok(((), identity(recipe)))
    }

    fn load_aside(self: Arc<Self>, recipe: Recipe) -> Loading<()> {
        Box::pin(async move { self.load(&recipe) })
    }

    fn build(&self, _recipe: &Recipe, (): ()) -> Result<Box<dyn Compute>, ComputeError> {
        Err(ComputeError::fatal(ExitCode::Software, "a simulated replica is built by `employ`"))
    }

    fn employ(
        self: &Arc<Self>,
        index: u32,
        _config: &Config,
        shared: Arc<Shared>,
        (): (),
    ) -> Result<(Box<dyn Handle>, String), Exit> {
        // No two processes of a host share a port: what is meant for the dead reaches nobody.
        let port = 8000 + (self.process.number * 8) as u16 + index as u16;
        let endpoint = Endpoint::start(&self.process.host, port);
        let address = endpoint.address.clone();
        let door = Arc::new(SimulatedDoor { line: OnceLock::new(), endpoint: Arc::clone(&endpoint) });
        let abort = Arc::new(AbortSlot::new(Arc::clone(&door) as Arc<dyn Door>));
        let (commands, queue) = mpsc::unbounded_channel();
        let (events, workshop, slot) = (shared.events.clone(), Arc::clone(self), Arc::clone(&abort));
        let task = tokio::spawn(async move {
            let (coroutine, request) = Coroutine::start(move |line| {
                let _ = door.line.set(Arc::clone(&line));
                let holder = (shared.worker.clone(), index);
                let random = workshop.random(u64::from(index));
                let integer = Integer::new(Arc::clone(&workshop.witness), holder, line, random);
                Replica::new(index, door, slot, shared, Box::new(integer))
            });
            if let Err(error) = wait_for(coroutine, request, queue, &endpoint).await {
                let _ = events.send(Event::Failed(error.into()));
            }
        });
        Ok((Box::new(Post { commands, abort, task }), address))
    }

    fn saver(&self, place: Place, mut done: Done) -> Result<Box<dyn Saver>, Exit> {
        let Place::Folder(folder) = place else {
            return Err(Exit::new(ExitCode::Software, "a simulated worker sees the run directory"));
        };
        let (snapshots, mut queue) = mpsc::unbounded_channel::<Snapshot>();
        let mut random = self.random(0x5a7e);
        let task = tokio::spawn(async move {
            while let Some(snapshot) = queue.recv().await {
                // Mostly quick, sometimes so slow that its generation is over before it is.
                let most = if random.below(8) == 0 { 9000 } else { 400 };
                tokio::time::sleep(random.between(10, most)).await;
                let saved = write(&folder, &snapshot);
                done(&snapshot, saved);
            }
        });
        Ok(Box::new(TaskSaver { snapshots: Mutex::new(Some(snapshots)), task: Mutex::new(Some(task)) }))
    }
}

/// Does a thread's waiting, to its end.
async fn wait_for(
    coroutine: Coroutine,
    mut request: Request,
    mut queue: mpsc::UnboundedReceiver<Command>,
    endpoint: &Endpoint,
) -> Result<(), ComputeError> {
    loop {
        let answer = match request {
            Request::Command => match queue.recv().await {
                Some(command) => Answer::Command(command),
                None => return Ok(()),
            },
            Request::Time(time) => {
                tokio::time::sleep(time).await;
                Answer::Passed
            }
            Request::Meet(open, rank, deadline) => Answer::Met(endpoint.meet(&open, rank, deadline).await),
            Request::Exchange(generation, op, mine) => {
                Answer::Exchanged(endpoint.exchange(generation, &op, mine).await)
            }
            Request::Nothing(result) => return result,
        };
        request = coroutine.resume(answer);
    }
}

/// The session's end of a simulated replica.
struct Post {
    commands: mpsc::UnboundedSender<Command>,
    abort: Arc<AbortSlot>,
    task: JoinHandle<()>,
}

impl Handle for Post {
    fn tell(&self, command: Command) {
        let _ = self.commands.send(command);
    }

    fn abort(&self, generation: Generation) {
        self.abort.close(generation);
    }

    fn pulse(&self) -> (u64, bool) {
        self.abort.pulse().read()
    }

    fn join(self: Box<Self>) -> Pin<Box<dyn Future<Output = ()> + Send>> {
        let Self { commands, task, .. } = *self;
        drop(commands);
        Box::pin(async {
            let _ = task.await;
        })
    }
}

/// Saves in a task of the host.
struct TaskSaver {
    snapshots: Mutex<Option<mpsc::UnboundedSender<Snapshot>>>,
    task: Mutex<Option<JoinHandle<()>>>,
}

impl Saver for TaskSaver {
    fn save(&self, snapshot: Snapshot) {
        if let Some(snapshots) = self.snapshots.lock().unwrap().as_ref() {
            let _ = snapshots.send(snapshot);
        }
    }

    fn finish(&self) -> Pin<Box<dyn Future<Output = ()> + Send>> {
        self.snapshots.lock().unwrap().take();
        let task = self.task.lock().unwrap().take();
        Box::pin(async {
            if let Some(task) = task {
                let _ = task.await;
            }
        })
    }
}
