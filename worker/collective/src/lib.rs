//! Sums over ranks, in an order that the recipe fixes.
//!
//! ```text
//! Collective (trait) ── Solo      one rank: nothing to send
//!                    └─ TcpMesh   every pair of ranks, a socket for each lane
//!                         │ exchange: what goes to whom (reduce, broadcast, gather)
//!                         │ drive:    moves bytes until an exchange is done, the deadline passes or a peer is gone
//!                         └ control:  who failed first, and why
//! Layout ── tree over chunks, shares of ranks ── FoldPlan: the same additions for whoever holds which chunks
//! ```
//! Every wait has a deadline and an error that names a rank. After an error nothing works any more, and everything
//! returns the first cause.
//!
//! May never: know a tensor, decide who is in the world, return different bits on different ranks.
#![forbid(unsafe_code)]

pub mod bench;
mod collective;
mod element;
mod error;
mod fold;
mod layout;
mod solo;
mod tcp;

pub use collective::{Collective, Lane, Op};
pub use element::Element;
pub use error::{CollectiveError, Operation};
pub use layout::Layout;
pub use solo::{Solo, check_reduce, check_root};
pub use tcp::{Listener, TcpMesh};
