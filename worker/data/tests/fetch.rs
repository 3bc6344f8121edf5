//! Fetching, from a server on the loopback that serves a small archive.
#![allow(clippy::unwrap_used)] // helpers of tests may panic

use std::cell::RefCell;
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::thread;

use flate2::Compression;
use flate2::write::GzEncoder;
use lockstep_data::DataError;
use lockstep_data::cifar::{CIFAR10, Layout};
use lockstep_data::fetch::{Archive, Fetched, fetch};
use lockstep_proto::recipe::DataKind;
use md5::{Digest, Md5};

const LAYOUT: Layout =
    Layout { train: &["a.bin", "b.bin"], test: &["t.bin"], train_records: 2, test_records: 1, ..CIFAR10 };
const FILE: &str = "tiny-binary.tar.gz";

fn content(name: &str, records: usize) -> Vec<u8> {
    vec![name.as_bytes()[0]; records * 3073]
}

/// A tar of members as named, the names unchecked.
fn tar_gz(members: &[(&str, Vec<u8>)]) -> Vec<u8> {
    let mut tar = tar::Builder::new(GzEncoder::new(Vec::new(), Compression::fast()));
    for (name, content) in members {
        let mut header = tar::Header::new_ustar();
        header.as_mut_bytes()[..name.len()].copy_from_slice(name.as_bytes());
        header.set_size(content.len() as u64);
        header.set_mode(0o644);
        header.set_cksum();
        tar.append(&header, content.as_slice()).unwrap();
    }
    tar.into_inner().unwrap().finish().unwrap()
}

fn good() -> Vec<u8> {
    tar_gz(&[
        ("tiny/readme.html", b"hello".to_vec()),
        ("../evil.bin", b"outside".to_vec()),
        ("tiny/../../evil.bin", b"outside".to_vec()),
        ("tiny/t.bin", content("t", 1)),
        ("tiny/a.bin", content("a", 2)),
        ("tiny/b.bin", content("b", 2)),
    ])
}

fn archive(bytes: &[u8]) -> Archive {
    let md5: String = Md5::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect();
    Archive { file: FILE, md5: md5.leak(), folder: "tiny", layout: LAYOUT }
}

/// Answers one request with `status`, says that `announced` bytes come, sends `body`. Returns the base address.
fn serve(status: &'static str, announced: usize, body: Vec<u8>) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let base = format!("http://{}/files", listener.local_addr().unwrap());
    thread::spawn(move || {
        let (mut stream, _): (TcpStream, _) = listener.accept().unwrap();
        let mut request = BufReader::new(stream.try_clone().unwrap()).lines();
        assert_eq!(request.next().unwrap().unwrap(), format!("GET /files/{FILE} HTTP/1.1"));
        assert!(request.any(|line| line.unwrap().is_empty()));
        let head = format!("HTTP/1.1 {status}\r\nContent-Length: {announced}\r\nConnection: close\r\n\r\n");
        stream.write_all(head.as_bytes()).and_then(|()| stream.write_all(&body)).unwrap();
    });
    base
}

fn refuse(base: &str, archive: &Archive, dest: &Path) -> DataError {
    let error = archive.fetch_from(base, dest, &mut |_, _| ()).unwrap_err();
    assert!(!dest.join("tiny").exists(), "a bad set got its final name");
    error
}

fn names(dest: &Path) -> Vec<String> {
    let mut names: Vec<String> =
        fs::read_dir(dest).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

/// Whoever connects is hung up on.
fn nobody() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let base = format!("http://{}", listener.local_addr().unwrap());
    thread::spawn(move || listener.incoming().for_each(drop));
    base
}

#[test]
fn a_download_is_checked_unpacked_and_leaves_nothing_else() {
    let outer = tempfile::tempdir().unwrap();
    let dest = outer.path().join("data/sets");
    let bytes = good();
    let seen = RefCell::new(Vec::new());
    let base = serve("200 OK", bytes.len(), bytes.clone());
    let fetched =
        archive(&bytes).fetch_from(&base, &dest, &mut |done, total| seen.borrow_mut().push((done, total))).unwrap();
    assert_eq!(fetched, Fetched { folder: dest.join("tiny"), was_there: false });
    assert_eq!(names(&dest), ["tiny"]);
    assert_eq!(names(&dest.join("tiny")), ["a.bin", "b.bin", "t.bin"]);
    assert_eq!(fs::read(dest.join("tiny/b.bin")).unwrap(), content("b", 2));
    assert_eq!(names(outer.path()), ["data"]);
    let (total, seen) = (bytes.len() as u64, seen.into_inner());
    assert!(seen.is_sorted() && seen[0] == (0, Some(total)) && seen[seen.len() - 1] == (total, Some(total)));
}

#[test]
fn a_whole_set_is_left_alone_and_half_a_set_is_in_the_way() {
    let dest = tempfile::tempdir().unwrap();
    let bytes = good();
    let base = serve("200 OK", bytes.len(), bytes.clone());
    archive(&bytes).fetch_from(&base, dest.path(), &mut |_, _| ()).unwrap();
    let again = archive(&bytes).fetch_from(&nobody(), dest.path(), &mut |_, _| ()).unwrap();
    assert!(again.was_there);

    fs::remove_file(dest.path().join("tiny/t.bin")).unwrap();
    let error = archive(&bytes).fetch_from(&nobody(), dest.path(), &mut |_, _| ()).unwrap_err();
    assert!(error.to_string().ends_with("tiny: already there, and not whole: move it away and run this command again"));
    assert_eq!(error.exit_code().code(), 73);
}

#[test]
fn without_a_network_the_message_says_what_to_do_and_doing_it_works() {
    let dest = tempfile::tempdir().unwrap();
    let (bytes, base) = (good(), nobody());
    let error = refuse(&base, &archive(&bytes), dest.path());
    let message = error.to_string();
    assert!(message.starts_with(&format!("cannot download {base}/{FILE}: ")), "{message}");
    let place = dest.path().join(FILE);
    let remedy =
        format!("; without a network download it elsewhere, put it at {} and run this command again", place.display());
    assert!(message.ends_with(&remedy), "{message}");
    assert_eq!(error.exit_code().code(), 69);
    assert!(names(dest.path()).is_empty());

    fs::write(&place, &bytes).unwrap();
    archive(&bytes).fetch_from(&base, dest.path(), &mut |_, _| ()).unwrap();
    assert_eq!(names(dest.path()), ["tiny", FILE]);
}

#[test]
fn an_answer_that_is_not_the_file_is_refused() {
    let dest = tempfile::tempdir().unwrap();
    let bytes = good();
    let error = refuse(&serve("404 Not Found", 0, Vec::new()), &archive(&bytes), dest.path());
    assert!(error.to_string().contains("404"), "{error}");
    assert_eq!(error.exit_code().code(), 69);

    let half = bytes[..bytes.len() / 2].to_vec();
    let error = refuse(&serve("200 OK", bytes.len(), half), &archive(&bytes), dest.path());
    assert!(error.to_string().contains("cannot download"), "{error}");
    assert_eq!(error.exit_code().code(), 69);

    let mut damaged = bytes.clone();
    damaged[100] ^= 1;
    let base = serve("200 OK", damaged.len(), damaged);
    let error = refuse(&base, &archive(&bytes), dest.path());
    let message = error.to_string();
    assert!(message.starts_with(&format!("{base}/{FILE}: md5 ")), "{message}");
    assert!(message.contains(&format!(", expected {}: ", archive(&bytes).md5)), "{message}");
    assert_eq!(error.exit_code().code(), 65);
    assert!(names(dest.path()).is_empty());
}

#[test]
fn an_archive_of_other_content_is_refused() {
    let dest = tempfile::tempdir().unwrap();
    for (members, reason) in [
        (vec![("tiny/a.bin", content("a", 2)), ("tiny/b.bin", content("b", 2))], "t.bin is not in it"),
        (vec![("tiny/a.bin", content("a", 1))], "a.bin is no file of 6146 bytes"),
        (vec![("a.bin", content("a", 2))], "is not in it"),
    ] {
        let bytes = tar_gz(&members);
        fs::write(dest.path().join(FILE), &bytes).unwrap();
        let error = refuse(&nobody(), &archive(&bytes), dest.path());
        assert!(error.to_string().contains(reason) && error.to_string().ends_with(": not the archive of cifar10"));
        assert_eq!(error.exit_code().code(), 65);
    }
    let bytes = b"no archive at all".to_vec();
    fs::write(dest.path().join(FILE), &bytes).unwrap();
    assert_eq!(refuse(&nobody(), &archive(&bytes), dest.path()).exit_code().code(), 65);
    assert_eq!(names(dest.path()), [FILE]);
}

#[test]
fn a_destination_that_cannot_be_written_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("file");
    fs::write(&file, b"").unwrap();
    let error = refuse(&nobody(), &archive(&good()), &file.join("below"));
    assert!(error.to_string().contains("file/below: cannot write: "), "{error}");
    assert_eq!(error.exit_code().code(), 73);
}

#[test]
fn a_built_in_set_has_nothing_to_fetch() {
    let error = fetch(DataKind::Shapes, Path::new("."), &mut |_, _| ()).unwrap_err();
    assert_eq!(error.to_string(), "shapes is built in: there is nothing to fetch");
    assert_eq!(error.exit_code().code(), 64);
}
