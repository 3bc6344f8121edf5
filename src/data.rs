//! `lockstep data`: getting data sets, and looking at them.

mod pack;

use std::path::{Path, PathBuf};

use clap::{Subcommand, ValueEnum};
use indicatif::{ProgressBar, ProgressStyle};
use lockstep_data::verify::{Report, verify};
use lockstep_proto::exit::ExitCode;
use lockstep_proto::recipe::DataKind;

use crate::failure::Failure;
use crate::output;

/// `lockstep data`
#[derive(clap::Args)]
pub struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Download a data set from its official address, check it, and unpack it.
    #[command(after_help = "Examples:
  lockstep data fetch cifar10
  lockstep data fetch cifar100 --dest /data
  lockstep train cifar10/resnet20 --set data.path=/data/cifar-10-batches-bin")]
    Fetch {
        /// Which.
        #[arg(value_name = "SET")]
        set: Set,
        /// Folder that the data set's own folder goes into.
        #[arg(long, value_name = "DIR", env = "LOCKSTEP_DEST", default_value = "data")]
        dest: PathBuf,
        /// Print the result as JSON.
        #[arg(long, env = "LOCKSTEP_JSON", value_parser = clap::builder::FalseyValueParser::new())]
        json: bool,
    },
    /// Pack a folder of images into tar shards with an index (WebDataset), for data.kind = "webdataset".
    #[command(
        after_help = "SRC holds train/<class>/ and val/<class>/. Samples keep the folder's numbers, so a run from
shards takes the same course as one from the folder, unless --short-side or --quality changed
the images. An interrupted pack is continued by the same command; the same folder and options
always give the same bytes. Broken images are packed as they are, and named.

Examples:
  lockstep data pack /data/imagenet /data/imagenet-shards
  lockstep data pack /data/imagenet /data/imagenet-256 --short-side 256 --quality 90
  lockstep train RECIPE --set data.kind=webdataset --set data.path=https://host/imagenet-shards"
    )]
    Pack(pack::Args),
    /// Look at every image of a folder or of shards: what is broken, odd, there twice, in one split only.
    #[command(
        after_help = "PATH holds train/<class>/ and val/<class>/, or the tar shards of either, and may be a URL, as \
data.path of a recipe.
Ends with 65 where a run would not start or would end at an image; what is only odd ends with 0.

Examples:
  lockstep data verify /data/imagenet
  lockstep data verify https://host/imagenet-shards
  lockstep data verify /data/imagenet --json | jq -r '.findings[] | select(.error) | .path'"
    )]
    Verify {
        /// The folder or URL.
        #[arg(value_name = "PATH")]
        path: PathBuf,
        /// Print the result as JSON.
        #[arg(long, env = "LOCKSTEP_JSON", value_parser = clap::builder::FalseyValueParser::new())]
        json: bool,
    },
}

#[derive(Clone, Copy, ValueEnum)]
enum Set {
    /// 60,000 images in 10 classes, 170 MB.
    Cifar10,
    /// 60,000 images in 100 classes, 169 MB.
    Cifar100,
}

/// Gets or verifies a data set.
///
/// # Errors
/// No network, a wrong checksum, nowhere to write, broken images: each with the remedy.
pub fn run(args: &Args) -> Result<(), Failure> {
    match &args.command {
        Command::Fetch { set, dest, json } => fetch(*set, dest, *json),
        Command::Pack(args) => pack::run(args),
        Command::Verify { path, json } => look(path, *json),
    }
}

fn fetch(set: Set, dest: &Path, json: bool) -> Result<(), Failure> {
    let kind = match set {
        Set::Cifar10 => DataKind::Cifar10,
        Set::Cifar100 => DataKind::Cifar100,
    };
    let bar = ProgressBar::no_length();
    if let Ok(style) = ProgressStyle::with_template("{bar:40} {bytes}/{total_bytes}  {bytes_per_sec}  {eta}") {
        bar.set_style(style);
    }
    let fetched = lockstep_data::fetch::fetch(kind, dest, &mut |bytes, total| {
        if let Some(total) = total {
            bar.set_length(total);
        }
        bar.set_position(bytes);
    });
    bar.finish_and_clear();
    let fetched = fetched?;
    if json {
        output::json(&serde_json::json!({ "folder": fetched.folder, "was_there": fetched.was_there }));
    } else {
        let how = if fetched.was_there { " (it was there already)" } else { "" };
        output::line(format!("data.path = \"{}\"{how}", fetched.folder.display()));
    }
    Ok(())
}

fn look(path: &Path, json: bool) -> Result<(), Failure> {
    let bar = ProgressBar::no_length();
    if let Ok(style) = ProgressStyle::with_template("{bar:40} {pos}/{len} images  {per_sec}  {eta}") {
        bar.set_style(style);
    }
    let report = verify(path, &|done, total| {
        bar.set_length(total);
        bar.set_position(done);
    });
    bar.finish_and_clear();
    let report = report?;
    if json {
        output::json(&as_json(&report));
    } else {
        report.findings.iter().for_each(|finding| output::line(format!("{}: {finding}", finding.kind.name())));
        output::line(summary(&report));
    }
    match report.num_errors() {
        0 => Ok(()),
        errors => {
            let reason = format!("{}: {errors} of its findings would end a run: repair or remove them", path.display());
            Err(Failure::new(ExitCode::Data, reason))
        }
    }
}

fn as_json(report: &Report) -> serde_json::Value {
    let findings = report.findings.iter().map(|finding| {
        serde_json::json!({
            "kind": finding.kind.name(), "error": finding.kind.is_error(), "path": finding.path, "what": finding.what,
        })
    });
    serde_json::json!({
        "classes": report.num_classes,
        "train": report.num_train,
        "val": report.num_test,
        "bytes": report.bytes,
        "mean": report.mean,
        "std": report.std,
        "errors": report.num_errors(),
        "counts": report.counts(),
        "findings": findings.collect::<Vec<_>>(),
    })
}

fn summary(report: &Report) -> String {
    let counts: Vec<_> = report.counts().into_iter().map(|(kind, count)| format!("{count} {kind}")).collect();
    let found = if counts.is_empty() { "nothing found".to_owned() } else { counts.join(", ") };
    format!(
        "{} training and {} test images of {} classes, {} bytes: {found}\n\
         data.image.mean = {:.4?}, data.image.std = {:.4?}",
        report.num_train, report.num_test, report.num_classes, report.bytes, report.mean, report.std
    )
}
