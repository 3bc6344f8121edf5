//! Every state that any replica ever came to hold, by name: the witness against which records are held.

use std::collections::{BTreeMap, BTreeSet};

use lockstep_proto::ids::{Epoch, Generation, SampleRange, StateId, Step, WorkerId};

use crate::course::{Course, INITIAL};

/// A replica of a process.
pub type Holder = (WorkerId, u32);

/// One state.
#[derive(Clone, Debug)]
pub struct Known {
    pub parameters: u64,
    /// What it was computed from; `None` for step 0.
    pub parent: Option<StateId>,
    /// Who computed it.
    pub appliers: BTreeSet<Holder>,
}

/// All of them.
#[derive(Debug, Default)]
pub struct States(BTreeMap<StateId, Known>);

impl States {
    /// A replica applied a step.
    pub fn computed(
        &mut self,
        course: &Course,
        id: StateId,
        (parent, batch): (StateId, (Epoch, SampleRange)),
        (holder, parameters): (Holder, u64),
    ) -> Result<(), String> {
        if id.step.0 > course.num_steps() {
            return Err(format!("{id} is beyond the run's {} steps", course.num_steps()));
        }
        if batch != course.at(id.step) {
            return Err(format!("{id} was computed with {batch:?}, its batch is {:?}", course.at(id.step)));
        }
        if parameters != course.parameters(id.step) {
            return Err(format!("{id} holds other parameters than one worker alone would after step {}", id.step));
        }
        let new = || Known { parameters, parent: Some(parent), appliers: BTreeSet::new() };
        let known = self.0.entry(id).or_insert_with(new);
        if known.parent != Some(parent) {
            return Err(format!("{id} was computed from {parent} by {holder:?} and from {:?} by others", known.parent));
        }
        known.appliers.insert(holder);
        Ok(())
    }

    /// A replica took a state over, or initialised it.
    pub fn taken_over(&mut self, id: StateId, parameters: u64) -> Result<(), String> {
        if id.step == Step(0) {
            let initial = Known { parameters: INITIAL, parent: None, appliers: BTreeSet::new() };
            self.0.entry(id).or_insert(initial);
        }
        match self.0.get(&id) {
            None => Err(format!("{id} was taken over, but nobody ever computed it")),
            Some(known) if known.parameters != parameters => {
                Err(format!("{id} has other parameters where it was taken over than where it was computed"))
            }
            Some(_) => Ok(()),
        }
    }

    /// The state that a generation made of a step, with its name. A generation belongs to one lineage.
    pub fn of(&self, generation: Generation, step: Step) -> Option<(StateId, &Known)> {
        self.0.iter().find(|(id, _)| id.generation == generation && id.step == step).map(|(id, known)| (*id, known))
    }
}
