//! What `lockstep bench loader` measures, without libtorch:
//! `cargo run --release -p lockstep-data --example loader -- FOLDER [SECONDS] [scaled|full] [THREADS]`.

use std::path::PathBuf;
use std::time::Duration;

use lockstep_data::bench;
use lockstep_proto::recipe::{Data, Decode};

fn main() {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let Some(folder) = args.first().map(PathBuf::from) else {
        eprintln!("which folder?");
        std::process::exit(64);
    };
    let number = |place: usize, default: u64| args.get(place).and_then(|text| text.parse().ok()).unwrap_or(default);
    let mut data = Data::default();
    if args.get(2).is_some_and(|text| text == "full") {
        data.image.decode = Decode::Full;
    }
    match bench::loader(&folder, &data, number(3, 1) as usize, Duration::from_secs(number(1, 10))) {
        Ok(rate) => println!("{:.1} images/s of {} images", rate.images as f64 / rate.seconds, rate.images),
        Err(error) => {
            eprintln!("error: {error}");
            std::process::exit(error.exit_code().code().into());
        }
    }
}
