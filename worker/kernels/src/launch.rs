//! How a kernel is launched: grid, block, shared memory and arguments, told by pure functions.

use crate::{Device, KernelError, Memory};

/// Threads of every block; `prelude.cuh` has the same.
pub(crate) const THREADS: u32 = 256;
/// Lanes of a block at most: a warp that reads 512 bytes in a row gains nothing by more.
const MAX_LANES: u32 = 32;
/// More channels than any network has.
const MAX_CHANNELS: u32 = 1 << 16;
/// Blocks a multiprocessor of a kernel that sums: as many as are resident with its registers, so one wave.
const SUMMING: u32 = 2;
/// Blocks a multiprocessor of a kernel that only maps: a few waves, which even out.
const MAPPING: u32 = 8;

/// Number type of activations.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Element {
    /// 32 bits.
    F32,
    /// 16 bits: the upper half of an f32.
    Bf16,
}

impl Element {
    /// Size of one.
    pub fn bytes(self) -> u64 {
        match self {
            Self::F32 => 4,
            Self::Bf16 => 2,
        }
    }

    /// How many 16 bytes hold.
    pub(crate) fn pack(self) -> u32 {
        16 / self.bytes() as u32
    }
}

/// What stands after a sum.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Activation {
    /// Nothing.
    Identity,
    /// max(x, 0); a NaN stays one.
    Relu,
    /// x where x > 0, else slope·x, with 0 ≤ slope < 1.
    LeakyRelu(f64),
}

impl Activation {
    pub(crate) fn code(self) -> (u32, f32) {
        match self {
            Self::Identity => (0, 0.0),
            Self::Relu => (1, 0.0),
            Self::LeakyRelu(slope) => (2, slope as f32),
        }
    }
}

/// Shape of a channels-last activation: n·h·w rows of c values.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shape {
    /// n·h·w; may be 0.
    pub rows: u64,
    /// c
    pub channels: u32,
    /// Number type.
    pub element: Element,
}

impl Shape {
    /// Bytes of a tensor of this shape.
    pub fn bytes(self) -> u64 {
        self.rows * u64::from(self.channels) * self.element.bytes()
    }

    pub(crate) fn check(self, kernel: &'static str) -> Result<(), KernelError> {
        let elements = u128::from(self.rows) * u128::from(self.channels);
        if self.channels == 0 || self.channels > MAX_CHANNELS || elements > 1 << 48 {
            let problem = format!("{} rows of {} channels", self.rows, self.channels);
            return Err(KernelError::Argument { kernel, problem });
        }
        Ok(())
    }
}

/// Room for the first stage of a sum.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Scratch {
    /// Sums of blocks, [`Scratch::partial_bytes`]; may be shared by launches that follow each other on a stream.
    pub partials: Memory,
    /// [`Scratch::TICKET_BYTES`], zero before the first launch; every launch leaves them zero. Shared likewise.
    pub tickets: Memory,
}

impl Scratch {
    /// Bytes of tickets that serve every shape.
    pub const TICKET_BYTES: u64 = 4 * (MAX_CHANNELS / MAX_LANES) as u64;

    /// Bytes of partial sums that a shape needs on a device.
    pub fn partial_bytes(shape: Shape, device: &Device) -> u64 {
        let of = |wide| {
            let tiling = Tiling::with_width(shape, wide);
            u64::from(tiling.summing(shape.rows, device)) * 2 * 8 * u64::from(shape.channels)
        };
        of(true).max(of(false))
    }
}

/// How a block covers rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Tiling {
    /// Whether a lane is 16 bytes, or one element.
    pub wide: bool,
    /// Neighbouring packs of a row that a block has.
    pub lanes: u32,
    /// Rows that a block has at once.
    pub slots: u32,
    /// Blocks side by side that cover a row.
    pub tiles: u32,
}

impl Tiling {
    /// Packs of 16 bytes where rows and memory begin on such boundaries.
    pub fn new(shape: Shape, memory: &[Memory]) -> Self {
        Self::with_width(shape, memory.iter().all(|m| m.is_aligned(16)))
    }

    fn with_width(shape: Shape, aligned: bool) -> Self {
        let wide = aligned && shape.channels.is_multiple_of(shape.element.pack());
        let packs = if wide { shape.channels / shape.element.pack() } else { shape.channels };
        let tiles = packs.div_ceil(MAX_LANES).max(1);
        let lanes = packs.div_ceil(tiles).max(1);
        Self { wide, lanes, slots: THREADS / lanes, tiles }
    }

    fn blocks(&self, rows: u64, rows_each: u64, most: u32) -> u32 {
        let wanted = rows.div_ceil(u64::from(self.slots) * rows_each);
        wanted.clamp(1, u64::from((most / self.tiles).max(1))) as u32
    }

    /// Blocks of a kernel that sums over rows.
    pub fn summing(&self, rows: u64, device: &Device) -> u32 {
        self.blocks(rows, 8, SUMMING * device.multiprocessors)
    }

    /// Blocks of a kernel that maps rows to rows.
    pub fn mapping(&self, rows: u64, device: &Device) -> u32 {
        self.blocks(rows, 4, MAPPING * device.multiprocessors)
    }

    /// Shared memory of a kernel that sums two numbers a channel.
    pub fn fold_bytes(&self, element: Element) -> u32 {
        2 * if self.wide { element.pack() } else { 1 } * THREADS * 8
    }
}

/// Blocks for a kernel over a flat buffer, four elements a thread and round.
pub(crate) fn flat_blocks(num: u64, device: &Device) -> u32 {
    num.div_ceil(u64::from(THREADS) * 4).clamp(1, u64::from(MAPPING * device.multiprocessors)) as u32
}

/// One launch of one kernel, checked.
#[derive(Clone, Debug, PartialEq)]
pub struct Launch {
    kernel: &'static str,
    grid: [u32; 2],
    threads: u32,
    shared: u32,
    /// Arguments in cells of 8 bytes, and where each begins: a structure takes several.
    cells: Vec<u64>,
    starts: Vec<usize>,
}

impl Launch {
    pub(crate) fn new(kernel: &'static str, grid: [u32; 2], shared: u32) -> Self {
        Self { kernel, grid, threads: THREADS, shared, cells: Vec::new(), starts: Vec::new() }
    }

    pub(crate) fn single(kernel: &'static str) -> Self {
        Self { threads: 32, ..Self::new(kernel, [1, 1], 0) }
    }

    /// Name of the kernel.
    pub fn kernel(&self) -> &'static str {
        self.kernel
    }

    /// Blocks: x, y.
    pub fn grid(&self) -> [u32; 2] {
        self.grid
    }

    /// Threads a block.
    pub fn threads(&self) -> u32 {
        self.threads
    }

    /// Bytes of shared memory a block.
    pub fn shared(&self) -> u32 {
        self.shared
    }

    /// One argument, of 8 bytes or fewer.
    pub(crate) fn arg(self, value: impl Into<Cell>) -> Self {
        self.structure([value.into()])
    }

    /// One argument that is a structure.
    pub(crate) fn structure(mut self, fields: impl IntoIterator<Item = Cell>) -> Self {
        self.starts.push(self.cells.len());
        self.cells.extend(fields.into_iter().map(|cell| cell.0));
        self
    }

    /// Addresses of the arguments, as the driver wants them; they point into `self`.
    pub(crate) fn addresses(&self) -> Vec<*const u64> {
        self.starts.iter().map(|start| std::ptr::from_ref(&self.cells[*start])).collect()
    }
}

/// Eight bytes of an argument.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Cell(u64);

impl Cell {
    /// Two fields of four bytes that stand in one cell.
    pub fn pair(first: u32, second: u32) -> Self {
        let ([a, b, c, d], [e, f, g, h]) = (first.to_ne_bytes(), second.to_ne_bytes());
        Self(u64::from_ne_bytes([a, b, c, d, e, f, g, h]))
    }
}

impl From<Memory> for Cell {
    fn from(memory: Memory) -> Self {
        Self(memory.address())
    }
}
impl From<Option<Memory>> for Cell {
    fn from(memory: Option<Memory>) -> Self {
        Self(memory.map_or(0, Memory::address))
    }
}
impl From<u64> for Cell {
    fn from(value: u64) -> Self {
        Self(value)
    }
}
impl From<f64> for Cell {
    fn from(value: f64) -> Self {
        Self(value.to_bits())
    }
}
impl From<u32> for Cell {
    fn from(value: u32) -> Self {
        Self::pair(value, 0)
    }
}
impl From<f32> for Cell {
    fn from(value: f32) -> Self {
        Self::pair(value.to_bits(), 0)
    }
}

/// The sizes that a kernel relies on.
pub(crate) struct Sizes(pub &'static str);

impl Sizes {
    /// `memory` must have so many bytes.
    pub fn need(&self, what: &str, memory: Memory, bytes: u64) -> Result<(), KernelError> {
        if memory.bytes() < bytes {
            return self.refuse(format!("{what} has {} bytes and needs {bytes}", memory.bytes()));
        }
        Ok(())
    }

    /// `memory` must begin on such a boundary.
    pub fn aligned(&self, what: &str, memory: Memory, to: u64) -> Result<(), KernelError> {
        if !memory.is_aligned(to) {
            return self.refuse(format!("{what} is not aligned to {to} bytes"));
        }
        Ok(())
    }

    /// What does not fit.
    pub fn refuse<T>(&self, problem: String) -> Result<T, KernelError> {
        Err(KernelError::Argument { kernel: self.0, problem })
    }
}

/// The name of a kernel for an element type and a width.
macro_rules! variant {
    ($base:literal, $element:expr, $wide:expr) => {
        match ($element, $wide) {
            ($crate::Element::F32, true) => concat!($base, "_f32_pack"),
            ($crate::Element::F32, false) => concat!($base, "_f32_one"),
            ($crate::Element::Bf16, true) => concat!($base, "_bf16_pack"),
            ($crate::Element::Bf16, false) => concat!($base, "_bf16_one"),
        }
    };
}
pub(crate) use variant;

#[cfg(test)]
mod tests {
    use super::*;

    const H100: Device = Device { multiprocessors: 132, major: 9, minor: 0 };

    fn memory(address: u64) -> Memory {
        // SAFETY: nothing is launched with it.
        unsafe { Memory::new(address, 1 << 40) }
    }

    fn shape(rows: u64, channels: u32, element: Element) -> Shape {
        Shape { rows, channels, element }
    }

    #[test]
    fn every_channel_has_a_lane_and_no_block_more_threads_than_it_has() {
        for channels in (1..600).chain([1024, 2047, 2048, 4096]) {
            for element in [Element::F32, Element::Bf16] {
                for aligned in [false, true] {
                    let t = Tiling::with_width(shape(1, channels, element), aligned);
                    let pack = if t.wide { element.pack() } else { 1 };
                    let covered = |tiles| tiles * t.lanes * pack;
                    assert!(covered(t.tiles) >= channels && covered(t.tiles - 1) < channels, "{channels} {t:?}");
                    assert!(t.lanes <= MAX_LANES && t.lanes * t.slots <= THREADS && t.slots >= 8, "{channels} {t:?}");
                    assert!(t.fold_bytes(element) <= 48 << 10);
                }
            }
        }
    }

    #[test]
    fn packs_need_rows_and_addresses_of_sixteen_bytes() {
        let wide = |channels, address| Tiling::new(shape(9, channels, Element::Bf16), &[memory(address)]).wide;
        assert_eq!([wide(16, 256), wide(12, 256), wide(16, 8)], [true, false, false]);
    }

    #[test]
    fn a_cifar_layer_fills_the_device_and_a_tiny_one_has_one_block() {
        let layer = shape(128 * 32 * 32, 16, Element::Bf16);
        let t = Tiling::new(layer, &[memory(0)]);
        assert_eq!((t.lanes, t.slots, t.tiles), (2, 128, 1));
        assert_eq!((t.summing(layer.rows, &H100), t.mapping(layer.rows, &H100)), (128, 256));
        assert_eq!((t.summing(0, &H100), t.mapping(1, &H100)), (1, 1));
        let wide = shape(256 * 7 * 7, 2048, Element::Bf16);
        let t = Tiling::new(wide, &[memory(0)]);
        assert_eq!((t.lanes, t.tiles, t.summing(wide.rows, &H100)), (32, 8, 33));
    }

    #[test]
    fn scratch_fits_whichever_width_is_taken() {
        let shape = shape(100_000, 64, Element::F32);
        let bytes = Scratch::partial_bytes(shape, &H100);
        for memory in [memory(0), memory(4)] {
            let t = Tiling::new(shape, &[memory]);
            assert!(u64::from(t.summing(shape.rows, &H100)) * 2 * 8 * 64 <= bytes);
        }
    }
}
