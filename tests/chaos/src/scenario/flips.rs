//! Promise 10: every flipped bit and every truncation is found, and the checkpoint before it is used.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail, ensure};
use lockstep_proto::manifest::{FILE_NAME, Manifest};

use crate::cluster::{Cluster, Place};
use crate::lab::Lab;
use crate::random::Random;
use crate::recipe::Recipe;
use crate::table::Line;
use crate::trials::Trials;

const STEPS: u64 = 20;
const FILES: [&str; 3] = ["model.safetensors", "optimizer.safetensors", FILE_NAME];

pub fn run(lab: &Lab, count: u32) -> Result<Vec<Line>> {
    let mut random = lab.random("flips");
    let recipe = Recipe::endless(&lab.options.sets).with("checkpoint.every_steps", 10).steps(STEPS);
    let mut cluster = Cluster::start(lab, "flips", recipe.clone(), Place::Loopback)?;
    cluster.start_worker(&[])?;
    cluster.finish()?;
    let whole = cluster.run.clone();
    drop(cluster);

    let mut lines = Vec::new();
    for (is_flip, what) in [(true, "flipped bits, one at a time"), (false, "truncations")] {
        let what = format!("{what}, of the files of a checkpoint, before its proof (in this process)");
        let mut trials = Trials::new("10", &what, "each found");
        let folder = whole.join(format!("checkpoints/step-{STEPS}"));
        let copy = lab.fresh("flips-copy")?;
        copy_folder(&folder, &copy)?;
        for trial in 0..count {
            let name = FILES[trial as usize % FILES.len()];
            trials.record(hurt(&folder, &copy, (name, is_flip), &mut random));
        }
        lines.push(trials.line(format!("a third of them in {FILE_NAME}")));
    }

    let num_runs = count.div_ceil(200).clamp(3, 30);
    let mut trials =
        Trials::new("10", "the same through a resume by the command", "the checkpoint before it is used, same bits");
    for trial in 0..num_runs {
        let damage = (FILES[trial as usize % FILES.len()], random.below(4) != 0);
        trials.record(resume(lab, &recipe, &whole, (damage, &mut random)).map_err(|error| error.context(damage.0)));
    }
    lines.push(trials.line(String::new()));
    Ok(lines)
}

/// Flips a bit, or cuts bytes off. Says where.
fn damage(path: &Path, is_flip: bool, random: &mut Random) -> Result<String> {
    let mut bytes = fs::read(path)?;
    ensure!(!bytes.is_empty(), "{} is empty", path.display());
    let at = random.below(bytes.len() as u64) as usize;
    let bit = random.below(8);
    if is_flip {
        bytes[at] ^= 1 << bit;
    } else {
        bytes.truncate(at);
    }
    fs::write(path, &bytes)?;
    let context = String::from_utf8_lossy(&bytes[at.saturating_sub(16).min(bytes.len())..(at + 16).min(bytes.len())]);
    let context: String = context.chars().filter(|c| c.is_ascii_graphic()).collect();
    Ok(if is_flip { format!("bit {bit} of byte {at}, near `{context}`") } else { format!("cut to {at} bytes") })
}

/// Proves a hurt copy, which must fail, and makes it whole again.
fn hurt(folder: &Path, copy: &Path, (name, is_flip): (&str, bool), random: &mut Random) -> Result<()> {
    let state = Manifest::read(folder)?.state();
    let place = damage(&copy.join(name), is_flip, random)?;
    let found = Manifest::verify(copy);
    fs::copy(folder.join(name), copy.join(name))?;
    match found {
        // What the run recorded is compared too.
        Ok(manifest) if manifest.state() == state => bail!("not found: {name}, {place}"),
        _ => Ok(()),
    }
}

type Damage<'a> = ((&'static str, bool), &'a mut Random);

fn resume(lab: &Lab, recipe: &Recipe, whole: &Path, ((name, is_flip), random): Damage<'_>) -> Result<()> {
    let dir = lab.fresh("flips-resume")?;
    let run = dir.join("run");
    copy_folder(whole, &run)?;
    let place = damage(&run.join(format!("checkpoints/step-{STEPS}")).join(name), is_flip, random)?;
    let longer = recipe.clone().steps(STEPS + 10);
    let mut cluster = Cluster::resume_in(lab, (dir, run), longer.clone())?;
    cluster.start_worker(&[])?;
    let watch = cluster.watch()?;
    cluster.finish().with_context(|| place.clone())?;
    let base = watch.base_of(watch.generation()?)?;
    lab.prove(&longer, &cluster.run).with_context(|| place.clone())?;
    ensure!(base == STEPS - 10, "not found: resumed from step {base}: {place}");
    Ok(())
}

/// All of it.
pub fn copy_folder(from: &Path, to: &Path) -> Result<()> {
    fs::create_dir_all(to)?;
    for entry in fs::read_dir(from).with_context(|| format!("cannot list {}", from.display()))? {
        let path: PathBuf = entry?.path();
        let target = to.join(path.file_name().unwrap_or_default());
        if path.is_dir() {
            copy_folder(&path, &target)?;
        } else {
            fs::copy(&path, &target).with_context(|| format!("cannot copy {}", path.display()))?;
        }
    }
    Ok(())
}
