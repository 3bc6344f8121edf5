//! Runs a program on chunks: the mathematics of a step, apart from the optimizer.
//!
//! ```text
//! Tape         values and gradients on their way through a program: all operations but BatchNorm
//! Chunk        one chunk's tape, with BatchNorm; one thread at a time
//! norm         chunk sums → batch statistics → coefficients, and the same backwards
//! Meeting      adds the chunks' messages in tree order, then over ranks: what `batch_norm` means
//! loss         softmax cross-entropy and the counts
//! Buckets      gradients of parameters → slices → Reducer, a thread that adds them over ranks meanwhile
//! ```
//! May never: touch the weights.

mod buckets;
mod chunk;
mod loss;
mod meeting;
mod norm;
mod tape;

pub use buckets::{Buckets, Reducer, Slice, Together, slices};
pub use chunk::Chunk;
pub use loss::{Counts, Targets, cross_entropy};
pub use meeting::{LocalTree, Meeting, Scope};
pub use norm::{Backward, Forward, Statistics, backward, backward_fixed, forward, running_update};
pub use tape::{Passes, Tape};
