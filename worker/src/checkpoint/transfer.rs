//! Checkpoints through the coordinator, for machines that do not see the run directory.

use std::fs::File;
use std::io::{Read as _, Write as _};
use std::path::Path;
use std::time::Duration;

use lockstep_proto::exit::ExitCode;
use lockstep_proto::ids::WorkerId;
use lockstep_proto::manifest::{self, FileEntry, Manifest};
use lockstep_proto::transfer::{DownloadPart, DownloadRequest, MAX_CHUNK_BYTES, UploadHeader, UploadPart};
use lockstep_proto::wire::pb;
use tokio::runtime::Handle;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Status};

use super::{CheckpointError, Snapshot};
use crate::connect::{Backoff, Coordinator, exit_code};

/// How long one transfer may take, at the most.
const DEADLINE: Duration = Duration::from_secs(15 * 60);

/// Takes and gives checkpoints. Both block, so they are for threads of their own.
pub trait Depot: Send + Sync {
    /// Sends the files of `folder`, which the manifest in it names, as the run's `checkpoints/<dir>`.
    ///
    /// # Errors
    /// A file cannot be read, or the coordinator does not take it.
    fn upload(&self, folder: &Path, dir: &str, snapshot: &Snapshot) -> Result<(), CheckpointError>;

    /// Fetches the run's `checkpoints/<dir>` into the new folder `into`. What arrives is not verified here.
    ///
    /// # Errors
    /// The folder cannot be written, or the coordinator does not give it.
    fn download(&self, dir: &str, into: &Path) -> Result<(), CheckpointError>;
}

/// The coordinator as a depot.
pub struct RemoteDepot {
    /// Where it is.
    pub coordinator: Coordinator,
    /// Where calls run.
    pub runtime: Handle,
    /// The run that checkpoints belong to.
    pub run_id: String,
    /// Who asks.
    pub worker: WorkerId,
    /// How long a coordinator that is away is waited for.
    pub patience: Duration,
}

impl Depot for RemoteDepot {
    fn upload(&self, folder: &Path, dir: &str, snapshot: &Snapshot) -> Result<(), CheckpointError> {
        let mut files = Manifest::read(folder)?.files;
        files.push(FileEntry::of(&folder.join(manifest::FILE_NAME))?);
        let header = UploadHeader {
            run_id: self.run_id.clone(),
            worker: self.worker.clone(),
            generation: snapshot.generation,
            state: snapshot.id,
            epoch: snapshot.epoch,
            dir: dir.to_owned(),
            files,
        };
        self.patiently("upload", dir, || self.upload_once(folder, &header))
    }

    fn download(&self, dir: &str, into: &Path) -> Result<(), CheckpointError> {
        self.patiently("download", dir, || self.download_once(dir, into))
    }
}

/// Why one attempt failed.
enum Failure {
    Local(CheckpointError),
    Remote(Status),
}

impl From<CheckpointError> for Failure {
    fn from(error: CheckpointError) -> Self {
        Self::Local(error)
    }
}

impl From<Status> for Failure {
    fn from(status: Status) -> Self {
        Self::Remote(status)
    }
}

impl RemoteDepot {
    /// Tries again while the coordinator is away, but not longer than it may be.
    fn patiently(
        &self,
        what: &'static str,
        dir: &str,
        mut attempt: impl FnMut() -> Result<(), Failure>,
    ) -> Result<(), CheckpointError> {
        let mut backoff = Backoff::until(self.patience, &self.worker);
        loop {
            let status = match attempt() {
                Ok(()) => return Ok(()),
                Err(Failure::Local(error)) => return Err(error),
                Err(Failure::Remote(status)) => status,
            };
            let code = match status.code() {
                Code::Internal => ExitCode::CantCreate, // its disk
                _ => exit_code(&status),
            };
            match backoff.next_wait() {
                Some(wait) if code == ExitCode::Unavailable => {
                    tracing::warn!("{what} of checkpoint {dir}: {}; trying again", status.message());
                    // Made inside: a timer belongs to a runtime, and this thread is in none.
                    self.runtime.block_on(async { tokio::time::sleep(wait).await });
                }
                _ => {
                    let reason = status.message().to_owned();
                    return Err(CheckpointError::Transfer { what, dir: dir.to_owned(), reason, code });
                }
            }
        }
    }

    fn upload_once(&self, folder: &Path, header: &UploadHeader) -> Result<(), Failure> {
        let (parts, stream) = mpsc::channel(4);
        let coordinator = self.coordinator.clone();
        let call = self.runtime.spawn(async move {
            let upload =
                async { coordinator.client().await?.upload_checkpoint(ReceiverStream::new(stream)).await.map(drop) };
            tokio::time::timeout(DEADLINE, upload)
                .await
                .unwrap_or_else(|_| Err(Status::deadline_exceeded("no end in sight")))
        });
        // When the call has ended early nobody takes parts any more; its own status says why.
        let sent = feed(folder, header, &parts);
        drop(parts);
        let result = self.runtime.block_on(call).map_err(|error| Status::internal(error.to_string()))?;
        sent?;
        Ok(result?)
    }

    fn download_once(&self, dir: &str, into: &Path) -> Result<(), Failure> {
        let refuse = |path: &Path, source| CheckpointError::Write { path: path.to_owned(), source };
        let _ = std::fs::remove_dir_all(into);
        std::fs::create_dir_all(into).map_err(|error| refuse(into, error))?;
        let request = DownloadRequest { run_id: self.run_id.clone(), dir: dir.to_owned() };
        self.runtime.block_on(async {
            let download = async {
                let mut client = self.coordinator.client().await?;
                let mut parts = client.download_checkpoint(pb::DownloadRequest::from(request)).await?.into_inner();
                let mut file: Option<(std::path::PathBuf, File)> = None;
                while let Some(part) = parts.message().await? {
                    match DownloadPart::try_from(part).map_err(Status::from)? {
                        DownloadPart::File { name, .. } => {
                            let path = into.join(name);
                            let created = File::create(&path).map_err(|error| refuse(&path, error))?;
                            file = Some((path, created));
                        }
                        DownloadPart::Chunk { bytes } => {
                            let Some((path, file)) = &mut file else {
                                return Err(Status::invalid_argument("bytes that belong to no file").into());
                            };
                            file.write_all(&bytes).map_err(|error| refuse(path, error))?;
                        }
                    }
                }
                Ok::<(), Failure>(())
            };
            tokio::time::timeout(DEADLINE, download)
                .await
                .unwrap_or_else(|_| Err(Status::deadline_exceeded("no end in sight").into()))
        })
    }
}

/// Sends the header, then every file in order, until nobody listens.
fn feed(folder: &Path, header: &UploadHeader, parts: &mpsc::Sender<pb::UploadPart>) -> Result<(), CheckpointError> {
    if parts.blocking_send(UploadPart::Header(header.clone()).into()).is_err() {
        return Ok(());
    }
    for (index, entry) in (0..).zip(&header.files) {
        let path = folder.join(&entry.name);
        let refuse = |source| CheckpointError::Read { path: path.clone(), source };
        let mut file = File::open(&path).map_err(refuse)?;
        loop {
            let mut bytes = Vec::new();
            (&mut file).take(MAX_CHUNK_BYTES as u64).read_to_end(&mut bytes).map_err(refuse)?;
            if bytes.is_empty() {
                break;
            }
            if parts.blocking_send(UploadPart::Chunk { file: index, bytes }.into()).is_err() {
                return Ok(());
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_coordinator_that_is_away_is_waited_for_in_a_thread_without_a_runtime() {
        let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let depot = RemoteDepot {
            coordinator: Coordinator::new(&format!("127.0.0.1:{port}"), None).unwrap(),
            runtime: runtime.handle().clone(),
            run_id: "run".into(),
            worker: WorkerId("w".into()),
            patience: Duration::from_millis(300),
        };
        let into = tempfile::tempdir().unwrap();
        let error = depot.download("step-1", &into.path().join("step-1")).unwrap_err();
        assert!(matches!(error, CheckpointError::Transfer { code: ExitCode::Unavailable, .. }), "{error}");
    }
}
