//! Positions of one epoch: which are in no row, which in two. Knows nothing of recipes.

use lockstep_proto::ids::SampleRange;

/// Ranges of an epoch, in any order.
#[derive(Debug, Default)]
pub struct Cover {
    ranges: Vec<SampleRange>,
}

/// What is wrong with a cover.
#[derive(Debug, PartialEq, Eq)]
pub enum Fault {
    /// In no range.
    Missing(SampleRange),
    /// In more than one.
    Repeated(SampleRange),
    /// Past the last position.
    Outside(SampleRange),
}

impl Cover {
    /// Adds a range; empty ones count for nothing.
    pub fn add(&mut self, range: SampleRange) {
        match self.ranges.last_mut() {
            _ if range.is_empty() => {}
            // Mostly they come in order: keep one.
            Some(last) if last.end() == range.start => last.len += range.len,
            _ => self.ranges.push(range),
        }
    }

    /// Whether positions `[0, num_positions)` are covered exactly once.
    pub fn faults(mut self, num_positions: u64) -> Vec<Fault> {
        self.ranges.sort();
        let mut faults = Vec::new();
        let mut at = 0;
        for range in self.ranges {
            if range.start > at {
                faults.push(Fault::Missing(SampleRange { start: at, len: range.start - at }));
            }
            let repeated = range.end().min(at).saturating_sub(range.start);
            if repeated > 0 {
                faults.push(Fault::Repeated(SampleRange { start: range.start, len: repeated }));
            }
            at = at.max(range.end());
        }
        if at < num_positions {
            faults.push(Fault::Missing(SampleRange { start: at, len: num_positions - at }));
        }
        if at > num_positions {
            faults.push(Fault::Outside(SampleRange { start: num_positions, len: at - num_positions }));
        }
        faults
    }
}

impl std::fmt::Display for Fault {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Missing(range) => write!(f, "positions {range} are in no committed step"),
            Self::Repeated(range) => write!(f, "positions {range} are there twice"),
            Self::Outside(range) => write!(f, "positions {range} are past the end of the epoch"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn faults(ranges: &[(u64, u64)], num_positions: u64) -> Vec<Fault> {
        let mut cover = Cover::default();
        for &(start, len) in ranges {
            cover.add(SampleRange { start, len });
        }
        cover.faults(num_positions)
    }

    #[test]
    fn ranges_that_tile_an_epoch_have_no_fault_in_any_order() {
        assert!(faults(&[(0, 4), (4, 4), (8, 0), (8, 2)], 10).is_empty());
        assert!(faults(&[(8, 2), (0, 4), (4, 4)], 10).is_empty());
    }

    #[test]
    fn a_removed_a_doubled_and_a_shifted_range_are_named() {
        let range = |start, len| SampleRange { start, len };
        assert_eq!(faults(&[(0, 4), (8, 2)], 10), [Fault::Missing(range(4, 4))]);
        assert_eq!(faults(&[(0, 4), (4, 4), (4, 4), (8, 2)], 10), [Fault::Repeated(range(4, 4))]);
        assert_eq!(faults(&[(0, 4), (5, 4), (8, 2)], 10), [Fault::Missing(range(4, 1)), Fault::Repeated(range(8, 1))]);
        assert_eq!(faults(&[(0, 8), (8, 3)], 10), [Fault::Outside(range(10, 1))]);
        assert_eq!(faults(&[], 3), [Fault::Missing(range(0, 3))]);
    }
}
