//! The CUDA driver, opened at run time, as much of it as launching needs. Interface: `cuda.h`.

use std::ffi::{CStr, CString, c_char, c_int, c_uint, c_void};
use std::path::Path;
use std::ptr::null_mut;

use crate::library::{Library, functions};
use crate::{KernelError, Launch};

const REMEDY: &str = "install NVIDIA's driver; without it there is no device";
const MULTIPROCESSORS: c_int = 16;
const MAJOR: c_int = 75;
const MINOR: c_int = 76;

/// `CUmodule` and `CUfunction`
type Handle = *mut c_void;

functions!(Functions {
    init: "cuInit" fn(c_uint) -> c_int;
    version: "cuDriverGetVersion" fn(*mut c_int) -> c_int;
    current: "cuCtxGetDevice" fn(*mut c_int) -> c_int;
    attribute: "cuDeviceGetAttribute" fn(*mut c_int, c_int, c_int) -> c_int;
    error: "cuGetErrorString" fn(c_int, *mut *const c_char) -> c_int;
    load: "cuModuleLoadData" fn(*mut Handle, *const c_void) -> c_int;
    unload: "cuModuleUnload" fn(Handle) -> c_int;
    function: "cuModuleGetFunction" fn(*mut Handle, Handle, *const c_char) -> c_int;
    launch: "cuLaunchKernel" fn(
        Handle, c_uint, c_uint, c_uint, c_uint, c_uint, c_uint, c_uint, Handle, *mut *mut c_void, *mut *mut c_void
    ) -> c_int;
});

/// What the launch of a kernel depends on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Device {
    /// Streaming multiprocessors.
    pub multiprocessors: u32,
    /// Compute capability.
    pub major: u32,
    /// Compute capability.
    pub minor: u32,
}

/// A stream of the current context.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stream(u64);

impl Stream {
    /// The default stream.
    pub const DEFAULT: Self = Self(0);

    /// A `CUstream` (the same as a `cudaStream_t`).
    ///
    /// # Safety
    /// It must be one of the context that is current wherever this is used, and not be destroyed before.
    pub unsafe fn from_raw(handle: *mut c_void) -> Self {
        Self(handle as u64)
    }
}

/// The driver.
#[derive(Clone)]
pub struct Driver {
    functions: Functions,
}

/// Code that the driver has loaded. Unloaded by nobody: a captured graph may still hold its kernels.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Code(usize);

/// A kernel of it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Kernel(usize);

impl Driver {
    /// Opens the system's driver.
    ///
    /// # Errors
    /// When there is none.
    pub fn open() -> Result<Self, KernelError> {
        Self::open_at(Path::new("libcuda.so.1"))
    }

    /// Opens this library.
    ///
    /// # Errors
    /// When it does not open, is not a driver, or finds no device.
    pub fn open_at(file: &Path) -> Result<Self, KernelError> {
        let library = Library::open(file, false, REMEDY)?;
        let driver = Self { functions: Functions::load(&library)? };
        library.leak();
        // SAFETY: any thread may call it, any number of times.
        driver.check(unsafe { (driver.functions.init)(0) }, || "cuInit".into())?;
        Ok(driver)
    }

    /// The newest CUDA that it supports, as 13000.
    ///
    /// # Errors
    /// What the driver says.
    pub fn version(&self) -> Result<i32, KernelError> {
        let mut version = 0;
        // SAFETY: the place is alive.
        self.check(unsafe { (self.functions.version)(&mut version) }, || "cuDriverGetVersion".into())?;
        Ok(version)
    }

    /// The device of this thread's current context, which libtorch makes current with the device's first tensor.
    ///
    /// # Errors
    /// What the driver says, for example that no context is current.
    pub fn device(&self) -> Result<Device, KernelError> {
        let mut device = 0;
        // SAFETY: the place is alive.
        self.check(unsafe { (self.functions.current)(&mut device) }, || "cuCtxGetDevice".into())?;
        let ask = |attribute| {
            let mut value = 0;
            // SAFETY: the place is alive.
            let code = unsafe { (self.functions.attribute)(&mut value, attribute, device) };
            self.check(code, || format!("cuDeviceGetAttribute({attribute})"))?;
            Ok::<_, KernelError>(value as u32)
        };
        Ok(Device { multiprocessors: ask(MULTIPROCESSORS)?.max(1), major: ask(MAJOR)?, minor: ask(MINOR)? })
    }

    /// Loads a cubin, or PTX that ends with zero, into the current context.
    pub(crate) fn load(&self, image: &[u8]) -> Result<Code, KernelError> {
        let mut module = null_mut();
        // SAFETY: a cubin tells its own length, PTX ends with zero; `Nvrtc` made the image, and `Module` checked its hash.
        let code = unsafe { (self.functions.load)(&mut module, image.as_ptr().cast()) };
        self.check(code, || "cuModuleLoadData".into())?;
        Ok(Code(module as usize))
    }

    pub(crate) fn unload(&self, code: Code) {
        // SAFETY: loaded by `load`, and no kernel of it was given to anyone.
        unsafe { (self.functions.unload)(code.0 as Handle) };
    }

    pub(crate) fn kernel(&self, code: Code, name: &str) -> Result<Kernel, KernelError> {
        let text = CString::new(name).unwrap_or_default();
        let mut kernel = null_mut();
        // SAFETY: the module is loaded, the name ends with zero.
        let result = unsafe { (self.functions.function)(&mut kernel, code.0 as Handle, text.as_ptr()) };
        self.check(result, || format!("cuModuleGetFunction({name})"))?;
        Ok(Kernel(kernel as usize))
    }

    /// Enqueues a launch.
    pub(crate) fn launch(&self, kernel: Kernel, launch: &Launch, stream: Stream) -> Result<(), KernelError> {
        let addresses = launch.addresses();
        let ([x, y], threads) = (launch.grid(), launch.threads());
        // SAFETY: the one place where a kernel starts. `kernel` is the one that `launch` was made for (`Module` looked it
        // up by name), its arguments have the number and sizes of the kernel's (every descriptor is run by the tests
        // through this call), memory is as long as the kernel reaches (checked by the descriptor) and valid by the
        // promise of `Memory::new`, the stream by that of `Stream::from_raw`. The driver copies the arguments and writes
        // none of them.
        let code = unsafe {
            (self.functions.launch)(
                kernel.0 as Handle,
                x,
                y,
                1,
                threads,
                1,
                1,
                launch.shared(),
                stream.0 as Handle,
                addresses.as_ptr().cast_mut().cast(),
                null_mut(),
            )
        };
        self.check(code, || format!("cuLaunchKernel({})", launch.kernel()))
    }

    fn check(&self, code: c_int, call: impl FnOnce() -> String) -> Result<(), KernelError> {
        if code == 0 {
            return Ok(());
        }
        let mut text = std::ptr::null();
        // SAFETY: the place is alive; the driver gives a constant string, or null for a code that it does not know.
        let text = unsafe {
            (self.functions.error)(code, &mut text);
            if text.is_null() { "unknown".into() } else { CStr::from_ptr(text).to_string_lossy().into_owned() }
        };
        Err(KernelError::Driver { call: call(), code, text })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_driver_is_said_with_the_remedy() {
        let Err(error) = Driver::open_at(Path::new("/nowhere/libcuda.so.1")) else { panic!("there is none") };
        assert!(error.is_unusable());
        assert!(error.to_string().contains("install NVIDIA's driver"), "{error}");
    }

    #[test]
    fn a_library_that_is_no_driver_is_refused() {
        let Err(error) = Driver::open_at(Path::new("libc.so.6")) else { panic!("libc is no driver") };
        assert!(matches!(error, KernelError::Symbol { symbol: "cuInit", .. }), "{error}");
    }
}
