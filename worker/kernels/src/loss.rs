//! Softmax cross-entropy.

use crate::launch::{Sizes, THREADS};
use crate::{Device, Element, KernelError, Launch, Memory, StepWords};

/// Loss, gradient and counts of a rank's samples.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct CrossEntropy {
    /// Samples; may be 0.
    pub num: u64,
    /// Classes.
    pub classes: u32,
    /// Number type of logits and gradient.
    pub element: Element,
    /// num × classes.
    pub logits: Memory,
    /// i32 × num.
    pub labels: Memory,
    /// The target is `1 − smoothing` on the label and `smoothing / classes` on every class.
    pub smoothing: f64,
    /// Out: num × classes, divided by the samples of the global batch; may be `logits`.
    pub gradient: Option<Memory>,
    /// [`StepWords`].
    pub step: Memory,
    /// [`CrossEntropy::partial_bytes`].
    pub partials: Memory,
    /// u32, zero before the first launch.
    pub ticket: Memory,
    /// Out: f64 × 3: Σ loss, samples whose best class is not the label, whose label is not among the five best.
    pub counts: Memory,
}

impl CrossEntropy {
    /// Bytes of room that `num` samples need.
    pub fn partial_bytes(num: u64, device: &Device) -> u64 {
        u64::from(blocks(num, device)) * 24
    }

    /// # Errors
    /// Memory that is too small; smoothing outside 0 … 1.
    pub fn launch(&self, device: &Device) -> Result<Launch, KernelError> {
        let sizes = Sizes("cross_entropy");
        let bytes = self.num * u64::from(self.classes) * self.element.bytes();
        if self.classes == 0 || self.classes > 1 << 24 || !(0.0..1.0).contains(&self.smoothing) {
            return sizes.refuse(format!("{} classes, smoothing {}", self.classes, self.smoothing));
        }
        sizes.need("logits", self.logits, bytes)?;
        sizes.need("gradient", self.gradient.unwrap_or(self.logits), bytes)?;
        sizes.need("labels", self.labels, self.num * 4)?;
        sizes.need("step words", self.step, StepWords::BYTES)?;
        sizes.need("partials", self.partials, Self::partial_bytes(self.num, device))?;
        sizes.need("ticket", self.ticket, 4)?;
        sizes.need("counts", self.counts, 24)?;
        let kernel = match self.element {
            Element::F32 => "cross_entropy_f32",
            Element::Bf16 => "cross_entropy_bf16",
        };
        let structure = [
            self.labels.into(),
            self.num.into(),
            u64::from(self.classes).into(),
            self.smoothing.into(),
            self.step.into(),
            self.partials.into(),
            self.ticket.into(),
            self.counts.into(),
        ];
        let launch = Launch::new(kernel, [blocks(self.num, device), 1], 24 * THREADS / 32);
        Ok(launch.arg(self.logits).arg(self.gradient).structure(structure))
    }
}

/// A warp a sample, at most two blocks a multiprocessor.
fn blocks(num: u64, device: &Device) -> u32 {
    num.div_ceil(u64::from(THREADS / 32)).clamp(1, u64::from(2 * device.multiprocessors)) as u32
}
