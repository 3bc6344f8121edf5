//! Manifests: what proves a checkpoint, and which words name what is wrong with one.

#![allow(clippy::unwrap_used)]

use std::path::Path;

use lockstep_proto::exit::ExitCode;
use lockstep_proto::ids::{Epoch, Generation, Lineage, Step};
use lockstep_proto::manifest::{FORMAT, FileEntry, Manifest, ManifestError};

fn checkpoint(dir: &Path) -> Manifest {
    std::fs::write(dir.join("model.safetensors"), vec![7; 200_000]).unwrap();
    std::fs::write(dir.join("optimizer.safetensors"), b"").unwrap();
    let files = ["model.safetensors", "optimizer.safetensors"].map(|name| FileEntry::of(&dir.join(name)).unwrap());
    let manifest = Manifest {
        format: FORMAT,
        lineage: Lineage(1),
        generation: Generation(4),
        step: Step(391),
        epoch: Epoch(1),
        next_position: 0,
        world_size: 2,
        recipe_sha256: "ab".repeat(32),
        state_sha256: "cd".repeat(32),
        scheduled: [("lr".to_owned(), 0.1)].into(),
        files: files.into(),
    };
    manifest.write(dir).unwrap();
    manifest
}

fn refused(dir: &Path) -> ManifestError {
    let error = Manifest::verify(dir).unwrap_err();
    assert!(error.to_string().starts_with(&dir.display().to_string()), "{error}");
    error
}

fn rewrite(dir: &Path, from: &str, to: &str) {
    let path = dir.join("manifest.json");
    let text = std::fs::read_to_string(&path).unwrap();
    assert!(text.contains(from));
    std::fs::write(path, text.replace(from, to)).unwrap();
}

#[test]
fn a_whole_checkpoint_verifies() {
    let dir = tempfile::tempdir().unwrap();
    let manifest = checkpoint(dir.path());
    assert_eq!(Manifest::verify(dir.path()).unwrap(), manifest);
    assert_eq!(manifest.bytes(), 200_000);
    assert_eq!(manifest.state().step, Step(391));
    assert_eq!(
        manifest.files[1].sha256, "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
        "sha256 of nothing"
    );
}

#[test]
fn a_flipped_bit_is_named_with_its_file() {
    let dir = tempfile::tempdir().unwrap();
    checkpoint(dir.path());
    let mut bytes = vec![7; 200_000];
    bytes[123_456] ^= 1;
    std::fs::write(dir.path().join("model.safetensors"), bytes).unwrap();
    let error = refused(dir.path());
    assert!(matches!(&error, ManifestError::Hash { path, .. } if path.ends_with("model.safetensors")), "{error}");
    assert_eq!(error.exit_code(), ExitCode::Data);
}

#[test]
fn a_truncated_file_is_named_with_both_lengths() {
    let dir = tempfile::tempdir().unwrap();
    checkpoint(dir.path());
    std::fs::write(dir.path().join("model.safetensors"), vec![7; 199_999]).unwrap();
    let error = refused(dir.path());
    assert!(matches!(&error, ManifestError::Size { expected: 200_000, found: 199_999, .. }), "{error}");
}

#[test]
fn a_missing_file_or_manifest_is_named() {
    let dir = tempfile::tempdir().unwrap();
    checkpoint(dir.path());
    std::fs::remove_file(dir.path().join("optimizer.safetensors")).unwrap();
    let error = refused(dir.path());
    assert!(error.to_string().contains("optimizer.safetensors: "), "{error}");
    assert_eq!(error.exit_code(), ExitCode::Data);
    std::fs::remove_file(dir.path().join("manifest.json")).unwrap();
    let error = refused(dir.path());
    assert!(error.to_string().contains("manifest.json: "), "{error}");
    assert_eq!(error.exit_code(), ExitCode::NoInput);
}

#[test]
fn a_newer_format_is_refused_by_name_whatever_else_it_holds() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("manifest.json"), "{\"format\": 2, \"shape\": \"other\"}").unwrap();
    let error = refused(dir.path());
    assert!(matches!(error, ManifestError::Newer { format: 2, .. }), "{error}");
    assert_eq!(error.exit_code(), ExitCode::Protocol);
}

#[test]
fn what_is_no_manifest_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    for text in ["", "{}", "[]", "{\"format\": 1}", "{\"format\": 0}", "{\"format\": -1}", "\u{0}"] {
        std::fs::write(dir.path().join("manifest.json"), text).unwrap();
        let error = refused(dir.path());
        assert!(matches!(error, ManifestError::Malformed { .. }), "{text:?}: {error}");
    }
}

#[test]
fn a_file_outside_the_folder_is_refused() {
    for name in ["../model.safetensors", "/etc/hostname", "a/b", "..", ""] {
        let dir = tempfile::tempdir().unwrap();
        checkpoint(dir.path());
        rewrite(dir.path(), "\"model.safetensors\"", &format!("\"{name}\""));
        let error = refused(dir.path());
        assert!(matches!(error, ManifestError::Malformed { .. }), "{name:?}: {error}");
    }
}

#[test]
fn every_flipped_bit_of_the_manifest_itself_is_found() {
    let dir = tempfile::tempdir().unwrap();
    let manifest = checkpoint(dir.path());
    let path = dir.path().join("manifest.json");
    let whole = std::fs::read(&path).unwrap();
    for bit in 0..8 * whole.len() {
        let mut bytes = whole.clone();
        bytes[bit / 8] ^= 1 << (bit % 8);
        std::fs::write(&path, &bytes).unwrap();
        let read = Manifest::read(dir.path());
        // `1e-5` and `1E-5` are the same number.
        let is_found = read.as_ref().map_or(true, |read| *read == manifest);
        assert!(is_found, "bit {} of byte {} of {}", bit % 8, bit / 8, String::from_utf8_lossy(&whole));
    }
}

#[test]
fn every_truncation_of_the_manifest_itself_is_found() {
    let dir = tempfile::tempdir().unwrap();
    checkpoint(dir.path());
    let path = dir.path().join("manifest.json");
    let whole = std::fs::read(&path).unwrap();
    for len in 0..whole.len() {
        std::fs::write(&path, &whole[..len]).unwrap();
        assert!(Manifest::verify(dir.path()).is_err(), "cut to {len} of {} bytes", whole.len());
    }
}

#[test]
fn a_manifest_without_a_hash_of_its_own_is_of_an_earlier_version_and_is_read() {
    let dir = tempfile::tempdir().unwrap();
    let manifest = checkpoint(dir.path());
    let text = serde_json::to_string(&manifest).unwrap();
    std::fs::write(dir.path().join("manifest.json"), &text).unwrap();
    assert_eq!(Manifest::read(dir.path()).unwrap(), manifest);
    let other = text.replacen("\"step\"", "\"stop\":1,\"step\"", 1);
    std::fs::write(dir.path().join("manifest.json"), other).unwrap();
    assert!(Manifest::read(dir.path()).is_err(), "a key that is not known");
}
