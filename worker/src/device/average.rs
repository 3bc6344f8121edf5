//! How much of an average of the weights stays and how much of the weights comes in, as numbers that a captured step reads.

use lockstep_proto::ids::{Epoch, Step};
use lockstep_proto::recipe::Train;

/// `average = keep·average + take·weights` after a step, by the rule of
/// [`State::update_average`](crate::state::State::update_average).
pub fn shares(train: &Train, epoch: Epoch, step: Step) -> (f64, f64) {
    if train.ema_decay == 0.0 || !step.0.is_multiple_of(train.ema_every) {
        return (1.0, 0.0);
    }
    if epoch.0 <= train.ema_after_epochs || step.0 == train.ema_every {
        return (0.0, 1.0);
    }
    (train.ema_decay, 1.0 - train.ema_decay)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_begins_as_the_weights_are_and_rests_between() {
        let train = Train { ema_decay: 0.75, ema_every: 2, ema_after_epochs: 1, ..Train::default() };
        let of = |epoch, step| shares(&train, Epoch(epoch), Step(step));
        assert_eq!(of(1, 1), (1.0, 0.0));
        assert_eq!(of(1, 4), (0.0, 1.0), "the weights of epoch 1 are not averaged");
        assert_eq!(of(2, 6), (0.75, 0.25));
        assert_eq!(of(2, 7), (1.0, 0.0));
        assert_eq!(shares(&Train::default(), Epoch(2), Step(6)), (1.0, 0.0));
    }
}
