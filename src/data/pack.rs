//! `lockstep data pack`.

use std::path::PathBuf;

use clap::builder::FalseyValueParser;
use indicatif::{ProgressBar, ProgressStyle};
use lockstep_data::Split;
use lockstep_data::shards::pack::{Options, Packed, pack};

use crate::failure::Failure;
use crate::output;

/// `lockstep data pack`
#[derive(clap::Args)]
pub struct Args {
    /// The folder, with train/<class>/ and val/<class>/.
    #[arg(value_name = "SRC")]
    source: PathBuf,
    /// Where train/*.tar, val/*.tar and lockstep-index.json go.
    #[arg(value_name = "DEST")]
    dest: PathBuf,
    /// A shard has at most so many MiB, unless one image has more.
    #[arg(long, value_name = "MIB", env = "LOCKSTEP_SHARD_MIB", default_value_t = 256,
        value_parser = clap::value_parser!(u64).range(1..=1 << 20))]
    shard_mib: u64,
    /// A shard has at most so many images (0: any number).
    #[arg(long, value_name = "N", env = "LOCKSTEP_SHARD_SAMPLES", default_value_t = 0)]
    shard_samples: u64,
    /// Scale larger images to this short side, pixels (Lanczos), and write them as JPEG.
    #[arg(long, value_name = "PIXELS", env = "LOCKSTEP_SHORT_SIDE", value_parser = clap::value_parser!(u32).range(8..=8192))]
    short_side: Option<u32>,
    /// Quality of JPEGs that are written [default: 90]; without --short-side all images are written anew.
    #[arg(long, value_name = "1…100", env = "LOCKSTEP_QUALITY", value_parser = clap::value_parser!(u8).range(1..=100))]
    quality: Option<u8>,
    /// Images that are worked on at once (0: one a core).
    #[arg(long, value_name = "N", env = "LOCKSTEP_THREADS", default_value_t = 0)]
    threads: usize,
    /// Print the result as JSON.
    #[arg(long, env = "LOCKSTEP_JSON", value_parser = FalseyValueParser::new())]
    json: bool,
}

/// Packs a folder into shards.
///
/// # Errors
/// No images, nowhere to write, a destination that holds something else: each with the remedy.
pub fn run(args: &Args) -> Result<(), Failure> {
    let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let options = Options {
        shard_bytes: args.shard_mib << 20,
        shard_samples: args.shard_samples,
        short_side: args.short_side,
        quality: args.quality,
        threads: if args.threads == 0 { cores } else { args.threads },
    };
    let bar = ProgressBar::no_length();
    if let Ok(style) = ProgressStyle::with_template("{bar:40} {pos}/{len} images  {per_sec}  {eta}") {
        bar.set_style(style);
    }
    let packed = pack(&args.source, &args.dest, &options, &|done, total| {
        bar.set_length(total);
        bar.set_position(done);
    });
    bar.finish_and_clear();
    let packed = packed?;
    if args.json {
        output::json(&as_json(args, &packed));
        return Ok(());
    }
    for (path, what) in &packed.broken {
        output::line(format!("broken: {}: {what}: packed as it is", path.display()));
    }
    output::line(summary(args, &packed));
    Ok(())
}

fn summary(args: &Args, packed: &Packed) -> String {
    let index = &packed.index;
    let kept = match packed.num_kept {
        0 => String::new(),
        kept => format!(" ({kept} images were there already)"),
    };
    format!(
        "{} training and {} test images of {} classes in {} shards, {} bytes{kept}\n\
         data.kind = \"webdataset\", data.path = \"{}\"",
        index.num_samples(Split::Train),
        index.num_samples(Split::Test),
        index.classes.len(),
        index.train.len() + index.val.len(),
        index.bytes(),
        args.dest.display()
    )
}

fn as_json(args: &Args, packed: &Packed) -> serde_json::Value {
    let index = &packed.index;
    let broken = packed.broken.iter().map(|(path, what)| serde_json::json!({ "path": path, "what": what }));
    serde_json::json!({
        "path": args.dest,
        "classes": index.classes.len(),
        "train": index.num_samples(Split::Train),
        "val": index.num_samples(Split::Test),
        "shards": index.train.len() + index.val.len(),
        "bytes": index.bytes(),
        "made_by": index.made_by,
        "kept": packed.num_kept,
        "broken": broken.collect::<Vec<_>>(),
    })
}
