//! What can be wrong with shards and with where they lie.

use std::io;
use std::path::PathBuf;

use lockstep_proto::exit::ExitCode;

use super::index::INDEX;

/// Shards that are missing, changed, or out of reach. Each names the shard by its full address.
#[derive(Debug, thiserror::Error)]
pub enum ShardError {
    /// An address that nothing can be read from.
    #[error("data.path = \"{address}\": {what}: give a folder or a URL (http, https, s3, gs, az, file)")]
    Address {
        /// Without credentials.
        address: String,
        /// Why not.
        what: String,
    },
    /// Nothing to read.
    #[error(
        "{address}: no shards: there must be {INDEX}, or train/*.tar and val/*.tar (`lockstep data pack` makes both from \
         a folder of images){hint}"
    )]
    NoShards {
        /// `data.path`
        address: String,
        /// More about why.
        hint: &'static str,
    },
    /// A shard of the index is not there.
    #[error("{address}: no such shard, though {INDEX} lists it: put it back, or remove {INDEX} to do without it")]
    Missing {
        /// The shard.
        address: String,
    },
    /// The store does not let us.
    #[error(
        "{address}: access refused: {what}: see that the credentials are set (AWS_*, GOOGLE_*, AZURE_*) and may read it"
    )]
    Refused {
        /// What was read.
        address: String,
        /// What the store said.
        what: String,
    },
    /// The store does not answer, or with errors only.
    #[error(
        "{address}: not read within {seconds} s: {what}: see whether it can be reached from here; data.read_timeout_s \
         gives it longer"
    )]
    Unreachable {
        /// What was read.
        address: String,
        /// The last thing that went wrong.
        what: String,
        /// `data.read_timeout_s`
        seconds: f64,
    },
    /// Parts of files cannot be had.
    #[error(
        "{address}: the server does not answer range requests: use one that does (nginx, Apache, Caddy, any object \
         store), or copy the shards to a disk"
    )]
    NoRanges {
        /// What was read.
        address: String,
    },
    /// A shard is not what the index says.
    #[error(
        "{address}: {what}: it changed since its index was made: put the shard back as it was, or remove {INDEX} to have \
         it made again"
    )]
    Changed {
        /// The shard.
        address: String,
        /// How it differs.
        what: String,
    },
    /// An index that makes no sense.
    #[error("{address}: {what}: it is damaged or of another version: remove it to have it made again")]
    Index {
        /// The index.
        address: String,
        /// What is odd.
        what: String,
    },
    /// Something that is no tar file.
    #[error("{address}: at offset {offset}: {what}: it is truncated or no tar file; copy it again")]
    Tar {
        /// The shard.
        address: String,
        /// Bytes from its start.
        offset: u64,
        /// What is odd.
        what: String,
    },
    /// A sample without what a sample needs.
    #[error("{address}: {member}: {what}")]
    Member {
        /// The shard.
        address: String,
        /// The file inside.
        member: String,
        /// What is odd, and what to do.
        what: String,
    },
    /// A class that cannot have been learnt.
    #[error(
        "{address}: val has the class {class}, which train lacks: the labels would not fit; take its samples away or add \
         it to train"
    )]
    UnknownClass {
        /// The first shard of `val` with it.
        address: String,
        /// Its name or number.
        class: String,
    },
    /// The destination of a pack is taken.
    #[error("{}: it holds {what}: give another folder, or move that away", path.display())]
    InTheWay {
        /// The index or the folder.
        path: PathBuf,
        /// What is there.
        what: String,
    },
    /// A file on disk.
    #[error("{}: cannot read: {source}", path.display())]
    Read {
        /// The file or folder.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

impl ShardError {
    /// How a process ends that meets this.
    pub fn exit_code(&self) -> ExitCode {
        match self {
            Self::Address { .. } => ExitCode::Usage,
            Self::NoShards { .. } | Self::Missing { .. } | Self::Read { .. } => ExitCode::NoInput,
            Self::InTheWay { .. } => ExitCode::CantCreate,
            Self::Refused { .. } => ExitCode::NoPermission,
            Self::Unreachable { .. } | Self::NoRanges { .. } => ExitCode::Unavailable,
            Self::Changed { .. }
            | Self::Index { .. }
            | Self::Tar { .. }
            | Self::Member { .. }
            | Self::UnknownClass { .. } => ExitCode::Data,
        }
    }
}
