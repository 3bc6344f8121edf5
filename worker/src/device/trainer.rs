//! A replica on a device, as the session knows it.

use std::sync::Arc;
use std::time::Duration;

use lockstep_collective::{Collective, Solo};
use lockstep_data::{Dataset, Loader};
use lockstep_proto::exit::ExitCode;
use lockstep_proto::ids::{Epoch, Generation, SampleRange, StateId, Step};
use lockstep_proto::message::{Sha256, StepPlan};
use lockstep_proto::recipe::Recipe;
use lockstep_torch::{TorchError, read_bytes, write};
use rayon::ThreadPoolBuilder;
use sha2::Digest;
use tch::{Device, Kind, Tensor};

use super::body::Body;
use super::captures::Captures;
use super::gpu::{Gpu, GpuError};
use super::memory::{Memory, REMEDY};
use super::stepper::Stepper;
use crate::compute::{Compute, ComputeError, EvalOutcome, Named, StepOutcome};
use crate::load::Source;
use crate::model;
use crate::pulse::Pulse;
use crate::state::{Running, State, hex};
use crate::step::StepError;
use crate::trainer::{begin, state_error, step_error, sure, torch};

/// After so many steps of a generation everything has its memory, captured steps too.
const SETTLED: u64 = 40;
/// How long a device may take to get done with what it was given before a generation ends.
const DRAIN: Duration = Duration::from_secs(30);

/// State and stepper on a device, and a copy of the state on the host.
pub struct DeviceTrainer {
    recipe: Recipe,
    /// What checkpoints are made of; see [`pulled`](Self::pulled).
    host: State,
    stepper: Stepper,
    generation: Generation,
    /// The last step that was enqueued.
    reached: Option<Step>,
    /// Steps that counted.
    counted: u64,
    /// Why this process can do nothing any more.
    lost: Option<String>,
}

impl DeviceTrainer {
    /// A replica without a state yet; `threads` load.
    ///
    /// # Errors
    /// No memory; threads cannot be started.
    pub fn new(
        recipe: &Recipe,
        dataset: Arc<dyn Dataset>,
        gpu: Box<dyn Gpu>,
        threads: usize,
    ) -> Result<Self, ComputeError> {
        let pool = ThreadPoolBuilder::new()
            .num_threads(threads.max(1))
            .thread_name(|i| format!("loader-{i}"))
            .build()
            .map_err(|error| ComputeError::fatal(ExitCode::Software, format!("cannot start threads: {error}")))?;
        let program = model::build(&recipe.model, dataset.identity().num_classes);
        let mut body = Body::new(recipe, program, &*gpu).map_err(memory)?;
        let host = State::new(body.program(), body.layout(), recipe.train.precision, recipe.optim.solver);
        let mut host = host.map_err(torch)?;
        if recipe.train.ema_decay > 0.0 {
            host.keep_average().map_err(torch)?;
            body.keep_average().map_err(memory)?;
        }
        let ahead = &recipe.data.image;
        let num_loaders = if ahead.threads == 0 { threads.max(1) } else { ahead.threads as usize };
        let source = Source::new(Loader::new(dataset, recipe), (ahead.prefetch as usize, num_loaders));
        let stepper = Stepper::new(recipe, body, (source, pool), gpu)?;
        Ok(Self {
            recipe: recipe.clone(),
            host,
            stepper,
            generation: Generation(0),
            reached: None,
            counted: 0,
            lost: None,
        })
    }

    /// What the host holds becomes what the device holds.
    fn push(&mut self) -> Result<(), TorchError> {
        let body = &mut self.stepper.body;
        body.state.master.f_copy_(&self.host.master)?;
        for (to, from) in body.state.buffers.iter_mut().zip(&self.host.buffers) {
            to.values.f_copy_(&from.values)?;
        }
        body.running.f_copy_(&host_numbers(&numbers(&self.host.running))?)?;
        if let (Some((values, running)), Some(average)) = (&mut body.average, &self.host.average) {
            values.f_copy_(&average.values)?;
            running.f_copy_(&host_numbers(&numbers(&average.running))?)?;
        }
        let applied = self.host.id.map_or(0, |id| id.step.0);
        Ok(body.applied.f_copy_(&host_numbers(&[applied as f64])?)?)
    }

    /// The state on the host, up to date.
    fn pulled(&self) -> State {
        // invariant: both states were made by the same program, and the device was drained or never lost
        let state = State::new(
            self.stepper.body.program(),
            self.stepper.body.layout(),
            self.recipe.train.precision,
            self.recipe.optim.solver,
        );
        let mut state = sure(state);
        let body = &self.stepper.body;
        sure(state.master.f_copy_(&body.state.master).map_err(TorchError::from));
        for (to, from) in state.buffers.iter_mut().zip(&body.state.buffers) {
            sure(to.values.f_copy_(&from.values).map_err(TorchError::from));
        }
        sure(take_numbers(&mut state.running, &body.running));
        if let Some((values, running)) = &body.average {
            sure(state.keep_average());
            if let Some(average) = &mut state.average {
                sure(average.values.f_copy_(values).map_err(TorchError::from));
                sure(take_numbers(&mut average.running, running));
            }
        }
        state.id = self.host.id;
        state
    }

    fn explained(&self, error: StepError) -> ComputeError {
        let explained = match &error {
            StepError::Torch(error) => too_little(error, self.stepper.memory()),
            _ => None,
        };
        explained.unwrap_or_else(|| step_error(error))
    }

    fn check(&self) -> Result<(), ComputeError> {
        match &self.lost {
            Some(what) => Err(ComputeError::fatal(ExitCode::Config, what)),
            None => Ok(()),
        }
    }

    /// Ends a generation: poison, abort, drain, graphs, abort joined. Afterwards the state is that of the last step that
    /// counted.
    fn close(&mut self) -> Result<(), GpuError> {
        let stepper = &mut self.stepper;
        if stepper.gpu.world() > 1 {
            stepper.gpu.poison()?;
            stepper.gpu.begin_abort();
        }
        stepper.gpu.drain(DRAIN)?;
        for graph in stepper.captures.drain() {
            stepper.gpu.destroy(graph)?;
        }
        stepper.gpu.finish_abort(DRAIN)?;
        stepper.pending.clear();
        Ok(())
    }

    /// What the device says that it has applied.
    fn applied(&self) -> Result<Step, TorchError> {
        let applied = self.stepper.body.applied.f_to_device(Device::Cpu)?;
        Ok(Step(applied.f_double_value(&[0])? as u64))
    }
}

/// Mean and variance of every layer, one after another.
fn numbers(layers: &[Running]) -> Vec<f64> {
    layers.iter().flat_map(|layer| layer.mean.iter().chain(&layer.variance)).copied().collect()
}

/// The other way, from the device.
fn take_numbers(layers: &mut [Running], from: &Tensor) -> Result<(), TorchError> {
    let mut numbers = vec![0.0_f64; from.numel()];
    lockstep_torch::read(&from.f_to_device(Device::Cpu)?, &mut numbers)?;
    let mut rest = numbers.into_iter();
    for layer in layers {
        layer.mean.iter_mut().chain(&mut layer.variance).zip(rest.by_ref()).for_each(|(to, from)| *to = from);
    }
    Ok(())
}

fn host_numbers(numbers: &[f64]) -> Result<Tensor, TorchError> {
    let mut tensor = Tensor::f_empty([numbers.len() as i64], (Kind::Double, Device::Cpu))?;
    write(&mut tensor, numbers)?;
    Ok(tensor)
}

/// An error of libtorch; where memory is what lacks, with what helps.
fn memory(error: TorchError) -> ComputeError {
    too_little(&error, None).unwrap_or_else(|| ComputeError::fatal(ExitCode::Software, error.to_string()))
}

/// Whether memory is what lacks; then what takes it, and what helps.
fn too_little(error: &TorchError, taken: Option<Memory>) -> Option<ComputeError> {
    let text = error.to_string();
    text.contains("out of memory").then(|| {
        let taken = taken.map(|memory| format!("\nit holds {memory}")).unwrap_or_default();
        let reason = format!("the device has too little memory: {REMEDY}{taken}\n{text}");
        ComputeError::fatal(ExitCode::Config, reason)
    })
}

impl Compute for DeviceTrainer {
    fn watch(&mut self, pulse: Arc<Pulse>) {
        self.stepper.source.watch(Arc::clone(&pulse));
        self.stepper.pulse = pulse;
    }

    fn announce(&mut self, plan: &StepPlan) {
        self.stepper.source.announce(plan);
    }

    /// As on the CPU: a step from a state of its own on the first chunk of epoch 1, alone.
    fn canary(&mut self) -> Result<Sha256, ComputeError> {
        let kept = (self.to_bytes(), self.host.id);
        self.initialise();
        let data = self.stepper.source.loader.dataset().identity().num_train;
        let len = u64::from(self.recipe.train.chunk).min(self.recipe.train.batch).min(data);
        let plan =
            StepPlan { step: Step(1), epoch: Epoch(1), lr: 0.0, batch: SampleRange { start: 0, len }, shards: vec![1] };
        let mut hasher = sha2::Sha256::new();
        match self.stepper.advance(Generation(0), &plan) {
            Ok(mut known) => {
                while self.stepper.pending.len() > 0 {
                    known.extend(self.stepper.settle().map_err(|error| self.explained(error))?);
                }
                known.iter().for_each(|(_, outcome)| hasher.update(outcome.loss.to_le_bytes()));
                let gradient = self.stepper.gradient().f_to_device(Device::Cpu);
                hasher.update(sure(read_bytes(&gradient.map_err(TorchError::from).map_err(torch)?)));
            }
            // As on the CPU: nothing to compare, but no reason to end.
            Err(StepError::NothingLeft { .. }) => hasher.update(b"nothing left"),
            Err(error) => return Err(self.explained(error)),
        }
        self.host.id = kept.1;
        self.take_bytes(&kept.0)?;
        Ok(hex(&hasher.finalize()))
    }

    fn initialise(&mut self) {
        let body = &self.stepper.body;
        sure(self.host.initialise(body.program(), body.layout(), self.recipe.train.seed));
        self.reached = None;
        sure(self.push());
    }

    fn begin(&mut self) -> Result<(), ComputeError> {
        let recipe = self.recipe.clone();
        begin(self, &recipe)?;
        // What the run begins with is on the host too: `begin` loads through it.
        self.host.restart_average().map_err(torch)?;
        self.push().map_err(torch)
    }

    fn join(&mut self, collective: Arc<dyn Collective>) {
        let base = self.host.id.map_or(Step(0), |id| id.step);
        self.reached = Some(base);
        let opened = self.stepper.gpu.open(collective);
        let refusal = self.stepper.gpu.capture_refusal().or_else(|| self.stepper.body.capture_refusal());
        self.stepper.captures = Captures::new(base, refusal);
        self.stepper.body.give_back();
        self.stepper.source.forget();
        if let Err(error) = opened {
            self.lost = Some(error.to_string());
        }
    }

    fn leave(&mut self) {
        let had_pending = self.stepper.pending.len() > 0;
        let closed = self.close().and_then(|()| Ok(self.applied()?));
        match closed {
            Ok(applied) => {
                if let Some(id) = self.host.id.as_mut().filter(|id| had_pending && id.step < applied) {
                    (id.step, id.generation) = (applied, self.generation);
                }
                self.reached = self.host.id.map(|id| id.step);
            }
            Err(error) => self.lost = Some(error.to_string()),
        }
        let _ = self.stepper.gpu.open(Arc::new(Solo::new()));
    }

    fn step(&mut self, generation: Generation, plan: &StepPlan) -> Result<StepOutcome, ComputeError> {
        let mut known = self.advance(generation, plan)?;
        known.extend(self.settle()?);
        let last = known.into_iter().find(|(step, _)| *step == plan.step).map(|(_, outcome)| outcome);
        // invariant: everything that was enqueued is settled
        last.ok_or_else(|| ComputeError::fatal(ExitCode::Software, format!("step {} has no outcome", plan.step)))
    }

    fn advance(&mut self, generation: Generation, plan: &StepPlan) -> Result<Vec<(Step, StepOutcome)>, ComputeError> {
        self.check()?;
        self.generation = generation;
        let known = self.stepper.advance(generation, plan).map_err(|error| self.explained(error))?;
        self.reached = Some(plan.step);
        self.name(&known);
        Ok(known)
    }

    fn settle(&mut self) -> Result<Vec<(Step, StepOutcome)>, ComputeError> {
        self.check()?;
        let mut known = Vec::new();
        while self.stepper.pending.len() > 0 {
            known.extend(self.stepper.settle().map_err(|error| self.explained(error))?);
        }
        self.name(&known);
        Ok(known)
    }

    fn reached(&self) -> Option<Step> {
        self.reached.or_else(|| self.id().map(|id| id.step))
    }

    fn nodes(&self) -> Option<u64> {
        self.stepper.gpu.nodes()
    }

    fn evaluate(&mut self, step: Step) -> Result<EvalOutcome, ComputeError> {
        self.check()?;
        self.stepper.evaluate(step).map_err(|error| self.explained(error))
    }

    fn id(&self) -> Option<StateId> {
        self.host.id
    }

    fn set_id(&mut self, id: Option<StateId>) {
        self.host.id = id;
        let applied = host_numbers(&[id.map_or(0, |id| id.step.0) as f64]);
        if self.stepper.pending.len() == 0 {
            // Nothing is under way that could change it meanwhile.
            sure(applied.and_then(|applied| Ok(self.stepper.body.applied.f_copy_(&applied)?)));
        }
    }

    fn tensors(&self) -> (Vec<Named>, Vec<Named>) {
        let (state, body) = (self.pulled(), &self.stepper.body);
        (sure(state.model(body.program(), body.layout())), sure(state.optimizer(body.program(), body.layout())))
    }

    fn load(&mut self, model: &[Named], optimizer: &[Named]) -> Result<(), ComputeError> {
        let body = &self.stepper.body;
        self.host.load(body.program(), body.layout(), model, optimizer).map_err(state_error)?;
        self.push().map_err(torch)
    }

    fn sha256(&self) -> Sha256 {
        let body = &self.stepper.body;
        sure(self.pulled().sha256(body.program(), body.layout()))
    }

    fn to_bytes(&self) -> Vec<u8> {
        sure(self.pulled().to_bytes())
    }

    fn take_bytes(&mut self, bytes: &[u8]) -> Result<(), ComputeError> {
        self.host.take_bytes(bytes).map_err(state_error)?;
        self.push().map_err(torch)
    }
}

impl DeviceTrainer {
    /// The state is that after the last step that is known to have counted.
    fn name(&mut self, known: &[(Step, StepOutcome)]) {
        if let Some((step, _)) = known.last() {
            self.counted += known.len() as u64;
            if self.counted >= SETTLED
                && self.counted - (known.len() as u64) < SETTLED
                && let Some(memory) = self.stepper.memory()
            {
                tracing::info!("device memory: {memory}");
            }
            let lineage = self.host.id.map(|id| id.lineage).unwrap_or_default();
            self.host.id = Some(StateId { lineage, generation: self.generation, step: *step });
        }
    }
}
