//! Exit codes: one table, the same in the README, in Kubernetes' `podFailurePolicy` and in Slurm's requeue rule.

use serde::{Deserialize, Serialize};

/// How a process of Lockstep ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum ExitCode {
    /// 0: done.
    Done,
    /// 64: wrong usage or recipe.
    Usage,
    /// 65: wrong data.
    Data,
    /// 66: data missing.
    NoInput,
    /// 69: coordinator unreachable, or nobody joined in time.
    Unavailable,
    /// 70: internal error; loss is NaN.
    Software,
    /// 73: cannot write.
    CantCreate,
    /// 75: interrupted, resumable.
    TempFail,
    /// 76: other protocol or version.
    Protocol,
    /// 77: not authorised.
    NoPermission,
    /// 78: device or library unusable.
    Config,
}

impl ExitCode {
    /// All of them, ascending.
    pub const ALL: [Self; 11] = [
        Self::Done,
        Self::Usage,
        Self::Data,
        Self::NoInput,
        Self::Unavailable,
        Self::Software,
        Self::CantCreate,
        Self::TempFail,
        Self::Protocol,
        Self::NoPermission,
        Self::Config,
    ];

    /// The number that the process exits with.
    pub fn code(self) -> u8 {
        match self {
            Self::Done => 0,
            Self::Usage => 64,
            Self::Data => 65,
            Self::NoInput => 66,
            Self::Unavailable => 69,
            Self::Software => 70,
            Self::CantCreate => 73,
            Self::TempFail => 75,
            Self::Protocol => 76,
            Self::NoPermission => 77,
            Self::Config => 78,
        }
    }

    /// The meaning, as in the README's table.
    pub fn meaning(self) -> &'static str {
        match self {
            Self::Done => "done",
            Self::Usage => "wrong usage or recipe",
            Self::Data => "wrong data",
            Self::NoInput => "data missing",
            Self::Unavailable => "coordinator unreachable, or nobody joined in time",
            Self::Software => "internal error",
            Self::CantCreate => "cannot write",
            Self::TempFail => "interrupted, resumable",
            Self::Protocol => "other protocol or version",
            Self::NoPermission => "not authorised",
            Self::Config => "device or library unusable",
        }
    }

    /// From a number on the wire or from a child's status.
    pub fn from_code(code: u8) -> Option<Self> {
        Self::ALL.into_iter().find(|known| known.code() == code)
    }
}

impl From<ExitCode> for std::process::ExitCode {
    fn from(code: ExitCode) -> Self {
        std::process::ExitCode::from(code.code())
    }
}
