//! Curves, short enough to be drawn: means over windows of steps that begin anew with every epoch, so that a drop of
//! the learning rate stays as sharp as it was.

/// A line of a figure, whatever is on its axis.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Curve {
    /// How many steps a point is a mean of, about.
    pub window: u64,
    /// Points, by rising x.
    pub points: Vec<Point>,
}

/// One point of it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Point {
    /// Images trained on since the run began.
    pub images: f64,
    /// The same in epochs.
    pub epochs: f64,
    /// A loss, or an error as a fraction.
    pub value: f64,
}

/// Steps in a point, unless told otherwise: a hundred points a run, and not more than an epoch in each.
pub fn usual_window(total_steps: u64, steps_per_epoch: u64) -> u64 {
    total_steps.div_ceil(100).clamp(1, steps_per_epoch.max(1))
}

/// Steps in a point of the finest line that a picture can show.
pub fn fine_window(total_steps: u64) -> u64 {
    total_steps.div_ceil(1000).max(1)
}

/// Takes steps one by one and makes a curve of means.
#[derive(Debug)]
pub struct Smoother {
    window: u64,
    /// A point ends with every so many epochs, full or not.
    epochs: u64,
    num_positions: f64,
    images: f64,
    open: Option<Open>,
    points: Vec<Point>,
}

/// The point that is being summed.
#[derive(Debug)]
struct Open {
    group: u64,
    steps: u64,
    from: f64,
    samples: f64,
    sum: f64,
}

impl Smoother {
    /// Points of about `window` steps. An epoch is cut into equal parts, as far as that goes.
    pub fn new(window: u64, steps_per_epoch: u64, num_positions: u64) -> Self {
        let steps_per_epoch = steps_per_epoch.max(1);
        let parts = steps_per_epoch.div_ceil(window.max(1));
        let epochs = (window / steps_per_epoch).max(1);
        let window = if epochs > 1 { epochs * steps_per_epoch } else { steps_per_epoch.div_ceil(parts) };
        Self { window, epochs, num_positions: num_positions.max(1) as f64, images: 0.0, open: None, points: Vec::new() }
    }

    /// Takes in a step. A loss that is not a number leaves a gap.
    pub fn push(&mut self, epoch: u64, samples: u64, value: f64) {
        let group = epoch.saturating_sub(1) / self.epochs;
        if self.open.as_ref().is_some_and(|open| open.group != group || open.steps == self.window) {
            self.close();
        }
        let from = self.images;
        self.images += samples as f64;
        if !value.is_finite() {
            return;
        }
        let open = self.open.get_or_insert(Open { group, steps: 0, from, samples: 0.0, sum: 0.0 });
        open.steps += 1;
        open.samples += samples as f64;
        open.sum += value * samples as f64;
    }

    fn close(&mut self) {
        let Some(open) = self.open.take().filter(|open| open.samples > 0.0) else { return };
        let images = open.from + open.samples / 2.0;
        self.points.push(Point { images, epochs: images / self.num_positions, value: open.sum / open.samples });
    }

    /// The curve.
    pub fn finish(mut self) -> Curve {
        self.close();
        Curve { window: self.window, points: self.points }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_point_is_a_mean_over_samples_and_ends_with_its_epoch() {
        // Two epochs of 4 steps, 100 positions: 32, 32, 32, 4; parts of two steps.
        let mut smoother = Smoother::new(3, 4, 100);
        for epoch in [1, 2] {
            for (samples, value) in [(32, 1.0), (32, 2.0), (32, 3.0), (4, 7.0)] {
                smoother.push(epoch, samples, value * epoch as f64);
            }
        }
        let curve = smoother.finish();
        assert_eq!(curve.window, 2);
        let found: Vec<_> = curve.points.iter().map(|point| (point.images, point.value)).collect();
        let mean = (32.0 * 3.0 + 4.0 * 7.0) / 36.0;
        assert_eq!(found, [(32.0, 1.5), (82.0, mean), (132.0, 3.0), (182.0, 2.0 * mean)]);
        assert_eq!(curve.points[1].epochs, 0.82);
    }

    #[test]
    fn a_window_of_one_is_the_steps_and_a_long_one_is_whole_epochs() {
        let with = |window: u64| {
            let mut smoother = Smoother::new(window, 2, 20);
            for step in 0..8u64 {
                smoother.push(step / 2 + 1, 10, step as f64);
            }
            smoother.finish().points.iter().map(|point| point.value).collect::<Vec<_>>()
        };
        assert_eq!(with(1), [0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0]);
        assert_eq!(with(5), [1.5, 5.5]);
    }

    #[test]
    fn a_loss_that_is_not_a_number_is_in_no_point() {
        let mut smoother = Smoother::new(2, 4, 40);
        for value in [1.0, f64::NAN, f64::NAN, f64::INFINITY] {
            smoother.push(1, 10, value);
        }
        let values: Vec<_> = smoother.finish().points.iter().map(|point| (point.images, point.value)).collect();
        assert_eq!(values, [(5.0, 1.0)]);
    }

    #[test]
    fn a_run_has_about_a_hundred_points_and_at_least_one_an_epoch() {
        assert_eq!(usual_window(391 * 200, 391), 391);
        assert_eq!(usual_window(391 * 4, 391), 16);
        assert_eq!(usual_window(12, 4), 1);
    }
}
