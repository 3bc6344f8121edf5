//! The two figures of a table: training loss and test error against epochs or images, one line a run.

use std::collections::BTreeSet;

use super::chart::{Chart, Key, Kind, Line, Style};
use super::course::rate_drops;
use super::curve::Curve;
use super::model::{Details, Run, State, Table};

/// Raw values lie behind smoothed ones in figures of at most so many runs: more would hide each other.
const MAX_FAINT: usize = 4;

/// What is on the x axis.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum X {
    /// Epochs trained.
    #[default]
    Epochs,
    /// Images trained on.
    Images,
}

/// A chart with the sentence below it.
#[derive(Clone, Debug)]
pub struct Figure {
    /// `training_loss` or `test_error`: its file's name.
    pub name: &'static str,
    /// What it shows, for its heading.
    pub title: &'static str,
    /// How it is to be read.
    pub caption: String,
    /// The picture.
    pub chart: Chart,
}

/// What a figure shows.
struct What {
    name: &'static str,
    y_label: &'static str,
    curve: fn(&Details) -> &Curve,
}

const LOSS: What = What { name: "training_loss", y_label: "training loss", curve: |details| &details.loss };
const TEST: What = What { name: "test_error", y_label: "test error, %", curve: |details| &details.test };

/// A run with what it is drawn like.
struct Drawn<'a> {
    run: &'a Run,
    details: &'a Details,
    number: usize,
    label: String,
}

/// Training loss of a table's runs; `None` when no run has any.
pub fn training_loss(table: &Table, x: X) -> Option<Figure> {
    let mut drawn = drawn(table);
    drawn.retain(|run| !run.details.loss.points.is_empty());
    let windows: BTreeSet<u64> = drawn.iter().map(|run| run.details.loss.window).collect();
    let fine: BTreeSet<u64> = drawn.iter().map(|run| run.details.loss_fine.window).collect();
    let (least, most) = (windows.first()?, windows.last()?);
    let is_smooth = drawn.iter().all(|run| run.details.loss_fine.window * 2 <= run.details.loss.window);
    let with_faint = is_smooth && drawn.len() <= MAX_FAINT;
    let mut chart = chart(&LOSS, table, x, &drawn)?;
    let mut caption = format!("Training loss (mean cross-entropy of the batch, before the step), {}", one_line(x));
    if *most > 1 {
        let over = if least == most { format!("{most}") } else { format!("{least} to {most}") };
        caption.push_str(&format!("; each point is the mean over {over} steps"));
    }
    if with_faint {
        let unit = unit(x, &drawn);
        let faint = drawn.iter().map(|run| Line {
            points: points(&run.details.loss_fine, unit),
            style: Style { number: run.number, kind: Kind::Faint },
        });
        chart.lines = faint.chain(chart.lines).collect();
        let over = fine.last().copied().unwrap_or(1);
        let of = if over > 1 { format!("means over {over} steps") } else { "every step".to_owned() };
        caption.push_str(&format!(", pale lines are {of}"));
    }
    caption.push('.');
    caption.push_str(&remarks(&chart, &drawn));
    Some(Figure { name: LOSS.name, title: "Training loss", caption, chart })
}

/// Test error of a table's runs; `None` when none was evaluated.
pub fn test_error(table: &Table, x: X) -> Option<Figure> {
    let drawn = drawn(table);
    let mut chart = chart(&TEST, table, x, &drawn)?;
    for line in &mut chart.lines {
        line.points.iter_mut().for_each(|point| point.1 *= 100.0);
    }
    let caption = format!("Test error at every evaluation, {}.{}", one_line(x), remarks(&chart, &drawn));
    Some(Figure { name: TEST.name, title: "Test error", caption, chart })
}

/// Runs that have anything to draw. Rows have a number each; in a table of one row its runs do.
fn drawn(table: &Table) -> Vec<Drawn<'_>> {
    let is_single = table.rows.len() == 1;
    let mut drawn = Vec::new();
    for (row_number, row) in table.rows.iter().enumerate() {
        for (run_number, run) in row.runs.iter().enumerate() {
            let Some(details) = &run.details else { continue };
            let (number, label) = match is_single {
                true => (run_number, format!("seed {}", run.seed)),
                false => (row_number, row.label.clone()),
            };
            drawn.push(Drawn { run, details, number, label });
        }
    }
    drawn
}

fn chart(what: &What, table: &Table, x: X, drawn: &[Drawn<'_>]) -> Option<Chart> {
    let unit = unit(x, drawn);
    let mut chart = Chart {
        id: format!("{}-{}", table.name, what.name),
        x_label: unit.label.to_owned(),
        y_label: what.y_label.to_owned(),
        ..Chart::default()
    };
    let mut labelled = BTreeSet::new();
    for run in drawn {
        let points = points((what.curve)(run.details), unit);
        // One point is no line, and its entry in the legend would stand for nothing.
        if points.len() < 2 {
            continue;
        }
        let size = run.details.num_positions;
        let end = match x {
            X::Epochs => run.details.total_epochs as f64,
            X::Images => (run.details.total_epochs * size) as f64 / unit.divisor,
        };
        chart.x_max = points.last().map_or(end, |last| end.max(last.0)).max(chart.x_max);
        let is_done = run.run.state == State::Done;
        let style = Style { number: run.number, kind: if is_done { Kind::Plain } else { Kind::Unfinished } };
        let label = if is_done { run.label.clone() } else { unfinished(table, run) };
        if labelled.insert((run.number, label.clone())) {
            chart.legend.push(Key { label, style });
        }
        chart.lines.push(Line { points, style });
    }
    if chart.lines.is_empty() {
        return None;
    }
    if chart.lines.len() == 1 && chart.legend.iter().all(|key| key.style.kind == Kind::Plain) {
        chart.legend.clear();
    }
    chart.marks = marks(table, drawn, x, unit);
    Some(chart)
}

/// A run that is not finished is named, so that its line is taken for no other.
fn unfinished(table: &Table, drawn: &Drawn<'_>) -> String {
    let seed = if table.rows.len() == 1 { String::new() } else { format!(", seed {}", drawn.run.seed) };
    let state = match drawn.run.state {
        State::Failed { step, .. } => format!("failed at step {step}"),
        State::Unfinished { step, total, .. } => format!("step {step} of {total}"),
        State::Done | State::NotRun => String::new(),
    };
    format!("{}{seed}: {state}", drawn.label)
}

/// Where the learning rate drops, if it does so in the same places for all rows that have drops.
fn marks(table: &Table, drawn: &[Drawn<'_>], x: X, unit: Unit) -> Vec<(f64, String)> {
    let total = drawn.iter().map(|run| run.details.total_epochs).max().unwrap_or(0);
    let drops: Vec<_> = table.rows.iter().filter_map(|row| rate_drops(&row.recipe, total)).collect();
    let sizes: BTreeSet<u64> = drawn.iter().map(|run| run.details.num_positions).filter(|size| *size > 0).collect();
    let Some((first, factor)) = drops.first().filter(|first| drops.iter().all(|drops| drops == *first)) else {
        return Vec::new();
    };
    let per_epoch = match (x, sizes.first()) {
        (X::Epochs, _) => 1.0,
        (X::Images, Some(size)) if sizes.len() == 1 => *size as f64 / unit.divisor,
        _ => return Vec::new(),
    };
    first.iter().map(|epoch| (*epoch as f64 * per_epoch, format!("rate × {factor}"))).collect()
}

#[derive(Clone, Copy)]
struct Unit {
    x: X,
    label: &'static str,
    divisor: f64,
}

fn unit(x: X, drawn: &[Drawn<'_>]) -> Unit {
    let images = drawn.iter().flat_map(|run| run.details.loss.points.last()).map(|point| point.images);
    let most = images.fold(0.0, f64::max);
    let (label, divisor) = match x {
        X::Epochs => ("epoch", 1.0),
        X::Images if most >= 2e6 => ("images, millions", 1e6),
        X::Images if most >= 2e3 => ("images, thousands", 1e3),
        X::Images => ("images", 1.0),
    };
    Unit { x, label, divisor }
}

fn points(curve: &Curve, unit: Unit) -> Vec<(f64, f64)> {
    let at = |point: &super::curve::Point| match unit.x {
        X::Epochs => point.epochs,
        X::Images => point.images / unit.divisor,
    };
    curve.points.iter().map(|point| (at(point), point.value)).collect()
}

fn one_line(x: X) -> &'static str {
    match x {
        X::Epochs => "one line a run, against epochs",
        X::Images => "one line a run, against images trained on",
    }
}

fn remarks(chart: &Chart, drawn: &[Drawn<'_>]) -> String {
    let mut text = String::new();
    if !chart.marks.is_empty() {
        text.push_str(" Vertical lines: the learning rate drops.");
    }
    if drawn.iter().any(|run| run.run.state != State::Done) {
        text.push_str(" Dotted: runs that are not finished.");
    }
    text
}
