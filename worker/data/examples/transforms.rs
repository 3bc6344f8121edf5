//! Training's random parts, and how a part becomes a square, for a comparison with torchvision and Pillow
//! (`tests/torchvision/transforms.py`, by `cargo xtask torchvision`):
//! `transforms boxes WIDTH HEIGHT NUM` prints `x y width height` of so many parts;
//! `transforms squares SIDE` reads lines `x y width height full|scaled FILE` and writes SIDE × SIDE RGB bytes for each.

use std::error::Error;
use std::io::{BufRead, Write};

use lockstep_data::image::{Cut, Quality, Rendering, Workspace, random};
use lockstep_proto::draws::Draws;
use lockstep_proto::ids::Epoch;
use lockstep_proto::recipe::Image;

fn boxes(size: (u32, u32), num: u64, out: &mut impl Write) -> Result<(), Box<dyn Error>> {
    let image = Image::default();
    for position in 0..num {
        let mut draws = Draws::new(1, Epoch(1), position);
        let Cut { x, y, width, height } = random(size, image.scale, image.ratio, &mut draws);
        writeln!(out, "{x} {y} {width} {height}")?;
    }
    Ok(())
}

fn squares(side: u32, out: &mut impl Write) -> Result<(), Box<dyn Error>> {
    let mut workspace = Workspace::new()?;
    for line in std::io::stdin().lock().lines() {
        let line = line?;
        let [x, y, width, height, quality, file] = line.splitn(6, ' ').collect::<Vec<_>>()[..] else {
            return Err(format!("not a line of six fields: {line}").into());
        };
        let cut = Cut { x: x.parse()?, y: y.parse()?, width: width.parse()?, height: height.parse()? };
        let quality = if quality == "full" { Quality::Full } else { Quality::Scaled(1.0) };
        let how = Rendering { side, quality, cut_first: true, exif: false };
        out.write_all(workspace.render(&std::fs::read(file)?, how, |_| cut)?)?;
    }
    Ok(())
}

fn main() -> Result<(), Box<dyn Error>> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    let mut out = std::io::BufWriter::new(std::io::stdout().lock());
    match args[..] {
        ["boxes", width, height, num] => boxes((width.parse()?, height.parse()?), num.parse()?, &mut out)?,
        ["squares", side] => squares(side.parse()?, &mut out)?,
        _ => return Err("which? boxes WIDTH HEIGHT NUM, or squares SIDE".into()),
    }
    Ok(out.flush()?)
}
