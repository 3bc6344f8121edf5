//! Reports that the coordinator has not made durable yet.

use lockstep_proto::ids::{Generation, Step};
use lockstep_proto::message::FromWorker;

/// Kept until `Committed`, and said again after a reconnection.
#[derive(Debug, Default)]
pub struct Outbox(Vec<FromWorker>);

impl Outbox {
    /// Remembers a message, if it is one that must not be lost.
    pub fn keep(&mut self, message: &FromWorker) {
        if key(message).is_some() {
            self.0.push(message.clone());
        }
    }

    /// Steps up to `step` are durable. What was said *about* the state after `step` may still be under way.
    pub fn committed(&mut self, generation: Generation, step: Step) {
        self.0.retain(|message| match (message, key(message)) {
            (FromWorker::Reported(report), _) => report.generation > generation || report.step > step,
            (_, Some((of, about))) => of > generation || about >= step,
            (_, None) => false,
        });
    }

    /// A generation opened: reports of older ones are of no more use to anyone.
    pub fn opened(&mut self, generation: Generation) {
        self.0.retain(|message| key(message).is_some_and(|(of, _)| of >= generation));
    }

    /// All of them, oldest first.
    pub fn unacknowledged(&self) -> impl Iterator<Item = &FromWorker> {
        self.0.iter()
    }
}

fn key(message: &FromWorker) -> Option<(Generation, Step)> {
    match message {
        FromWorker::Reported(report) => Some((report.generation, report.step)),
        FromWorker::Evaluated(report) => Some((report.generation, report.step)),
        FromWorker::CheckpointSaved(saved) => Some((saved.generation, saved.state.step)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use lockstep_proto::ids::{Epoch, Rank};
    use lockstep_proto::message::{EvalReport, Halted, StepReport, StepTimes};

    fn step(generation: u64, step: u64) -> FromWorker {
        FromWorker::Reported(StepReport {
            generation: Generation(generation),
            rank: Rank(0),
            step: Step(step),
            loss: 1.0,
            wrong: 1,
            samples: 2,
            skipped: Vec::new(),
            digest: 3,
            ready: None,
            times: StepTimes::default(),
        })
    }

    fn evaluation(generation: u64, step: u64) -> FromWorker {
        FromWorker::Evaluated(EvalReport {
            generation: Generation(generation),
            rank: Rank(0),
            epoch: Epoch(1),
            step: Step(step),
            loss: 1.0,
            error: 0.5,
            error_top5: 0.1,
            samples: 10,
            skipped: Vec::new(),
            seconds: 1.0,
        })
    }

    #[test]
    fn what_is_durable_is_forgotten_and_the_rest_is_kept_in_order() {
        let mut outbox = Outbox::default();
        for message in [step(1, 1), step(1, 2), evaluation(1, 2), step(1, 3)] {
            outbox.keep(&message);
        }
        outbox.keep(&FromWorker::Halted(Halted { generation: Generation(1), state: None }));
        outbox.committed(Generation(1), Step(2));
        assert_eq!(outbox.unacknowledged().cloned().collect::<Vec<_>>(), [evaluation(1, 2), step(1, 3)]);
        outbox.committed(Generation(1), Step(3));
        assert_eq!(outbox.unacknowledged().count(), 0);
    }

    #[test]
    fn a_new_generation_fences_the_old_ones_reports() {
        let mut outbox = Outbox::default();
        outbox.keep(&step(1, 1));
        outbox.opened(Generation(2));
        outbox.keep(&step(2, 1));
        assert_eq!(outbox.unacknowledged().cloned().collect::<Vec<_>>(), [step(2, 1)]);
    }
}
