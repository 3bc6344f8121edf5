//! Replicas of one integer.

use std::sync::{Arc, Mutex};

use lockstep_collective::{Collective, Lane, Op, Solo};
use lockstep_proto::exit::ExitCode;
use lockstep_proto::ids::{Generation, StateId, Step};
use lockstep_proto::message::{DataIdentity, Sha256, StepPlan, StepTimes};
use lockstep_proto::recipe::Recipe;
use lockstep_worker::compute::{Compute, ComputeError, Dtype, EvalOutcome, Named, StepOutcome};
use lockstep_worker::exit::Exit;
use lockstep_worker::session::Workshop;
use tokio::sync::mpsc;

use super::data;

/// Integers in place of tensors: a step makes `31 · value + step + rank sum`.
pub struct Integer {
    value: u64,
    id: Option<StateId>,
    collective: Arc<dyn Collective>,
    steps: Steps,
}

/// A step that waits until its sender speaks or is dropped.
type Held = (Step, std::sync::mpsc::Receiver<()>);

/// Lets a test see each step begin, and hold it.
#[derive(Clone)]
pub struct Steps {
    begun: mpsc::UnboundedSender<Step>,
    /// Steps that wait for the test.
    held: Arc<Mutex<Vec<Held>>>,
}

impl Steps {
    pub fn new() -> (Self, mpsc::UnboundedReceiver<Step>) {
        let (begun, receiver) = mpsc::unbounded_channel();
        (Self { begun, held: Arc::default() }, receiver)
    }

    /// The next replica that begins `step` stays in it until the sender speaks or is dropped.
    pub fn hold(&self, step: u64) -> std::sync::mpsc::Sender<()> {
        let (sender, receiver) = std::sync::mpsc::channel();
        self.held.lock().unwrap().push((Step(step), receiver));
        sender
    }

    fn begin(&self, step: Step) {
        let _ = self.begun.send(step);
        let held = {
            let mut held = self.held.lock().unwrap();
            held.iter().position(|(of, _)| *of == step).map(|at| held.remove(at).1)
        };
        if let Some(held) = held {
            let _ = held.recv();
        }
    }
}

impl Integer {
    fn gather(&self, step: Step, name: &'static str) -> Result<u64, ComputeError> {
        let op = Op { lane: Lane::Norm, step, name, index: 0 };
        let ranks = self.collective.all_gather(&op, &[self.collective.rank().0 as u8])?;
        Ok(ranks.iter().flatten().map(|&rank| u64::from(rank)).sum())
    }
}

impl Compute for Integer {
    fn canary(&mut self) -> Result<Sha256, ComputeError> {
        Ok("0c".into())
    }

    fn initialise(&mut self) {
        self.value = 1;
    }

    fn join(&mut self, collective: Arc<dyn Collective>) {
        self.collective = collective;
    }

    fn leave(&mut self) {
        self.collective = Arc::new(Solo::new());
    }

    fn step(&mut self, generation: Generation, plan: &StepPlan) -> Result<StepOutcome, ComputeError> {
        self.steps.begin(plan.step);
        if plan.lr.is_nan() {
            return Err(ComputeError::fatal(ExitCode::Software, format!("loss is NaN at step {}", plan.step)));
        }
        let sum = self.gather(plan.step, "step")?;
        self.value = self.value.wrapping_mul(31).wrapping_add(plan.step.0 + sum);
        let lineage = self.id.map(|id| id.lineage).unwrap_or_default();
        self.id = Some(StateId { lineage, generation, step: plan.step });
        let times = StepTimes::default();
        Ok(StepOutcome {
            loss: self.value as f64,
            wrong: 0,
            samples: plan.batch.len,
            skipped: Vec::new(),
            digest: 7,
            ready: None,
            times,
        })
    }

    fn evaluate(&mut self, step: Step) -> Result<EvalOutcome, ComputeError> {
        self.gather(step, "evaluation")?;
        Ok(EvalOutcome { loss: 0.5, error: 0.25, error_top5: 0.0, samples: 100, skipped: Vec::new(), seconds: 0.1 })
    }

    fn id(&self) -> Option<StateId> {
        self.id
    }

    fn set_id(&mut self, id: Option<StateId>) {
        self.id = id;
    }

    fn tensors(&self) -> (Vec<Named>, Vec<Named>) {
        let named = |name: &str| Named {
            name: name.into(),
            dtype: Dtype::F64,
            shape: vec![1],
            bytes: self.value.to_le_bytes().to_vec(),
        };
        (vec![named("value")], vec![named("momentum")])
    }

    fn load(&mut self, model: &[Named], _optimizer: &[Named]) -> Result<(), ComputeError> {
        self.take_bytes(&model[0].bytes)
    }

    fn sha256(&self) -> Sha256 {
        format!("{:064x}", self.value)
    }

    fn to_bytes(&self) -> Vec<u8> {
        self.value.to_le_bytes().to_vec()
    }

    fn take_bytes(&mut self, bytes: &[u8]) -> Result<(), ComputeError> {
        self.value = u64::from_le_bytes(bytes.try_into().unwrap());
        Ok(())
    }
}

/// The value after some steps of `world` ranks.
pub fn value_after(num_steps: u64, world: u64) -> u64 {
    (1..=num_steps).fold(1, |value: u64, step| value.wrapping_mul(31) + step + world * (world - 1) / 2)
}

pub fn hash_after(num_steps: u64, world: u64) -> String {
    format!("{:064x}", value_after(num_steps, world))
}

pub struct Integers(pub Steps);

impl Workshop for Integers {
    type Data = ();

    fn limit_isa(&self, _isa: &str) -> Result<(), Exit> {
        Ok(())
    }

    fn load(&self, recipe: &Recipe) -> Result<((), DataIdentity), Exit> {
        if recipe.data.path == "missing" {
            return Err(Exit::new(ExitCode::NoInput, "data.path: missing is not there"));
        }
        Ok(((), data()))
    }

    fn build(&self, _recipe: &Recipe, (): ()) -> Result<Box<dyn Compute>, ComputeError> {
        let collective = Arc::new(Solo::new());
        Ok(Box::new(Integer { value: 0, id: None, collective, steps: self.0.clone() }))
    }
}
