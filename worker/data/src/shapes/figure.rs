//! The ten figures as integer inequalities, and an integer table of sines to turn them by.

/// Number of steps of a full turn.
pub(super) const TURN: u32 = 256;
/// A figure fits into a circle of about this radius, in its own coordinates.
pub(super) const RADIUS: i32 = 1024;

/// round(2¹⁴ · sin(2π·i / 256)), the first quarter.
const QUARTER: [i16; 65] = [
    0, 402, 804, 1205, 1606, 2006, 2404, 2801, 3196, 3590, 3981, 4370, 4756, 5139, 5520, 5897, 6270, 6639, 7005, 7366,
    7723, 8076, 8423, 8765, 9102, 9434, 9760, 10080, 10394, 10702, 11003, 11297, 11585, 11866, 12140, 12406, 12665,
    12916, 13160, 13395, 13623, 13842, 14053, 14256, 14449, 14635, 14811, 14978, 15137, 15286, 15426, 15557, 15679,
    15791, 15893, 15986, 16069, 16143, 16207, 16261, 16305, 16340, 16364, 16379, 16384,
];

/// 2¹⁴ · sin of `angle` / 256 turns.
pub(super) fn sine(angle: u32) -> i32 {
    let (quadrant, within) = (angle / 64 % 4, (angle % 64) as usize);
    let value = i32::from(if quadrant % 2 == 0 { QUARTER[within] } else { QUARTER[64 - within] });
    if quadrant < 2 { value } else { -value }
}

/// 2¹⁴ · cos of `angle` / 256 turns.
pub(super) fn cosine(angle: u32) -> i32 {
    sine(angle + TURN / 4)
}

/// A class: its number is the label.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Figure {
    Disc,
    Square,
    Triangle,
    Plus,
    Ring,
    Star,
    Bars,
    Checker,
    Crescent,
    Hourglass,
}

impl Figure {
    /// By label.
    pub(super) const ALL: [Self; 10] = [
        Self::Disc,
        Self::Square,
        Self::Triangle,
        Self::Plus,
        Self::Ring,
        Self::Star,
        Self::Bars,
        Self::Checker,
        Self::Crescent,
        Self::Hourglass,
    ];

    /// Whether the point belongs to the figure, whose centre is (0, 0). Coordinates stay below 2¹³.
    pub(super) fn contains(self, u: i32, v: i32) -> bool {
        let within = |half: i32| u.abs() <= half && v.abs() <= half;
        let distance2 = |x: i32, y: i32| (u - x) * (u - x) + (v - y) * (v - y);
        // number of half planes n·p ≤ d left, with n on 2¹⁴ · unit circle
        let outside = |normals: &[(i32, i32)], d: i32| {
            normals.iter().filter(|(x, y)| x * (u / 2) + y * (v / 2) > d * 8192).count()
        };
        match self {
            Self::Disc => distance2(0, 0) <= 880 * 880,
            Self::Square => within(740),
            Self::Triangle => outside(&TRIANGLE, 500) == 0,
            Self::Plus => within(930) && (u.abs() <= 290 || v.abs() <= 290),
            Self::Ring => (560 * 560..=930 * 930).contains(&distance2(0, 0)),
            // a pentagram: the pentagon of five lines, and the tips that lie beyond one of them
            Self::Star => outside(&PENTAGON, 340) <= 1,
            Self::Bars => within(850) && (v + 850) / 340 % 2 == 0,
            Self::Checker => within(850) && ((u + 850) / 567 + (v + 850) / 567) % 2 == 0,
            Self::Crescent => distance2(0, 0) <= 960 * 960 && distance2(480, 0) > 780 * 780,
            Self::Hourglass => v.abs() <= 860 && u.abs() <= v.abs(),
        }
    }
}

/// Normals at 90°, 210°, 330°.
const TRIANGLE: [(i32, i32); 3] = [(0, 16384), (-14189, -8192), (14189, -8192)];
/// Normals at 90°, 162°, 234°, 306°, 18°.
const PENTAGON: [(i32, i32); 5] = [(0, 16384), (-15582, 5063), (-9630, -13255), (9630, -13255), (15582, 5063)];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sines_are_those_of_the_library() {
        for angle in 0..2 * TURN {
            let exact = (f64::from(angle) * std::f64::consts::TAU / 256.0).sin() * 16384.0;
            assert!((f64::from(sine(angle)) - exact).abs() <= 0.51, "{angle}");
        }
        assert_eq!((cosine(0), cosine(64), cosine(128)), (16384, 0, -16384));
    }

    #[test]
    fn figures_fit_their_radius_and_differ_pairwise() {
        let grid: Vec<(i32, i32)> = (-40..=40).flat_map(|y| (-40..=40).map(move |x| (50 * x, 50 * y))).collect();
        for (a, figure) in Figure::ALL.into_iter().enumerate() {
            let reach = grid.iter().filter(|p| figure.contains(p.0, p.1)).map(|p| p.0 * p.0 + p.1 * p.1).max().unwrap();
            assert!((700 * 700..=1350 * 1350).contains(&reach), "{figure:?} reaches {}", f64::from(reach).sqrt());
            for other in &Figure::ALL[..a] {
                let differing = grid.iter().filter(|p| figure.contains(p.0, p.1) != other.contains(p.0, p.1)).count();
                assert!(differing >= 100, "{figure:?} and {other:?} differ in {differing} points");
            }
        }
    }
}
