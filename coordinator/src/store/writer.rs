//! The thread that writes: it takes what is there, commits it in one transaction, and says up to where.

use std::collections::VecDeque;
use std::io;
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, TrySendError, sync_channel};
use std::thread::JoinHandle;
use std::time::Duration;

use tokio::sync::{mpsc, watch};

use super::{Store, StoreError};
use crate::artifacts::Artifacts;
use crate::engine::{Record, Seq};
use crate::progress::Progress;

/// Records that wait for the thread; more wait in the handle.
const QUEUE: usize = 4096;
/// How often an idle thread prolongs the lease; a third of its term at most.
const RENEWAL: Duration = Duration::from_secs(4);

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

/// The runtime's end of the thread. Never blocks: what the queue does not take waits here, bounded by the engine's own
/// window, which does not move before its records are durable.
#[derive(Debug)]
pub(crate) struct Writer {
    queue: SyncSender<(Seq, Record)>,
    backlog: VecDeque<(Seq, Record)>,
    answers: watch::Receiver<Answer>,
    is_over: bool,
    thread: JoinHandle<Result<(), StoreError>>,
}

impl Writer {
    /// Starts the thread.
    pub(crate) fn start(store: Store, artifacts: Artifacts, observer: mpsc::Sender<Progress>) -> io::Result<Self> {
        let (queue, records) = sync_channel(QUEUE);
        let (answer, answers) = watch::channel(Answer::default());
        let thread = std::thread::Builder::new().name("store".to_owned()).spawn(move || {
            let result = Loop { store, artifacts, observer, answer: answer.clone() }.run(&records);
            if let Err(error) = &result {
                answer.send_modify(|answer| answer.failed = Some(error.to_string()));
            }
            result
        })?;
        Ok(Self { queue, backlog: VecDeque::new(), answers, is_over: false, thread })
    }

    /// Hands a record over.
    pub(crate) fn push(&mut self, seq: Seq, record: Record) {
        self.backlog.push_back((seq, record));
        self.flush();
    }

    /// Hands over what waits here, as far as the queue takes it.
    pub(crate) fn flush(&mut self) {
        while let Some(next) = self.backlog.pop_front() {
            match self.queue.try_send(next) {
                Ok(()) => {}
                Err(TrySendError::Full(next)) => {
                    self.backlog.push_front(next);
                    return;
                }
                // The thread ended, and its answer says why.
                Err(TrySendError::Disconnected(_)) => return,
            }
        }
    }

    /// Waits for the next answer.
    pub(crate) async fn answered(&mut self) -> Answer {
        if self.answers.changed().await.is_ok() {
            return self.answers.borrow_and_update().clone();
        }
        if self.is_over {
            // The thread is gone and its last answer was seen: nothing more will come.
            std::future::pending::<()>().await;
        }
        self.is_over = true;
        let mut last = self.answers.borrow().clone();
        last.failed.get_or_insert_with(|| "the store's thread ended".to_owned());
        last
    }

    /// Writes what is left, gives the lease up, ends the thread.
    pub(crate) async fn finish(mut self) -> Result<(), StoreError> {
        while !self.backlog.is_empty() && self.answers.borrow_and_update().failed.is_none() {
            self.flush();
            if !self.backlog.is_empty() && self.answers.changed().await.is_err() {
                break;
            }
        }
        drop(self.queue);
        match tokio::task::spawn_blocking(move || self.thread.join()).await {
            Ok(Ok(result)) => result,
            // A panic of the thread is a defect of this program, never the end of a run in good order.
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
    fn run(mut self, records: &Receiver<(Seq, Record)>) -> Result<(), StoreError> {
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
            self.store.write(group.iter().map(|(_, record)| record))?;
            let Some((last, _)) = group.last() else { continue };
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
        }
        self.store.close()
    }
}
