//! Device memory that belongs to someone else.

use crate::KernelError;

/// A piece of device memory: where it is and how long. Made by whoever owns the memory; kernels read and write inside it
/// only, because every launch is checked against its size.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Memory {
    address: u64,
    bytes: u64,
}

impl Memory {
    /// The bytes at `address`.
    ///
    /// # Safety
    /// They must be memory that the device can read and write, and stay so until every launch that was given this memory
    /// has ended on its stream; nobody else may use them meanwhile but in the stream's order. Memory that a kernel only
    /// reads need not be writable.
    pub unsafe fn new(address: u64, bytes: u64) -> Self {
        Self { address, bytes }
    }

    /// Length in bytes.
    pub fn bytes(self) -> u64 {
        self.bytes
    }

    /// A part of it.
    ///
    /// # Errors
    /// When it reaches beyond the end.
    pub fn part(self, offset: u64, bytes: u64) -> Result<Self, KernelError> {
        match offset.checked_add(bytes) {
            Some(end) if end <= self.bytes => Ok(Self { address: self.address + offset, bytes }),
            _ => {
                let problem = format!("bytes {offset} … {offset} + {bytes} of a piece of {} bytes", self.bytes);
                Err(KernelError::Argument { kernel: "memory", problem })
            }
        }
    }

    pub(crate) fn address(self) -> u64 {
        self.address
    }

    pub(crate) fn is_aligned(self, to: u64) -> bool {
        self.address.is_multiple_of(to)
    }
}
