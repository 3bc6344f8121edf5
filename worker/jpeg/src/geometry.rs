//! Parts and scales of an image.

/// A rectangle of pixels.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Region {
    /// First column.
    pub x: u32,
    /// First row.
    pub y: u32,
    /// Columns.
    pub width: u32,
    /// Rows.
    pub height: u32,
}

impl Region {
    /// All of an image.
    pub fn whole(width: u32, height: u32) -> Self {
        Self { x: 0, y: 0, width, height }
    }

    /// Pixels in it.
    pub fn area(&self) -> u64 {
        u64::from(self.width) * u64::from(self.height)
    }

    /// Whether every pixel of `other` is in it.
    pub fn contains(&self, other: &Self) -> bool {
        let ends = |r: &Self| (u64::from(r.x) + u64::from(r.width), u64::from(r.y) + u64::from(r.height));
        let ((right, bottom), (other_right, other_bottom)) = (ends(self), ends(other));
        self.x <= other.x && self.y <= other.y && right >= other_right && bottom >= other_bottom
    }
}

/// Eighths of an image's size at which it is decoded: a scale of 4 leaves out three quarters of the inverse transform.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Scale(u32);

impl Scale {
    /// As it is.
    pub const FULL: Self = Self(8);

    /// `eighths` of the size, 1 … 8; `None` for another number.
    pub fn eighths(eighths: u32) -> Option<Self> {
        (1..=8).contains(&eighths).then_some(Self(eighths))
    }

    /// The scale as a factor.
    pub fn factor(self) -> f64 {
        f64::from(self.0) / 8.0
    }

    /// How many eighths.
    pub fn numerator(self) -> u32 {
        self.0
    }

    /// A length at this scale, rounded up, as libjpeg-turbo does.
    pub fn of(self, length: u32) -> u32 {
        // invariant: a length of a JPEG has 16 bits
        length.saturating_mul(self.0).div_ceil(8)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_scale_is_of_one_to_eight_eighths() {
        assert_eq!(Scale::eighths(8), Some(Scale::FULL));
        assert_eq!([0, 9].map(Scale::eighths), [None, None]);
        assert_eq!(Scale::eighths(3).map(|scale| scale.of(17)), Some(7));
    }

    #[test]
    fn a_region_contains_what_lies_in_it() {
        let region = Region { x: 2, y: 3, width: 10, height: 4 };
        assert!(region.contains(&region) && region.contains(&Region { x: 5, y: 4, width: 7, height: 3 }));
        assert!(!region.contains(&Region { x: 1, ..region }) && !region.contains(&Region { width: 11, ..region }));
        assert_eq!(region.area(), 40);
    }
}
