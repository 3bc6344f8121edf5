//! What a bundle must know and change of an executable: 64-bit little-endian ELF, System V gABI chapters 4 and 5.

use anyhow::{Context as _, Result, ensure};

const PT_DYNAMIC: u32 = 2;
const DT_NULL: u64 = 0;
const DT_RPATH: u64 = 15;
const DT_RUNPATH: u64 = 29;
/// Bytes of an entry of the dynamic section: tag and value.
const ENTRY: usize = 16;

/// Takes out the folders of the machine that built it, in which an executable would look for libraries first. Returns how many
/// entries there were.
///
/// # Errors
/// No such file.
pub fn forget_library_path(elf: &mut [u8]) -> Result<usize> {
    let section = dynamic(elf)?;
    let entries: Vec<[u8; ENTRY]> = elf[section.clone()].as_chunks::<ENTRY>().0.to_vec();
    let tag = |entry: &[u8; ENTRY]| u64::from_le_bytes(*entry.first_chunk().unwrap_or(&[0; 8]));
    let kept: Vec<_> = entries.iter().filter(|entry| !matches!(tag(entry), DT_RPATH | DT_RUNPATH)).copied().collect();
    let removed = entries.len() - kept.len();
    // The end is marked by entries of zeros.
    let zeros = std::iter::repeat_n([0; ENTRY], removed);
    debug_assert_eq!(DT_NULL, 0);
    for (place, entry) in elf[section].chunks_exact_mut(ENTRY).zip(kept.into_iter().chain(zeros)) {
        place.copy_from_slice(&entry);
    }
    Ok(removed)
}

/// The newest `GLIBC_2.x` that it names, as `2.x`.
pub fn glibc(elf: &[u8]) -> Option<String> {
    const MARK: &[u8] = b"GLIBC_2.";
    let minors = elf.windows(MARK.len()).enumerate().filter(|(_, window)| *window == MARK).filter_map(|(at, _)| {
        let digits: String =
            elf[at + MARK.len()..].iter().take_while(|b| b.is_ascii_digit()).map(|b| char::from(*b)).collect();
        digits.parse::<u32>().ok()
    });
    minors.max().map(|minor| format!("2.{minor}"))
}

/// Where the dynamic section lies in the file.
fn dynamic(elf: &[u8]) -> Result<std::ops::Range<usize>> {
    ensure!(elf.starts_with(b"\x7fELF\x02\x01"), "not a 64-bit little-endian ELF file");
    let headers = number(elf, 32, 8)?;
    let (size, count) = (number(elf, 54, 2)?, number(elf, 56, 2)?);
    for header in (0..count).map(|index| headers + index * size) {
        if number(elf, header, 4)? == PT_DYNAMIC as usize {
            let (offset, len) = (number(elf, header + 8, 8)?, number(elf, header + 32, 8)?);
            ensure!(offset.checked_add(len).is_some_and(|end| end <= elf.len()), "a damaged ELF file");
            return Ok(offset..offset + len);
        }
    }
    anyhow::bail!("no dynamic section: a static executable")
}

fn number(elf: &[u8], at: usize, len: usize) -> Result<usize> {
    let bytes = elf.get(at..).and_then(|rest| rest.get(..len)).context("a damaged ELF file")?;
    let value = bytes.iter().rev().fold(0u64, |value, byte| value << 8 | u64::from(*byte));
    usize::try_from(value).context("a damaged ELF file")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A header, one program header, four dynamic entries.
    fn file(tags: [u64; 4]) -> Vec<u8> {
        let mut elf = vec![0; 64 + 56];
        elf[..6].copy_from_slice(b"\x7fELF\x02\x01");
        elf[32] = 64;
        elf[54] = 56;
        elf[56] = 1;
        elf[64] = PT_DYNAMIC as u8;
        elf[64 + 8] = 64 + 56;
        elf[64 + 32] = 4 * ENTRY as u8;
        for (tag, value) in tags.into_iter().zip(100u64..) {
            elf.extend(tag.to_le_bytes());
            elf.extend(value.to_le_bytes());
        }
        elf
    }

    #[test]
    fn only_the_library_path_is_forgotten() {
        let mut elf = file([1, DT_RUNPATH, 5, DT_NULL]);
        assert_eq!(forget_library_path(&mut elf).unwrap(), 1);
        let mut expected = file([1, 5, DT_NULL, DT_NULL]);
        let at = 64 + 56 + ENTRY + 8;
        expected[at..at + 8].copy_from_slice(&102u64.to_le_bytes());
        expected[at + ENTRY..at + ENTRY + 8].copy_from_slice(&103u64.to_le_bytes());
        expected[at + 2 * ENTRY..at + 2 * ENTRY + 8].copy_from_slice(&0u64.to_le_bytes());
        assert_eq!(elf, expected);
        assert_eq!(forget_library_path(&mut elf).unwrap(), 0);
    }

    #[test]
    fn what_is_no_executable_is_refused() {
        assert!(forget_library_path(&mut b"#!/bin/sh\n".to_vec()).is_err());
        let mut cut = file([1, DT_RUNPATH, 5, DT_NULL]);
        cut.truncate(130);
        assert!(forget_library_path(&mut cut).is_err());
    }

    #[test]
    fn the_newest_glibc_counts_as_a_number() {
        assert_eq!(glibc(b"\0GLIBC_2.9\0GLIBC_2.34\0GLIBC_2.2.5\0").as_deref(), Some("2.34"));
        assert_eq!(glibc(b"nothing"), None);
    }
}
