//! What evaluation sees of a folder, for `tests/reference/evaluation.py`: writes the test images, 224 × 224 × 3 normalised
//! floats each, little endian, to standard output, and their files to standard error.
//! `cargo run --release -p lockstep-data --example pixels -- FOLDER > pixels.bin 2> files.txt`, where FOLDER has train/ and val/.

use std::error::Error;
use std::io::Write;

use lockstep_data::{Dataset, Delivered, ImageFolder, Loader, Split, Wanted};
use lockstep_proto::ids::SampleRange;
use lockstep_proto::recipe::{DataKind, Normalize, Recipe};

fn main() -> Result<(), Box<dyn Error>> {
    let mut recipe = Recipe::default();
    recipe.data.kind = DataKind::ImageFolder;
    recipe.data.path = std::env::args().nth(1).ok_or("which folder?")?;
    recipe.data.normalize = Normalize::Channel;
    let set = std::sync::Arc::new(ImageFolder::open(&recipe.data)?);
    let loader = Loader::new(std::sync::Arc::clone(&set) as _, &recipe);
    let mut rows = Delivered::default();
    let mut out = std::io::stdout().lock();
    for sample in 0..set.identity().num_test {
        loader.deliver(Wanted::Test(SampleRange { start: sample, len: 1 }), &mut rows)?;
        out.write_all(&rows.images.iter().flat_map(|value| value.to_le_bytes()).collect::<Vec<u8>>())?;
        eprintln!("{}", set.name(Split::Test, sample).unwrap_or_default());
    }
    Ok(())
}
