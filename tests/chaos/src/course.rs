//! What decides whether two runs were the same.

use std::path::Path;

use anyhow::{Context as _, Result, bail};
use lockstep_proto::manifest::Manifest;
use rusqlite::{Connection, OpenFlags};

/// Every committed step, and the hash of the state after the last.
#[derive(Clone, Debug, PartialEq)]
pub struct Course {
    /// Step, epoch, samples; the bits of rate, loss and error.
    steps: Vec<[u64; 6]>,
    /// Of parameters, optimizer and statistics.
    pub state_sha256: String,
}

impl Course {
    /// Reads a run that has ended with a checkpoint of its last step.
    pub fn read(run: &Path) -> Result<Self> {
        let path = run.join("run.db");
        let connection = Connection::open_with_flags(&path, OpenFlags::SQLITE_OPEN_READ_ONLY)?;
        let mut statement =
            connection.prepare("SELECT step, epoch, samples, lr, loss, error FROM steps ORDER BY step")?;
        let rows = statement.query_map([], |row| {
            let count = |i| row.get::<_, i64>(i).map(|value| value as u64);
            let bits = |i| row.get::<_, Option<f64>>(i).map(|value| value.unwrap_or(f64::NAN).to_bits());
            Ok([count(0)?, count(1)?, count(2)?, bits(3)?, bits(4)?, bits(5)?])
        })?;
        let steps: Vec<[u64; 6]> = rows.collect::<Result<_, _>>()?;
        let last = steps.last().map_or(0, |step| step[0]);
        let folder = run.join(format!("checkpoints/step-{last}"));
        let manifest = Manifest::verify(&folder).with_context(|| format!("the checkpoint of the last step, {last}"))?;
        Ok(Self { steps, state_sha256: manifest.state_sha256 })
    }

    /// The last committed step.
    pub fn last_step(&self) -> u64 {
        self.steps.last().map_or(0, |step| step[0])
    }

    /// Says where two courses part.
    pub fn must_equal(&self, reference: &Self) -> Result<()> {
        let pairs = self.steps.iter().zip(&reference.steps);
        if let Some((ours, theirs)) = pairs.clone().find(|(ours, theirs)| ours != theirs) {
            bail!("step {} differs from step {} of the undisturbed run: {ours:?}, {theirs:?}", ours[0], theirs[0]);
        }
        if self.steps.len() != reference.steps.len() {
            bail!("{} steps, the undisturbed run has {}", self.steps.len(), reference.steps.len());
        }
        if self.state_sha256 != reference.state_sha256 {
            bail!(
                "the state after step {} is {}, the undisturbed run's {}",
                self.last_step(),
                self.state_sha256,
                reference.state_sha256
            );
        }
        Ok(())
    }
}
