//! Numbers to compute with.

use lockstep_kernels::host::Buffer;
use lockstep_kernels::{Device, Element, Memory, Scratch, Shape};

/// A small generator of numbers.
pub struct Random(u64);

impl Random {
    pub fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    pub fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    pub fn below(&mut self, bound: u64) -> u64 {
        (self.next() >> 33) % bound
    }

    /// Roughly normal: mean 0, deviation 1.
    pub fn normal(&mut self) -> f64 {
        (0..12).map(|_| (self.next() >> 11) as f64 / (1_u64 << 53) as f64).sum::<f64>() - 6.0
    }

    pub fn normals(&mut self, num: usize) -> Vec<f32> {
        (0..num).map(|_| self.normal() as f32).collect()
    }
}

/// Rounded to bf16, to nearest even.
pub fn bf16(v: f32) -> u16 {
    let bits = v.to_bits();
    if v.is_nan() { 0x7fff } else { ((bits + 0x7fff + (bits >> 16 & 1)) >> 16) as u16 }
}

pub fn from_bf16(bits: u16) -> f32 {
    f32::from_bits(u32::from(bits) << 16)
}

/// As it would be read again after it was stored.
pub fn round(element: Element, v: f32) -> f32 {
    match element {
        Element::F32 => v,
        Element::Bf16 => from_bf16(bf16(v)),
    }
}

/// A tensor on the host device, and its values.
pub struct Tensor {
    pub element: Element,
    pub values: Vec<f32>,
    pub buffer: Buffer,
}

impl Tensor {
    /// `values` rounded to the element type; where `shifted`, on no boundary of 16 bytes.
    pub fn new(element: Element, values: &[f32], shifted: bool) -> Self {
        let values: Vec<f32> = values.iter().map(|v| round(element, *v)).collect();
        let by = if shifted { element.bytes() as usize } else { 0 };
        let buffer = match element {
            Element::F32 => Buffer::shifted(&values, by),
            Element::Bf16 => Buffer::shifted(&values.iter().map(|v| bf16(*v)).collect::<Vec<_>>(), by),
        };
        Self { element, values, buffer }
    }

    pub fn random(shape: Shape, random: &mut Random, shifted: bool) -> Self {
        Self::new(shape.element, &random.normals((shape.rows * u64::from(shape.channels)) as usize), shifted)
    }

    /// Nothing yet: NaN.
    pub fn empty(shape: Shape, shifted: bool) -> Self {
        Self::new(shape.element, &vec![f32::NAN; (shape.rows * u64::from(shape.channels)) as usize], shifted)
    }

    pub fn memory(&mut self) -> Memory {
        self.buffer.memory()
    }

    pub fn read(&self) -> Vec<f32> {
        match self.element {
            Element::F32 => self.buffer.read(),
            Element::Bf16 => self.buffer.read::<u16>().into_iter().map(from_bf16).collect(),
        }
    }
}

/// Room for sums, of exactly the size that is asked for.
pub struct Room {
    partials: Buffer,
    tickets: Buffer,
}

impl Room {
    pub fn new(shape: Shape, device: &Device) -> Self {
        let partials = Buffer::poisoned(Scratch::partial_bytes(shape, device) as usize);
        Self { partials, tickets: Buffer::new(&vec![0_u32; Scratch::TICKET_BYTES as usize / 4]) }
    }

    pub fn scratch(&mut self) -> Scratch {
        Scratch { partials: self.partials.memory(), tickets: self.tickets.memory() }
    }

    /// Whether it can be used again.
    pub fn is_clean(&self) -> bool {
        self.partials.read::<u8>();
        self.tickets.read::<u32>().iter().all(|ticket| *ticket == 0)
    }
}

/// Shapes that are odd in every way: few and no rows, channels that fill no pack, no warp, several tiles.
pub const SHAPES: [(u64, u32); 11] =
    [(0, 5), (0, 16), (1, 3), (2, 8), (7, 1), (37, 16), (300, 33), (129, 64), (1000, 24), (61, 100), (40, 600)];

/// Each shape in each element type, on a boundary of 16 bytes and not.
pub fn shapes() -> impl Iterator<Item = (Shape, bool)> {
    let shape = |(rows, channels)| [Element::F32, Element::Bf16].map(move |element| Shape { rows, channels, element });
    SHAPES.into_iter().flat_map(shape).flat_map(|shape| [(shape, false), (shape, true)])
}
