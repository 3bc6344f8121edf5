//! The last collectives of a rank, and what those of all ranks tell: NCCL itself names no culprit.

use std::collections::VecDeque;
use std::fmt;

use lockstep_collective::{Lane, Op};
use lockstep_proto::ids::{Rank, Step};

/// Calls of a lane that are remembered.
pub(crate) const REMEMBERED: usize = 64;
/// Calls of a lane that others are told of.
const TOLD: usize = 4;
/// Bytes of a name that others are told.
const NAME: usize = 32;
/// Bytes of one call in a note.
const ENCODED: usize = 8 + 8 + 8 + 8 + 4 + 4 + 1 + NAME;

/// How far a call is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Progress {
    /// It was called; the library has not taken it yet.
    Called,
    /// It waits for its turn on the device, or runs there.
    Enqueued,
    /// It is done.
    Finished,
}

/// One collective of one rank.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Call {
    /// Counts the calls of a lane, from 1.
    pub number: u64,
    /// While working on which step.
    pub step: Step,
    /// Which of its name.
    pub index: u32,
    /// What for; others are told its first 32 bytes.
    pub name: String,
    /// Equal for equal operations: kind, length, type, layout, root.
    pub shape: u64,
    /// Bytes of this rank's share.
    pub bytes: u64,
    /// In which of its exchanges it is, from 0: a large one takes several.
    pub part: u32,
    /// How far, within that.
    pub progress: Progress,
}

impl Call {
    fn is_same(&self, other: &Call) -> bool {
        (self.step, self.index, self.shape, cut(&self.name)) == (other.step, other.index, other.shape, cut(&other.name))
    }
}

impl fmt::Display for Call {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {} of step {} (number {})", self.name, self.index, self.step, self.number)
    }
}

fn cut(name: &str) -> &[u8] {
    &name.as_bytes()[..name.len().min(NAME)]
}

/// The last calls of one rank on one lane, oldest first.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Ring {
    calls: VecDeque<Call>,
    number: u64,
}

impl Ring {
    /// Notes a call; gives its number.
    pub fn begin(&mut self, op: &Op, shape: u64, bytes: u64) -> u64 {
        self.number += 1;
        if self.calls.len() == REMEMBERED {
            self.calls.pop_front();
        }
        self.calls.push_back(Call {
            number: self.number,
            step: op.step,
            index: op.index,
            name: op.name.into(),
            shape,
            bytes,
            part: 0,
            progress: Progress::Called,
        });
        self.number
    }

    /// Notes how far call `number` is, in the exchange in which it is.
    pub fn reach(&mut self, number: u64, progress: Progress) {
        if let Some(call) = self.find(number) {
            call.progress = call.progress.max(progress);
        }
    }

    /// Notes that call `number` begins its next exchange.
    pub fn next_part(&mut self, number: u64) {
        if let Some(call) = self.find(number) {
            (call.part, call.progress) = (call.part + 1, Progress::Called);
        }
    }

    fn find(&mut self, number: u64) -> Option<&mut Call> {
        self.calls.iter_mut().rev().find(|call| call.number == number)
    }

    /// The last calls, oldest first.
    pub fn calls(&self) -> impl DoubleEndedIterator<Item = &Call> {
        self.calls.iter()
    }

    /// The last call.
    pub fn last(&self) -> Option<&Call> {
        self.calls.back()
    }

    /// The first that is not done.
    pub(crate) fn open(&self) -> Option<&Call> {
        self.calls.iter().find(|call| call.progress < Progress::Finished)
    }

    /// The end of it, for others.
    fn encode(&self, bytes: &mut Vec<u8>) {
        // From the first open one on, so that a rank which only enqueues shows where its device is.
        let from = self.calls.iter().position(|call| call.progress < Progress::Finished).unwrap_or(self.calls.len());
        let first = from.min(self.calls.len().saturating_sub(TOLD));
        let is_last = |call: &&Call| call.number == self.number;
        let head = self.calls.iter().skip(first).take_while(|call| !is_last(call)).take(TOLD - 1);
        let told: Vec<&Call> = head.chain(self.calls.back()).collect();
        bytes.push(told.len() as u8);
        for call in told {
            bytes.extend(call.number.to_le_bytes());
            bytes.extend(call.step.0.to_le_bytes());
            bytes.extend(call.shape.to_le_bytes());
            bytes.extend(call.bytes.to_le_bytes());
            bytes.extend(call.index.to_le_bytes());
            bytes.extend(call.part.to_le_bytes());
            bytes.push(call.progress as u8);
            let mut name = [0; NAME];
            name[..cut(&call.name).len()].copy_from_slice(cut(&call.name));
            bytes.extend(name);
        }
    }

    fn decode(bytes: &mut &[u8]) -> Option<Self> {
        let (&count, mut rest) = bytes.split_first()?;
        let mut ring = Ring::default();
        for _ in 0..count {
            let (call, next) = rest.split_at_checked(ENCODED)?;
            let word = |at: usize| call[at..at + 8].iter().rev().fold(0u64, |word, &byte| word << 8 | u64::from(byte));
            let half = |at: usize| u32::from_le_bytes([call[at], call[at + 1], call[at + 2], call[at + 3]]);
            let name = &call[41..];
            let len = name.iter().position(|&byte| byte == 0).unwrap_or(NAME);
            ring.number = word(0);
            ring.calls.push_back(Call {
                number: word(0),
                step: Step(word(8)),
                shape: word(16),
                bytes: word(24),
                index: half(32),
                part: half(36),
                progress: match call[40] {
                    0 => Progress::Called,
                    1 => Progress::Enqueued,
                    _ => Progress::Finished,
                },
                name: String::from_utf8_lossy(&name[..len]).into_owned(),
            });
            rest = next;
        }
        *bytes = rest;
        Some(ring)
    }
}

/// What a rank tells the others: the ends of both its rings.
pub(crate) fn to_note(rings: [&Ring; 2]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(2 * (1 + TOLD * ENCODED));
    rings.iter().for_each(|ring| ring.encode(&mut bytes));
    bytes
}

/// `None` if it is no note.
pub(crate) fn from_note(mut bytes: &[u8]) -> Option<[Ring; 2]> {
    Some([Ring::decode(&mut bytes)?, Ring::decode(&mut bytes)?])
}

/// What the rings of all ranks tell about why nobody gets on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Finding {
    /// A rank called something else than the others.
    Differs {
        /// Who.
        rank: Rank,
        /// What it called.
        theirs: Call,
        /// What the others did.
        others: Call,
    },
    /// A rank has not come as far as the others.
    Behind {
        /// Who.
        rank: Rank,
        /// The call in which it is, or the last that it finished; `None` before its first.
        at: Option<Call>,
        /// Where the others are.
        others: Call,
    },
    /// All ranks are in the same call. Rings cannot tell which of them, or what between them, does not get on.
    Together {
        /// Which.
        at: Call,
    },
    /// Nothing was called.
    Nothing,
}

impl Finding {
    /// Whom it names.
    pub fn culprit(&self) -> Option<Rank> {
        match self {
            Self::Differs { rank, .. } | Self::Behind { rank, .. } => Some(*rank),
            Self::Together { .. } | Self::Nothing => None,
        }
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Differs { rank, theirs, others } => {
                write!(f, "rank {rank} called {theirs} while others called {others}")
            }
            Self::Behind { rank, at: None, others } => {
                write!(f, "rank {rank} has called nothing while others are at {others}")
            }
            Self::Behind { rank, at: Some(at), others } => match at.progress {
                Progress::Called => {
                    write!(f, "the call of rank {rank} for {at} has not returned; others are at {others}")
                }
                Progress::Enqueued => write!(f, "rank {rank} is still in {at}; others are at {others}"),
                Progress::Finished => write!(f, "rank {rank} has called nothing after {at}; others are at {others}"),
            },
            Self::Together { at } => {
                write!(f, "all ranks are in {at}, so that nobody can tell which of them, or of the links, stands still")
            }
            Self::Nothing => f.write_str("no rank has called anything"),
        }
    }
}

/// Compares the rings of one lane, by rank; `None` for one that is not known. Pure: the same rings give the same finding.
pub fn compare(rings: &[Option<&Ring>]) -> Finding {
    let known = || rings.iter().enumerate().filter_map(|(rank, ring)| Some((Rank(rank as u32), (*ring)?)));
    if let Some(differs) = differing(known().collect()) {
        return differs;
    }
    // How far: the first call that is not done, and how far that is; one that has finished all stands before the next.
    let at = |ring: &Ring| match ring.open() {
        Some(call) => (call.number, call.part, call.progress),
        None => (ring.number + 1, 0, Progress::Called),
    };
    // Who calls and does not return is before who has called.
    let has_open = |ring: &Ring| ring.open().is_some();
    let key = |ring: &Ring| {
        let (number, part, progress) = at(ring);
        (number, has_open(ring), part, progress)
    };
    let Some((last, behind)) = known().min_by_key(|(_, ring)| key(ring)) else { return Finding::Nothing };
    let Some((_, first)) = known().max_by_key(|(_, ring)| key(ring)) else { return Finding::Nothing };
    match first.open().or(first.last()) {
        None => Finding::Nothing,
        Some(others) if key(first) == key(behind) => Finding::Together { at: others.clone() },
        Some(others) => {
            let at = behind.open().or(behind.last()).cloned();
            Finding::Behind { rank: last, at, others: others.clone() }
        }
    }
}

/// The first number at which calls differ, and the rank that stands alone with its own there; of two, the higher one.
fn differing(rings: Vec<(Rank, &Ring)>) -> Option<Finding> {
    let mut numbers: Vec<u64> = rings.iter().flat_map(|(_, ring)| ring.calls().map(|call| call.number)).collect();
    numbers.sort_unstable();
    numbers.dedup();
    for number in numbers {
        let calls: Vec<(Rank, &Call)> = rings
            .iter()
            .filter_map(|(rank, ring)| Some((*rank, ring.calls().find(|call| call.number == number)?)))
            .collect();
        let agree = |call: &Call| calls.iter().filter(|(_, other)| other.is_same(call)).count();
        let (rank, theirs) = *calls.iter().min_by_key(|(rank, call)| (agree(call), std::cmp::Reverse(*rank)))?;
        if let Some((_, others)) =
            calls.iter().filter(|(_, other)| !other.is_same(theirs)).max_by_key(|(_, c)| agree(c))
        {
            return Some(Finding::Differs { rank, theirs: theirs.clone(), others: (*others).clone() });
        }
    }
    None
}

/// Index of a lane among both.
pub(crate) fn index(lane: Lane) -> usize {
    match lane {
        Lane::Norm => 0,
        Lane::Buckets => 1,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn op(step: u64, name: &'static str, index: u32) -> Op {
        Op { lane: Lane::Buckets, step: Step(step), name, index }
    }

    /// `finished` buckets, then perhaps one that is under way.
    fn ring(finished: u32, open: Option<Progress>) -> Ring {
        let mut ring = Ring::default();
        for index in 0..finished {
            let number = ring.begin(&op(7, "bucket", index), 1, 100);
            ring.reach(number, Progress::Finished);
        }
        if let Some(progress) = open {
            let number = ring.begin(&op(7, "bucket", finished), 1, 100);
            ring.reach(number, progress);
        }
        ring
    }

    fn find(rings: &[Ring]) -> Finding {
        compare(&rings.iter().map(Some).collect::<Vec<_>>())
    }

    #[test]
    fn the_last_64_are_kept_and_progress_only_grows() {
        let mut long = ring(100, Some(Progress::Enqueued));
        assert_eq!((long.calls().count(), long.calls().next().map(|call| call.number)), (64, Some(38)));
        long.reach(101, Progress::Called);
        assert_eq!(long.open().map(|call| (call.number, call.progress)), Some((101, Progress::Enqueued)));
        long.reach(3, Progress::Finished); // long forgotten
        assert_eq!(long.last().unwrap().to_string(), "bucket 100 of step 7 (number 101)");
    }

    #[test]
    fn who_never_called_is_behind() {
        let others = Some(Progress::Enqueued);
        let found = find(&[ring(5, others), ring(4, None), ring(5, others)]);
        assert_eq!(found.culprit(), Some(Rank(1)));
        assert_eq!(
            found.to_string(),
            "rank 1 has called nothing after bucket 3 of step 7 (number 4); others are at bucket 5 of step 7 (number 6)"
        );
        let found = find(&[ring(0, None), ring(0, others)]);
        assert_eq!(found.to_string(), "rank 0 has called nothing while others are at bucket 0 of step 7 (number 1)");
    }

    #[test]
    fn who_finished_the_same_and_did_not_call_the_next_is_behind_who_did() {
        assert_eq!(find(&[ring(5, None), ring(5, Some(Progress::Enqueued))]).culprit(), Some(Rank(0)));
        assert_eq!(find(&[ring(5, None), ring(5, Some(Progress::Called))]).culprit(), Some(Rank(0)));
    }

    #[test]
    fn whose_call_does_not_return_and_whose_device_stands_still_are_behind() {
        let found = find(&[ring(5, Some(Progress::Enqueued)), ring(5, Some(Progress::Called))]);
        assert_eq!(
            found.to_string(),
            "the call of rank 1 for bucket 5 of step 7 (number 6) has not returned; others are at bucket 5 of step 7 \
             (number 6)"
        );
        let found = find(&[ring(5, Some(Progress::Enqueued)), ring(6, Some(Progress::Enqueued))]);
        assert_eq!((found.culprit(), found.to_string().contains("is still in bucket 5")), (Some(Rank(0)), true));
    }

    #[test]
    fn who_is_in_an_earlier_exchange_of_the_same_call_is_behind() {
        let mut further = ring(5, Some(Progress::Enqueued));
        further.next_part(6);
        let found = find(&[further.clone(), ring(5, Some(Progress::Enqueued)), further.clone()]);
        assert_eq!(found.culprit(), Some(Rank(1)), "it has enqueued, they have only called, but the next one");
        let told = from_note(&to_note([&further, &further])).unwrap();
        assert_eq!(told[1].last(), further.last());
    }

    #[test]
    fn all_in_the_same_call_name_nobody() {
        let same = || ring(5, Some(Progress::Enqueued));
        let found = find(&[same(), same(), same()]);
        assert_eq!((found.culprit(), matches!(found, Finding::Together { .. })), (None, true));
        assert_eq!(find(&[Ring::default(), Ring::default()]), Finding::Nothing);
        assert_eq!(compare(&[None, None]), Finding::Nothing);
    }

    #[test]
    fn who_calls_something_else_is_named_though_it_is_ahead() {
        let mut odd = ring(5, None);
        odd.begin(&op(7, "norm", 5), 1, 100);
        odd.begin(&op(7, "norm", 6), 1, 100);
        let even = || ring(5, Some(Progress::Enqueued));
        let found = find(&[even(), odd.clone(), even()]);
        assert_eq!(found.culprit(), Some(Rank(1)));
        assert_eq!(
            found.to_string(),
            "rank 1 called norm 5 of step 7 (number 6) while others called bucket 5 of step 7 (number 6)"
        );
        let mut longer = ring(5, None);
        longer.begin(&op(7, "bucket", 5), 2, 200);
        assert_eq!(find(&[longer, even(), even()]).culprit(), Some(Rank(0)), "the same name, another shape");
    }

    #[test]
    fn a_note_holds_the_end_of_both_rings() {
        let (norm, buckets) = (ring(100, Some(Progress::Called)), ring(2, None));
        let note = to_note([&norm, &buckets]);
        assert!(note.len() <= 1024, "{} bytes", note.len());
        let [told, all] = from_note(&note).unwrap();
        assert_eq!(told.calls().map(|call| call.number).collect::<Vec<_>>(), [98, 99, 100, 101]);
        assert_eq!((told.last(), all.calls().count()), (norm.last(), 2));
        assert_eq!(find(&[norm, told]).culprit(), None);
        assert_eq!(from_note(&note[..50]), None);
        // A rank that has enqueued far ahead shows where its device is.
        let mut ahead = ring(3, None);
        for index in 0..20 {
            ahead.begin(&op(8, "bucket", index), 1, 1);
        }
        let [told, _] = from_note(&to_note([&ahead, &buckets])).unwrap();
        assert_eq!(told.open().map(|call| call.number), Some(4));
        assert_eq!(told.last().map(|call| call.number), Some(23));
    }
}
