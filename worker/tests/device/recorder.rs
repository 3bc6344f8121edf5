//! A device that computes on the CPU and watches the order of everything.
//!
//! Streams are clocks: a piece of memory may be touched by one stream only when an event has told it of what the other
//! did there. On top of that: weights are written behind a verdict, the verdict is judged from a vote that came behind
//! every bucket, nothing is enqueued by a poisoned rank, and no communicator ends while a graph holds it.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use lockstep_collective::{Collective, Layout, Op};
use lockstep_proto::ids::Rank;
use lockstep_torch::TorchError;
use lockstep_worker::device::{Event, Gpu, GpuError, Graph, HostGpu, Place, Stream, Work};
use tch::{Device, Kind, Tensor};

/// Two streams and the host.
const HOST: usize = 2;
type Clock = [u64; 3];

/// What was seen.
#[derive(Debug, Default)]
pub struct Log {
    /// Rules that were broken, in words.
    pub violations: Vec<String>,
    /// What was done, in order: `compute forward`, `buckets sum gradient bucket 0`, `poison`, …
    pub trace: Vec<String>,
    clocks: [Clock; 3],
    events: BTreeMap<Event, Clock>,
    written: BTreeMap<Place, (usize, u64)>,
    read: BTreeMap<Place, Vec<(usize, u64)>>,
    /// Number of everything that was enqueued.
    number: u64,
    summed: BTreeMap<Place, u64>,
    judged: u64,
    graphs: Vec<Graph>,
    is_poisoned: bool,
    is_aborting: bool,
    is_drained: bool,
    /// Work that the device takes and never does.
    pub loses: Vec<&'static str>,
    /// Work that the device comes to only when the host has poisoned this rank.
    pub comes_late_to: Option<&'static str>,
}

impl Log {
    fn broken(&mut self, what: String) {
        self.violations.push(what);
    }

    fn touch(&mut self, who: usize, name: &str, place: Place, writes: bool) {
        let mut before: Vec<(usize, u64)> = self.written.get(&place).copied().into_iter().collect();
        if writes {
            before.extend(self.read.get(&place).into_iter().flatten());
        }
        for (other, number) in before {
            if other != who && self.clocks[who][other] < number {
                let verb = if writes { "writes" } else { "reads" };
                self.broken(format!("`{name}` {verb} {place:?} before the event of the stream that used it last"));
            }
        }
        if writes {
            self.written.insert(place, (who, self.clocks[who][who]));
            self.read.remove(&place);
        } else {
            self.read.entry(place).or_default().push((who, self.clocks[who][who]));
        }
    }

    fn enqueue(&mut self, stream: Stream, name: &str, reads: &[Place], writes: &[Place]) {
        let who = index(stream);
        self.number += 1;
        self.clocks[who][who] += 1;
        self.trace.push(format!("{} {name}", format!("{stream:?}").to_lowercase()));
        if self.is_poisoned {
            self.broken(format!("`{name}` is enqueued by a poisoned rank"));
        }
        reads.iter().for_each(|place| self.touch(who, name, *place, false));
        writes.iter().for_each(|place| self.touch(who, name, *place, true));
        let is_state = |p: &Place| matches!(p, Place::Weights | Place::Momentum | Place::Running | Place::Applied);
        if writes.iter().any(is_state) {
            let vote = self.summed.get(&Place::Vote).copied().unwrap_or(0);
            if !reads.contains(&Place::Verdict) {
                self.broken(format!("`{name}` changes the state without reading the verdict"));
            }
            if self.judged <= vote || vote == 0 {
                self.broken(format!("`{name}` changes the state before the vote was judged"));
            }
        }
        if writes.contains(&Place::Verdict) {
            let vote = self.summed.get(&Place::Vote).copied().unwrap_or(0);
            let late = self.summed.iter().find(|(p, n)| matches!(p, Place::Gradient(_)) && **n > vote);
            if let Some((place, _)) = late {
                self.broken(format!("the vote was cast before {place:?} was summed"));
            }
            if self.judged > vote {
                self.broken("a vote is judged twice".into());
            }
            self.judged = self.number;
        }
    }
}

fn index(stream: Stream) -> usize {
    match stream {
        Stream::Compute => 0,
        Stream::Buckets => 1,
    }
}

/// See the module.
pub struct Recorder {
    inner: HostGpu,
    log: Arc<Mutex<Log>>,
    /// Whether steps can be captured. What was captured runs once, at its first replay: as it was enqueued.
    captures: bool,
    num_graphs: u64,
    num_events: u64,
}

impl Recorder {
    /// With the log that it writes.
    pub fn new(captures: bool) -> (Self, Arc<Mutex<Log>>) {
        let log = Arc::new(Mutex::new(Log::default()));
        let inner = HostGpu::new().unwrap();
        (Self { inner, log: Arc::clone(&log), captures, num_graphs: 0, num_events: 0 }, log)
    }

    fn log(&self) -> MutexGuard<'_, Log> {
        self.log.lock().unwrap()
    }
}

impl Gpu for Recorder {
    fn device(&self) -> Device {
        self.inner.device()
    }

    fn run(
        &mut self,
        stream: Stream,
        work: Work<'_>,
        f: &mut dyn FnMut() -> Result<(), TorchError>,
    ) -> Result<(), GpuError> {
        self.log().enqueue(stream, work.name, work.reads, work.writes);
        if self.log().comes_late_to == Some(work.name) {
            self.inner.poison()?;
        }
        let is_lost = self.log().loses.contains(&work.name);
        if is_lost { Ok(()) } else { self.inner.run(stream, work, f) }
    }

    fn all_reduce(&mut self, stream: Stream, op: &Op, place: Place, values: &Tensor) -> Result<(), GpuError> {
        {
            let mut log = self.log();
            log.enqueue(stream, &format!("sum {} {}", op.name, op.index), &[place], &[place]);
            let number = log.number;
            log.summed.insert(place, number);
        }
        self.inner.all_reduce(stream, op, place, values)
    }

    fn reduce_in_order(
        &mut self,
        stream: Stream,
        op: &Op,
        parts: (&Layout, &[Tensor]),
        (place, out): (Place, &mut Tensor),
    ) -> Result<(), GpuError> {
        {
            let mut log = self.log();
            log.enqueue(stream, &format!("sum {} {}", op.name, op.index), &[place], &[place]);
            let number = log.number;
            log.summed.insert(place, number);
        }
        self.inner.reduce_in_order(stream, op, parts, (place, out))
    }

    fn record(&mut self, stream: Stream) -> Result<Event, GpuError> {
        self.num_events += 1;
        let event = Event(self.num_events);
        let mut log = self.log();
        let clock = log.clocks[index(stream)];
        log.events.insert(event, clock);
        Ok(event)
    }

    fn wait(&mut self, stream: Stream, event: Event) -> Result<(), GpuError> {
        let mut log = self.log();
        let told = log.events[&event];
        let clock = &mut log.clocks[index(stream)];
        clock.iter_mut().zip(told).for_each(|(have, told)| *have = (*have).max(told));
        Ok(())
    }

    fn upload(&mut self, stream: Stream, place: Place, to: &mut Tensor, values: &[f64]) -> Result<(), GpuError> {
        self.log().enqueue(stream, "upload", &[], &[place]);
        self.inner.upload(stream, place, to, values)
    }

    fn host_room(&self, len: usize, kind: Kind) -> Result<Tensor, GpuError> {
        self.inner.host_room(len, kind)
    }

    fn release(&mut self, place: Place, read: Option<Event>) -> Result<(), GpuError> {
        let mut log = self.log();
        if let Some(event) = read {
            let told = log.events[&event];
            log.clocks[HOST].iter_mut().zip(told).for_each(|(have, told)| *have = (*have).max(told));
        }
        log.touch(HOST, "fill", place, true);
        Ok(())
    }

    fn is_done(&mut self, event: Event) -> Result<bool, GpuError> {
        // Never at once, so that steps are settled as late as on a device.
        let _ = event;
        Ok(false)
    }

    fn fetch(&mut self, event: Event, place: Place, room: &Tensor) -> Result<Vec<f64>, GpuError> {
        {
            let mut log = self.log();
            let told = log.events[&event];
            log.clocks[HOST].iter_mut().zip(told).for_each(|(have, told)| *have = (*have).max(told));
            log.trace.push("host fetch".into());
            log.touch(HOST, "fetch", place, false);
        }
        self.inner.fetch(event, place, room)
    }

    fn fused(&self) -> Option<lockstep_cuda::Fused> {
        self.inner.fused()
    }

    fn soundness(&self) -> Tensor {
        self.inner.soundness()
    }

    fn capture_refusal(&self) -> Option<String> {
        (!self.captures).then(|| "not in this test".into())
    }

    fn capture(&mut self, f: &mut dyn FnMut(&mut dyn Gpu) -> Result<(), GpuError>) -> Result<Graph, GpuError> {
        f(self)?;
        self.num_graphs += 1;
        let graph = Graph(self.num_graphs);
        let mut log = self.log();
        log.trace.push("capture".into());
        log.graphs.push(graph);
        Ok(graph)
    }

    fn replay(&mut self, graph: Graph) -> Result<(), GpuError> {
        let mut log = self.log();
        if !log.graphs.contains(&graph) {
            log.broken(format!("{graph:?} is replayed after its end"));
        }
        log.trace.push("replay".into());
        Ok(())
    }

    fn destroy(&mut self, graph: Graph) -> Result<(), GpuError> {
        let mut log = self.log();
        if log.is_aborting && !log.is_drained {
            log.broken(format!("{graph:?} is destroyed while it may run"));
        }
        log.trace.push("destroy".into());
        log.graphs.retain(|have| *have != graph);
        Ok(())
    }

    fn rank(&self) -> Rank {
        self.inner.rank()
    }

    fn world(&self) -> u32 {
        self.inner.world()
    }

    fn gather(&mut self, op: &Op, mine: &[u8]) -> Result<Vec<Vec<u8>>, GpuError> {
        self.log().trace.push(format!("host gather {}", op.name));
        self.inner.gather(op, mine)
    }

    fn open(&mut self, collective: Arc<dyn Collective>) -> Result<(), GpuError> {
        {
            let mut log = self.log();
            if !log.graphs.is_empty() {
                log.broken("a communicator is opened while graphs of the last one live".into());
            }
            log.trace.push(format!("open {}", collective.world()));
            (log.is_poisoned, log.is_aborting, log.is_drained) = (false, false, false);
        }
        self.inner.open(collective)
    }

    fn poison(&mut self) -> Result<(), GpuError> {
        let mut log = self.log();
        log.trace.push("poison".into());
        log.is_poisoned = true;
        drop(log);
        self.inner.poison()
    }

    fn begin_abort(&mut self) {
        let mut log = self.log();
        if !log.is_poisoned {
            log.broken("an abort before the poison".into());
        }
        log.trace.push("abort".into());
        log.is_aborting = true;
        drop(log);
        self.inner.begin_abort();
    }

    fn drain(&mut self, deadline: Duration) -> Result<(), GpuError> {
        let mut log = self.log();
        log.trace.push("drain".into());
        log.is_drained = true;
        // Everything has happened, and whoever comes next knows it.
        let all: Clock = std::array::from_fn(|who| log.clocks.iter().map(|clock| clock[who]).max().unwrap_or(0));
        log.clocks = [all; 3];
        drop(log);
        self.inner.drain(deadline)
    }

    fn finish_abort(&mut self, deadline: Duration) -> Result<(), GpuError> {
        let mut log = self.log();
        if !log.graphs.is_empty() {
            log.broken("the communicator ends while a graph holds it".into());
        }
        if !log.is_drained {
            log.broken("the communicator ends before the device is drained".into());
        }
        log.trace.push("aborted".into());
        drop(log);
        self.inner.finish_abort(deadline)
    }
}
