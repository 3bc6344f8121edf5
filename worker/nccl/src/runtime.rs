//! NCCL and the driver together, on one device.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use crate::device::Context;
use crate::error::NcclError;
use crate::ffi::{Driver, Nccl};
use crate::find::candidates;

/// How long an abort, and then what is left on the streams, may take.
const CLOSING: Duration = Duration::from_secs(10);

/// Which files to open; what is not named is searched for.
#[derive(Clone, Debug, Default)]
pub struct Libraries {
    /// `libnccl.so.2`, or its folder.
    pub nccl: Option<PathBuf>,
    /// `libcuda.so.1`; only tests name one.
    pub driver: Option<PathBuf>,
}

impl Libraries {
    /// Opens NCCL alone.
    ///
    /// # Errors
    /// [`NcclError::Missing`] names every place; the others what is wrong with the first that could be opened.
    pub fn open_nccl(&self) -> Result<Nccl, NcclError> {
        let mut tried = Vec::new();
        for candidate in candidates(self.nccl.as_deref()) {
            match Nccl::open(&candidate.path) {
                Ok(nccl) => return Ok(nccl),
                Err(NcclError::Missing { tried: one }) => {
                    tried.extend(one.into_iter().map(|one| format!("{one}, {}", candidate.why)));
                }
                Err(other) => return Err(other),
            }
        }
        Err(NcclError::Missing { tried })
    }

    /// Opens the driver alone.
    ///
    /// # Errors
    /// [`NcclError::NoDriver`]
    pub fn open_driver(&self) -> Result<Driver, NcclError> {
        Driver::open(self.driver.as_deref().unwrap_or(Path::new("libcuda.so.1")))
    }
}

/// What the communicators of one replica need, over all its generations.
#[derive(Debug)]
pub struct Runtime {
    pub(crate) nccl: Arc<Nccl>,
    pub(crate) context: Arc<Context>,
    /// NCCL's functions may not be called by two threads at once for one device, even for different communicators.
    pub(crate) launch: Arc<Mutex<()>>,
    pub(crate) closing: Duration,
    /// Why no further communicator can be made.
    spoiled: Mutex<Option<String>>,
}

impl Runtime {
    /// Opens both libraries, and device `ordinal` of those that this process sees.
    ///
    /// # Errors
    /// One is missing or too old, or there is no such device.
    pub fn open(libraries: &Libraries, ordinal: u32) -> Result<Self, NcclError> {
        let nccl = libraries.open_nccl()?;
        let driver = libraries.open_driver()?;
        tracing::info!("{nccl:?}; {driver:?}");
        let context = Context::new(Arc::new(driver), ordinal)?;
        Ok(Self {
            nccl: Arc::new(nccl),
            context: Arc::new(context),
            launch: Arc::default(),
            closing: CLOSING,
            spoiled: Mutex::new(None),
        })
    }

    /// The same, with another limit for the end of a communicator.
    pub fn closing_within(self, closing: Duration) -> Self {
        Self { closing, ..self }
    }

    /// The device.
    pub fn context(&self) -> &Arc<Context> {
        &self.context
    }

    /// The library.
    pub fn nccl(&self) -> &Arc<Nccl> {
        &self.nccl
    }

    /// Why this process has to end, if it has: an abort that did not come back, a stream that did not drain.
    pub fn spoiled(&self) -> Option<String> {
        self.spoiled.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(crate) fn spoil(&self, why: String) {
        tracing::error!("{why}");
        self.spoiled.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(why);
    }
}
