//! The index of a set of shards: where each sample lies, so that any of them is one read.
//!
//! JSON, `lockstep-index.json` beside `train/` and `val/`; a line a shard, a row a sample: `[name, class, offset, length,
//! crc32]`. ImageNet's has about 70 MB and is read in a second.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::io;
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::error::ShardError;
use crate::Split;

/// Its name.
pub const INDEX: &str = "lockstep-index.json";
/// What this version writes and reads.
const FORMAT: &str = "lockstep-index-1";

/// An index.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Index {
    format: String,
    /// Who made it.
    pub made_by: Maker,
    /// Names of the classes; the place of one is its label.
    pub classes: Vec<String>,
    /// Shards of the training split.
    pub train: Vec<Shard>,
    /// Shards of the test split.
    pub val: Vec<Shard>,
}

/// Who made an index.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Maker {
    /// From the tar headers of shards that were there.
    Headers,
    /// `lockstep data pack`.
    Pack {
        /// What it did to the images; `None`: they are the files of the folder, byte by byte.
        changed: Option<Change>,
    },
}

/// How images differ from those of the folder that was packed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Change {
    /// Images with a longer short side were scaled to this one, pixels.
    pub short_side: Option<u32>,
    /// Quality of the JPEGs that were written.
    pub quality: u8,
}

/// A shard.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Shard {
    /// Its file, relative to the set.
    pub name: String,
    /// Its size.
    pub bytes: u64,
    /// sha256, lower-case hex, where the whole shard was seen.
    pub sha256: Option<String>,
    /// Its samples, in the order in which they lie.
    pub samples: Vec<Sample>,
}

/// A sample.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "Row", into = "Row")]
pub struct Sample {
    /// Of the file that was packed, or else of the member of the tar file.
    pub name: Box<str>,
    /// Its class.
    pub class: u32,
    /// Where the image begins in the shard, bytes.
    pub offset: u64,
    /// Bytes of the image.
    pub length: u64,
    /// CRC-32 (IEEE) of them, where they were seen.
    pub crc32: Option<u32>,
}

type Row = (Box<str>, u32, u64, u64, Option<u32>);

impl From<Row> for Sample {
    fn from((name, class, offset, length, crc32): Row) -> Self {
        Self { name, class, offset, length, crc32 }
    }
}

impl From<Sample> for Row {
    fn from(sample: Sample) -> Self {
        (sample.name, sample.class, sample.offset, sample.length, sample.crc32)
    }
}

impl Index {
    /// A new one.
    pub fn new(made_by: Maker, classes: Vec<String>, [train, val]: [Vec<Shard>; 2]) -> Self {
        Self { format: FORMAT.to_owned(), made_by, classes, train, val }
    }

    /// Reads one, and sees that it makes sense.
    ///
    /// # Errors
    /// Damaged, of another version, or with a sample outside its shard or a label outside the classes.
    pub fn parse(bytes: &[u8], address: &str) -> Result<Self, ShardError> {
        let wrong = |what: String| ShardError::Index { address: address.to_owned(), what };
        let index: Self = serde_json::from_slice(bytes).map_err(|error| wrong(format!("no index ({error})")))?;
        if index.format != FORMAT {
            return Err(wrong(format!("format {:?}, expected {FORMAT:?}", index.format)));
        }
        let mut names = BTreeSet::new();
        for shard in index.train.iter().chain(&index.val) {
            if !is_plain(&shard.name) {
                return Err(wrong(format!("{:?} is no name of a file below it", shard.name)));
            }
            if !names.insert(&shard.name) {
                return Err(wrong(format!("{} is in it twice", shard.name)));
            }
            for sample in &shard.samples {
                let end = sample.offset.checked_add(sample.length);
                if end.is_none_or(|end| end > shard.bytes) || sample.class as usize >= index.classes.len() {
                    return Err(wrong(format!("{} of {}: no such place or class", sample.name, shard.name)));
                }
            }
        }
        Ok(index)
    }

    /// As JSON, a line a shard; the same index gives the same bytes.
    ///
    /// # Errors
    /// Never, for what this crate puts into one.
    pub fn to_json(&self) -> Result<String, serde_json::Error> {
        use serde_json::to_string as json;
        let mut text = String::from("{");
        let _ = write!(text, "\"format\":{},", json(&self.format)?); // writing to a String cannot fail
        let _ = writeln!(text, "\"made_by\":{},\n\"classes\":{},", json(&self.made_by)?, json(&self.classes)?);
        for (name, shards, end) in [("train", &self.train, "],\n"), ("val", &self.val, "]}\n")] {
            let _ = writeln!(text, "\"{name}\":[");
            for (place, shard) in shards.iter().enumerate() {
                let comma = if place + 1 < shards.len() { "," } else { "" };
                let _ = writeln!(text, "{}{comma}", json(shard)?);
            }
            text.push_str(end);
        }
        Ok(text)
    }

    /// The shards of a split.
    pub fn shards(&self, split: Split) -> &[Shard] {
        match split {
            Split::Train => &self.train,
            Split::Test => &self.val,
        }
    }

    /// Samples of a split.
    pub fn num_samples(&self, split: Split) -> u64 {
        self.shards(split).iter().map(|shard| shard.samples.len() as u64).sum()
    }

    /// Bytes of all shards.
    pub fn bytes(&self) -> u64 {
        self.train.iter().chain(&self.val).map(|shard| shard.bytes).sum()
    }

    /// A class that val has and train lacks, with the first shard that has it.
    pub fn untrained(&self) -> Option<(&Shard, u32)> {
        let trained: BTreeSet<u32> = self.train.iter().flat_map(|shard| &shard.samples).map(|s| s.class).collect();
        self.val.iter().find_map(|shard| {
            let sample = shard.samples.iter().find(|sample| !trained.contains(&sample.class))?;
            Some((shard, sample.class))
        })
    }
}

/// Whether a name stays below where it is joined to.
fn is_plain(name: &str) -> bool {
    !name.is_empty() && name.split('/').all(|part| !["", ".", ".."].contains(&part))
}

/// Writes a file under a name that only whole files have.
///
/// # Errors
/// The folder cannot be written.
pub(crate) fn write_whole(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let folder = path.parent().unwrap_or(Path::new("."));
    let mut file = tempfile::Builder::new().prefix(".lockstep-").tempfile_in(folder)?;
    io::Write::write_all(&mut file, bytes)?;
    file.as_file().sync_all()?;
    readable(file.as_file())?;
    file.persist(path).map(drop).map_err(|error| error.error)
}

/// As other files of the user are: a temporary file is for its owner alone.
pub(crate) fn readable(file: &std::fs::File) -> io::Result<()> {
    use std::os::unix::fs::PermissionsExt;
    file.set_permissions(std::fs::Permissions::from_mode(0o644))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn index() -> Index {
        let sample = |name: &str, class, offset| Sample {
            name: name.into(),
            class,
            offset,
            length: 100,
            crc32: (class == 0).then_some(7),
        };
        let shard = |name: &str, samples| Shard { name: name.into(), bytes: 2_048, sha256: None, samples };
        let train = vec![
            shard("train/0.tar", vec![sample("a \"b\"", 0, 512), sample("c", 1, 1_536)]),
            shard("train/1.tar", vec![]),
        ];
        let val = vec![shard("val/0.tar", vec![sample("d", 1, 512)])];
        let changed = Some(Change { short_side: Some(256), quality: 90 });
        Index::new(Maker::Pack { changed }, vec!["x".into(), "y".into()], [train, val])
    }

    #[test]
    fn what_is_written_is_read_and_has_a_line_a_shard() {
        let text = index().to_json().unwrap();
        assert_eq!(Index::parse(text.as_bytes(), "i").unwrap(), index());
        assert_eq!(text.lines().filter(|line| line.contains(".tar")).count(), 3, "{text}");
        assert!(text.contains(r#"["a \"b\"",0,512,100,7]"#), "{text}");
        let headers = Index { made_by: Maker::Headers, ..index() };
        assert_eq!(Index::parse(headers.to_json().unwrap().as_bytes(), "i").unwrap(), headers);
    }

    #[test]
    fn an_index_that_makes_no_sense_is_refused() {
        let said = |change: &dyn Fn(&mut Index)| {
            let mut index = index();
            change(&mut index);
            Index::parse(index.to_json().unwrap().as_bytes(), "i").unwrap_err().to_string()
        };
        let refused = [
            said(&|index| index.train[0].samples[1].offset = 1_949),
            said(&|index| index.train[0].samples[1].offset = u64::MAX),
            said(&|index| index.val[0].samples[0].class = 2),
            said(&|index| index.val[0].name = "train/0.tar".into()),
            said(&|index| index.val[0].name = "../0.tar".into()),
            said(&|index| index.format = "lockstep-index-2".into()),
        ];
        for text in refused {
            assert!(text.starts_with("i: ") && text.contains("remove it to have it made again"), "{text}");
        }
        let text = index().to_json().unwrap();
        assert!(Index::parse(&text.as_bytes()[..text.len() / 2], "i").is_err());
    }

    #[test]
    fn a_class_that_only_val_has_is_found() {
        assert_eq!(index().untrained(), None);
        let mut index = index();
        index.train[0].samples[1].class = 0;
        assert_eq!(index.untrained().map(|(shard, class)| (&*shard.name, class)), Some(("val/0.tar", 1)));
    }
}
