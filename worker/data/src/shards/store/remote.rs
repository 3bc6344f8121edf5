//! Shards behind a URL, by the crate `object_store`: requests of ranges, repeated with growing pauses.
//!
//! Its futures run on a small runtime of the store's own; a caller waits on a channel, so that it may itself be a thread
//! of another runtime.

use std::future::Future;
use std::ops::Range;
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};

use futures::TryStreamExt;
use object_store::aws::{AmazonS3Builder, AmazonS3ConfigKey};
use object_store::azure::{AzureConfigKey, MicrosoftAzureBuilder};
use object_store::gcp::{GoogleCloudStorageBuilder, GoogleConfigKey};
use object_store::http::HttpBuilder;
use object_store::path::Path;
use object_store::{
    BackoffConfig, ClientConfigKey, Error, GetOptions, ObjectStore, ObjectStoreExt, ObjectStoreScheme, RetryConfig,
};
use tokio::runtime::Runtime;
use url::{Position, Url};

use super::{Listed, ShardError};

/// One request, its body included, may take so long before it is tried again.
const REQUEST: Duration = Duration::from_secs(30);
/// Reads of files that are wanted whole are cut into parts of so many bytes, so that a slow link does not meet `REQUEST`.
const PART: u64 = 4 << 20;

/// A store behind a URL.
pub struct Remote {
    store: Arc<dyn ObjectStore>,
    base: Path,
    shown: String,
    timeout: Duration,
    is_http: bool,
    runtime: Option<Runtime>,
}

impl Drop for Remote {
    fn drop(&mut self) {
        // waiting for it would be forbidden where the owner is a task of another runtime
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

impl Remote {
    pub(super) fn open(url: &Url, shown: String, timeout: Duration) -> Result<Self, String> {
        // TLS with the same library as the rest of the program; an error says that somebody chose before
        let _ = rustls::crypto::ring::default_provider().install_default();
        let (scheme, base) = ObjectStoreScheme::parse(url).map_err(|_| "no kind of store that is known".to_owned())?;
        let text = |error: Error| error.to_string();
        let retry = RetryConfig {
            backoff: BackoffConfig {
                init_backoff: Duration::from_millis(100).min(timeout / 20),
                max_backoff: Duration::from_secs(10).min(timeout / 20),
                base: 2.0,
            },
            max_retries: usize::MAX,          // time ends it
            retry_timeout: patience(timeout), // early enough that the last error is told
        };
        let request = format!("{} ms", REQUEST.min(timeout / 2).as_millis());
        let store: Arc<dyn ObjectStore> = match &scheme {
            ObjectStoreScheme::AmazonS3 => {
                let key = AmazonS3ConfigKey::Client(ClientConfigKey::Timeout);
                let builder = AmazonS3Builder::from_env().with_url(url.as_str()).with_config(key, request);
                Arc::new(builder.with_retry(retry).build().map_err(text)?)
            }
            ObjectStoreScheme::GoogleCloudStorage => {
                let key = GoogleConfigKey::Client(ClientConfigKey::Timeout);
                let builder = GoogleCloudStorageBuilder::from_env().with_url(url.as_str()).with_config(key, request);
                Arc::new(builder.with_retry(retry).build().map_err(text)?)
            }
            ObjectStoreScheme::MicrosoftAzure => {
                let key = AzureConfigKey::Client(ClientConfigKey::Timeout);
                let builder = MicrosoftAzureBuilder::from_env().with_url(url.as_str()).with_config(key, request);
                Arc::new(builder.with_retry(retry).build().map_err(text)?)
            }
            ObjectStoreScheme::Http => {
                let builder = HttpBuilder::new()
                    .with_url(&url[..Position::BeforePath])
                    .with_config(ClientConfigKey::Timeout, request)
                    .with_config(ClientConfigKey::AllowHttp, "true");
                Arc::new(builder.with_retry(retry).build().map_err(text)?)
            }
            _ => return Err("no kind of store that is known".into()),
        };
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .thread_name("store")
            .enable_all()
            .build()
            .map_err(|error| format!("no thread for it ({error})"))?;
        let is_http = scheme == ObjectStoreScheme::Http;
        Ok(Self { store, base, shown, timeout, is_http, runtime: Some(runtime) })
    }

    pub(super) fn address(&self, name: &str) -> String {
        if name.is_empty() { self.shown.clone() } else { format!("{}/{name}", self.shown) }
    }

    fn path(&self, name: &str) -> Path {
        if self.base.as_ref().is_empty() { Path::from(name) } else { Path::from(format!("{}/{name}", self.base)) }
    }

    /// Runs `work` on the store's runtime; `None` when the deadline came first.
    fn wait<T: Send + 'static>(&self, work: impl Future<Output = T> + Send + 'static) -> Option<T> {
        let (send, receive) = mpsc::sync_channel(1);
        let timeout = self.timeout;
        self.runtime.as_ref()?.spawn(async move {
            // nobody listens any more: then nobody misses it
            let _ = send.send(tokio::time::timeout(timeout, work).await.ok());
        });
        receive.recv().ok().flatten()
    }

    pub(super) fn read(&self, name: &str, range: Range<u64>, whole: u64, out: &mut Vec<u8>) -> Result<(), ShardError> {
        out.clear();
        let wanted = (range.end - range.start) as usize;
        if wanted == 0 {
            return Ok(());
        }
        let changed = |bytes| {
            let what = format!("it has {bytes} bytes, not {whole}");
            ShardError::Changed { address: self.address(name), what }
        };
        let (store, path) = (self.store.clone(), self.path(name));
        match self.wait(fetch(store, (path, range), patience(self.timeout))) {
            Some(Ok((bytes, _))) if bytes != whole => Err(changed(bytes)),
            Some(Ok((_, body))) => {
                body.iter().for_each(|part| out.extend_from_slice(part));
                if out.len() == wanted {
                    return Ok(());
                }
                let what = format!("{} bytes came, {wanted} were asked for", out.len());
                Err(ShardError::Unreachable { address: self.address(name), what, seconds: self.seconds() })
            }
            // a file that became too short for the range
            Some(Err(error)) if error.to_string().contains("416") => match self.size(name)? {
                Some(bytes) if bytes != whole => Err(changed(bytes)),
                _ => Err(self.wrong(name, Some(error))),
            },
            Some(Err(error)) => Err(self.wrong(name, Some(error))),
            None => Err(self.wrong(name, None)),
        }
    }

    fn size(&self, name: &str) -> Result<Option<u64>, ShardError> {
        let (store, path) = (self.store.clone(), self.path(name));
        match self.wait(async move { store.head(&path).await }) {
            Some(Ok(meta)) => Ok(Some(meta.size)),
            Some(Err(Error::NotFound { .. })) => Ok(None),
            other => Err(self.wrong(name, other.and_then(Result::err))),
        }
    }

    pub(super) fn read_all(&self, name: &str) -> Result<Option<Vec<u8>>, ShardError> {
        let Some(bytes) = self.size(name)? else { return Ok(None) };
        let mut all = Vec::with_capacity(bytes as usize);
        let mut part = Vec::new();
        while (all.len() as u64) < bytes {
            let start = all.len() as u64;
            self.read(name, start..bytes.min(start + PART), bytes, &mut part)?;
            all.append(&mut part);
        }
        Ok(Some(all))
    }

    pub(super) fn list(&self, folder: &str) -> Result<Vec<Listed>, ShardError> {
        if self.is_http {
            return self.list_page(folder);
        }
        let (store, prefix) = (self.store.clone(), self.path(folder));
        let below = prefix.clone();
        let found = self.wait(async move { store.list(Some(&prefix)).try_collect::<Vec<_>>().await });
        let found = match found {
            Some(Ok(found)) => found,
            Some(Err(Error::NotFound { .. })) => return Ok(Vec::new()),
            other => return Err(self.wrong(folder, other.and_then(Result::err))),
        };
        let direct = found.into_iter().filter_map(|meta| {
            let mut parts = meta.location.prefix_match(&below)?;
            let file = parts.next()?.as_ref().to_owned();
            let is_direct = parts.next().is_none();
            let name = if folder.is_empty() { file } else { format!("{folder}/{file}") };
            is_direct.then_some(Listed { name, bytes: meta.size })
        });
        Ok(direct.collect())
    }

    /// What a web server's page about a folder links to; each file is asked for its size.
    fn list_page(&self, folder: &str) -> Result<Vec<Listed>, ShardError> {
        let (store, path) = (self.store.clone(), self.path(folder));
        let page = self.wait(async move { store.get(&path).await?.bytes().await });
        let page = match page {
            Some(Ok(page)) => page,
            Some(Err(Error::NotFound { .. } | Error::PermissionDenied { .. })) => return Ok(Vec::new()),
            other => return Err(self.wrong(folder, other.and_then(Result::err))),
        };
        let mut listed = Vec::new();
        for file in links(&String::from_utf8_lossy(&page)) {
            let name = if folder.is_empty() { file } else { format!("{folder}/{file}") };
            if let Some(bytes) = self.size(&name)? {
                listed.push(Listed { name, bytes });
            }
        }
        Ok(listed)
    }

    fn seconds(&self) -> f64 {
        self.timeout.as_secs_f64()
    }

    fn wrong(&self, name: &str, error: Option<Error>) -> ShardError {
        let address = self.address(name);
        let unreachable = |what| ShardError::Unreachable { address: address.clone(), what, seconds: self.seconds() };
        match error {
            None => unreachable("no answer".into()),
            Some(Error::NotFound { .. }) => ShardError::Missing { address },
            Some(error @ (Error::PermissionDenied { .. } | Error::Unauthenticated { .. })) => {
                ShardError::Refused { address, what: innermost(&error) }
            }
            Some(Error::NotSupported { .. }) => ShardError::NoRanges { address },
            Some(error) => unreachable(innermost(&error)),
        }
    }
}

/// The size of the whole file, and the parts of a range of it. Requests repeat themselves; a body that breaks off is asked
/// for again here, because the crate does that only where the server names versions (ETag).
async fn fetch(
    store: Arc<dyn ObjectStore>,
    (path, range): (Path, Range<u64>),
    patience: Duration,
) -> Result<(u64, Vec<bytes::Bytes>), Error> {
    let begin = Instant::now();
    let mut pause = Duration::from_millis(100).min(patience / 20);
    loop {
        let options = GetOptions { range: Some(range.clone().into()), ..GetOptions::default() };
        let got = store.get_opts(&path, options).await?;
        let bytes = got.meta.size;
        match got.into_stream().try_collect::<Vec<_>>().await {
            Ok(parts) => return Ok((bytes, parts)),
            Err(error) if begin.elapsed() + pause > patience => return Err(error),
            Err(error) => tracing::debug!(%path, %error, "a body broke off: asked for again"),
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(Duration::from_secs(5));
    }
}

/// How long to try, given the deadline for all of it.
fn patience(timeout: Duration) -> Duration {
    timeout.mul_f64(0.8)
}

/// What went wrong at the bottom: the layers above only repeat addresses and settings.
fn innermost(error: &dyn std::error::Error) -> String {
    let mut at = error;
    while let Some(source) = at.source() {
        at = source;
    }
    at.to_string()
}

/// Names of files that a page links to in its own folder.
fn links(page: &str) -> Vec<String> {
    let mut files = Vec::new();
    for part in page.split("href=").skip(1) {
        let Some(quote) = part.chars().next().filter(|quote| ['"', '\''].contains(quote)) else { continue };
        let Some(target) = part[1..].split(quote).next() else { continue };
        let target = target.strip_prefix("./").unwrap_or(target);
        let is_file = !target.is_empty() && !target.contains(['/', '?', '#', '%', '&']) && !target.starts_with('.');
        if is_file && !files.iter().any(|file| file == target) {
            files.push(target.to_owned());
        }
    }
    files
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_gives_the_files_of_its_folder() {
        let page = r#"<a href="../">up</a> <A href='a.tar'>a</A> <a href="./b.tar">b</a> <a href="?C=M">m</a>
            <a href="sub/">s</a> <a href="http://x/y.tar">y</a> <a href="a.tar">again</a> <a href=c.tar>c</a>"#;
        assert_eq!(links(page), ["a.tar", "b.tar"]);
    }
}
