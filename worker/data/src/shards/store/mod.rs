//! Where files of shards lie: a folder, or a store behind a URL. Reads are of ranges and block the calling thread.

mod local;
mod remote;

use std::ops::Range;
use std::path::{Path, PathBuf};
use std::time::Duration;

use url::Url;

use super::error::ShardError;
use local::Local;
use remote::Remote;

/// A file that was listed.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Listed {
    /// Relative to the store, with `/`.
    pub name: String,
    /// Its size.
    pub bytes: u64,
}

/// Where files lie.
pub enum Store {
    /// In a folder.
    Local(Local),
    /// Behind a URL.
    Remote(Box<Remote>),
}

impl Store {
    /// For `data.path`. Nothing is read. Every later call that reaches beyond this machine ends after `timeout`.
    ///
    /// # Errors
    /// No URL that is understood.
    pub fn open(address: &str, timeout: Duration) -> Result<Self, ShardError> {
        let Some((scheme, _)) = address.split_once("://") else {
            return Ok(Self::Local(Local::new(address.into())));
        };
        let wrong = |what: String| ShardError::Address { address: without_secrets(address), what };
        let url = Url::parse(address).map_err(|error| wrong(format!("not a URL ({error})")))?;
        if scheme == "file" {
            let path = url.to_file_path().map_err(|()| wrong("not a path on this machine".into()))?;
            return Ok(Self::Local(Local::new(path)));
        }
        Remote::open(&url, without_secrets(address), timeout).map(Box::new).map(Self::Remote).map_err(wrong)
    }

    /// What messages call a file; the store itself without a name.
    pub fn address(&self, name: &str) -> String {
        match self {
            Self::Local(local) => local.path(name).display().to_string(),
            Self::Remote(remote) => remote.address(name),
        }
    }

    /// The folder, if it is one.
    pub fn folder(&self) -> Option<&Path> {
        match self {
            Self::Local(local) => Some(local.root()),
            Self::Remote(_) => None,
        }
    }

    /// Reads a range of a file into `out`, whose content is replaced. `whole` is the size the file should have.
    ///
    /// # Errors
    /// Missing, of another size, out of reach.
    pub fn read(&self, name: &str, range: Range<u64>, whole: u64, out: &mut Vec<u8>) -> Result<(), ShardError> {
        match self {
            Self::Local(local) => local.read(name, range, whole, out),
            Self::Remote(remote) => remote.read(name, range, whole, out),
        }
    }

    /// All of a file; `None` if it is not there.
    ///
    /// # Errors
    /// It cannot be read.
    pub fn read_all(&self, name: &str) -> Result<Option<Vec<u8>>, ShardError> {
        match self {
            Self::Local(local) => local.read_all(name),
            Self::Remote(remote) => remote.read_all(name),
        }
    }

    /// The files of a folder, not of folders in it, by name. Empty if there is no such folder.
    ///
    /// # Errors
    /// It cannot be listed.
    pub fn list(&self, folder: &str) -> Result<Vec<Listed>, ShardError> {
        let mut listed = match self {
            Self::Local(local) => local.list(folder)?,
            Self::Remote(remote) => remote.list(folder)?,
        };
        listed.sort();
        Ok(listed)
    }
}

/// Whether `data.path` is a URL.
pub fn is_url(path: &Path) -> bool {
    path.to_string_lossy().contains("://")
}

/// A URL as it may be shown: without user, password and query.
fn without_secrets(address: &str) -> String {
    let Ok(mut url) = Url::parse(address) else { return address.to_owned() };
    // what cannot have a user or password keeps none
    let _ = url.set_password(None);
    if url.scheme().starts_with("http") {
        let _ = url.set_username("");
    }
    url.set_query(None);
    url.set_fragment(None);
    url.to_string().trim_end_matches('/').to_owned()
}

/// Where an address of a file on this machine is.
fn join(root: &Path, name: &str) -> PathBuf {
    if name.is_empty() { root.to_owned() } else { root.join(name) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_shown_without_secrets() {
        for (given, shown) in [
            ("https://me:secret@host:8000/a/b/?token=1#x", "https://host:8000/a/b"),
            ("s3://bucket/a/", "s3://bucket/a"),
            ("az://container@account/a", "az://container@account/a"),
        ] {
            assert_eq!(without_secrets(given), shown);
        }
    }

    #[test]
    fn what_is_no_address_is_refused_with_those_that_are() {
        for address in ["ftp://host/a", "http://", "s3:///a"] {
            let Err(error) = Store::open(address, Duration::from_secs(1)) else { panic!("{address} was opened") };
            let text = error.to_string();
            assert!(text.starts_with(&format!("data.path = \"{}", &address[..4])), "{text}");
            assert!(text.ends_with("give a folder or a URL (http, https, s3, gs, az, file)"), "{text}");
        }
        assert_eq!(Store::open("file:///a/b", Duration::from_secs(1)).unwrap().address("c"), "/a/b/c");
    }

    #[test]
    fn every_kind_of_store_is_known() {
        for (address, file) in [
            ("s3://bucket/a", "s3://bucket/a/x.tar"),
            ("gs://bucket/a/", "gs://bucket/a/x.tar"),
            ("http://127.0.0.1:1/a", "http://127.0.0.1:1/a/x.tar"),
            ("https://host/", "https://host/x.tar"),
        ] {
            let store = Store::open(address, Duration::from_secs(1)).unwrap();
            assert_eq!(store.address("x.tar"), file);
        }
    }
}
