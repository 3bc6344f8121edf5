//! What a file is, by its first bytes.

/// A kind of image that is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// JPEG.
    Jpeg,
    /// PNG.
    Png,
}

/// First bytes, where they begin, and what has them. The first that fits counts.
const OTHERS: [(usize, &[u8], &str); 24] = [
    (0, b"GIF8", "a GIF"),
    (8, b"WEBP", "a WebP"),
    (0, b"BM", "a BMP"),
    (0, b"II*\0", "a TIFF"),
    (0, b"MM\0*", "a TIFF"),
    (4, b"ftypavi", "an AVIF"),
    (4, b"ftypheic", "a HEIC"),
    (4, b"ftypheix", "a HEIC"),
    (4, b"ftypmif1", "a HEIC"),
    (4, b"ftyp", "a video"),
    (0, b"\0\0\0\x0cjP  ", "a JPEG 2000"),
    (0, b"\xff\x4f\xff\x51", "a JPEG 2000"),
    (0, b"\0\0\0\x0cJXL ", "a JPEG XL"),
    (0, b"\xff\x0a", "a JPEG XL"),
    (0, b"8BPS", "a Photoshop file"),
    (0, b"%PDF", "a PDF"),
    (0, b"PK\x03\x04", "a zip archive"),
    (0, b"\x1f\x8b", "a gzip archive"),
    (0, b"SIMPLE  =", "a FITS"),
    (0, b"version https://git-lfs", "a pointer of Git LFS, whose content was not fetched"),
    (0, b"P6", "a PPM"),
    (0, b"P5", "a PGM"),
    (0, b"<svg", "an SVG"),
    (0, b"<?xml", "XML"),
];

impl Format {
    /// Tells what `bytes` are, by the beginning.
    ///
    /// # Errors
    /// What they are instead, with its article.
    pub fn of(bytes: &[u8]) -> Result<Self, &'static str> {
        if bytes.starts_with(&[0xff, 0xd8]) {
            return Ok(Self::Jpeg);
        }
        if bytes.starts_with(b"\x89PNG\r\n\x1a\n") {
            return Ok(Self::Png);
        }
        if bytes.is_empty() {
            return Err("an empty file");
        }
        let fits =
            |(start, magic, _): &&(usize, &[u8], &str)| bytes.get(*start..).is_some_and(|b| b.starts_with(magic));
        if let Some((_, _, name)) = OTHERS.iter().find(fits) {
            return Err(*name);
        }
        let head = &bytes[..bytes.len().min(512)];
        if head.iter().all(|&byte| byte == 0) {
            return Err("zeros, as a disk leaves them when a write was lost");
        }
        let lower = head.to_ascii_lowercase();
        if [&b"<html"[..], b"<!doctype"].iter().any(|tag| lower.windows(tag.len()).any(|part| part == *tag)) {
            return Err("a web page, as a download leaves it that was refused");
        }
        let text = head.iter().all(|&byte| matches!(byte, b'\t' | b'\n' | b'\r' | 32..=126));
        Err(if text { "text" } else { "bytes of no known kind" })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn first_bytes_tell_what_a_file_is() {
        assert_eq!(Format::of(&[0xff, 0xd8, 0xff, 0xe0]), Ok(Format::Jpeg));
        assert_eq!(Format::of(b"\x89PNG\r\n\x1a\n...."), Ok(Format::Png));
        for (bytes, name) in [
            (&b""[..], "an empty file"),
            (b"RIFF\x10\0\0\0WEBPVP8 ", "a WebP"),
            (b"\0\0\0\x1cftypavif", "an AVIF"),
            (b"\0\0\0\x1cftypmp42", "a video"),
            (b" \n<!DOCTYPE html><p>403", "a web page, as a download leaves it that was refused"),
            (b"hello\n", "text"),
            (b"\x01\x02\x03", "bytes of no known kind"),
            (&[0; 600], "zeros, as a disk leaves them when a write was lost"),
        ] {
            assert_eq!(Format::of(bytes), Err(name));
        }
    }
}
