//! `lockstep report RUN…|SWEEP`: what runs came to, as tables and figures that can be put into a paper.
//!
//! ```text
//! RUN…, SWEEP ─► inputs ─► model ─┬─► cells ──► html, markdown, data (CSV, JSON)
//!                  read ─► curve ─┴─► figures ─► chart (SVG, PNG)
//! ```
//! Reads run directories only. The reported number is the last epoch's test error, never the best over epochs.

mod cells;
mod chart;
mod course;
mod curve;
mod dashes;
mod data;
mod figures;
mod html;
mod inputs;
mod markdown;
mod model;
mod notes;
mod origin;
mod read;
#[cfg(test)]
mod tests;

use std::path::{Path, PathBuf};

use lockstep_coordinator::{clock, provenance};
use lockstep_proto::exit::ExitCode;

use crate::failure::Failure;
use crate::{output, sweep};
use cells::Cells;
use chart::Drawing;
use figures::{Figure, X};
use inputs::Inputs;
use model::Table;

/// `lockstep report`
#[derive(clap::Args)]
#[command(after_help = "Examples:
  lockstep report runs/demo/latest                     writes runs/demo/latest/report/index.html
  lockstep report runs/a/latest runs/b/latest --to /tmp/comparison
  lockstep report arch_shallow                         a sweep: runs below runs/sweeps, by `lockstep sweep`
  lockstep report my.toml --out /scratch/s --set train.epochs=4 --x images
  lockstep report bn_momentum --json | jq '{label, test_error_mean, test_error_sd}'

index.html stands alone and opens without a network. Beside it: report.md, report.csv, and each figure as SVG and PNG.")]
pub struct Args {
    /// Run directories; or sweeps: names of built-in ones, files, or folders of files.
    #[arg(value_name = "RUN|SWEEP", required = true)]
    of: Vec<String>,
    /// Folder for the report. Default: RUN/report of one run, DIR/report/NAME of sweeps in --out DIR, else ./report.
    #[arg(long, value_name = "DIR", env = "LOCKSTEP_TO")]
    to: Option<PathBuf>,
    /// Training loss: mean over so many steps a point (1: every step). Default: a hundredth of the run, at most an epoch.
    #[arg(long, value_name = "STEPS", env = "LOCKSTEP_SMOOTH", value_parser = clap::value_parser!(u64).range(1..))]
    smooth: Option<u64>,
    /// What is on the x axis.
    #[arg(long, value_name = "UNIT", env = "LOCKSTEP_X", default_value = "epochs")]
    x: X,
    /// Sweeps: where their runs lie.
    #[arg(long, value_name = "DIR", env = "LOCKSTEP_OUT", default_value = sweep::OUT)]
    out: PathBuf,
    /// Sweeps: the seeds that they were run with, if not those in the tables.
    #[arg(long, value_name = "LIST", env = "LOCKSTEP_SEEDS", value_delimiter = ',')]
    seeds: Option<Vec<u64>>,
    /// Sweeps: keys that they were run with; may be repeated.
    #[arg(long = "set", value_name = "KEY=VALUE", env = "LOCKSTEP_SET")]
    sets: Vec<String>,
    /// Sweeps: only rows with this in label or slug, in any case.
    #[arg(long, value_name = "TEXT", env = "LOCKSTEP_ONLY")]
    only: Option<String>,
    /// Print each row as a line of JSON.
    #[arg(long, env = "LOCKSTEP_JSON", value_parser = clap::builder::FalseyValueParser::new())]
    json: bool,
}

/// Everything that is written, before it is.
#[derive(Clone, Debug)]
pub struct Report {
    /// When, UTC.
    made: String,
    /// By which program.
    build: String,
    tables: Vec<Section>,
}

/// A table with its figures, drawn.
#[derive(Clone, Debug)]
struct Section {
    table: Table,
    cells: Vec<Cells>,
    figures: Vec<Drawn>,
}

/// A figure in its two formats.
#[derive(Clone, Debug)]
struct Drawn {
    figure: Figure,
    drawing: Drawing,
    /// Name of its files, without ending.
    stem: String,
}

/// Writes the report.
///
/// # Errors
/// Something named is no run and no sweep (64, 66), or the folder cannot be written (73).
pub fn run(args: &Args) -> Result<(), Failure> {
    let Inputs { tables, folder } = Inputs::read(args)?;
    let report = Report::new(tables, args.x)?;
    report.write(&folder)?;
    for section in &report.tables {
        if args.json {
            data::rows(section).iter().for_each(output::json);
            continue;
        }
        output::line(&section.table.title);
        for (row, cells) in section.table.rows.iter().zip(&section.cells) {
            output::line(format!("  {}  {}", row.label, cells::summary(row.stats(), cells)));
            cells.remarks.iter().for_each(|remark| output::line(format!("    {remark}")));
        }
    }
    if !args.json {
        output::line(folder.join("index.html").display());
    }
    Ok(())
}

impl Report {
    fn new(tables: Vec<Table>, x: X) -> Result<Self, Failure> {
        let is_one = tables.len() == 1;
        let section = |table: Table| {
            let figures = [figures::training_loss(&table, x), figures::test_error(&table, x)];
            let figures = figures.into_iter().flatten().filter_map(|figure| draw(figure, &table, is_one));
            let figures = figures.collect::<Result<_, _>>()?;
            Ok(Section { cells: table.rows.iter().map(Cells::of).collect(), figures, table })
        };
        Ok(Self {
            made: clock::utc_stamp(clock::unix_s() as u64),
            build: provenance::build(),
            tables: tables.into_iter().map(section).collect::<Result<_, Failure>>()?,
        })
    }

    /// What stands above everything.
    fn title(&self) -> &str {
        match self.tables.as_slice() {
            [section] => &section.table.title,
            _ => "Report",
        }
    }

    fn write(&self, folder: &Path) -> Result<(), Failure> {
        std::fs::create_dir_all(folder).map_err(|error| Failure::unwritable(folder, error))?;
        let write = |name: &str, content: &[u8]| {
            let path = folder.join(name);
            std::fs::write(&path, content).map_err(|error| Failure::unwritable(&path, error))
        };
        for drawn in self.tables.iter().flat_map(|section| &section.figures) {
            write(&format!("{}.svg", drawn.stem), drawn.drawing.svg.as_bytes())?;
            write(&format!("{}.png", drawn.stem), &drawn.drawing.png)?;
        }
        write("report.csv", data::csv(self)?.as_bytes())?;
        write("report.md", markdown::page(self).as_bytes())?;
        // Last: whoever sees it finds the rest.
        write("index.html", html::page(self).as_bytes())
    }
}

fn draw(figure: Figure, table: &Table, is_one: bool) -> Option<Result<Drawn, Failure>> {
    let stem = if is_one { figure.name.to_owned() } else { format!("{}-{}", table.name, figure.name) };
    let drawing = figure.chart.draw()?;
    let failed = |what: String| Failure::new(ExitCode::Software, format!("cannot draw {stem}: {what}"));
    Some(drawing.map_err(failed).map(|drawing| Drawn { figure, drawing, stem: stem.clone() }))
}
