//! A process that may compute for only a part of the time, whatever it does: stopped and continued in short turns.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};

/// Of which it runs the first third: short beside a step, so that every step is slow, and not every third.
const TURN: Duration = Duration::from_millis(3);

/// Throttles until it is dropped.
#[derive(Debug)]
pub struct Throttle {
    is_over: Arc<AtomicBool>,
    turns: Option<JoinHandle<()>>,
}

impl Throttle {
    /// Leaves a process a third of the time.
    pub fn to_a_third(pid: u32) -> Self {
        let is_over = Arc::new(AtomicBool::new(false));
        let ours = Arc::clone(&is_over);
        let turns = thread::spawn(move || {
            let Some(pid) = Pid::from_raw(pid as i32) else { return };
            while !ours.load(Ordering::Relaxed) {
                let _ = kill_process(pid, Signal::CONT);
                thread::sleep(TURN / 3);
                if kill_process(pid, Signal::STOP).is_err() {
                    return; // it is gone
                }
                thread::sleep(TURN * 2 / 3);
            }
            let _ = kill_process(pid, Signal::CONT);
        });
        Self { is_over, turns: Some(turns) }
    }
}

impl Drop for Throttle {
    fn drop(&mut self) {
        self.is_over.store(true, Ordering::Relaxed);
        if let Some(turns) = self.turns.take() {
            let _ = turns.join();
        }
    }
}
