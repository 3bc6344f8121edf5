//! From bytes to floats by a table: `(value / 255 + light − mean) / std` in f32, each operation rounded to nearest, which
//! is what torchvision's `ToTensor` and `Normalize` compute.

use lockstep_proto::recipe::{Data, Normalize};

/// Mean and deviation of three channels.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Normal {
    mean: [f32; 3],
    std: [f32; 3],
}

impl Normal {
    /// What the recipe says. `pixel_mean`, which the recipe's check refuses, counts as `none`.
    pub fn new(data: &Data) -> Self {
        match data.normalize {
            Normalize::Channel => {
                Self { mean: data.image.mean.map(|v| v as f32), std: data.image.std.map(|v| v as f32) }
            }
            Normalize::None | Normalize::PixelMean => Self { mean: [0.0; 3], std: [1.0; 3] },
        }
    }

    /// Writes a square of RGB bytes as floats, with `light` added to the channels, and each row reversed if `flip`.
    pub fn write(&self, rgb: &[u8], light: [f32; 3], (side, flip): (usize, bool), out: &mut [f32]) {
        let table: [[f32; 256]; 3] = std::array::from_fn(|channel| {
            let (mean, std, light) = (self.mean[channel], self.std[channel], light[channel]);
            std::array::from_fn(|value| (value as f32 / 255.0 + light - mean) / std)
        });
        for (from, to) in rgb.chunks_exact(side * 3).zip(out.chunks_exact_mut(side * 3)) {
            let write = |(pixel, values): (&[u8], &mut [f32])| {
                values[0] = table[0][usize::from(pixel[0])];
                values[1] = table[1][usize::from(pixel[1])];
                values[2] = table[2][usize::from(pixel[2])];
            };
            if flip {
                from.chunks_exact(3).rev().zip(to.chunks_exact_mut(3)).for_each(write);
            } else {
                from.chunks_exact(3).zip(to.chunks_exact_mut(3)).for_each(write);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_those_of_torchvision_to_the_bit() {
        let data = Data { normalize: Normalize::Channel, ..Data::default() };
        let mut out = [0.0; 12];
        let rgb = [0, 1, 2, 100, 128, 129, 254, 255, 253, 7, 77, 177];
        Normal::new(&data).write(&rgb, [0.0; 3], (2, false), &mut out);
        // numpy: ((np.float32(v) / np.float32(255)) - np.float32(mean)) / np.float32(std)
        for (place, (&value, &found)) in rgb.iter().zip(&out).enumerate() {
            let (mean, std) = (data.image.mean[place % 3] as f32, data.image.std[place % 3] as f32);
            assert_eq!(found.to_bits(), ((f32::from(value) / 255.0 - mean) / std).to_bits());
        }
        assert_eq!(out[0].to_bits(), BLACK_RED);
        let mut flipped = [0.0; 12];
        Normal::new(&data).write(&rgb, [0.0; 3], (2, true), &mut flipped);
        assert_eq!(flipped, [&out[3..6], &out[..3], &out[9..], &out[6..9]].concat()[..]);
    }

    /// −2.1179039…, the least red of every ImageNet pipeline.
    const BLACK_RED: u32 = 0xc007_8bbd;
}
