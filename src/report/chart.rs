//! Figures as SVG and PNG, drawn by kuva: white ground, faint grid, colours that colour-blind readers can tell apart.
//!
//! kuva lays out axes, ticks and legend and draws both formats from one scene. What it lacks is done here: round bounds
//! of the y axis, its name above it, since its PNG has no smooth rotated text, and names of marks; in `dashes`, patterns
//! in the PNG.

use std::sync::Arc;

use kuva::backend::png::PngBackend;
use kuva::backend::svg::SvgBackend;
use kuva::plot::annotations::ReferenceLine;
use kuva::plot::line::{LinePlot, LineStyle};
use kuva::plot::{LegendEntry, LegendPosition, LegendShape};
use kuva::render::layout::{Layout, TickFormat};
use kuva::render::plots::Plot;
use kuva::render::render::{Primitive, TextAnchor, render_multiple};
use kuva::render::theme::Theme;

use super::dashes;

/// Okabe & Ito 2008 without its yellow, which is faint on white; then grey.
const COLOURS: [&str; 8] = ["#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000", "#7f7f7f"];
/// Of the first eight lines, the next eight, …
const DASHES: [&str; 4] = ["", "6 2.5", "2 2", "8 2.5 2 2.5"];
/// Of a run that is not finished.
const UNFINISHED: &str = "1.5 2.5";
/// Size of the axes, in CSS pixels.
const AXES: (f64, f64) = (480.0, 290.0);
const MARGINS: Margins = Margins { left: 52.0, right: 18.0, top: 42.0, bottom: 46.0 };
/// Between the names of two marks, at least.
const MARK_WIDTH: f64 = 70.0;
/// The y axis is logarithmic where its largest value is so many times its smallest: below, it would have two ticks.
const LOG_FROM: f64 = 5.0;
/// Labels of the legend are broken into lines of so many characters.
const LEGEND_WRAP: usize = 30;
const LEGEND_LINE: f64 = 18.0;
/// Pixels of the PNG for one of the SVG.
const PNG_SCALE: f32 = 2.0;

struct Margins {
    left: f64,
    right: f64,
    top: f64,
    bottom: f64,
}

/// What is to be drawn.
#[derive(Clone, Debug, Default)]
pub struct Chart {
    /// `training_loss`: names it among others of a page.
    pub id: String,
    /// Name and unit of the x axis.
    pub x_label: String,
    /// Name and unit of the y axis.
    pub y_label: String,
    /// The x axis goes from 0 to here.
    pub x_max: f64,
    /// Places on the x axis with what happens there.
    pub marks: Vec<(f64, String)>,
    /// Lines, the first at the bottom.
    pub lines: Vec<Line>,
    /// Names of lines.
    pub legend: Vec<Key>,
}

/// One line.
#[derive(Clone, Debug, PartialEq)]
pub struct Line {
    /// By rising x.
    pub points: Vec<(f64, f64)>,
    /// How it looks.
    pub style: Style,
}

/// How a line looks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Style {
    /// Lines of the same number have the same colour and dashes.
    pub number: usize,
    /// What it is drawn for.
    pub kind: Kind,
}

/// What a line is drawn for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A finished run.
    Plain,
    /// One that is not finished: dotted.
    Unfinished,
    /// What lies behind a smoothed line: pale.
    Faint,
}

/// An entry of the legend.
#[derive(Clone, Debug, PartialEq)]
pub struct Key {
    /// Its text.
    pub label: String,
    /// The line that it stands for.
    pub style: Style,
}

/// The same picture twice.
#[derive(Clone, Debug)]
pub struct Drawing {
    /// Scales with the page it stands on.
    pub svg: String,
    /// Two pixels for one of the SVG.
    pub png: Vec<u8>,
}

impl Style {
    fn colour(self) -> String {
        let colour = COLOURS[self.number % COLOURS.len()];
        if self.kind == Kind::Faint { pale(colour) } else { colour.to_owned() }
    }

    fn dashes(self) -> &'static str {
        match self.kind {
            Kind::Unfinished => UNFINISHED,
            Kind::Faint => "",
            Kind::Plain => DASHES[self.number / COLOURS.len() % DASHES.len()],
        }
    }

    fn width(self) -> f64 {
        if self.kind == Kind::Faint { 0.8 } else { 1.5 }
    }
}

/// Three quarters of the way to white.
fn pale(colour: &str) -> String {
    let channel = |from: usize| {
        let value = colour.get(from..from + 2).and_then(|digits| u8::from_str_radix(digits, 16).ok()).unwrap_or(0);
        255 - (255 - value) / 4
    };
    format!("#{:02x}{:02x}{:02x}", channel(1), channel(3), channel(5))
}

impl Chart {
    /// Draws it.
    ///
    /// # Errors
    /// What the library says; `None` when there is no point to draw.
    pub fn draw(&self) -> Option<Result<Drawing, String>> {
        let (low, high) = self.extent()?;
        let is_log = low > 0.0 && high >= LOG_FROM * low;
        let (low, high) = if is_log { log_bounds(low, high) } else { (0.0, linear_bound(high)) };
        let legend_width = self.legend_width();
        let lines = self.legend.iter().map(|key| key.label.chars().count().div_ceil(LEGEND_WRAP).max(1));
        let legend_height = lines.sum::<usize>() as f64 * LEGEND_LINE;
        let axes_height = AXES.1.max(legend_height);
        let mut plots: Vec<Plot> = self.lines.iter().map(|line| plot(line, is_log)).collect();
        plots.retain(|plot| matches!(plot, Plot::Line(line) if !line.data.is_empty()));
        let mut layout = Layout::auto_from_plots(&plots)
            .with_theme(Theme { grid_color: "#e6e6e6".into(), axis_color: "#444444".into(), ..Theme::light() })
            .with_width(MARGINS.left + AXES.0 + MARGINS.right + legend_width)
            .with_height(MARGINS.top + axes_height + MARGINS.bottom)
            .with_force_margins(MARGINS.left, MARGINS.right + legend_width)
            .with_force_margins_y(MARGINS.top, MARGINS.bottom)
            .with_x_label(&self.x_label)
            .with_x_axis_min(0.0)
            .with_x_axis_max(self.x_max)
            .with_y_axis_min(low)
            .with_y_axis_max(high)
            .with_x_tick_format(TickFormat::Custom(Arc::new(tick)))
            .with_y_tick_format(TickFormat::Custom(Arc::new(tick)))
            .with_label_size(13);
        if is_log {
            layout = layout.with_log_y();
        }
        for (at, _) in &self.marks {
            let line = ReferenceLine::vertical(*at).with_color("#999999").with_stroke_width(0.8);
            layout = layout.with_reference_line(line.with_dasharray("3 3"));
        }
        if !self.legend.is_empty() {
            layout = layout
                .with_legend_entries(self.legend.iter().map(entry).collect())
                .with_legend_position(LegendPosition::OutsideRightTop)
                .with_legend_wrap(LEGEND_WRAP)
                .with_legend_box(false);
        }
        let mut scene = render_multiple(plots, layout);
        scene.elements.push(text(10.0, 16.0, &self.y_label, 13, TextAnchor::Start));
        // Above the axes, where no line runs through them.
        let mut free = 0.0;
        for (at, label) in &self.marks {
            let x = MARGINS.left + AXES.0 * at / self.x_max;
            if x >= free {
                scene.elements.push(text(x, MARGINS.top - 6.0, label, 11, TextAnchor::Middle));
                free = x + MARK_WIDTH;
            }
        }
        let svg = self.finish(&SvgBackend::new().render_scene(&scene), scene.width, scene.height);
        dashes::cut(&mut scene);
        Some(PngBackend::new().with_scale(PNG_SCALE).render_scene(&scene).map(|png| Drawing { svg, png }))
    }

    /// Smallest and largest value.
    fn extent(&self) -> Option<(f64, f64)> {
        let values = self.lines.iter().flat_map(|line| line.points.iter().map(|point| point.1));
        values.fold(None, |extent, value| match extent {
            None => Some((value, value)),
            Some((low, high)) => Some((low.min(value), high.max(value))),
        })
    }

    fn legend_width(&self) -> f64 {
        let longest = self.legend.iter().map(|key| key.label.chars().count().min(LEGEND_WRAP)).max();
        longest.map_or(0.0, |longest| 46.0 + 6.9 * longest as f64)
    }

    /// Makes the SVG scale with its page, name itself to those who cannot see it, and keep its names to itself.
    fn finish(&self, svg: &str, width: f64, height: f64) -> String {
        let head = format!("<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{width}\" height=\"{height}\"");
        let scaling = format!("{head} viewBox=\"0 0 {width} {height}\" role=\"img\"");
        let svg = svg.replacen(&head, &scaling, 1);
        // The library numbers its clip paths through all figures of a process; a page may hold several.
        let Some(number) = svg.split("id=\"kuva-clip-").nth(1).and_then(|rest| rest.split('"').next()) else {
            return svg;
        };
        svg.replace(&format!("kuva-clip-{number}\""), &format!("clip-{}\"", self.id))
            .replace(&format!("kuva-clip-{number})"), &format!("clip-{})", self.id))
    }
}

fn text(x: f64, y: f64, content: &str, size: u32, anchor: TextAnchor) -> Primitive {
    Primitive::Text { x, y, content: content.to_owned(), size, anchor, rotate: None, bold: false, color: None }
}

fn plot(line: &Line, is_log: bool) -> Plot {
    let points = line.points.iter().copied().filter(|point| !is_log || point.1 > 0.0);
    let style = line.style;
    let plot = LinePlot::new().with_data(points).with_color(style.colour()).with_stroke_width(style.width());
    match style.dashes() {
        "" => plot.into(),
        dashes => plot.with_line_style(LineStyle::Custom(dashes.to_owned())).into(),
    }
}

fn entry(key: &Key) -> LegendEntry {
    let dashes = key.style.dashes();
    LegendEntry {
        label: key.label.clone(),
        color: key.style.colour(),
        shape: LegendShape::Line,
        dasharray: (!dashes.is_empty()).then(|| dashes.to_owned()),
    }
}

/// As few digits as tell it from its neighbours.
fn tick(value: f64) -> String {
    let text = format!("{value:.6}");
    let text = text.trim_end_matches('0').trim_end_matches('.');
    if text.is_empty() || text == "-0" { "0".to_owned() } else { text.to_owned() }
}

/// Round numbers, times a power of ten, at which axes may end.
const ROUND: [f64; 9] = [1.0, 1.5, 2.0, 2.5, 3.0, 4.0, 5.0, 6.0, 8.0];

/// Round numbers just below and above.
fn log_bounds(low: f64, high: f64) -> (f64, f64) {
    let below = 10f64.powf(low.log10().floor());
    // A value on a bound stays on it whatever rounding did to its logarithm.
    let found = ROUND.iter().rev().map(|round| round * below).find(|bound| *bound <= low * (1.0 + 1e-9));
    (found.unwrap_or(below), linear_bound(high))
}

/// The round number just above.
fn linear_bound(high: f64) -> f64 {
    if high <= 0.0 {
        return 1.0;
    }
    let decade = 10f64.powf(high.log10().floor());
    let found = ROUND.iter().map(|round| round * decade).find(|bound| *bound * (1.0 + 1e-9) >= high);
    found.unwrap_or(10.0 * decade)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn axes_end_at_round_numbers() {
        assert_eq!(log_bounds(0.021, 2.31), (0.02, 2.5));
        assert_eq!(log_bounds(5.0, 90.0), (5.0, 100.0));
        assert_eq!((linear_bound(0.0), linear_bound(38.0), linear_bound(91.0)), (1.0, 40.0, 100.0));
    }

    #[test]
    fn ticks_have_no_digit_too_many() {
        assert_eq!([0.0, 0.5, 0.02, 100.0, 1e-5].map(tick), ["0", "0.5", "0.02", "100", "0.00001"]);
    }

    #[test]
    fn lines_can_be_told_apart_up_to_the_thirty_second() {
        let looks = |number| {
            let style = Style { number, kind: Kind::Plain };
            (style.colour(), style.dashes())
        };
        let all: std::collections::BTreeSet<_> = (0..32).map(looks).collect();
        assert_eq!(all.len(), 32);
        assert_eq!(Style { number: 0, kind: Kind::Faint }.colour(), "#c0dcec");
    }
}
