//! A web server of files with ranges, which misbehaves when told to.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::body::{Body, to_bytes};
use axum::extract::{Request, State};
use axum::http::{StatusCode, header};
use axum::middleware::{Next, from_fn_with_state};
use axum::response::{IntoResponse, Response};
use tower_http::services::ServeDir;

/// What happens to one request of a file.
#[derive(Clone, Copy, Debug)]
pub enum Fault {
    /// This status and no content.
    Status(u16),
    /// Half of the content, then the connection is closed.
    Cut,
    /// The answer comes, after a while.
    Late(Duration),
    /// No answer.
    Hang,
    /// All of the file, whatever range was asked for.
    Whole,
}

#[derive(Default)]
struct Shared {
    root: PathBuf,
    /// Each for one request of a tar file.
    faults: Mutex<VecDeque<Fault>>,
    /// For every such request, when there is no other.
    always: Mutex<Option<Fault>>,
    /// Path and range of every request.
    requests: Mutex<Vec<(String, String)>>,
}

/// Runs until it is dropped.
pub struct Server {
    address: SocketAddr,
    shared: Arc<Shared>,
    _runtime: tokio::runtime::Runtime,
}

impl Server {
    /// Of the files below `root`; folders are shown as pages of links.
    pub fn start(root: &Path) -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let listener = runtime.block_on(tokio::net::TcpListener::bind("127.0.0.1:0")).unwrap();
        let address = listener.local_addr().unwrap();
        let shared = Arc::new(Shared { root: root.to_owned(), ..Shared::default() });
        let files = axum::Router::new()
            .fallback_service(ServeDir::new(root))
            .layer(from_fn_with_state(shared.clone(), misbehave));
        runtime.spawn(async move { axum::serve(listener, files).await });
        Self { address, shared, _runtime: runtime }
    }

    /// Where a folder is.
    pub fn url(&self, folder: &str) -> String {
        format!("http://{}/{folder}", self.address)
    }

    /// The next requests of tar files meet these faults.
    pub fn next(&self, faults: impl IntoIterator<Item = Fault>) {
        self.shared.faults.lock().unwrap().extend(faults);
    }

    /// Every request of a tar file meets this fault.
    pub fn always(&self, fault: Option<Fault>) {
        *self.shared.always.lock().unwrap() = fault;
    }

    /// Faults that have not happened yet.
    pub fn num_faults(&self) -> usize {
        self.shared.faults.lock().unwrap().len()
    }

    /// Path and range of the requests since the last call.
    pub fn requests(&self) -> Vec<(String, String)> {
        std::mem::take(&mut *self.shared.requests.lock().unwrap())
    }
}

async fn misbehave(State(shared): State<Arc<Shared>>, mut request: Request, next: Next) -> Response {
    let path = request.uri().path().to_owned();
    let range = request.headers().get(header::RANGE).map(|range| range.to_str().unwrap().to_owned());
    shared.requests.lock().unwrap().push((path.clone(), range.unwrap_or_default()));
    let folder = shared.root.join(path.trim_matches('/'));
    if folder.is_dir() && !shared.root.join("no-pages").exists() {
        let entries = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name());
        let links = entries.map(|name| format!("<a href=\"{0}\">{0}</a>\n", name.to_string_lossy()));
        return links.collect::<String>().into_response();
    }
    let fault = match path.ends_with(".tar") {
        true => shared.faults.lock().unwrap().pop_front().or(*shared.always.lock().unwrap()),
        false => None,
    };
    match fault {
        None => next.run(request).await,
        Some(Fault::Status(status)) => StatusCode::from_u16(status).unwrap().into_response(),
        Some(Fault::Late(after)) => {
            tokio::time::sleep(after).await;
            next.run(request).await
        }
        Some(Fault::Hang) => std::future::pending().await,
        Some(Fault::Whole) => {
            request.headers_mut().remove(header::RANGE);
            next.run(request).await
        }
        Some(Fault::Cut) => {
            let (parts, body) = next.run(request).await.into_parts();
            let bytes = to_bytes(body, usize::MAX).await.unwrap();
            let half = bytes.slice(..bytes.len() / 2);
            let items = [Ok(half), Err(std::io::Error::other("cut"))];
            // Content-Length tells of all of it
            Response::from_parts(parts, Body::from_stream(futures::stream::iter(items)))
        }
    }
}
