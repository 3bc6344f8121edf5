//! Checkpoints.

use super::pb::{self, download_part, upload_part};
use super::{WireError, chunk, component, need, text};
use crate::ids::{Epoch, Generation, WorkerId};
use crate::manifest::FileEntry;
use crate::transfer::{DownloadPart, DownloadRequest, UploadHeader, UploadPart};

impl From<UploadPart> for pb::UploadPart {
    fn from(part: UploadPart) -> Self {
        let kind = match part {
            UploadPart::Header(m) => upload_part::Kind::Header(m.into()),
            UploadPart::Chunk { file, bytes } => upload_part::Kind::Chunk(upload_part::Chunk { file, bytes }),
        };
        Self { kind: Some(kind) }
    }
}

impl TryFrom<pb::UploadPart> for UploadPart {
    type Error = WireError;

    fn try_from(part: pb::UploadPart) -> Result<Self, WireError> {
        Ok(match part.kind.ok_or(WireError::UnknownKind { message: "upload_part" })? {
            upload_part::Kind::Header(m) => Self::Header(m.try_into()?),
            upload_part::Kind::Chunk(m) => Self::Chunk { file: m.file, bytes: chunk(m.bytes, "upload_part.bytes")? },
        })
    }
}

impl From<UploadHeader> for upload_part::Header {
    fn from(m: UploadHeader) -> Self {
        let file = |file: FileEntry| pb::FileEntry { name: file.name, bytes: file.bytes, sha256: file.sha256 };
        Self {
            run_id: m.run_id,
            worker: m.worker.0,
            generation: m.generation.0,
            state: Some(m.state.into()),
            epoch: m.epoch.0,
            dir: m.dir,
            files: m.files.into_iter().map(file).collect(),
        }
    }
}

impl TryFrom<upload_part::Header> for UploadHeader {
    type Error = WireError;

    fn try_from(m: upload_part::Header) -> Result<Self, WireError> {
        let file = |file: pb::FileEntry| {
            Ok(FileEntry {
                name: component(file.name, "file_entry.name")?,
                bytes: file.bytes,
                sha256: text(file.sha256, "file_entry.sha256")?,
            })
        };
        Ok(Self {
            run_id: text(m.run_id, "upload.run_id")?,
            worker: WorkerId(text(m.worker, "upload.worker")?),
            generation: Generation(m.generation),
            state: need(m.state, "upload.state")?.into(),
            epoch: Epoch(m.epoch),
            dir: component(m.dir, "upload.dir")?,
            files: m.files.into_iter().map(file).collect::<Result<_, WireError>>()?,
        })
    }
}

impl From<DownloadRequest> for pb::DownloadRequest {
    fn from(m: DownloadRequest) -> Self {
        Self { run_id: m.run_id, dir: m.dir }
    }
}

impl TryFrom<pb::DownloadRequest> for DownloadRequest {
    type Error = WireError;

    fn try_from(m: pb::DownloadRequest) -> Result<Self, WireError> {
        Ok(Self { run_id: text(m.run_id, "download.run_id")?, dir: component(m.dir, "download.dir")? })
    }
}

impl From<DownloadPart> for pb::DownloadPart {
    fn from(part: DownloadPart) -> Self {
        let kind = match part {
            DownloadPart::File { name, bytes } => download_part::Kind::File(download_part::File { name, bytes }),
            DownloadPart::Chunk { bytes } => download_part::Kind::Chunk(download_part::Chunk { bytes }),
        };
        Self { kind: Some(kind) }
    }
}

impl TryFrom<pb::DownloadPart> for DownloadPart {
    type Error = WireError;

    fn try_from(part: pb::DownloadPart) -> Result<Self, WireError> {
        Ok(match part.kind.ok_or(WireError::UnknownKind { message: "download_part" })? {
            download_part::Kind::File(m) => {
                Self::File { name: component(m.name, "download_part.name")?, bytes: m.bytes }
            }
            download_part::Kind::Chunk(m) => Self::Chunk { bytes: chunk(m.bytes, "download_part.bytes")? },
        })
    }
}
