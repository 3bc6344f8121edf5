//! Dashed lines cut into pieces for the PNG: kuva begins the pattern anew at every point of a line there, so that a
//! curve of many points has no gaps.

use kuva::render::render::{Primitive, Scene};

/// Replaces dashed lines of a scene by their pieces.
pub(super) fn cut(scene: &mut Scene) {
    scene.elements = std::mem::take(&mut scene.elements).into_iter().flat_map(pieces).collect();
}

fn pieces(element: Primitive) -> Vec<Primitive> {
    let (points, stroke, stroke_width, dashes) = match element {
        Primitive::PolyLine { points, stroke, stroke_width, stroke_dasharray: Some(dashes) } => {
            (points, stroke, stroke_width, dashes)
        }
        Primitive::Line { x1, y1, x2, y2, stroke, stroke_width, stroke_dasharray: Some(dashes) } => {
            (vec![(x1, y1), (x2, y2)], stroke, stroke_width, dashes)
        }
        other => return vec![other],
    };
    let pattern: Vec<f64> = dashes.split([' ', ',']).filter_map(|length| length.parse().ok()).collect();
    let piece = |points| Primitive::PolyLine { points, stroke: stroke.clone(), stroke_width, stroke_dasharray: None };
    split(&points, &pattern).into_iter().map(piece).collect()
}

/// The parts of a line on which a pattern of strokes and gaps, in turn, draws.
fn split(points: &[(f64, f64)], pattern: &[f64]) -> Vec<Vec<(f64, f64)>> {
    let [first, ..] = points else { return Vec::new() };
    if pattern.is_empty() || pattern.iter().any(|length| *length <= 0.0) {
        return vec![points.to_vec()];
    }
    let (mut pieces, mut piece) = (Vec::new(), vec![*first]);
    let (mut at, mut left) = (0, pattern[0]);
    for pair in points.windows(2) {
        let [mut from, to] = *pair else { continue };
        loop {
            let length = (to.0 - from.0).hypot(to.1 - from.1);
            let draws = at % 2 == 0;
            if length <= left {
                left -= length;
                if draws {
                    piece.push(to);
                }
                break;
            }
            let share = left / length;
            from = (from.0 + share * (to.0 - from.0), from.1 + share * (to.1 - from.1));
            if draws {
                piece.push(from);
                pieces.push(std::mem::take(&mut piece));
            } else {
                piece = vec![from];
            }
            at += 1;
            left = pattern[at % pattern.len()];
        }
    }
    if piece.len() > 1 {
        pieces.push(piece);
    }
    pieces
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pattern_goes_on_over_the_points_of_a_line() {
        let line = [(0.0, 0.0), (1.0, 0.0), (2.0, 0.0), (4.0, 0.0), (4.0, 3.0)];
        let pieces = split(&line, &[3.0, 1.0]);
        assert_eq!(pieces, [vec![(0.0, 0.0), (1.0, 0.0), (2.0, 0.0), (3.0, 0.0)], vec![(4.0, 0.0), (4.0, 3.0)]]);
        assert_eq!(split(&line, &[]), [line.to_vec()]);
        assert_eq!(split(&[], &[1.0, 1.0]), Vec::<Vec<(f64, f64)>>::new());
    }
}
