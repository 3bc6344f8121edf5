//! A simulated coordinator process: the product's engine, runtime, service and store on a host of the simulated
//! network. Its store is SQLite in a folder; what stands around each transaction is where it can be made to die.

use std::io;
use std::path::Path;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};

use lockstep_coordinator::store::{Entry, Hurdle, Writing};
use lockstep_coordinator::{Coordinator, CoordinatorConfig, Outcome};
use lockstep_proto::wire::TlsFiles;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::{Notify, mpsc};
use tonic::transport::server::Connected;
use turmoil::net::{TcpListener, TcpStream};

use crate::random::Random;
use crate::witness::Witness;
use crate::worker::PORT;

/// Where in a write a coordinator dies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cut {
    /// Before anything of it was written.
    Before,
    /// After the commit, before anyone heard of it.
    After,
    /// In the middle: of what the system had in hand, only a part reached the disk.
    Torn,
}

/// What harness and coordinator say to each other.
#[derive(Debug, Default)]
pub struct Desk {
    /// Die in the write of this number, counted over all lives from 1.
    pub cut: Mutex<Option<(u64, Cut)>>,
    /// It stands still in a write and waits to be killed.
    pub is_dying: Mutex<Option<Cut>>,
    /// Transactions so far.
    pub num_writes: Mutex<u64>,
    /// Asks for a clean end, as a signal would.
    pub stop: Notify,
    /// How it ended, when it did.
    pub outcome: Mutex<Option<Result<Outcome, String>>>,
}

/// Lives on the host that calls it.
pub async fn live(witness: Arc<Witness>, desk: Arc<Desk>, seed: u64) {
    let outcome = serve(&witness, &desk, seed).await;
    *desk.outcome.lock().unwrap() = Some(outcome);
}

async fn serve(witness: &Arc<Witness>, desk: &Arc<Desk>, seed: u64) -> Result<Outcome, String> {
    let listener = TcpListener::bind(("0.0.0.0", PORT)).await.map_err(|error| error.to_string())?;
    let config = CoordinatorConfig {
        recipe: witness.recipe.clone(),
        run_dir: witness.run_dir.clone(),
        link_latest: false,
        resume: true,
        listen: ([127, 0, 0, 1], PORT).into(),
        token: None,
        insecure: true,
        tls: TlsFiles::default(),
        http: None,
    };
    let opened = Coordinator::open(config).map_err(|error| error.to_string())?;
    let incoming = futures::stream::unfold(listener, |listener| async move {
        let accepted = listener.accept().await.map(|(stream, _)| Wire(stream));
        Some((accepted, listener))
    });
    let hurdle = Hurdles { witness: Arc::clone(witness), desk: Arc::clone(desk), random: Random::new(seed) };
    let (observer, _) = mpsc::channel(1);
    let asked = async {
        desk.stop.notified().await;
        "SIGTERM".to_owned()
    };
    opened.serve(incoming, Writing::Task(Box::new(hurdle)), asked, observer).await.map_err(|error| error.to_string())
}

/// Time, rules and deaths around each transaction.
struct Hurdles {
    witness: Arc<Witness>,
    desk: Arc<Desk>,
    random: Random,
}

impl Hurdles {
    fn cut(&self) -> Option<Cut> {
        let number = *self.desk.num_writes.lock().unwrap();
        self.desk.cut.lock().unwrap().filter(|(at, _)| *at <= number).map(|(_, cut)| cut)
    }

    async fn die(&self, cut: Cut) {
        *self.desk.is_dying.lock().unwrap() = Some(cut);
        std::future::pending().await
    }
}

impl Hurdle for Hurdles {
    fn before<'a>(&'a mut self, _group: &'a [Entry]) -> Pin<Box<dyn Future<Output = ()> + Send + 'a>> {
        Box::pin(async {
            *self.desk.num_writes.lock().unwrap() += 1;
            let most = if self.random.below(50) == 0 { 3000 } else { 20 };
            tokio::time::sleep(self.random.between(0, most)).await;
            match self.cut() {
                Some(Cut::Before) => self.die(Cut::Before).await,
                Some(Cut::Torn) => keep(&self.witness.run_dir, "before"),
                _ => {}
            }
        })
    }

    fn after<'a>(&'a mut self, group: &'a [Entry]) -> Pin<Box<dyn Future<Output = ()> + Send + 'a>> {
        Box::pin(async move {
            let cut = self.cut();
            if cut == Some(Cut::Torn) {
                keep(&self.witness.run_dir, "after");
                return self.die(Cut::Torn).await;
            }
            for (_, record) in group {
                let mut rules = self.witness.rules.lock().unwrap();
                let checked = rules.apply(record, &self.witness.states.lock().unwrap());
                drop(rules);
                self.witness.log(describe(record));
                self.witness.check(checked);
            }
            let checked = self.witness.rules.lock().unwrap().group_ends();
            self.witness.check(checked);
            if cut == Some(Cut::After) {
                self.die(Cut::After).await;
            }
        })
    }
}

/// One line of a history: nothing in it that the wall clock or chance decided.
fn describe(record: &lockstep_coordinator::engine::Record) -> String {
    use lockstep_coordinator::engine::Record;
    match record {
        Record::Joined { worker, .. } => format!("joined {worker}"),
        Record::Left { worker, reason } => format!("left {worker}: {reason}"),
        Record::Settled { worker, .. } => format!("settled by {worker}"),
        Record::Opened { generation, base, members, .. } => {
            let members: Vec<_> = members.iter().map(|member| member.worker.0.as_str()).collect();
            format!("opened {generation} from {base}: {members:?}")
        }
        Record::Committed(row) => format!("committed {} of generation {}", row.step, row.generation),
        Record::Note { kind, worker, detail, .. } => format!("{kind} {worker:?} {detail}"),
        other => format!("{other:?}"),
    }
}

const FILES: [&str; 2] = ["run.db", "run.db-wal"];

/// Copies the store as it is on disk.
fn keep(run_dir: &Path, name: &str) {
    for file in FILES {
        let _ = std::fs::copy(run_dir.join(file), run_dir.join(format!("{file}.{name}")));
    }
}

/// Puts the store back to what a death in the middle of a write leaves: the log, with a part of its last transaction.
/// A transaction ends with the frame that says so; without its last byte there is none.
pub fn tear(run_dir: &Path, random: &mut Random) -> io::Result<()> {
    let [before, after] = ["before", "after"].map(|name| run_dir.join(format!("run.db-wal.{name}")));
    let [num_before, num_after] = [&before, &after].map(|path| std::fs::metadata(path).map_or(0, |file| file.len()));
    std::fs::rename(run_dir.join("run.db.before"), run_dir.join("run.db"))?;
    let _ = std::fs::remove_file(run_dir.join("run.db-shm"));
    let log = run_dir.join("run.db-wal");
    if num_after > num_before {
        std::fs::rename(&after, &log)?;
        let torn = num_before + random.below(num_after - num_before);
        return std::fs::OpenOptions::new().write(true).open(&log)?.set_len(torn);
    }
    // The log was begun anew: nothing of the transaction got there.
    std::fs::rename(&before, &log)
}

/// A connection of the simulated network, as tonic wants it.
struct Wire(TcpStream);

impl Connected for Wire {
    type ConnectInfo = ();

    fn connect_info(&self) {}
}

impl AsyncRead for Wire {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_read(cx, buffer)
    }
}

impl AsyncWrite for Wire {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(cx)
    }
}
