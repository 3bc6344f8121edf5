//! A replica's mathematics with one integer for parameters: it depends on every position of every batch, and on nothing
//! else.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use lockstep_collective::{Collective, Lane, Op, Solo};
use lockstep_proto::ids::{Epoch, Generation, SampleRange, StateId, Step};
use lockstep_proto::message::{DataIdentity, Sha256, Skipped, StepPlan, StepTimes};
use lockstep_proto::recipe::Recipe;
use lockstep_proto::split::{ranges, shard_positions};
use lockstep_worker::compute::{Compute, ComputeError, Dtype, EvalOutcome, Named, StepOutcome};

use crate::coroutine::Line;
use crate::course::{INITIAL, advance, contribution, left_out, loss, sha256};
use crate::random::{Random, mix};
use crate::states::Holder;
use crate::witness::Witness;

pub fn identity(recipe: &Recipe) -> DataIdentity {
    DataIdentity {
        name: "shapes".into(),
        num_train: recipe.data.train_size,
        num_test: 10,
        num_classes: 10,
        fingerprint: "f".repeat(64),
    }
}

/// The state.
pub struct Integer {
    pub witness: Arc<Witness>,
    pub holder: Holder,
    pub line: Arc<Line>,
    pub random: Random,
    pub value: u64,
    pub id: Option<StateId>,
    pub collective: Mutex<Arc<dyn Collective>>,
    /// A step was taken that has no name yet: from what, with what.
    pub unnamed: Option<(StateId, (Epoch, SampleRange))>,
}

impl Integer {
    pub fn new(witness: Arc<Witness>, holder: Holder, line: Arc<Line>, random: Random) -> Self {
        let collective: Mutex<Arc<dyn Collective>> = Mutex::new(Arc::new(Solo::new()));
        Self { witness, holder, line, random, value: 0, id: None, collective, unnamed: None }
    }

    fn gather(&self, step: Step, name: &'static str, words: [u64; 2]) -> Result<[u64; 2], ComputeError> {
        let op = Op { lane: Lane::Norm, step, name, index: 0 };
        let mine: Vec<u8> = words.into_iter().flat_map(u64::to_le_bytes).collect();
        let collective = Arc::clone(&self.collective.lock().unwrap());
        let parts = collective.all_gather(&op, &mine)?;
        let word = |part: &[u8], at: usize| u64::from_le_bytes(part[at..at + 8].try_into().expect("two words"));
        Ok(parts.iter().fold([0, 0], |sum: [u64; 2], part| {
            [sum[0].wrapping_add(word(part, 0)), sum[1].wrapping_add(word(part, 8))]
        }))
    }
}

impl Compute for Integer {
    fn canary(&mut self) -> Result<Sha256, ComputeError> {
        Ok("0c".into())
    }

    fn initialise(&mut self) {
        self.value = INITIAL;
    }

    fn join(&mut self, collective: Arc<dyn Collective>) {
        *self.collective.lock().unwrap() = collective;
    }

    fn leave(&mut self) {
        *self.collective.lock().unwrap() = Arc::new(Solo::new());
    }

    fn step(&mut self, generation: Generation, plan: &StepPlan) -> Result<StepOutcome, ComputeError> {
        let time: Duration = self.random.between(20, 300);
        self.line.compute(time);
        let rank = self.collective.lock().unwrap().rank();
        let chunk = self.witness.recipe.train.chunk;
        let shards = ranges(&plan.shards);
        let shard = shard_positions(plan.batch, chunk, shards[rank.0 as usize].clone());
        let mine = [contribution(self.value, plan.epoch, shard), shard.len];
        let [sum, samples] = self.gather(plan.step, "step", mine)?;
        let before = self.value;
        self.value = advance(before, sum);
        let parent = self.id.unwrap_or_default();
        self.unnamed = Some((parent, (plan.epoch, plan.batch)));
        self.id = Some(StateId { lineage: parent.lineage, generation, step: plan.step });
        let times = StepTimes { wall: time.as_secs_f64(), compute: time.as_secs_f64(), ..StepTimes::default() };
        let name = |position| Skipped { position, file: format!("{position}.JPEG"), reason: "text".into() };
        let skipped: Vec<Skipped> = left_out(plan.epoch, plan.batch).into_iter().map(name).collect();
        Ok(StepOutcome {
            loss: loss(before),
            wrong: before % (samples + 1),
            samples: samples - skipped.len() as u64,
            skipped,
            digest: mix(before),
            ready: None,
            times,
        })
    }

    fn evaluate(&mut self, step: Step) -> Result<EvalOutcome, ComputeError> {
        self.line.compute(self.random.between(10, 200));
        self.gather(step, "evaluation", [1, 1])?;
        let error = (self.value % 97) as f64 / 100.0;
        let (loss, skipped) = (loss(self.value), Vec::new());
        Ok(EvalOutcome { loss, error, error_top5: 0.0, samples: 10, skipped, seconds: 0.1 })
    }

    fn id(&self) -> Option<StateId> {
        self.id
    }

    fn set_id(&mut self, id: Option<StateId>) {
        self.id = id;
        let Some(id) = id else { return };
        let mut states = self.witness.states.lock().unwrap();
        let seen = match self.unnamed.take() {
            Some(how) => states.computed(&self.witness.course, id, how, (self.holder.clone(), self.value)),
            None => states.taken_over(id, self.value),
        };
        drop(states);
        self.witness.check(seen);
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
        sha256(self.value)
    }

    fn to_bytes(&self) -> Vec<u8> {
        self.value.to_le_bytes().to_vec()
    }

    fn take_bytes(&mut self, bytes: &[u8]) -> Result<(), ComputeError> {
        self.value = u64::from_le_bytes(bytes.try_into().expect("one word"));
        Ok(())
    }
}
