//! The vote behind the last bucket of a step: what a sound rank gives, and what all of them add up to.
//!
//! A rank that was aborted still completes its part of a collective, with junk. Its part of the vote is then zero, or
//! junk; the sum is the expected one only if every rank was sound in this very step of this very generation.

use lockstep_proto::ids::{Generation, Rank, Step};

/// Below it a number stays whole in f64 through any sum of votes: 2^53 ÷ 2^12 ranks.
const LIMIT: u64 = 1 << 40;

/// What `rank` gives: a whole number below 2^40 that no other rank, step or generation gives, but by rare chance.
pub fn vote(generation: Generation, step: Step, rank: Rank) -> f64 {
    let mut word = generation.0 ^ step.0.rotate_left(24) ^ (u64::from(rank.0) + 1).rotate_left(48);
    // Steele, Lea, Flood 2014: the finalizer of SplitMix64.
    word = word.wrapping_add(0x9e37_79b9_7f4a_7c15);
    word = (word ^ (word >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    // Never zero, which is what a poisoned rank gives.
    ((word ^ (word >> 31)) % (LIMIT - 1) + 1) as f64
}

/// What all votes of a step add up to: exact in f64 for up to 4,096 ranks.
pub fn expected(generation: Generation, step: Step, world: u32) -> f64 {
    (0..world).map(|rank| vote(generation, step, Rank(rank))).sum()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn votes_are_whole_distinct_and_never_zero() {
        let mut seen = BTreeSet::new();
        for generation in 1..5 {
            for step in 0..200 {
                for rank in 0..8 {
                    let vote = vote(Generation(generation), Step(step), Rank(rank));
                    assert!(vote >= 1.0 && vote.fract() == 0.0 && vote <= LIMIT as f64);
                    assert!(seen.insert(vote as u64), "twice: {generation} {step} {rank}");
                }
            }
        }
    }

    #[test]
    fn the_sum_of_4096_votes_is_exact() {
        let (generation, step) = (Generation(3), Step(11));
        let exact: u64 = (0..4096).map(|rank| vote(generation, step, Rank(rank)) as u64).sum();
        assert_eq!(expected(generation, step, 4096) as u64, exact);
        assert!(exact < 1 << 53);
    }

    #[test]
    fn a_missing_vote_or_an_old_one_shows() {
        let (generation, step) = (Generation(3), Step(11));
        let sum = expected(generation, step, 4);
        assert_ne!(sum, expected(generation, step, 3));
        assert_ne!(sum, expected(generation, Step(12), 4));
        assert_ne!(sum, expected(Generation(4), step, 4));
    }
}
