//! Runs a program on chunks: the mathematics of a step, apart from the optimizer.
//!
//! ```text
//! Chunk        one chunk's values and gradients; one thread at a time
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

pub use buckets::{Buckets, Reducer};
pub use chunk::Chunk;
pub use loss::{Counts, cross_entropy};
pub use meeting::{LocalTree, Meeting, Scope};
pub use norm::{Backward, Forward, Statistics, backward, backward_fixed, forward, running_update};
