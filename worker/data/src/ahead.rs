//! Reads ahead: threads that load what a plan is going to ask for, in its order, while others compute.
//!
//! ```text
//! expect ─► queue ─► running (a thread each) ─► ready ─► take
//!             └───────── taken before its turn ──────────▲   whoever wants it loads it then
//! ```
//! Nobody waits for a thread that has not begun: so reading ahead is at no time slower than loading when it is needed.
//! What was delivered is the same either way; an error comes out where its samples are taken.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::io;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

use crate::delivered::{Delivered, Wanted};
use crate::error::DataError;
use crate::loader::Loader;

/// A pool that reads ahead. How far is the business of whoever says what to expect: all of it is kept until it is taken
/// or forgotten.
pub struct ReadAhead {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
}

struct Shared {
    loader: Loader,
    state: Mutex<State>,
    /// There is something to load, or it is over.
    work: Condvar,
    /// Something was loaded.
    news: Condvar,
}

#[derive(Default)]
struct State {
    queue: VecDeque<Wanted>,
    running: BTreeSet<Wanted>,
    ready: BTreeMap<Wanted, Result<Delivered, DataError>>,
    /// Buffers to use again.
    spare: Vec<Delivered>,
    /// Counts what was forgotten: what began before belongs to nobody.
    round: u64,
    is_over: bool,
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        // A thread that panics ends the process by its hook, so nobody sees a state that was left half-way.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The life of a thread.
    fn run(&self) {
        let mut state = self.state();
        while !state.is_over {
            let Some(wanted) = state.queue.pop_front() else {
                state = self.work.wait(state).unwrap_or_else(PoisonError::into_inner);
                continue;
            };
            state.running.insert(wanted);
            let round = state.round;
            let mut delivered = state.spare.pop().unwrap_or_default();
            drop(state);
            let result = self.loader.deliver(wanted, &mut delivered).map(|()| delivered);
            state = self.state();
            if state.round == round {
                state.running.remove(&wanted);
                state.ready.insert(wanted, result);
                self.news.notify_all();
            }
        }
    }
}

impl ReadAhead {
    /// Starts `num_threads` threads over a copy of `loader`.
    ///
    /// # Errors
    /// The system gives no thread.
    pub fn start(loader: &Loader, num_threads: usize) -> io::Result<Self> {
        let (work, news) = (Condvar::new(), Condvar::new());
        let shared = Arc::new(Shared { loader: loader.clone(), state: Mutex::default(), work, news });
        let mut ahead = Self { shared, threads: Vec::new() };
        for index in 0..num_threads.max(1) {
            let shared = Arc::clone(&ahead.shared);
            ahead.threads.push(std::thread::Builder::new().name(format!("load-{index}")).spawn(move || shared.run())?);
        }
        Ok(ahead)
    }

    /// Loads these when their turn comes; what is known already keeps its place.
    pub fn expect(&self, wanted: impl IntoIterator<Item = Wanted>) {
        let mut state = self.shared.state();
        for wanted in wanted {
            if !state.running.contains(&wanted) && !state.ready.contains_key(&wanted) && !state.queue.contains(&wanted)
            {
                state.queue.push_back(wanted);
                self.shared.work.notify_one();
            }
        }
    }

    /// Takes what is wanted, whose buffers change places with those of `into`; loads it here if no thread has begun.
    /// Returns whether it lay ready.
    ///
    /// # Errors
    /// As [`Loader::deliver`].
    pub fn take(&self, wanted: Wanted, into: &mut Delivered) -> Result<bool, DataError> {
        let mut state = self.shared.state();
        let mut lay_ready = true;
        loop {
            if let Some(result) = state.ready.remove(&wanted) {
                let mut delivered = result?;
                std::mem::swap(into, &mut delivered);
                state.spare.push(delivered);
                return Ok(lay_ready);
            }
            lay_ready = false;
            if !state.running.contains(&wanted) {
                state.queue.retain(|queued| *queued != wanted);
                drop(state);
                return self.shared.loader.deliver(wanted, into).map(|()| false);
            }
            state = self.shared.news.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Forgets everything that was expected and not taken. Nobody may be taking meanwhile.
    pub fn forget(&self) {
        let mut state = self.shared.state();
        state.round += 1;
        state.queue.clear();
        state.running.clear();
        state.ready.clear();
    }
}

impl Drop for ReadAhead {
    fn drop(&mut self) {
        self.shared.state().is_over = true;
        self.shared.work.notify_all();
        for thread in self.threads.drain(..) {
            // A panic has ended the process already.
            let _ = thread.join();
        }
    }
}
