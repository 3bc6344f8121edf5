//! What a run can see of a set of image files without opening them, as one hash.

use sha2::{Digest, Sha256};

use crate::samples::hex;

/// The heading for files in folders, and for shards that hold the same files.
pub(crate) const IMAGE_FOLDER: &str = "image-folder 1\n";

/// sha256 over: the heading, a line; the number of classes and their names; for each split, after `data.limit` and
/// `data.test_limit`, the number of samples, and of each its label, its size in bytes and its name. Numbers are
/// little-endian u64; a name comes after its length.
pub(crate) fn fingerprint<'a>(
    heading: &str,
    classes: impl ExactSizeIterator<Item = &'a [u8]>,
    splits: [impl ExactSizeIterator<Item = (u32, u64, &'a [u8])>; 2],
) -> String {
    let mut hasher = Sha256::new();
    hasher.update(heading);
    let name = |hasher: &mut Sha256, name: &[u8]| {
        hasher.update((name.len() as u64).to_le_bytes());
        hasher.update(name);
    };
    hasher.update((classes.len() as u64).to_le_bytes());
    classes.for_each(|class| name(&mut hasher, class));
    for samples in splits {
        hasher.update((samples.len() as u64).to_le_bytes());
        for (class, bytes, file) in samples {
            hasher.update(u64::from(class).to_le_bytes());
            hasher.update(bytes.to_le_bytes());
            name(&mut hasher, file);
        }
    }
    hex(&hasher.finalize())
}
