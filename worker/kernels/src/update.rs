//! The end of a step: the vote, the gate, and what is behind it. The order in the stream is told in `update.cu`.
//!
//! While the gate is closed nothing behind it changes a byte: not the weights, not the momentum, not the running
//! statistics, not the copy in bf16, not `applied`.

use crate::launch::{Cell, Sizes, flat_blocks};
use crate::{Device, KernelError, Launch, Memory, StepWords};

/// The words that decide whether a step happens.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Gatekeeper {
    /// [`StepWords`].
    pub step: Memory,
    /// u32: not 0 once the collective is given up. Set before any abort.
    pub poison: Memory,
    /// u64: this rank's vote, then by an all-reduce the sum of all.
    pub vote: Memory,
    /// u32: whether a gradient is infinite or NaN.
    pub found: Memory,
    /// u32: 1 while open.
    pub gate: Memory,
    /// u64: the last step that happened.
    pub applied: Memory,
}

impl Gatekeeper {
    fn check(&self, kernel: &'static str) -> Result<(), KernelError> {
        let sizes = Sizes(kernel);
        sizes.need("step words", self.step, StepWords::BYTES)?;
        for (what, memory) in [("poison", self.poison), ("found", self.found), ("gate", self.gate)] {
            sizes.need(what, memory, 4)?;
        }
        for (what, memory) in [("vote", self.vote), ("applied", self.applied)] {
            sizes.need(what, memory, 8)?;
        }
        Ok(())
    }

    /// Writes this rank's vote, and forgets what [`Gatekeeper::nonfinite`] found before. Comes behind the last bucket.
    ///
    /// # Errors
    /// Memory that is too small.
    pub fn vote(&self) -> Result<Launch, KernelError> {
        self.check("vote_write")?;
        Ok(Launch::single("vote_write").arg(self.step).arg(self.poison).arg(self.vote).arg(self.found))
    }

    /// Looks for infinite and NaN gradients: `num` f32, after they were summed and after [`Gatekeeper::vote`].
    ///
    /// # Errors
    /// Memory that is too small.
    pub fn nonfinite(&self, gradient: Memory, num: u64, device: &Device) -> Result<Launch, KernelError> {
        self.check("nonfinite")?;
        flat(&Sizes("nonfinite"), "gradient", gradient, num)?;
        let grid = [flat_blocks(num, device), 1];
        Ok(Launch::new("nonfinite", grid, 0).arg(gradient).arg(num).arg(self.found))
    }

    /// Opens or closes the gate, after the votes were summed.
    ///
    /// # Errors
    /// Memory that is too small.
    pub fn decide(&self) -> Result<Launch, KernelError> {
        self.check("vote_check")?;
        let launch = Launch::single("vote_check").arg(self.step).arg(self.vote).arg(self.poison);
        Ok(launch.arg(self.found).arg(self.gate))
    }

    /// Says that the step happened; last of all.
    ///
    /// # Errors
    /// Memory that is too small.
    pub fn commit(&self) -> Result<Launch, KernelError> {
        self.check("commit")?;
        Ok(Launch::single("commit").arg(self.step).arg(self.gate).arg(self.applied))
    }
}

/// A buffer of f32 that is read in packs.
fn flat(sizes: &Sizes, what: &str, memory: Memory, num: u64) -> Result<(), KernelError> {
    if !num.is_multiple_of(4) {
        return sizes.refuse(format!("{num} elements, not a multiple of four: flat buffers are padded"));
    }
    sizes.need(what, memory, num * 4)?;
    sizes.aligned(what, memory, 16)
}

/// `running ← (1 − momentum)·running + momentum·pending`, all layers at once, behind the gate.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct RunningUpdate {
    /// f32 × num.
    pub running: Memory,
    /// f64 × num: what [`Stats`](crate::norm::Stats) left.
    pub pending: Memory,
    /// Two a channel.
    pub num: u32,
}

impl RunningUpdate {
    /// # Errors
    /// Memory that is too small.
    pub fn launch(&self, gatekeeper: &Gatekeeper, device: &Device) -> Result<Launch, KernelError> {
        let sizes = Sizes("running_update");
        gatekeeper.check("running_update")?;
        sizes.need("running statistics", self.running, 4 * u64::from(self.num))?;
        sizes.need("pending statistics", self.pending, 8 * u64::from(self.num))?;
        let grid = [flat_blocks(u64::from(self.num) * 4, device), 1];
        Ok(Launch::new("running_update", grid, 0)
            .arg(gatekeeper.step)
            .arg(gatekeeper.gate)
            .arg(self.running)
            .arg(self.pending)
            .arg(self.num))
    }
}

/// Stochastic gradient descent over the flat buffer, behind the gate: `g += wd·p; v = µ·v + (1 − dampening)·g;
/// p −= lr·(g + µ·v)` with Nesterov, `p −= lr·v` without, `p −= lr·g` without momentum.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Sgd {
    /// Elements of the flat buffers, padding included: a multiple of four.
    pub num: u64,
    /// f32: the weights.
    pub master: Memory,
    /// f32: v, and µ.
    pub momentum: Option<(Memory, f64)>,
    /// f32: the whole gradient; only read.
    pub gradient: Memory,
    /// bf16: the first elements again, for the next forward pass; and how many, a multiple of four.
    pub copy: Option<(Memory, u64)>,
    /// Weight decay, and how many elements have it.
    pub weight_decay: (f64, u64),
    /// Nesterov's form.
    pub nesterov: bool,
}

impl Sgd {
    /// # Errors
    /// Memory that is too small, not aligned, or not a multiple of four elements.
    pub fn launch(&self, gatekeeper: &Gatekeeper, device: &Device) -> Result<Launch, KernelError> {
        let sizes = Sizes("sgd");
        gatekeeper.check("sgd")?;
        flat(&sizes, "weights", self.master, self.num)?;
        flat(&sizes, "gradient", self.gradient, self.num)?;
        if let Some((momentum, _)) = self.momentum {
            flat(&sizes, "momentum", momentum, self.num)?;
        }
        if let Some((copy, num)) = self.copy {
            if !num.is_multiple_of(4) || num > self.num {
                return sizes.refuse(format!("a copy of {num} of {} elements", self.num));
            }
            sizes.need("copy", copy, num * 2)?;
            sizes.aligned("copy", copy, 8)?;
        }
        let (weight_decay, decayed) = self.weight_decay;
        let mu = self.momentum.map_or(0.0, |(_, mu)| mu as f32);
        let structure = [
            self.master.into(),
            self.momentum.map(|(memory, _)| memory).into(),
            self.gradient.into(),
            self.copy.map(|(memory, _)| memory).into(),
            self.num.into(),
            decayed.into(),
            self.copy.map_or(0, |(_, num)| num).into(),
            Cell::pair(mu.to_bits(), (weight_decay as f32).to_bits()),
            u64::from(self.nesterov).into(),
        ];
        let launch = Launch::new("sgd", [flat_blocks(self.num, device), 1], 0);
        Ok(launch.arg(gatekeeper.step).arg(gatekeeper.gate).structure(structure))
    }
}
