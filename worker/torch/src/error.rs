use std::ffi::CStr;

use crate::sys;

/// What libtorch or a kernel said.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("libtorch: {message}")]
pub struct TorchError {
    /// First line of the C++ exception.
    pub message: String,
}

impl TorchError {
    /// What one of ours says in libtorch's place.
    pub fn new(message: impl Into<String>) -> Self {
        Self { message: message.into() }
    }

    /// `Ok` for 0, else this thread's last error.
    pub(crate) fn check(status: i32) -> Result<(), Self> {
        if status == 0 {
            return Ok(());
        }
        // SAFETY: the pointer is to a thread-local std::string of this thread, alive until the thread's next error.
        let text = unsafe { CStr::from_ptr(sys::ls_last_error()) }.to_string_lossy();
        Err(Self::new(text.lines().next().unwrap_or_default()))
    }
}

impl From<tch::TchError> for TorchError {
    fn from(error: tch::TchError) -> Self {
        Self::new(error.to_string().lines().next().unwrap_or_default())
    }
}
