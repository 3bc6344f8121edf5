//! How many images a second a loader gives: read, decode the random part, resize, flip; bytes out, as for a device that
//! normalises them.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use lockstep_proto::draws::Draws;
use lockstep_proto::ids::Epoch;
use lockstep_proto::recipe::Data;

use crate::error::DataError;
use crate::image::{Transform, Workspace, mirror};
use crate::image_folder::read;
use crate::shards::{Shards, is_shards};
use crate::{Dataset, Split};

/// What was measured.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Rate {
    /// Images of all threads.
    pub images: u64,
    /// From the first to the last.
    pub seconds: f64,
    /// Bytes of files that were read.
    pub bytes: u64,
}

/// What is read.
enum Files {
    Paths(Vec<PathBuf>),
    /// The training split of shards.
    Shards(Box<Shards>),
}

impl Files {
    fn open(folder: &Path, data: &Data) -> Result<Self, DataError> {
        if is_shards(folder) {
            let data = Data { path: folder.to_string_lossy().into_owned(), ..data.clone() };
            return Ok(Self::Shards(Box::new(Shards::open(&data)?)));
        }
        let mut files = Vec::new();
        list(folder, &mut files)?;
        files.sort();
        if files.is_empty() {
            return Err(DataError::NoImages { path: folder.to_owned() });
        }
        Ok(Self::Paths(files))
    }

    fn num(&self) -> usize {
        match self {
            Self::Paths(files) => files.len(),
            Self::Shards(shards) => shards.identity().num_train as usize,
        }
    }

    fn path(&self, place: usize) -> PathBuf {
        match self {
            Self::Paths(files) => files[place].clone(),
            Self::Shards(shards) => shards.full_name(Split::Train, place as u64).into(),
        }
    }

    fn read(&self, place: usize, bytes: &mut Vec<u8>) -> Result<(), DataError> {
        match self {
            Self::Paths(files) => read(&files[place], bytes),
            Self::Shards(shards) => Ok(shards.read(Split::Train, place as u64, bytes)?),
        }
    }
}

/// Reads the files below `folder`, or the training samples of shards, over and over, in an order that is drawn, on
/// `threads` threads for at least `duration`; one pass over some of them comes before and is not counted.
///
/// # Errors
/// No files, or one that cannot be read or is broken.
pub fn loader(folder: &Path, data: &Data, threads: usize, duration: Duration) -> Result<Rate, DataError> {
    let files = Files::open(folder, data)?;
    let transform = Transform::new(data);
    let begin = std::sync::Barrier::new(threads.max(1));
    let parts: Vec<Result<Rate, DataError>> = std::thread::scope(|scope| {
        let one = |thread: usize| run(thread, &files, &transform, &begin, duration);
        let threads: Vec<_> = (0..threads.max(1)).map(|thread| scope.spawn(move || one(thread))).collect();
        // invariant: a thread that panics ends the process by its hook
        threads.into_iter().filter_map(|thread| thread.join().ok()).collect()
    });
    let mut sum = Rate { images: 0, seconds: 0.0, bytes: 0 };
    for part in parts {
        let part = part?;
        sum.images += part.images;
        sum.bytes += part.bytes;
        sum.seconds = sum.seconds.max(part.seconds);
    }
    Ok(sum)
}

fn run(
    thread: usize,
    files: &Files,
    transform: &Transform,
    begin: &std::sync::Barrier,
    duration: Duration,
) -> Result<Rate, DataError> {
    let broken = |path: &Path, error| {
        let root = path.parent().unwrap_or(path).to_owned();
        DataError::Image { path: path.to_owned(), error, root }
    };
    let side = transform.train_side(Epoch(1));
    let workspace = Workspace::new().map_err(|error| broken(&files.path(0), error));
    let mut rgb = Vec::new();
    let mut bytes = Vec::new();
    let mut order = Draws::new(1, Epoch(0), thread as u64);
    let mut one = |epoch: Epoch, number: u64, workspace: &mut Workspace| {
        let place = order.below(files.num() as u32) as usize;
        files.read(place, &mut bytes)?;
        let mut draws = Draws::new(thread as u64, epoch, number);
        let drawn = transform.square(&bytes, (side as u32, Some(&mut draws)), workspace, &mut rgb);
        if drawn.map_err(|error| broken(&files.path(place), error))?.flip {
            rgb.chunks_exact_mut(side * 3).for_each(mirror);
        }
        std::hint::black_box(&rgb);
        Ok::<u64, DataError>(bytes.len() as u64)
    };
    let warm = workspace.and_then(|mut workspace| {
        (0..files.num().min(64) as u64).try_for_each(|number| one(Epoch(0), number, &mut workspace).map(drop))?;
        Ok(workspace)
    });
    begin.wait(); // every thread comes here, whatever it met
    let mut workspace = warm?;
    let start = Instant::now();
    let mut rate = Rate { images: 0, seconds: 0.0, bytes: 0 };
    while start.elapsed() < duration {
        rate.bytes += one(Epoch(1), rate.images, &mut workspace)?;
        rate.images += 1;
    }
    rate.seconds = start.elapsed().as_secs_f64();
    Ok(rate)
}

fn list(folder: &Path, files: &mut Vec<PathBuf>) -> Result<(), DataError> {
    let wrong = |source| DataError::Read { path: folder.to_owned(), offset: 0, source };
    for entry in fs::read_dir(folder).map_err(wrong)? {
        let path = entry.map_err(wrong)?.path();
        if path.is_dir() {
            list(&path, files)?;
        } else {
            files.push(path);
        }
    }
    Ok(())
}
