//! `lockstep data`: getting data sets.

use std::path::PathBuf;

use clap::{Subcommand, ValueEnum};
use indicatif::{ProgressBar, ProgressStyle};
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
}

#[derive(Clone, Copy, ValueEnum)]
enum Set {
    /// 60,000 images in 10 classes, 170 MB.
    Cifar10,
    /// 60,000 images in 100 classes, 169 MB.
    Cifar100,
}

/// Gets a data set.
///
/// # Errors
/// No network, a wrong checksum, nowhere to write: each with the remedy.
pub fn run(args: &Args) -> Result<(), Failure> {
    let Command::Fetch { set, dest, json } = &args.command;
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
    if *json {
        output::json(&serde_json::json!({ "folder": fetched.folder, "was_there": fetched.was_there }));
    } else {
        let how = if fetched.was_there { " (it was there already)" } else { "" };
        output::line(format!("data.path = \"{}\"{how}", fetched.folder.display()));
    }
    Ok(())
}
