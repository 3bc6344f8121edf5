//! What takes a device's memory, and what to lower when there is too little.

use std::fmt;

use lockstep_cuda::Usage;
use tch::Tensor;

/// Bytes by part.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Memory {
    parts: Vec<(&'static str, u64)>,
    usage: Usage,
}

/// What helps, largest effect first.
pub const REMEDY: &str =
    "lower train.batch, spread it over more workers, use train.precision = \"bf16\", or smaller images";

impl Memory {
    /// Of a device that uses so much in all.
    pub fn new(usage: Usage) -> Self {
        Self { parts: Vec::new(), usage }
    }

    /// With a part that consists of these.
    pub fn with<'a>(mut self, name: &'static str, tensors: impl IntoIterator<Item = &'a Tensor>) -> Self {
        let bytes = tensors.into_iter().map(|t| (t.numel() * t.kind().elt_size_in_bytes()) as u64).sum();
        self.parts.push((name, bytes));
        self
    }
}

/// `1.2 GiB at most (1.4 GiB taken from the device): weights 97 MiB, …, activations and workspace 1.0 GiB`
impl fmt::Display for Memory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let known: u64 = self.parts.iter().map(|(_, bytes)| bytes).sum();
        let Usage { allocated_peak, reserved_peak, .. } = self.usage;
        write!(f, "{} at most ({} taken from the device): ", size(allocated_peak), size(reserved_peak))?;
        for (name, bytes) in self.parts.iter().filter(|(_, bytes)| *bytes > 0) {
            write!(f, "{name} {}, ", size(*bytes))?;
        }
        write!(f, "activations and workspace {}", size(allocated_peak.saturating_sub(known)))
    }
}

fn size(bytes: u64) -> String {
    match bytes {
        0..=1_048_575 => format!("{} KiB", bytes >> 10),
        1_048_576..=1_073_741_823 => format!("{} MiB", bytes >> 20),
        _ => format!("{:.1} GiB", bytes as f64 / f64::from(1 << 30)),
    }
}

#[cfg(test)]
mod tests {
    use tch::{Device, Kind};

    use super::*;

    #[test]
    fn parts_and_the_rest_add_up() {
        let weights = Tensor::zeros([1 << 20], (Kind::Float, Device::Cpu));
        let usage = Usage { allocated_peak: 3 << 30, reserved_peak: 7 << 29, ..Usage::default() };
        let none: [&Tensor; 0] = [];
        let memory = Memory::new(usage).with("weights", [&weights]).with("average", none);
        let text = "3.0 GiB at most (3.5 GiB taken from the device): weights 4 MiB, activations and workspace 3.0 GiB";
        assert_eq!(memory.to_string(), text);
    }
}
