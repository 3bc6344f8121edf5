//! `shapes`: a built-in set of 32×32 colour images in ten classes, so that nothing need be downloaded.
//!
//! An image shows one figure (its class) of random place, size, proportion, direction and light colour, on a ground that
//! shades from one darker colour to another, over scraps of any colour, under noise. So a pixel by itself tells next to
//! nothing of the class: a linear classifier stays near chance, a small convolutional net does not. All is integer
//! arithmetic on one generator, keyed by split and index: the same bytes on every machine, whatever `train.seed` is and
//! however many samples are asked for.

mod figure;
mod random;

use std::ops::Range;

use lockstep_proto::recipe;

use crate::samples::Samples;
use figure::{Figure, RADIUS, TURN, cosine, sine};
use random::Random;

/// Height, width, channels.
pub const SHAPE: [usize; 3] = [32, 32, 3];
/// Number of classes.
pub const NUM_CLASSES: u32 = 10;

const SIDE: usize = SHAPE[0];
/// Units of length in a pixel.
const PIXEL: i32 = 64;
/// Where the 3 × 3 points of a pixel lie that decide how much of it a figure covers.
const POINTS: [i32; 3] = [11, 32, 53];

/// Draws both splits: `data.train_size` and `data.test_size` samples, or the first `data.limit` and `data.test_limit` of
/// them. A larger set begins with the smaller one.
pub fn generate(data: &recipe::Data) -> (Samples, Samples) {
    let count = |limit: u64, whole: u64| if limit == 0 { whole } else { limit.min(whole) };
    (split(0, count(data.limit, data.train_size)), split(1, count(data.test_limit, data.test_size)))
}

fn split(stream: u64, num_samples: u64) -> Samples {
    let mut samples = Samples::with_capacity(SHAPE, num_samples as usize);
    for index in 0..num_samples {
        let label = (index % u64::from(NUM_CLASSES)) as u8; // classes are balanced under any limit
        samples.push(&image(Figure::ALL[usize::from(label)], Random::new(stream, index)), label);
    }
    samples
}

type Colour = [i32; 3];

/// Where a figure stands. Lengths in [`PIXEL`]ths.
struct Placement {
    x: i32,
    y: i32,
    radius: i32,
    /// Figure coordinates per unit of length, times 2¹⁴: rows of a rotation, each with its own scale.
    to_u: [i32; 2],
    to_v: [i32; 2],
}

impl Placement {
    fn draw(random: &mut Random, smallest: i32, largest: i32, overlap: i32) -> Self {
        let radius = random.between(smallest, largest);
        let low = radius - overlap;
        let high = SIDE as i32 * PIXEL - low;
        let (x, y) = (random.between(low, high), random.between(low, high));
        let angle = random.below(TURN);
        let (along, across) = (radius * random.between(80, 120) / 100, radius * random.between(80, 120) / 100);
        let scaled = |value: i32, length: i32| value * RADIUS / length;
        Self {
            x,
            y,
            radius,
            to_u: [scaled(cosine(angle), along), scaled(sine(angle), along)],
            to_v: [scaled(-sine(angle), across), scaled(cosine(angle), across)],
        }
    }

    /// The rows or columns that the figure may reach, around its centre's `x` or `y`.
    fn reach(&self, centre: i32) -> Range<usize> {
        let reach = self.radius * 8 / 5;
        let pixel = |length: i32| (length / PIXEL).clamp(0, SIDE as i32) as usize;
        pixel(centre - reach)..pixel(centre + reach + PIXEL)
    }

    /// How many of a pixel's nine points the figure covers.
    fn coverage(&self, figure: Figure, column: usize, row: usize) -> i32 {
        let (left, top) = (column as i32 * PIXEL - self.x, row as i32 * PIXEL - self.y);
        let mut covered = 0;
        for dy in POINTS {
            for dx in POINTS {
                let (x, y) = (left + dx, top + dy);
                let u = (x * self.to_u[0] + y * self.to_u[1]) >> 14;
                let v = (x * self.to_v[0] + y * self.to_v[1]) >> 14;
                covered += i32::from(figure.contains(u, v));
            }
        }
        covered
    }
}

fn image(figure: Figure, mut random: Random) -> [u8; SIDE * SIDE * 3] {
    let mut canvas = ground(&mut random);
    for _ in 0..random.between(1, 6) {
        let scrap = SCRAPS[random.below(SCRAPS.len() as u32) as usize];
        let place = Placement::draw(&mut random, 2 * PIXEL, 3 * PIXEL, 2 * PIXEL);
        let shade = colour(&mut random, 40, 255);
        paint(&mut canvas, scrap, &place, shade);
    }
    let place = Placement::draw(&mut random, 6 * PIXEL, 12 * PIXEL, PIXEL);
    let shade = colour(&mut random, 130, 255);
    paint(&mut canvas, figure, &place, shade);
    noisy(&mut random, &canvas)
}

const SCRAPS: [Figure; 3] = [Figure::Disc, Figure::Square, Figure::Triangle];

/// A ground that shades from one colour to a near one, in any direction.
fn ground(random: &mut Random) -> Vec<Colour> {
    let from = colour(random, 0, 140);
    let to = from.map(|value| (value + random.between(-40, 40)).clamp(0, 140));
    let angle = random.below(TURN);
    let (across, down) = (cosine(angle), sine(angle));
    let mut canvas = Vec::with_capacity(SIDE * SIDE);
    for row in 0..SIDE as i32 {
        for column in 0..SIDE as i32 {
            // −31·√2 … 31·√2 of half pixels from the centre, to 0 … 64
            let along = ((2 * column - 31) * across + (2 * row - 31) * down) >> 14;
            let share = (along + 44) * 64 / 88;
            canvas.push(std::array::from_fn(|c| from[c] + (to[c] - from[c]) * share.clamp(0, 64) / 64));
        }
    }
    canvas
}

fn colour(random: &mut Random, low: i32, high: i32) -> Colour {
    std::array::from_fn(|_| random.between(low, high))
}

fn paint(canvas: &mut [Colour], figure: Figure, place: &Placement, shade: Colour) {
    for row in place.reach(place.y) {
        for column in place.reach(place.x) {
            let covered = place.coverage(figure, column, row);
            let pixel = &mut canvas[row * SIDE + column];
            *pixel = std::array::from_fn(|c| (pixel[c] * (9 - covered) + shade[c] * covered) / 9);
        }
    }
}

/// Noise of triangular distribution, its strength drawn for the whole image.
fn noisy(random: &mut Random, canvas: &[Colour]) -> [u8; SIDE * SIDE * 3] {
    let strength = random.between(6, 48);
    let mut bytes = [0; SIDE * SIDE * 3];
    for (out, value) in bytes.iter_mut().zip(canvas.as_flattened()) {
        let noise = random.triangular(strength);
        *out = (value + noise).clamp(0, 255) as u8;
    }
    bytes
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::samples::fingerprint;

    #[test]
    fn the_whole_set_is_the_same_bytes_as_ever() {
        let (train, test) = generate(&recipe::Data::default());
        assert_eq!((train.len(), test.len()), (10_000, 2_000));
        assert_eq!(fingerprint(&train, &test), "7ae31613294c7f84c094a91acbaf69b9395c9a486b3d154202a34c7895d9baff");
    }

    #[test]
    fn a_limit_gives_the_beginning_of_the_whole() {
        let (train, test) = generate(&recipe::Data { limit: 30, test_limit: 20, ..Default::default() });
        let (longer, _) = generate(&recipe::Data { limit: 40, test_limit: 1, ..Default::default() });
        assert_eq!((train.len(), test.len()), (30, 20));
        assert_eq!(train.pixels(), &longer.pixels()[..train.pixels().len()]);
        assert!((0..30).all(|sample| train.label(sample) == sample as u32 % 10));
    }

    #[test]
    fn no_image_comes_twice() {
        let (train, test) = generate(&recipe::Data { limit: 2000, test_limit: 2000, ..Default::default() });
        let mut seen = BTreeSet::new();
        for split in [&train, &test] {
            assert!((0..split.len()).all(|sample| seen.insert(split.image(sample).to_vec())));
        }
    }
}
