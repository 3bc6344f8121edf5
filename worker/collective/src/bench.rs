//! How long an all-reduce takes.

use std::time::Instant;

use lockstep_proto::ids::Step;

use crate::collective::{Collective, Lane, Op};
use crate::error::CollectiveError;
use crate::layout::Layout;

/// Bytes up to which a benchmark uses the lane for small messages, as the trainer does.
const NORM_BYTES: usize = 256 << 10;

/// Seconds of each of `repetitions` sums of `num_elements` floats over all ranks, one partial a rank, each after a
/// barrier. Three more go before, unmeasured.
///
/// Of each repetition the time of the slowest rank, the same on all: whoever leaves the barrier last finds the others'
/// messages there already, and alone would measure no latency at all.
pub fn all_reduce(
    collective: &dyn Collective,
    num_elements: usize,
    repetitions: usize,
) -> Result<Vec<f64>, CollectiveError> {
    const WARM_UP: usize = 3;
    let lane = if num_elements * 4 <= NORM_BYTES { Lane::Norm } else { Lane::Buckets };
    let layout = Layout::by_rank(collective.world());
    let input: Vec<f32> = (0..num_elements).map(|i| (i % 1013) as f32 * 1e-3).collect();
    let mut out = vec![0.0; num_elements];
    let mut seconds = Vec::with_capacity(repetitions);
    for index in 0..(WARM_UP + repetitions) as u32 {
        let op = |name| Op { lane, step: Step(0), name, index };
        collective.barrier(&op("benchmark barrier"))?;
        let start = Instant::now();
        collective.reduce_f32(&op("benchmark"), &layout, &[&input], &mut out)?;
        if index as usize >= WARM_UP {
            seconds.push(start.elapsed().as_secs_f64());
        }
    }
    let op = Op { lane, step: Step(0), name: "benchmark times", index: 0 };
    for times in collective.all_gather(&op, bytemuck::cast_slice(&seconds))? {
        for (slowest, time) in seconds.iter_mut().zip(times.chunks_exact(size_of::<f64>())) {
            *slowest = slowest.max(bytemuck::pod_read_unaligned(time));
        }
    }
    Ok(seconds)
}
