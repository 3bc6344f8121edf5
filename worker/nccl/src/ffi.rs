//! The functions of the two libraries, bound at run time.
//!
//! Bound by hand rather than by cudarc: that looks for `libnccl.so`, which no wheel has, wants one version's structures,
//! takes "in progress" for success, and panics where a library is missing.

use std::ffi::{CStr, c_char, c_int, c_uint, c_void};
use std::fmt;
use std::path::Path;

use libloading::os::unix::{Library, RTLD_LOCAL, RTLD_NOW};

use crate::error::NcclError;
use crate::sys::{
    CUDA_SUCCESS, Config, CudaResult, NCCL_SUCCESS, NcclResult, RawComm, RawContext, RawDevicePtr, RawEvent, RawId,
    RawStream,
};

macro_rules! functions {
    ($name:ident { $($field:ident = $symbol:literal ($($arg:ty),*) -> $ret:ty;)* }) => {
        pub(crate) struct $name {
            $(pub(crate) $field: unsafe extern "C" fn($($arg),*) -> $ret,)*
        }

        impl $name {
            pub(crate) const SYMBOLS: &[&str] = &[$($symbol),*];

            /// # Safety
            /// The library must be what its name says: its functions must have these signatures.
            unsafe fn bind(library: Library, path: &str) -> Result<Self, NcclError> {
                // Never closed: NCCL keeps threads of its own, which would go on in memory that is gone.
                let library = std::mem::ManuallyDrop::new(library);
                // SAFETY: the caller vouches for the signatures; the library stays, so the functions do.
                unsafe {
                    Ok(Self {
                        $($field: *library.get(concat!($symbol, "\0").as_bytes()).map_err(|_| {
                            NcclError::Symbol { library: path.into(), symbol: $symbol }
                        })?,)*
                    })
                }
            }
        }
    };
}

functions! { NcclFunctions {
    version = "ncclGetVersion" (*mut c_int) -> NcclResult;
    unique_id = "ncclGetUniqueId" (*mut RawId) -> NcclResult;
    error_string = "ncclGetErrorString" (NcclResult) -> *const c_char;
    last_error = "ncclGetLastError" (RawComm) -> *const c_char;
    init = "ncclCommInitRankConfig" (*mut RawComm, c_int, RawId, c_int, *mut Config) -> NcclResult;
    async_error = "ncclCommGetAsyncError" (RawComm, *mut NcclResult) -> NcclResult;
    finalize = "ncclCommFinalize" (RawComm) -> NcclResult;
    destroy = "ncclCommDestroy" (RawComm) -> NcclResult;
    abort = "ncclCommAbort" (RawComm) -> NcclResult;
    all_reduce = "ncclAllReduce" (*const c_void, *mut c_void, usize, c_int, c_int, RawComm, RawStream) -> NcclResult;
    broadcast = "ncclBroadcast" (*const c_void, *mut c_void, usize, c_int, c_int, RawComm, RawStream) -> NcclResult;
    all_gather = "ncclAllGather" (*const c_void, *mut c_void, usize, c_int, RawComm, RawStream) -> NcclResult;
    send = "ncclSend" (*const c_void, usize, c_int, c_int, RawComm, RawStream) -> NcclResult;
    recv = "ncclRecv" (*mut c_void, usize, c_int, c_int, RawComm, RawStream) -> NcclResult;
    group_start = "ncclGroupStart" () -> NcclResult;
    group_end = "ncclGroupEnd" () -> NcclResult;
} }

functions! { CudaFunctions {
    init = "cuInit" (c_uint) -> CudaResult;
    error_string = "cuGetErrorString" (CudaResult, *mut *const c_char) -> CudaResult;
    version = "cuDriverGetVersion" (*mut c_int) -> CudaResult;
    device_count = "cuDeviceGetCount" (*mut c_int) -> CudaResult;
    device = "cuDeviceGet" (*mut c_int, c_int) -> CudaResult;
    device_name = "cuDeviceGetName" (*mut c_char, c_int, c_int) -> CudaResult;
    device_memory = "cuDeviceTotalMem_v2" (*mut usize, c_int) -> CudaResult;
    device_attribute = "cuDeviceGetAttribute" (*mut c_int, c_int, c_int) -> CudaResult;
    device_pci = "cuDeviceGetPCIBusId" (*mut c_char, c_int, c_int) -> CudaResult;
    can_access = "cuDeviceCanAccessPeer" (*mut c_int, c_int, c_int) -> CudaResult;
    context_retain = "cuDevicePrimaryCtxRetain" (*mut RawContext, c_int) -> CudaResult;
    context_release = "cuDevicePrimaryCtxRelease_v2" (c_int) -> CudaResult;
    context_set = "cuCtxSetCurrent" (RawContext) -> CudaResult;
    stream_create = "cuStreamCreate" (*mut RawStream, c_uint) -> CudaResult;
    stream_destroy = "cuStreamDestroy_v2" (RawStream) -> CudaResult;
    stream_query = "cuStreamQuery" (RawStream) -> CudaResult;
    stream_wait = "cuStreamWaitEvent" (RawStream, RawEvent, c_uint) -> CudaResult;
    event_create = "cuEventCreate" (*mut RawEvent, c_uint) -> CudaResult;
    event_destroy = "cuEventDestroy_v2" (RawEvent) -> CudaResult;
    event_record = "cuEventRecord" (RawEvent, RawStream) -> CudaResult;
    event_query = "cuEventQuery" (RawEvent) -> CudaResult;
    alloc = "cuMemAlloc_v2" (*mut RawDevicePtr, usize) -> CudaResult;
    free = "cuMemFree_v2" (RawDevicePtr) -> CudaResult;
    host_alloc = "cuMemHostAlloc" (*mut *mut c_void, usize, c_uint) -> CudaResult;
    host_free = "cuMemFreeHost" (*mut c_void) -> CudaResult;
    copy_in = "cuMemcpyHtoDAsync_v2" (RawDevicePtr, *const c_void, usize, RawStream) -> CudaResult;
    copy_out = "cuMemcpyDtoHAsync_v2" (*mut c_void, RawDevicePtr, usize, RawStream) -> CudaResult;
} }

/// The oldest version that will do: `ncclCommInitRankConfig` with `splitShare`, non-blocking everything.
const OLDEST: i32 = 21800;

/// Names one communicator to be: made by one rank, known to all.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct UniqueId(pub [u8; 128]);

impl fmt::Debug for UniqueId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("UniqueId(…)") // whoever knows it may join
    }
}

/// NCCL, opened.
pub struct Nccl {
    pub(crate) functions: NcclFunctions,
    path: String,
    version: i32,
}

impl fmt::Debug for Nccl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "NCCL {} in {}", self.version_text(), self.path)
    }
}

impl Nccl {
    /// Names of all functions that are bound.
    pub const SYMBOLS: &[&str] = NcclFunctions::SYMBOLS;

    /// Opens `path`, a file or a name that the system's loader knows.
    ///
    /// # Errors
    /// It cannot be opened, lacks a function, or is older than 2.18.
    pub fn open(path: &Path) -> Result<Self, NcclError> {
        let name = path.display().to_string();
        let library = open(path).map_err(|cause| NcclError::Missing { tried: vec![format!("{name} ({cause})")] })?;
        // SAFETY: these functions have had these signatures since 2.18, and NCCL keeps them within version 2.
        let functions = unsafe { NcclFunctions::bind(library, &name)? };
        let mut version = 0;
        // SAFETY: writes one int.
        let code = unsafe { (functions.version)(&mut version) };
        let nccl = Self { functions, path: name, version };
        nccl.check("ncclGetVersion", code)?;
        if version < OLDEST {
            return Err(NcclError::TooOld { path: nccl.path, version });
        }
        Ok(nccl)
    }

    /// Where it was found.
    pub fn path(&self) -> &str {
        &self.path
    }

    /// As NCCL gives it: 22809 for 2.28.9.
    pub fn version(&self) -> i32 {
        self.version
    }

    /// Such as `2.28.9`.
    pub fn version_text(&self) -> String {
        crate::error::version_text(self.version)
    }

    /// A name for a new communicator. Opens a socket that the others come to.
    ///
    /// # Errors
    /// NCCL finds no network.
    pub fn unique_id(&self) -> Result<UniqueId, NcclError> {
        let mut id = RawId([0; 128]);
        // SAFETY: writes 128 bytes.
        self.check("ncclGetUniqueId", unsafe { (self.functions.unique_id)(&mut id) })?;
        Ok(UniqueId(id.0))
    }

    pub(crate) fn check(&self, call: &'static str, code: NcclResult) -> Result<(), NcclError> {
        if code == NCCL_SUCCESS { Ok(()) } else { Err(self.error(call, code)) }
    }

    pub(crate) fn error(&self, call: &'static str, code: NcclResult) -> NcclError {
        // SAFETY: both give a string that lives as long as the library; a null communicator means the last error of any.
        let (text, detail) = unsafe {
            (text((self.functions.error_string)(code)), text((self.functions.last_error)(std::ptr::null_mut())))
        };
        NcclError::Call { call, code, text, detail }
    }
}

/// `CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR`
const CAPABILITY_MAJOR: c_int = 75;
/// `CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR`
const CAPABILITY_MINOR: c_int = 76;

/// A device, as the driver describes it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct About {
    /// Such as `NVIDIA H100 80GB HBM3`.
    pub name: String,
    /// Bytes.
    pub memory: u64,
    /// Compute capability, major and minor.
    pub capability: (i32, i32),
    /// Where it is plugged in, such as `0000:c1:00.0`: its name for other tools, whatever hides which devices.
    pub pci_bus: String,
}

/// The CUDA driver, opened and initialised.
pub struct Driver {
    pub(crate) functions: CudaFunctions,
    version: i32,
    num_devices: u32,
}

impl fmt::Debug for Driver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "CUDA driver {} with {} devices", self.version, self.num_devices)
    }
}

impl Driver {
    /// Names of all functions that are bound.
    pub const SYMBOLS: &[&str] = CudaFunctions::SYMBOLS;

    /// Opens `path`, usually just `libcuda.so.1`, which comes with the driver.
    ///
    /// # Errors
    /// There is none, or it shows no device.
    pub fn open(path: &Path) -> Result<Self, NcclError> {
        let name = path.display().to_string();
        let library = open(path).map_err(|cause| NcclError::NoDriver { cause })?;
        // SAFETY: these functions have had these signatures since CUDA 11.
        let functions = unsafe { CudaFunctions::bind(library, &name)? };
        let mut driver = Self { functions, version: 0, num_devices: 0 };
        let no_driver = |error: NcclError| NcclError::NoDriver { cause: error.to_string() };
        // SAFETY: no flags are defined.
        driver.check("cuInit", unsafe { (driver.functions.init)(0) }).map_err(no_driver)?;
        let (mut version, mut count) = (0, 0);
        // SAFETY: each writes one int.
        unsafe {
            driver.check("cuDriverGetVersion", (driver.functions.version)(&mut version)).map_err(no_driver)?;
            driver.check("cuDeviceGetCount", (driver.functions.device_count)(&mut count)).map_err(no_driver)?;
        }
        if count == 0 {
            return Err(NcclError::NoDriver { cause: "the driver shows no device".into() });
        }
        (driver.version, driver.num_devices) = (version, count.try_into().unwrap_or(0));
        Ok(driver)
    }

    /// 13000 for CUDA 13.0: the newest that it can run.
    pub fn version(&self) -> i32 {
        self.version
    }

    /// Devices that this process sees.
    pub fn num_devices(&self) -> u32 {
        self.num_devices
    }

    /// What it says of a device.
    ///
    /// # Errors
    /// There is no such device.
    pub fn describe(&self, ordinal: u32) -> Result<About, NcclError> {
        let (mut name, mut memory, mut capability) = ([0 as c_char; 256], 0, (0, 0));
        let device = self.device(ordinal)?;
        let functions = &self.functions;
        // SAFETY: each writes its place; the name is cut at 255 bytes and ends with zero.
        let name = unsafe {
            self.check("cuDeviceGetName", (functions.device_name)(name.as_mut_ptr(), 255, device))?;
            self.check("cuDeviceTotalMem", (functions.device_memory)(&mut memory, device))?;
            let major = (functions.device_attribute)(&mut capability.0, CAPABILITY_MAJOR, device);
            self.check("cuDeviceGetAttribute", major)?;
            let minor = (functions.device_attribute)(&mut capability.1, CAPABILITY_MINOR, device);
            self.check("cuDeviceGetAttribute", minor)?;
            text(name.as_ptr())
        };
        let mut bus = [0 as c_char; 64];
        // SAFETY: writes at most 63 bytes and a zero.
        let pci_bus = unsafe {
            self.check("cuDeviceGetPCIBusId", (functions.device_pci)(bus.as_mut_ptr(), 63, device))?;
            text(bus.as_ptr())
        };
        Ok(About { name, memory: memory as u64, capability, pci_bus })
    }

    /// Whether the first device can read and write the second one's memory.
    ///
    /// # Errors
    /// There is no such device.
    pub fn can_access(&self, from: u32, to: u32) -> Result<bool, NcclError> {
        let (from, to, mut can) = (self.device(from)?, self.device(to)?, 0);
        // SAFETY: writes one int.
        self.check("cuDeviceCanAccessPeer", unsafe { (self.functions.can_access)(&mut can, from, to) })?;
        Ok(can != 0)
    }

    fn device(&self, ordinal: u32) -> Result<c_int, NcclError> {
        let mut device = 0;
        let ordinal = c_int::try_from(ordinal).unwrap_or(c_int::MAX);
        // SAFETY: writes one int.
        self.check("cuDeviceGet", unsafe { (self.functions.device)(&mut device, ordinal) })?;
        Ok(device)
    }

    pub(crate) fn check(&self, call: &'static str, code: CudaResult) -> Result<(), NcclError> {
        if code == CUDA_SUCCESS {
            return Ok(());
        }
        let mut message = std::ptr::null();
        // SAFETY: writes a pointer to a string that lives as long as the library, or null for an unknown code.
        let text = unsafe {
            (self.functions.error_string)(code, &mut message);
            text(message)
        };
        Err(NcclError::Cuda { call, code, text })
    }
}

/// With all its symbols resolved at once, and without lending them to others.
fn open(path: &Path) -> Result<Library, String> {
    // SAFETY: initialisers of these libraries only prepare their own state. They are what their names say: a file that a
    // person names, or that a package of NVIDIA or PyTorch installed under this name.
    unsafe { Library::open(Some(path), RTLD_NOW | RTLD_LOCAL) }.map_err(|error| {
        let text = error.to_string();
        let mut source = std::error::Error::source(&error);
        let mut last = text;
        while let Some(cause) = source {
            last = cause.to_string();
            source = cause.source();
        }
        last
    })
}

/// # Safety
/// Null, or a C string.
unsafe fn text(pointer: *const c_char) -> String {
    if pointer.is_null() {
        return String::new();
    }
    // SAFETY: the caller's promise.
    unsafe { CStr::from_ptr(pointer) }.to_string_lossy().trim().to_owned()
}
