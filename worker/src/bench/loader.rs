//! `bench loader FOLDER`: images a second of the input pipeline alone, bytes out.

use std::time::Duration;

use lockstep_proto::exit::ExitCode;
use lockstep_proto::recipe::{Data, Decode};
use serde_json::json;

use super::median;
use crate::args::BenchLoaderArgs;
use crate::exit::Exit;

/// Measures and prints one JSON line.
///
/// # Errors
/// A folder without images, a broken image, a size of nothing.
pub fn run(args: &BenchLoaderArgs) -> Result<(), Exit> {
    if args.crop == 0 || args.threads == 0 || args.repeats == 0 || !(args.seconds > 0.0 && args.seconds < 1e6) {
        return Err(Exit::new(ExitCode::Usage, "--crop, --threads, --repeats and --seconds must be above 0"));
    }
    let mut data = Data::default();
    data.image.crop = args.crop;
    data.image.decode = if args.full { Decode::Full } else { Decode::Scaled };
    let (mut rates, mut images) = (Vec::new(), 0);
    for _ in 0..args.repeats {
        let duration = Duration::from_secs_f64(args.seconds);
        let rate = lockstep_data::bench::loader(&args.folder, &data, args.threads, duration)
            .map_err(|error| Exit::new(error.exit_code(), error.to_string()))?;
        rates.push(rate.images as f64 / rate.seconds);
        images += rate.images;
    }
    let images_per_s = median(rates);
    let line = json!({
        "bench": "loader",
        "folder": args.folder,
        "crop": args.crop,
        "decode": data.image.decode,
        "threads": args.threads,
        "repeats": args.repeats,
        "images": images,
        "images_per_s": images_per_s,
        "images_per_s_per_thread": images_per_s / args.threads as f64,
    });
    println!("{line}");
    Ok(())
}
