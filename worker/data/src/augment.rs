//! Training augmentation: a shift with zero fill after normalisation (the same as padding and cropping), then a flip.

use lockstep_proto::draws::Draws;
use lockstep_proto::recipe;

use crate::normalize::Normalizer;

/// What happens to one image.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Augmentation {
    /// Row `y` shows what row `y + down` of the original shows, or zeros.
    pub down: i32,
    /// Column `x` shows what column `x + right` of the original shows, or zeros.
    pub right: i32,
    /// Afterwards left and right change places.
    pub flip: bool,
}

impl Augmentation {
    /// Three draws, always, in this order: `down` and `right`, each uniform in −shift … shift, and the coin of the
    /// flip. A recipe without a flip or without a shift throws the draw away, so that the others stay what they are.
    pub fn draw(augment: &recipe::Augment, draws: &mut Draws) -> Self {
        let shift = augment.shift as i32;
        let mut offset = || draws.below(2 * augment.shift + 1) as i32 - shift;
        let (down, right) = (offset(), offset());
        Self { down, right, flip: draws.coin() && augment.flip }
    }

    /// Whether a recipe augments at all. Image files have more to draw than this.
    pub fn is_wanted(data: &recipe::Data) -> bool {
        data.kind.has_files() || data.augment.shift > 0 || data.augment.flip
    }

    /// Writes an image, NHWC floats, from its bytes.
    pub fn apply(self, shape: [usize; 3], bytes: &[u8], normalizer: &Normalizer, out: &mut [f32]) {
        let [height, width, channels] = shape;
        if self == Self::default() {
            return normalizer.apply(bytes, 0, out);
        }
        // columns `left … left + num` are filled, from column `left + right` of the original
        let left = (-self.right).clamp(0, width as i32) as usize;
        let num = width.saturating_sub(self.right.unsigned_abs() as usize);
        let (begin, end) = (left * channels, (left + num) * channels);
        for (row, out) in out.chunks_exact_mut(width * channels).enumerate() {
            let source = row as i32 + self.down;
            if num == 0 || !(0..height as i32).contains(&source) {
                out.fill(0.0);
                continue;
            }
            let column = (left as i32 + self.right) as usize;
            let first = (source as usize * width + column) * channels;
            out[..begin].fill(0.0);
            normalizer.apply(&bytes[first..first + num * channels], first, &mut out[begin..end]);
            out[end..].fill(0.0);
            if self.flip {
                reverse_pixels(out, channels);
            }
        }
    }
}

fn reverse_pixels(row: &mut [f32], channels: usize) {
    let middle = row.len() / channels / 2 * channels;
    let (front, back) = row.split_at_mut(middle);
    for (a, b) in front.chunks_exact_mut(channels).zip(back.rchunks_exact_mut(channels)) {
        a.swap_with_slice(b);
    }
}

#[cfg(test)]
mod tests {
    use lockstep_proto::ids::Epoch;
    use lockstep_proto::recipe::Normalize;

    use super::*;
    use crate::samples::Samples;

    /// Pads with `pad` zeros around the normalised image, crops, flips: value by value.
    fn naive(augmentation: Augmentation, [h, w, c]: [usize; 3], plain: &[f32]) -> Vec<f32> {
        let pad = 100_i32;
        let padded = |y: i32, x: i32, channel: usize| {
            let (y, x) = (y - pad, x - pad);
            let inside = (0..h as i32).contains(&y) && (0..w as i32).contains(&x);
            if inside { plain[(y as usize * w + x as usize) * c + channel] } else { 0.0 }
        };
        let mut out = Vec::new();
        for y in 0..h as i32 {
            for x in 0..w as i32 {
                let x = if augmentation.flip { w as i32 - 1 - x } else { x };
                out.extend(
                    (0..c).map(|channel| padded(y + pad + augmentation.down, x + pad + augmentation.right, channel)),
                );
            }
        }
        out
    }

    #[test]
    fn augmenting_is_padding_cropping_and_flipping() {
        for shape in [[5, 6, 3], [4, 7, 1], [3, 3, 2]] {
            let values: usize = shape.iter().product();
            let mut samples = Samples::with_capacity(shape, 2);
            samples.push(&(0..values).map(|v| (v * 37 % 251) as u8).collect::<Vec<_>>(), 0);
            samples.push(&(0..values).map(|v| (v * 91 % 247) as u8).collect::<Vec<_>>(), 0);
            let normalizer = Normalizer::new(Normalize::PixelMean, &samples);
            let mut plain = vec![0.0; values];
            normalizer.apply(samples.image(0), 0, &mut plain);
            for (down, right, flip) in
                (-8..=8).flat_map(|down| (-8..=8).flat_map(move |right| [(down, right, false), (down, right, true)]))
            {
                let augmentation = Augmentation { down, right, flip };
                let mut out = vec![f32::NAN; values];
                augmentation.apply(shape, samples.image(0), &normalizer, &mut out);
                assert_eq!(out, naive(augmentation, shape, &plain), "{augmentation:?} of {shape:?}");
            }
        }
    }

    #[test]
    fn draws_come_in_the_documented_order_and_cover_every_case() {
        let augment = recipe::Augment { shift: 2, flip: true };
        let mut seen = std::collections::BTreeSet::new();
        for position in 0..2000 {
            let drawn = Augmentation::draw(&augment, &mut Draws::new(3, Epoch(4), position));
            let mut draws = Draws::new(3, Epoch(4), position);
            let expected = (draws.below(5) as i32 - 2, draws.below(5) as i32 - 2, draws.coin());
            assert_eq!((drawn.down, drawn.right, drawn.flip), expected);
            seen.insert(expected);
        }
        assert_eq!(seen.len(), 5 * 5 * 2);
    }

    #[test]
    fn leaving_out_the_flip_or_the_shift_leaves_the_other_as_it_is() {
        for position in 0..50 {
            let draw = |shift, flip| {
                Augmentation::draw(&recipe::Augment { shift, flip }, &mut Draws::new(1, Epoch(1), position))
            };
            let (both, shifted, flipped) = (draw(4, true), draw(4, false), draw(0, true));
            assert_eq!(shifted, Augmentation { flip: false, ..both });
            assert_eq!(flipped, Augmentation { flip: both.flip, ..Default::default() });
        }
    }
}
