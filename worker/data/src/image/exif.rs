//! How a camera says that its picture is to be turned (EXIF 2.3, tag 0x0112).

use super::cut::Cut;

/// How the stored picture relates to the one that is meant.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Orientation {
    /// Rows of the picture are columns of what is stored.
    pub transposed: bool,
    /// Stored columns run the other way.
    pub reversed_x: bool,
    /// Stored rows run the other way.
    pub reversed_y: bool,
}

impl Orientation {
    /// What the EXIF of a JPEG says; as stored where it says nothing that makes sense.
    pub fn of_jpeg(bytes: &[u8]) -> Self {
        exif(bytes).and_then(number).map(Self::from_number).unwrap_or_default()
    }

    fn from_number(number: u16) -> Self {
        let (transposed, reversed_x, reversed_y) = match number {
            2 => (false, true, false),
            3 => (false, true, true),
            4 => (false, false, true),
            5 => (true, false, false),
            6 => (true, false, true),
            7 => (true, true, true),
            8 => (true, true, false),
            _ => (false, false, false),
        };
        Self { transposed, reversed_x, reversed_y }
    }

    /// Width and height of the picture, from those that are stored.
    pub fn shown(self, (width, height): (u32, u32)) -> (u32, u32) {
        if self.transposed { (height, width) } else { (width, height) }
    }

    /// Where a part of the picture lies in what is stored, which is `width` × `height`.
    pub fn stored(self, cut: Cut, (width, height): (u32, u32)) -> Cut {
        let mut stored = cut;
        if self.transposed {
            stored = Cut { x: cut.y, y: cut.x, width: cut.height, height: cut.width };
        }
        if self.reversed_x {
            stored.x = f64::from(width) - stored.x - stored.width;
        }
        if self.reversed_y {
            stored.y = f64::from(height) - stored.y - stored.height;
        }
        stored
    }

    /// Turns a square of `side` pixels, three bytes each.
    pub fn turn(self, side: usize, rgb: &[u8], out: &mut Vec<u8>) {
        out.clear();
        let turned = |reversed: bool, at: usize| if reversed { side - 1 - at } else { at };
        for (y, x) in (0..side).flat_map(|y| (0..side).map(move |x| (y, x))) {
            let (column, row) = if self.transposed { (y, x) } else { (x, y) };
            let at = (turned(self.reversed_y, row) * side + turned(self.reversed_x, column)) * 3;
            out.extend_from_slice(&rgb[at..at + 3]);
        }
    }
}

/// The TIFF structure in the first segment that says "Exif".
fn exif(jpeg: &[u8]) -> Option<&[u8]> {
    let mut rest = jpeg.get(2..)?;
    loop {
        let (&[0xff, marker, high, low], _) = rest.split_first_chunk::<4>()? else { return None };
        if matches!(marker, 0xda | 0xd9) {
            return None;
        }
        let length = usize::from(u16::from_be_bytes([high, low]));
        let body = rest.get(4..2 + length)?;
        if marker == 0xe1 && body.starts_with(b"Exif\0\0") {
            return body.get(6..);
        }
        rest = &rest[2 + length..];
    }
}

fn number(tiff: &[u8]) -> Option<u16> {
    let big = match tiff.get(..2)? {
        b"MM" => true,
        b"II" => false,
        _ => return None,
    };
    let u16_at = |at: usize| {
        let pair: [u8; 2] = tiff.get(at..at.checked_add(2)?)?.try_into().ok()?;
        Some(if big { u16::from_be_bytes(pair) } else { u16::from_le_bytes(pair) })
    };
    let halves = (u16_at(4)?, u16_at(6)?);
    let (high, low) = if big { halves } else { (halves.1, halves.0) };
    let directory = usize::from(high) << 16 | usize::from(low);
    let count = u16_at(directory)?;
    let entry = (0..usize::from(count)).map(|i| directory + 2 + 12 * i).find(|&at| u16_at(at) == Some(0x0112))?;
    u16_at(entry + 8)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn jpeg_with(number: u16, big: bool) -> Vec<u8> {
        let two = |v: u16| if big { v.to_be_bytes() } else { v.to_le_bytes() };
        let four = |v: u32| if big { v.to_be_bytes() } else { v.to_le_bytes() };
        let mut tiff = if big { b"MM".to_vec() } else { b"II".to_vec() };
        tiff.extend(two(42));
        tiff.extend(four(8));
        tiff.extend(two(1));
        tiff.extend([two(0x0112), two(3)].concat());
        tiff.extend(four(1));
        tiff.extend([two(number), two(0)].concat());
        let body = [b"Exif\0\0".as_slice(), &tiff].concat();
        let length = (body.len() as u16 + 2).to_be_bytes();
        [&[0xff, 0xd8, 0xff, 0xe0, 0, 4, 1, 2, 0xff, 0xe1][..], &length, &body, &[0xff, 0xda, 0, 2]].concat()
    }

    #[test]
    fn the_tag_is_found_in_either_byte_order_and_nothing_else_panics() {
        for (number, big) in (1..=8).flat_map(|n| [(n, false), (n, true)]) {
            let bytes = jpeg_with(number, big);
            assert_eq!(Orientation::of_jpeg(&bytes), Orientation::from_number(number));
            for end in 0..bytes.len() {
                let _ = Orientation::of_jpeg(&bytes[..end]);
            }
        }
        assert_eq!(Orientation::of_jpeg(b"\xff\xd8\xff\xda"), Orientation::default());
    }

    /// A picture of 2 × 2 pixels a b / c d, turned the eight ways of the standard.
    #[test]
    fn squares_and_parts_are_turned_alike() {
        let shown = [*b"aaa", *b"bbb", *b"ccc", *b"ddd"].concat();
        for number in 1..=8 {
            let orientation = Orientation::from_number(number);
            // each pixel of the picture, looked up where `stored` says that it lies
            let stored = |x: usize, y: usize| {
                let pixel = Cut { x: x as f64, y: y as f64, width: 1.0, height: 1.0 };
                let at = orientation.stored(pixel, (2, 2));
                at.y as usize * 2 + at.x as usize
            };
            let mut raw = vec![0; 12];
            for (y, x) in [(0, 0), (0, 1), (1, 0), (1, 1)] {
                raw[stored(x, y) * 3..][..3].copy_from_slice(&shown[(y * 2 + x) * 3..][..3]);
            }
            let mut out = Vec::new();
            orientation.turn(2, &raw, &mut out);
            assert_eq!(out, shown, "{number}: stored as {raw:?}");
        }
        // 6: what is stored has to be turned clockwise, so its lower left corner comes to the upper left
        let mut out = Vec::new();
        Orientation::from_number(6).turn(2, &shown, &mut out);
        assert_eq!(out, [*b"ccc", *b"aaa", *b"ddd", *b"bbb"].concat());
    }
}
