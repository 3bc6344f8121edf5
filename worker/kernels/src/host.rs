//! For tests: the same kernels on the host, behind the same driver interface. Feature `host`.

use std::ffi::{CStr, c_char, c_int};
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use crate::library::Library;
use crate::{Device, Driver, KernelError, Launch, Memory, Module, Stream};

/// Who runs first among threads and blocks. A correct kernel gives the same bits in every order.
pub const ORDERS: [c_int; 3] = [0, 1, 2];

/// The double keeps a launch in static memory.
static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

/// Bytes on each side of a buffer that nobody may touch. Read as numbers they are NaN.
const GUARD: usize = 64;
const GUARD_BYTE: u8 = 0xff;

/// The kernels, and the double that runs them.
#[derive(Clone)]
pub struct Host {
    driver: Driver,
    module: Arc<Module>,
    set_order: unsafe extern "C" fn(c_int),
    name: unsafe extern "C" fn(c_int) -> *const c_char,
}

impl Host {
    /// The double that was built with this crate.
    ///
    /// # Errors
    /// When it does not open.
    pub fn new() -> Result<Self, KernelError> {
        Self::open(Path::new(env!("LOCKSTEP_HOST_DRIVER")))
    }

    /// One that was built elsewhere.
    ///
    /// # Errors
    /// When it does not open, or lacks a kernel.
    pub fn open(file: &Path) -> Result<Self, KernelError> {
        let driver = Driver::open_at(file)?;
        let library = Library::open(file, false, "build it with the feature `host`")?;
        // SAFETY: the types are those of host/driver.cpp.
        let (set_order, name) =
            unsafe { (library.function("lockstep_host_order")?, library.function("lockstep_host_kernel")?) };
        library.leak();
        let module = Arc::new(Module::of_image(&driver, b"\x7fELF")?);
        Ok(Self { driver, module, set_order, name })
    }

    /// A compiler and its flags, for building a double from a changed source: `host/driver.cpp` with `host` and
    /// `src/cuda` as include folders.
    pub fn compiler() -> (&'static str, Vec<&'static str>) {
        (env!("LOCKSTEP_HOST_COMPILER"), env!("LOCKSTEP_HOST_FLAGS").split(' ').collect())
    }

    /// The double, as a driver.
    pub fn driver(&self) -> Driver {
        self.driver.clone()
    }

    /// The device that the double pretends to be.
    pub fn device(&self) -> &Device {
        self.module.device()
    }

    /// The kernels that it has.
    pub fn kernels(&self) -> Vec<String> {
        let mut names = Vec::new();
        loop {
            // SAFETY: any index may be asked for; the names are constants.
            let name = unsafe { (self.name)(names.len() as c_int) };
            if name.is_null() {
                return names;
            }
            // SAFETY: not null, and ends with zero.
            names.push(unsafe { CStr::from_ptr(name) }.to_string_lossy().into_owned());
        }
    }

    /// Runs a launch, in one of [`ORDERS`].
    ///
    /// # Errors
    /// What the double finds, for example a barrier that not all threads reach.
    pub fn run(&self, launch: &Launch, order: c_int) -> Result<(), KernelError> {
        let _one = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
        // SAFETY: only a number is stored, and no launch runs meanwhile.
        unsafe { (self.set_order)(order) };
        self.module.launch(launch, Stream::DEFAULT)
    }
}

/// Host memory that plays device memory, with guards around it.
pub struct Buffer {
    /// In words of 16 bytes, so that it is aligned.
    words: Vec<u128>,
    begin: usize,
    bytes: usize,
}

impl Buffer {
    /// Of these values, in plain numbers' memory order.
    pub fn new<T: Plain>(values: &[T]) -> Self {
        Self::shifted(values, 0)
    }

    /// The same, so many bytes behind a boundary of 16.
    pub fn shifted<T: Plain>(values: &[T], by: usize) -> Self {
        let bytes: Vec<u8> = values.iter().flat_map(|value| value.to_vec()).collect();
        let size = GUARD + by + bytes.len() + GUARD;
        let mut buffer = Self { words: vec![u128::MAX; size.div_ceil(16)], begin: GUARD + by, bytes: bytes.len() };
        let (begin, end) = (buffer.begin, buffer.begin + buffer.bytes);
        buffer.all_mut()[begin..end].copy_from_slice(&bytes);
        buffer
    }

    /// So many bytes that read as NaN.
    pub fn poisoned(bytes: usize) -> Self {
        Self::new(&vec![GUARD_BYTE; bytes])
    }

    /// As a kernel gets it. The buffer must outlive the launch, which ends before `run` returns.
    pub fn memory(&mut self) -> Memory {
        let (begin, bytes) = (self.begin, self.bytes as u64);
        let address = self.all_mut()[begin..].as_mut_ptr() as u64;
        // SAFETY: these bytes belong to this buffer; tests keep it alive while they run launches.
        unsafe { Memory::new(address, bytes) }
    }

    /// The values now.
    ///
    /// # Panics
    /// When something wrote outside the buffer.
    pub fn read<T: Plain>(&self) -> Vec<T> {
        let all: Vec<u8> = self.words.iter().flat_map(|word| word.to_ne_bytes()).collect();
        let (before, rest) = all.split_at(self.begin);
        let (inside, after) = rest.split_at(self.bytes);
        assert!(before.iter().chain(after).all(|byte| *byte == GUARD_BYTE), "a kernel wrote outside its memory");
        inside.chunks_exact(size_of::<T>()).map(T::from_slice).collect()
    }

    fn all_mut(&mut self) -> &mut [u8] {
        let len = self.words.len() * 16;
        // SAFETY: a vector's words, seen as bytes; every byte is a valid value of either.
        unsafe { std::slice::from_raw_parts_mut(self.words.as_mut_ptr().cast(), len) }
    }
}

/// Numbers that lie in memory as they are.
pub trait Plain: Copy {
    /// Its bytes.
    fn to_vec(self) -> Vec<u8>;
    /// From its bytes.
    fn from_slice(bytes: &[u8]) -> Self;
}

macro_rules! plain {
    ($($number:ty)*) => {$(
        impl Plain for $number {
            fn to_vec(self) -> Vec<u8> {
                self.to_ne_bytes().to_vec()
            }
            fn from_slice(bytes: &[u8]) -> Self {
                let mut array = [0; size_of::<Self>()];
                array.copy_from_slice(bytes);
                Self::from_ne_bytes(array)
            }
        }
    )*};
}
plain!(u8 u16 i16 u32 i32 u64 i64 f32 f64);
