//! A thread beside each mesh: hears at once who is gone, tells every moment what this rank is doing, and looks at the
//! communicators while nobody else does.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use lockstep_collective::Lane;

use crate::mesh::{Core, listen};
use crate::ring::to_note;

/// The longest time between two notes.
const PERIOD: Duration = Duration::from_millis(250);

/// Starts it. It ends when the mesh has failed or is over.
pub(crate) fn start(core: &Arc<Core>) -> std::io::Result<JoinHandle<()>> {
    let core = Arc::clone(core);
    std::thread::Builder::new().name("nccl-sentinel".into()).spawn(move || watch(&core))
}

fn watch(core: &Core) {
    let period = PERIOD.min(core.deadline / 8);
    let mut last: Option<Instant> = None;
    while !core.is_over.load(Ordering::Acquire) && core.check().is_ok() {
        let since = last.map_or(period, |last| last.elapsed());
        if since >= period {
            last = Some(Instant::now());
            let note = {
                let norm = core.ring(Lane::Norm);
                let buckets = core.ring(Lane::Buckets);
                to_note([&norm, &buckets])
            };
            core.tcp.note(&note);
            let comms = core.comms().clone();
            let failed = comms.iter().find_map(|comm| comm.is_ready().err());
            if let Some(error) = failed {
                core.fail(core.error(|| core.doing(), error));
                return;
            }
            continue;
        }
        if let Err(error) = listen(core, period - since) {
            core.fail(error);
            return;
        }
    }
}
