//! A replica's mathematics as the session knows it: [`Compute`] over libtorch on a CPU.

use std::path::Path;
use std::sync::Arc;

use lockstep_collective::{Collective, Solo};
use lockstep_data::{Dataset, Loader};
use lockstep_proto::exit::ExitCode;
use lockstep_proto::ids::{Epoch, Generation, SampleRange, StateId, Step};
use lockstep_proto::message::{Sha256, StepPlan};
use lockstep_proto::recipe::{Head, Precision, Recipe};
use lockstep_torch::{TorchError, read_bytes, set_threads};
use rayon::{ThreadPool, ThreadPoolBuilder};
use sha2::Digest;

use crate::compute::{Compute, ComputeError, EvalOutcome, Named, StepOutcome};
use crate::load::Source;
use crate::model;
use crate::number::Number;
use crate::program::{FlatLayout, ParamId, Program};
use crate::pulse::Pulse;
use crate::state::{State, StateError, hex, view_of};
use crate::step::{StepError, Stepper};
use crate::weights;

/// A replica on the CPU: `threads` compute threads, each with one intra-op thread.
///
/// # Errors
/// libtorch refuses, or threads cannot be started.
pub fn cpu(
    recipe: &Recipe,
    dataset: Arc<dyn Dataset>,
    threads: usize,
) -> Result<Box<dyn Compute + Send>, ComputeError> {
    Ok(match recipe.train.precision {
        Precision::Fp64 => Box::new(Trainer::<f64>::new(recipe, dataset, threads)?),
        Precision::Fp32 | Precision::Bf16 => Box::new(Trainer::<f32>::new(recipe, dataset, threads)?),
    })
}

/// State, stepper, and the threads that they run on.
pub struct Trainer<A> {
    recipe: Recipe,
    state: State,
    stepper: Stepper<A>,
    pool: Arc<ThreadPool>,
}

impl<A: Number> Trainer<A> {
    /// A replica without a state yet.
    ///
    /// # Errors
    /// libtorch refuses, or threads cannot be started.
    pub fn new(recipe: &Recipe, dataset: Arc<dyn Dataset>, threads: usize) -> Result<Self, ComputeError> {
        let start = |_| {
            // One intra-op thread a compute thread: chunks are the parallelism, and bits stay.
            let _ = set_threads(1);
        };
        let pool = ThreadPoolBuilder::new()
            .num_threads(threads.max(1))
            .thread_name(|i| format!("compute-{i}"))
            .start_handler(start)
            .build()
            .map_err(|error| ComputeError::fatal(ExitCode::Software, format!("cannot start threads: {error}")))?;
        let program = model::build(&recipe.model, dataset.identity().num_classes);
        let layout = FlatLayout::new(&program);
        let mut state = State::new(&program, &layout, recipe.train.precision, recipe.optim.solver).map_err(torch)?;
        if recipe.train.ema_decay > 0.0 {
            state.keep_average().map_err(torch)?;
        }
        let ahead = &recipe.data.image;
        let num_loaders = if ahead.threads == 0 { threads.max(1) } else { ahead.threads as usize };
        let source = Source::new(Loader::new(dataset, recipe), (ahead.prefetch as usize, num_loaders));
        let stepper = Stepper::new(recipe, program, source, &state).map_err(torch)?;
        Ok(Self { recipe: recipe.clone(), state, stepper, pool: Arc::new(pool) })
    }

    pub(crate) fn run<T: Send>(&mut self, f: impl FnOnce(&mut Stepper<A>, &mut State) -> T + Send) -> T {
        let pool = Arc::clone(&self.pool);
        let (stepper, state) = (&mut self.stepper, &mut self.state);
        pool.install(|| f(stepper, state))
    }

    /// See [`take_weights`].
    ///
    /// # Errors
    /// A file that is missing or of another model.
    pub fn take_weights(&mut self, path: &Path, head: Head) -> Result<Vec<String>, ComputeError> {
        take_weights(self, path, head)
    }

    /// The program, for whoever shows it.
    pub fn program(&self) -> &Program {
        &self.stepper.program
    }

    /// The flat gradient of the last step, in the order of the layout.
    pub fn gradient(&self) -> &tch::Tensor {
        self.stepper.gradient()
    }

    /// The gradient of the last step by parameter, in logical shape: for proofs.
    ///
    /// # Errors
    /// What libtorch says.
    pub fn gradients(&self) -> Result<Vec<(String, tch::Tensor)>, TorchError> {
        let (program, layout) = (&self.stepper.program, &self.stepper.layout);
        let one = |(i, param): (usize, &crate::program::Param)| {
            let view = view_of(self.gradient(), program, layout, ParamId(i))?;
            // A copy, in f64: the next step writes over the buffer. Weight decay is in it.
            Ok((param.name.clone(), view.f_contiguous()?.f_to_kind(tch::Kind::Double)?))
        };
        program.params.iter().enumerate().map(one).collect()
    }

    /// The state, for proofs.
    pub fn state(&self) -> &State {
        &self.state
    }
}

pub(crate) fn torch(error: TorchError) -> ComputeError {
    ComputeError::fatal(ExitCode::Software, error.to_string())
}

pub(crate) fn step_error(error: StepError) -> ComputeError {
    match error {
        StepError::Collective(error) => ComputeError::Collective(error),
        StepError::Data(error) => ComputeError::fatal(error.exit_code(), error.to_string()),
        error @ StepError::NothingLeft { .. } => ComputeError::fatal(ExitCode::Data, error.to_string()),
        StepError::Lost(what) => ComputeError::fatal(ExitCode::Config, what),
        error @ (StepError::Torch(_) | StepError::NotFinite(_)) => {
            ComputeError::fatal(ExitCode::Software, error.to_string())
        }
    }
}

pub(crate) fn state_error(error: StateError) -> ComputeError {
    ComputeError::fatal(ExitCode::Data, error.to_string())
}

/// Reading this replica's own dense tensors.
pub(crate) fn sure<T>(result: Result<T, TorchError>) -> T {
    // invariant: State makes its tensors dense and of the layout's size, which is all that reading asks
    result.expect("reading the replica's own state")
}

/// Step 0 as the recipe wants it: see [`Compute::begin`].
///
/// # Errors
/// Weights that are missing or of another model.
pub(crate) fn begin(compute: &mut dyn Compute, recipe: &Recipe) -> Result<(), ComputeError> {
    compute.initialise();
    let path = &recipe.model.weights;
    if path.is_empty() {
        return Ok(());
    }
    let kept = take_weights(compute, Path::new(path), recipe.model.head)?;
    if !kept.is_empty() {
        tracing::info!("{path}: {} begin from the seed (model.head)", kept.join(", "));
    }
    Ok(())
}

/// Takes parameters and running statistics from a safetensors file with torchvision's names. Gives the names that kept
/// what they had.
///
/// # Errors
/// A file that is missing or of another model.
pub(crate) fn take_weights(compute: &mut dyn Compute, path: &Path, head: Head) -> Result<Vec<String>, ComputeError> {
    let (mut model, optimizer) = compute.tensors();
    let kept = weights::put_into(&mut model, path, head)
        .map_err(|error| ComputeError::fatal(error.exit_code(), error.to_string()))?;
    compute.load(&model, &optimizer)?;
    Ok(kept)
}

impl<A: Number> Compute for Trainer<A> {
    fn watch(&mut self, pulse: Arc<Pulse>) {
        self.stepper.source.watch(Arc::clone(&pulse));
        self.stepper.pulse = pulse;
    }

    /// A step from a state of its own on the first chunk of epoch 1, alone; seed and data are the run's.
    fn canary(&mut self) -> Result<Sha256, ComputeError> {
        let kept = (self.to_bytes(), self.state.id);
        self.initialise();
        self.stepper.join(Arc::new(Solo::new()));
        let data = self.stepper.source.loader.dataset().identity().num_train;
        let len = u64::from(self.recipe.train.chunk).min(self.recipe.train.batch).min(data);
        let plan =
            StepPlan { step: Step(1), epoch: Epoch(1), lr: 0.0, batch: SampleRange { start: 0, len }, shards: vec![1] };
        let mut hasher = sha2::Sha256::new();
        match self.run(|stepper, state| stepper.step(state, Generation(0), &plan)) {
            Ok(outcome) => {
                hasher.update(outcome.loss.to_le_bytes());
                hasher.update(sure(read_bytes(self.gradient())));
            }
            // A batch with such a chunk may have others: nothing to compare, but no reason to end.
            Err(StepError::NothingLeft { .. }) => hasher.update(b"nothing left"),
            Err(error) => return Err(step_error(error)),
        }
        self.state.take_bytes(&kept.0).map_err(state_error)?;
        self.state.id = kept.1;
        Ok(hex(&hasher.finalize()))
    }

    fn initialise(&mut self) {
        let seed = self.recipe.train.seed;
        sure(self.state.initialise(&self.stepper.program, &self.stepper.layout, seed));
    }

    fn begin(&mut self) -> Result<(), ComputeError> {
        let recipe = self.recipe.clone();
        begin(self, &recipe)?;
        self.state.restart_average().map_err(torch)
    }

    fn join(&mut self, collective: Arc<dyn Collective>) {
        self.stepper.join(collective);
    }

    fn leave(&mut self) {
        self.stepper.join(Arc::new(Solo::new()));
    }

    fn announce(&mut self, plan: &StepPlan) {
        self.stepper.source.announce(plan);
    }

    fn step(&mut self, generation: Generation, plan: &StepPlan) -> Result<StepOutcome, ComputeError> {
        self.run(|stepper, state| stepper.step(state, generation, plan)).map_err(step_error)
    }

    fn evaluate(&mut self, step: Step) -> Result<EvalOutcome, ComputeError> {
        self.run(|stepper, state| stepper.evaluate(state, step)).map_err(step_error)
    }

    fn id(&self) -> Option<StateId> {
        self.state.id
    }

    fn set_id(&mut self, id: Option<StateId>) {
        self.state.id = id;
    }

    fn tensors(&self) -> (Vec<Named>, Vec<Named>) {
        let (program, layout) = (&self.stepper.program, &self.stepper.layout);
        (sure(self.state.model(program, layout)), sure(self.state.optimizer(program, layout)))
    }

    fn load(&mut self, model: &[Named], optimizer: &[Named]) -> Result<(), ComputeError> {
        let (program, layout) = (&self.stepper.program, &self.stepper.layout);
        self.state.load(program, layout, model, optimizer).map_err(state_error)
    }

    fn sha256(&self) -> Sha256 {
        sure(self.state.sha256(&self.stepper.program, &self.stepper.layout))
    }

    fn to_bytes(&self) -> Vec<u8> {
        sure(self.state.to_bytes())
    }

    fn take_bytes(&mut self, bytes: &[u8]) -> Result<(), ComputeError> {
        self.state.take_bytes(bytes).map_err(state_error)
    }
}
