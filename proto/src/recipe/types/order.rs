//! `data.order`

use serde::{Deserialize, Serialize};

/// `data.order`
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Order {
    /// Any sample may come next.
    #[default]
    Full,
    /// `data.block` samples that lie together stay near each other: the order of the blocks is drawn, and samples are
    /// shuffled over `data.block_window` blocks in a row. For data that must be read in long stretches.
    Blocks,
}
