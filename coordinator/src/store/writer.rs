//! The thread that writes: it takes what is there, commits it in one transaction, and says up to where.

use std::collections::VecDeque;
use std::io;
use std::pin::Pin;
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, TrySendError, sync_channel};
use std::thread::JoinHandle;
use std::time::Duration;

use tokio::sync::mpsc::error::TrySendError as TaskSendError;
use tokio::sync::{mpsc, watch};

use super::{Store, StoreError};
use crate::artifacts::Artifacts;
use crate::engine::{Record, Seq};
use crate::progress::Progress;

/// Records that wait for the thread; more wait in the handle.
const QUEUE: usize = 4096;
/// How often an idle thread prolongs the lease; a third of its term at most.
const RENEWAL: Duration = Duration::from_secs(4);

/// A record with its number.
pub type Entry = (Seq, Record);

/// Where the store's writer runs.
pub enum Writing {
    /// In a thread of its own: SQLite blocks. What a process wants.
    Thread,
    /// In a task of the caller's runtime, around each transaction a hurdle. What a simulation wants: its time is not
    /// that of a thread, and its coordinators die in the middle of a write.
    Task(Box<dyn Hurdle>),
}

/// Stands before and behind every transaction. A future that never ends is a coordinator that stops there.
pub trait Hurdle: Send + 'static {
    /// Nothing of the group is written yet.
    fn before<'a>(&'a mut self, group: &'a [Entry]) -> Pin<Box<dyn Future<Output = ()> + Send + 'a>>;

    /// All of it is durable, and nobody knows yet.
    fn after<'a>(&'a mut self, group: &'a [Entry]) -> Pin<Box<dyn Future<Output = ()> + Send + 'a>>;
}

/// How far the store is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Answer {
    /// All records up to this one are durable.
    pub(crate) seq: Seq,
    /// Set when nothing more will be.
    pub(crate) failed: Option<String>,
    /// The last event, as a line of text.
    pub(crate) last_event: Option<String>,
}

/// The runtime's end of the writer. Never blocks: what the queue does not take waits here, bounded by the engine's own
/// window, which does not move before its records are durable.
#[derive(Debug)]
pub(crate) struct Writer {
    queue: Queue,
    backlog: VecDeque<Entry>,
    answers: watch::Receiver<Answer>,
    is_over: bool,
    end: End,
}

/// The way to the writer.
#[derive(Debug)]
enum Queue {
    Thread(SyncSender<Entry>),
    Task(mpsc::Sender<Entry>),
}

/// Its result, in time.
#[derive(Debug)]
enum End {
    Thread(JoinHandle<Result<(), StoreError>>),
    Task(tokio::task::JoinHandle<Result<(), StoreError>>),
}

impl Queue {
    /// Gives an entry back that finds no room.
    fn offer(&self, entry: Entry) -> Option<Entry> {
        // A writer that has ended takes none, and its answer says why.
        match self {
            Self::Thread(queue) => match queue.try_send(entry) {
                Err(TrySendError::Full(entry)) => Some(entry),
                Ok(()) | Err(TrySendError::Disconnected(_)) => None,
            },
            Self::Task(queue) => match queue.try_send(entry) {
                Err(TaskSendError::Full(entry)) => Some(entry),
                Ok(()) | Err(TaskSendError::Closed(_)) => None,
            },
        }
    }
}

impl Writer {
    /// Starts it.
    pub(crate) fn start(
        store: Store,
        artifacts: Artifacts,
        observer: mpsc::Sender<Progress>,
        writing: Writing,
    ) -> io::Result<Self> {
        let (answer, answers) = watch::channel(Answer::default());
        let work = Loop { store, artifacts, observer, answer: answer.clone() };
        let ended = move |result: Result<(), StoreError>| {
            if let Err(error) = &result {
                answer.send_modify(|answer| answer.failed = Some(error.to_string()));
            }
            result
        };
        let (queue, end) = match writing {
            Writing::Thread => {
                let (queue, records) = sync_channel(QUEUE);
                let thread =
                    std::thread::Builder::new().name("store".to_owned()).spawn(move || ended(work.run(&records)))?;
                (Queue::Thread(queue), End::Thread(thread))
            }
            Writing::Task(hurdle) => {
                let (queue, records) = mpsc::channel(QUEUE);
                let task = tokio::spawn(async move { ended(work.run_over(hurdle, records).await) });
                (Queue::Task(queue), End::Task(task))
            }
        };
        Ok(Self { queue, backlog: VecDeque::new(), answers, is_over: false, end })
    }

    /// Whether it is a task, and whatever else would block is to be done on the spot.
    pub(crate) fn is_task(&self) -> bool {
        matches!(self.queue, Queue::Task(_))
    }

    /// Hands a record over.
    pub(crate) fn push(&mut self, seq: Seq, record: Record) {
        self.backlog.push_back((seq, record));
        self.flush();
    }

    /// Hands over what waits here, as far as the queue takes it.
    pub(crate) fn flush(&mut self) {
        while let Some(next) = self.backlog.pop_front() {
            if let Some(next) = self.queue.offer(next) {
                self.backlog.push_front(next);
                return;
            }
        }
    }

    /// Waits for the next answer.
    pub(crate) async fn answered(&mut self) -> Answer {
        if self.answers.changed().await.is_ok() {
            return self.answers.borrow_and_update().clone();
        }
        if self.is_over {
            // The writer is gone and its last answer was seen: nothing more will come.
            std::future::pending::<()>().await;
        }
        self.is_over = true;
        let mut last = self.answers.borrow().clone();
        last.failed.get_or_insert_with(|| "the store's writer ended".to_owned());
        last
    }

    /// Writes what is left, gives the lease up, ends the writer.
    pub(crate) async fn finish(mut self) -> Result<(), StoreError> {
        while !self.backlog.is_empty() && self.answers.borrow_and_update().failed.is_none() {
            self.flush();
            if !self.backlog.is_empty() && self.answers.changed().await.is_err() {
                break;
            }
        }
        drop(self.queue);
        let joined = match self.end {
            End::Thread(thread) => tokio::task::spawn_blocking(move || thread.join()).await,
            End::Task(task) => Ok(task.await.map_err(|error| Box::new(error) as Box<dyn std::any::Any + Send>)),
        };
        match joined {
            Ok(Ok(result)) => result,
            // A panic of the writer is a defect of this program, never the end of a run in good order.
            Ok(Err(panic)) => std::panic::resume_unwind(panic),
            Err(error) => std::panic::resume_unwind(Box::new(error)),
        }
    }
}

struct Loop {
    store: Store,
    artifacts: Artifacts,
    observer: mpsc::Sender<Progress>,
    answer: watch::Sender<Answer>,
}

impl Loop {
    fn run(mut self, records: &Receiver<Entry>) -> Result<(), StoreError> {
        loop {
            let mut group = Vec::new();
            match records.recv_timeout(RENEWAL) {
                Ok(first) => {
                    group.push(first);
                    group.extend(records.try_iter().take(QUEUE));
                }
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => break,
            }
            self.write(&group)?;
            self.tell(group)?;
        }
        self.store.close()
    }

    /// The same in a task. Nobody else writes a simulated run, so its lease is not prolonged while it is idle.
    async fn run_over(
        mut self,
        mut hurdle: Box<dyn Hurdle>,
        mut records: mpsc::Receiver<Entry>,
    ) -> Result<(), StoreError> {
        while let Some(first) = records.recv().await {
            let mut group = vec![first];
            while let Ok(next) = records.try_recv() {
                group.push(next);
            }
            hurdle.before(&group).await;
            self.write(&group)?;
            hurdle.after(&group).await;
            self.tell(group)?;
        }
        self.store.close()
    }

    /// One transaction.
    fn write(&mut self, group: &[Entry]) -> Result<(), StoreError> {
        self.store.write(group.iter().map(|(_, record)| record))
    }

    /// Says that a group is durable, then brings the files up to date that are derived from it.
    fn tell(&mut self, group: Vec<Entry>) -> Result<(), StoreError> {
        let Some((last, _)) = group.last() else { return Ok(()) };
        let last = *last;
        // Durable from here on, whatever happens to the files that are derived from it.
        self.answer.send_modify(|answer| answer.seq = last);
        let records: Vec<Record> = group.into_iter().map(|(_, record)| record).collect();
        for progress in self.artifacts.catch_up(&self.store, &records)? {
            if let Progress::Event(event) = &progress {
                self.answer.send_modify(|answer| answer.last_event = Some(event.to_string()));
            }
            // Whoever watches too slowly misses lines; the files have them all.
            let _ = self.observer.try_send(progress);
        }
        Ok(())
    }
}
