//! Shared libraries that are opened at run time.

use std::ffi::OsStr;

use libloading::os::unix::{Library as Unix, RTLD_GLOBAL, RTLD_LOCAL, RTLD_NOW};

use crate::KernelError;

/// An open library. It stays open for the life of the process: what it has started (threads, handlers) would not survive
/// its end.
pub(crate) struct Library {
    name: String,
    library: Unix,
}

impl Library {
    /// Opens by path, or by name where the loader looks.
    pub fn open(file: impl AsRef<OsStr>, global: bool, remedy: &'static str) -> Result<Self, KernelError> {
        let name = file.as_ref().to_string_lossy().into_owned();
        let visibility = if global { RTLD_GLOBAL } else { RTLD_LOCAL };
        // SAFETY: initialisers of NVIDIA's libraries (or of the test double) run, as in every program that uses CUDA.
        match unsafe { Unix::open(Some(file.as_ref()), RTLD_NOW | visibility) } {
            Ok(library) => Ok(Self { name, library }),
            Err(error) => {
                let why = std::error::Error::source(&error).map_or_else(|| error.to_string(), ToString::to_string);
                Err(KernelError::Library { library: name, why, remedy })
            }
        }
    }

    /// The address of a function.
    ///
    /// # Safety
    /// `F` must be its type.
    pub unsafe fn function<F: Copy>(&self, symbol: &'static str) -> Result<F, KernelError> {
        // SAFETY: the caller knows the type.
        let found = unsafe { self.library.get::<F>(symbol.as_bytes()) };
        found.map(|f| *f).map_err(|_| KernelError::Symbol { library: self.name.clone(), symbol })
    }

    /// Keeps it open for good.
    pub fn leak(self) -> String {
        std::mem::forget(self.library);
        self.name
    }
}

/// Declares a structure of a library's functions and how it is filled.
macro_rules! functions {
    ($name:ident { $($field:ident: $symbol:literal fn($($arg:ty),*) -> $ret:ty;)* }) => {
        #[derive(Clone, Copy)]
        struct $name {
            $($field: unsafe extern "C" fn($($arg),*) -> $ret,)*
        }

        impl $name {
            fn load(library: &$crate::library::Library) -> Result<Self, $crate::KernelError> {
                Ok(Self {
                    // SAFETY: the types are those of the library's header.
                    $($field: unsafe { library.function($symbol)? },)*
                })
            }
        }
    };
}
pub(crate) use functions;
