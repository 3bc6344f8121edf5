//! Checkpoints over the wire, for workers that do not see the run directory. A checkpoint becomes visible only when it
//! is whole, and proved against its manifest.

use std::fs;
use std::path::{Path, PathBuf};

use lockstep_proto::manifest::{self, Manifest};
use lockstep_proto::transfer::{DownloadPart, MAX_CHUNK_BYTES, UploadHeader, UploadPart};
use tokio::fs::File;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio_stream::{Stream, StreamExt};
use uuid::Uuid;

use super::refusal::Refusal;

/// Receives an upload and puts it into place as `checkpoints/step-N`.
pub(super) async fn receive(
    checkpoints: &Path,
    admit: impl FnOnce(&UploadHeader) -> Result<(), Refusal>,
    mut parts: impl Stream<Item = Result<UploadPart, Refusal>> + Unpin,
) -> Result<(), Refusal> {
    let header = match parts.next().await.transpose()? {
        Some(UploadPart::Header(header)) => header,
        _ => return Err(Refusal::Malformed("an upload must begin with its header".to_owned())),
    };
    admit(&header)?;
    let expected = format!("step-{}", header.state.step);
    if header.dir != expected {
        return Err(Refusal::Malformed(format!(
            "a checkpoint of {} is `{expected}`, not `{}`",
            header.state, header.dir
        )));
    }
    let folder = Temporary::create(checkpoints)?;
    write(&folder.path, &header, parts).await?;
    let target = checkpoints.join(&header.dir);
    let work = tokio::task::spawn_blocking(move || {
        let found = Manifest::verify(&folder.path)?;
        if found.state() != header.state {
            let text = format!("its manifest holds {}, its header says {}", found.state(), header.state);
            return Err(Refusal::Malformed(text));
        }
        // Sent again because the answer was lost: what is there stays.
        if Manifest::verify(&target).is_ok_and(|there| there.state() == header.state) {
            return Ok(());
        }
        install(&folder.path, &target)
    });
    match work.await {
        Ok(result) => result,
        Err(error) => Err(Refusal::Malformed(format!("the checkpoint could not be verified: {error}"))),
    }
}

async fn write(
    folder: &Path,
    header: &UploadHeader,
    mut parts: impl Stream<Item = Result<UploadPart, Refusal>> + Unpin,
) -> Result<(), Refusal> {
    // Bytes of the last part that belong to the file in hand; parts never span files.
    let mut pending: Option<(u32, Vec<u8>)> = None;
    for (index, entry) in header.files.iter().enumerate() {
        let path = folder.join(&entry.name);
        let io = Refusal::io(&path);
        let mut file = File::create_new(&path).await.map_err(&io)?;
        let mut written = 0;
        while written < entry.bytes {
            let (at, bytes) = match pending.take() {
                Some(chunk) => chunk,
                None => match parts.next().await.transpose()? {
                    Some(UploadPart::Chunk { file, bytes }) => (file, bytes),
                    Some(UploadPart::Header(_)) => {
                        return Err(Refusal::Malformed("an upload has one header".to_owned()));
                    }
                    None => {
                        let text = format!("upload ended after {written} of {} bytes of `{}`", entry.bytes, entry.name);
                        return Err(Refusal::Malformed(text));
                    }
                },
            };
            written += bytes.len() as u64;
            if at as usize != index || written > entry.bytes {
                return Err(Refusal::Malformed(format!("a chunk of file {at} where `{}` was due", entry.name)));
            }
            file.write_all(&bytes).await.map_err(&io)?;
        }
        file.flush().await.map_err(&io)?;
        file.sync_all().await.map_err(&io)?;
    }
    match parts.next().await.transpose()? {
        None => Ok(()),
        // An empty file has no bytes, but may have an empty chunk.
        Some(UploadPart::Chunk { bytes, .. }) if bytes.is_empty() => Ok(()),
        Some(_) => Err(Refusal::Malformed("an upload has more bytes than its header says".to_owned())),
    }
}

/// Puts a whole folder into place; one of the same name (of an abandoned lineage) goes.
fn install(folder: &Path, target: &Path) -> Result<(), Refusal> {
    let io = Refusal::io(target);
    let checkpoints = target.parent().unwrap_or(Path::new("."));
    let aside = checkpoints.join(format!(".old-{}", Uuid::new_v4().simple()));
    let replaced = fs::rename(target, &aside).is_ok();
    fs::rename(folder, target).map_err(&io)?;
    fs::File::open(checkpoints).and_then(|folder| folder.sync_all()).map_err(&io)?;
    if replaced {
        fs::remove_dir_all(&aside).map_err(Refusal::io(&aside))?;
    }
    Ok(())
}

/// A folder that is removed unless it was renamed.
struct Temporary {
    path: PathBuf,
}

impl Temporary {
    fn create(checkpoints: &Path) -> Result<Self, Refusal> {
        let path = checkpoints.join(format!(".upload-{}", Uuid::new_v4().simple()));
        fs::create_dir(&path).map_err(Refusal::io(&path))?;
        Ok(Self { path })
    }
}

impl Drop for Temporary {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.path);
    }
}

/// Streams a checkpoint, its manifest last.
pub(super) fn send(
    checkpoints: &Path,
    dir: &str,
) -> Result<impl Stream<Item = Result<DownloadPart, Refusal>> + use<>, Refusal> {
    let step = dir.strip_prefix("step-").and_then(|step| step.parse::<u64>().ok());
    let folder = checkpoints.join(dir);
    if step.is_none_or(|step| dir != format!("step-{step}")) || !folder.is_dir() {
        return Err(Refusal::NoCheckpoint { dir: dir.to_owned() });
    }
    // The manifest's names are plain: reading it refuses others.
    let manifest = Manifest::read(&folder)?;
    let names = manifest.files.into_iter().map(|file| file.name).chain([manifest::FILE_NAME.to_owned()]);
    Ok(async_stream::try_stream! {
        for name in names {
            let path = folder.join(&name);
            let io = Refusal::io(&path);
            let mut file = File::open(&path).await.map_err(&io)?;
            let bytes = file.metadata().await.map_err(&io)?.len();
            yield DownloadPart::File { name, bytes };
            loop {
                let mut chunk = Vec::with_capacity(MAX_CHUNK_BYTES);
                let read = (&mut file).take(MAX_CHUNK_BYTES as u64).read_to_end(&mut chunk).await.map_err(&io)?;
                if read == 0 {
                    break;
                }
                yield DownloadPart::Chunk { bytes: chunk };
            }
        }
    })
}
