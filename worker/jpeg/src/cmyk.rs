//! Four inks to red, green, blue, as Pillow converts: the inks of a JPEG are taken as Adobe writes them, inverted, and
//! colour = (255 − black) − ink · (255 − black) / 255, the quotient rounded to nearest.

/// Converts `cmyk`, four bytes a pixel as they lie in the file, to three bytes a pixel in `rgb`.
pub(crate) fn to_rgb(cmyk: &[u8], rgb: &mut [u8]) {
    for (inks, colour) in cmyk.chunks_exact(4).zip(rgb.chunks_exact_mut(3)) {
        let light = u32::from(inks[3]);
        for (value, &ink) in colour.iter_mut().zip(inks) {
            let product = u32::from(255 - ink) * light + 128;
            let absorbed = (product + (product >> 8)) >> 8;
            *value = light.saturating_sub(absorbed) as u8;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn inks_of_adobe_are_inverted() {
        let mut rgb = [9; 12];
        // no ink; full black; full cyan; half of everything
        to_rgb(&[255, 255, 255, 255, 255, 255, 255, 0, 0, 255, 255, 255, 128, 128, 128, 128], &mut rgb);
        assert_eq!(rgb, [255, 255, 255, 0, 0, 0, 0, 255, 255, 64, 64, 64]);
    }
}
