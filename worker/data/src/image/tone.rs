//! Changes of tone of a square of RGB bytes, as Pillow's `ImageOps` and `ImageEnhance` compute them.

use super::colour::{blend, gray};

/// How often each value occurs in a channel.
fn histogram(rgb: &[u8], channel: usize) -> [u64; 256] {
    let mut counts = [0; 256];
    rgb.chunks_exact(3).for_each(|pixel| counts[usize::from(pixel[channel])] += 1);
    counts
}

/// Replaces the values of a channel.
fn look_up(rgb: &mut [u8], channel: usize, table: impl Fn(usize) -> u8) {
    let table: [u8; 256] = std::array::from_fn(table);
    rgb.chunks_exact_mut(3).for_each(|pixel| pixel[channel] = table[usize::from(pixel[channel])]);
}

/// Keeps the upper `bits` of each value.
pub(super) fn posterize(rgb: &mut [u8], bits: u32) {
    let mask = if bits >= 8 { 0xff } else { !((1_u16 << (8 - bits)) - 1) as u8 };
    rgb.iter_mut().for_each(|value| *value &= mask);
}

/// Inverts values from `threshold` on.
pub(super) fn solarize(rgb: &mut [u8], threshold: f64) {
    rgb.iter_mut().filter(|value| f64::from(**value) >= threshold).for_each(|value| *value = 255 - *value);
}

/// Stretches each channel to 0 … 255.
pub(super) fn autocontrast(rgb: &mut [u8]) {
    for channel in 0..3 {
        let counts = histogram(rgb, channel);
        let low = counts.iter().position(|count| *count > 0).unwrap_or(0);
        let high = counts.iter().rposition(|count| *count > 0).unwrap_or(0);
        if high <= low {
            continue;
        }
        let scale = 255.0 / (high - low) as f64;
        let offset = -(low as f64) * scale;
        // `as` cuts off towards zero and saturates
        look_up(rgb, channel, |value| (value as f64 * scale + offset) as u8);
    }
}

/// Makes the values of each channel equally frequent, as far as that goes.
pub(super) fn equalize(rgb: &mut [u8]) {
    for channel in 0..3 {
        let counts = histogram(rgb, channel);
        let last = counts.iter().rev().find(|count| **count > 0).copied().unwrap_or(0);
        let step = (counts.iter().sum::<u64>() - last) / 255;
        if counts.iter().filter(|count| **count > 0).count() <= 1 || step == 0 {
            continue;
        }
        let mut sum = step / 2;
        let table: Vec<u8> = counts
            .iter()
            .map(|count| {
                let value = sum / step;
                sum += count;
                // Pillow's table holds bytes
                value.min(255) as u8
            })
            .collect();
        look_up(rgb, channel, |value| table[value]);
    }
}

/// Factor 0: black; 1: as it is.
pub(super) fn brightness(rgb: &mut [u8], factor: f32) {
    blend(rgb, factor, |_| 0);
}

/// Factor 0: gray.
pub(super) fn saturation(rgb: &mut [u8], factor: f32) {
    blend(rgb, factor, gray);
}

/// Factor 0: the mean shade of gray.
pub(super) fn contrast(rgb: &mut [u8], factor: f32) {
    let sum: u64 = rgb.chunks_exact(3).map(|pixel| u64::from(gray(pixel))).sum();
    let mean = (sum as f64 / (rgb.len() / 3).max(1) as f64 + 0.5) as u8;
    blend(rgb, factor, |_| mean);
}

/// Factor 0: smoothed by (1 1 1, 1 5 1, 1 1 1) / 13, the border as it is; `room` is for the source.
pub(super) fn sharpness(rgb: &mut [u8], factor: f32, side: usize, room: &mut Vec<u8>) {
    room.clear();
    room.extend_from_slice(rgb);
    let stride = side * 3;
    for line in 1..side.saturating_sub(1) {
        for at in line * stride + 3..(line + 1) * stride - 3 {
            let row =
                |middle: usize| u32::from(room[middle - 3]) + u32::from(room[middle]) + u32::from(room[middle + 3]);
            let sum = row(at - stride) + row(at) + row(at + stride) + 4 * u32::from(room[at]);
            // to the nearest; 13 is odd, so there are no ties
            let smooth = ((2 * sum + 13) / 26) as f32;
            rgb[at] = (smooth + factor * (f32::from(room[at]) - smooth)) as u8;
        }
    }
}
