//! A process that may compute for only a third of the time, whatever it does: it runs for a short turn, and then stands
//! still until three times of what it was on a core is over. So a turn that it spent waiting costs it nothing, and one
//! that the system let go on for too long is paid for.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

/// How long it runs: short beside a step, so that every step is slow, and not every third.
const TURN: Duration = Duration::from_millis(2);

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
            let Some(id) = Pid::from_raw(pid as i32) else { return };
            // Until when what it has spent lasts.
            let (mut lasts, mut spent) = (Instant::now(), on_core(pid));
            while !ours.load(Ordering::Relaxed) {
                let _ = kill_process(id, Signal::CONT);
                thread::sleep(TURN);
                if kill_process(id, Signal::STOP).is_err() {
                    return; // it is gone
                }
                let total = on_core(pid);
                lasts += total.saturating_sub(spent) * 3;
                spent = total;
                let now = Instant::now();
                // What it left over while it waited is gone.
                lasts = lasts.max(now.checked_sub(TURN).unwrap_or(now));
                thread::sleep(lasts.saturating_duration_since(now));
            }
            let _ = kill_process(id, Signal::CONT);
        });
        Self { is_over, turns: Some(turns) }
    }
}

/// How long its threads have been on a core, all together.
fn on_core(pid: u32) -> Duration {
    let threads = std::fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
    let nanoseconds = |thread: std::fs::DirEntry| {
        let text = std::fs::read_to_string(thread.path().join("schedstat")).ok()?;
        text.split_whitespace().next()?.parse::<u64>().ok()
    };
    Duration::from_nanos(threads.filter_map(nanoseconds).sum())
}

impl Drop for Throttle {
    fn drop(&mut self) {
        self.is_over.store(true, Ordering::Relaxed);
        if let Some(turns) = self.turns.take() {
            let _ = turns.join();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::process::{Command, Stdio};

    use super::*;

    #[test]
    fn a_throttled_process_is_on_a_core_for_a_third_of_the_time() {
        let mut busy = Command::new("sh").args(["-c", "while :; do :; done"]).stdin(Stdio::null()).spawn().unwrap();
        let throttle = Throttle::to_a_third(busy.id());
        let (start, before) = (Instant::now(), on_core(busy.id()));
        // It is the fault, not a wait for something: the share is taken over this long.
        thread::sleep(Duration::from_millis(600));
        let (spent, wall) = (on_core(busy.id()) - before, start.elapsed());
        drop(throttle);
        busy.kill().unwrap();
        busy.wait().unwrap();
        let share = spent.as_secs_f64() / wall.as_secs_f64();
        // Less where the machine is busy with other things.
        assert!((0.02..0.36).contains(&share), "{share}");
    }
}
