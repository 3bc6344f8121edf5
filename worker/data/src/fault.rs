//! A fault to inject into a loader, so that a test can see the audit find it.

use std::str::FromStr;

use lockstep_proto::ids::Epoch;

/// Names the environment variable that makes a process's loaders deliver a wrong sample: `EPOCH:POSITION`. At that
/// position they deliver the sample of the next position (of the first one at the end), and their digest says so
/// honestly. For tests only; a loader with a fault says so in the log.
pub const FAULT_VARIABLE: &str = "LOCKSTEP_FAULT_LOADER";

/// Where a wrong sample is delivered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LoaderFault {
    /// In which epoch.
    pub epoch: Epoch,
    /// At which position of its order.
    pub position: u64,
}

impl LoaderFault {
    /// What [`FAULT_VARIABLE`] says; a value that cannot be read is logged and injects nothing.
    pub fn from_environment() -> Option<Self> {
        let value = std::env::var(FAULT_VARIABLE).ok()?;
        let fault = value.parse();
        match &fault {
            Ok(Self { epoch, position }) => {
                tracing::warn!(%epoch, position, "{FAULT_VARIABLE}: this loader delivers a wrong sample on purpose");
            }
            Err(error) => tracing::warn!(value, error, "{FAULT_VARIABLE} injects nothing"),
        }
        fault.ok()
    }
}

impl FromStr for LoaderFault {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let parsed = text.split_once(':').and_then(|(epoch, position)| {
            Some(Self { epoch: Epoch(epoch.parse().ok()?), position: position.parse().ok()? })
        });
        parsed.ok_or("expected EPOCH:POSITION, for example 1:300")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fault_is_an_epoch_and_a_position() {
        assert_eq!("2:300".parse(), Ok(LoaderFault { epoch: Epoch(2), position: 300 }));
        for wrong in ["", "2", "2:", ":3", "2:x", "-1:3", "1:2:3"] {
            assert!(wrong.parse::<LoaderFault>().unwrap_err().contains("EPOCH:POSITION"), "{wrong}");
        }
    }
}
