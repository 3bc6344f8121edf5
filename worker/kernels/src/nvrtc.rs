//! NVRTC, NVIDIA's compiler as a library, opened at run time. Interface: `nvrtc.h`, the same from CUDA 11.2 on.

use std::ffi::{CStr, CString, c_char, c_int};
use std::path::{Path, PathBuf};
use std::ptr::null_mut;

use crate::library::{Library, functions};
use crate::source::{INCLUDED, MAIN, OPTIONS};
use crate::{Device, KernelError};

const NAMES: [&str; 3] = ["libnvrtc.so.13", "libnvrtc.so.12", "libnvrtc.so"];
const REMEDY: &str = "it comes with PyTorch's CUDA build and with `pip install nvidia-cuda-nvrtc`; without it the kernels \
                      are left out";

/// `nvrtcProgram`
type Program = *mut std::ffi::c_void;

functions!(Functions {
    version: "nvrtcVersion" fn(*mut c_int, *mut c_int) -> c_int;
    error: "nvrtcGetErrorString" fn(c_int) -> *const c_char;
    num_archs: "nvrtcGetNumSupportedArchs" fn(*mut c_int) -> c_int;
    archs: "nvrtcGetSupportedArchs" fn(*mut c_int) -> c_int;
    create: "nvrtcCreateProgram"
        fn(*mut Program, *const c_char, *const c_char, c_int, *const *const c_char, *const *const c_char) -> c_int;
    compile: "nvrtcCompileProgram" fn(Program, c_int, *const *const c_char) -> c_int;
    log_size: "nvrtcGetProgramLogSize" fn(Program, *mut usize) -> c_int;
    log: "nvrtcGetProgramLog" fn(Program, *mut c_char) -> c_int;
    cubin_size: "nvrtcGetCUBINSize" fn(Program, *mut usize) -> c_int;
    cubin: "nvrtcGetCUBIN" fn(Program, *mut c_char) -> c_int;
    ptx_size: "nvrtcGetPTXSize" fn(Program, *mut usize) -> c_int;
    ptx: "nvrtcGetPTX" fn(Program, *mut c_char) -> c_int;
    destroy: "nvrtcDestroyProgram" fn(*mut Program) -> c_int;
});

/// What to compile for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Target {
    /// A cubin for this architecture, `sm_90`.
    Cubin(u32),
    /// PTX that the driver translates, because the compiler is older than the device: `compute_90`.
    Ptx(u32),
}

impl Target {
    /// For a device, from what a compiler supports (80, 86, 90, …): a cubin runs on devices of the same major and no
    /// smaller minor number, PTX on all that are not older.
    ///
    /// # Errors
    /// A device before Ampere.
    pub fn choose(device: &Device, supported: &[u32]) -> Result<Self, KernelError> {
        let (major, minor) = (device.major, device.minor);
        let own = major * 10 + minor;
        let best = |fits: &dyn Fn(u32) -> bool| supported.iter().copied().filter(|arch| fits(*arch)).max();
        let too_old = KernelError::TooOld { major, minor };
        if own < 80 {
            return Err(too_old);
        }
        match best(&|arch| arch / 10 == major && arch <= own) {
            Some(arch) => Ok(Self::Cubin(arch)),
            None => best(&|arch| (80..=own).contains(&arch)).map(Self::Ptx).ok_or(too_old),
        }
    }
}

impl std::fmt::Display for Target {
    fn fmt(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        match self {
            Self::Cubin(arch) => write!(f, "sm_{arch}"),
            Self::Ptx(arch) => write!(f, "compute_{arch}"),
        }
    }
}

/// What the compiler made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Compiled {
    /// A cubin, or PTX with a zero at its end: what `cuModuleLoadData` takes.
    pub image: Vec<u8>,
    /// What it said; with `verbose`, registers and spills.
    pub log: String,
}

/// The compiler.
pub struct Nvrtc {
    functions: Functions,
    version: (i32, i32),
    path: String,
}

impl Nvrtc {
    /// Opens it from the first of `folders` that has it, else from where the loader looks.
    ///
    /// # Errors
    /// When it is nowhere, or is not NVRTC.
    pub fn find(folders: &[PathBuf]) -> Result<Self, KernelError> {
        for folder in folders {
            if let Some(file) = NAMES.iter().map(|name| folder.join(name)).find(|file| file.is_file()) {
                return Self::open(&file);
            }
        }
        let mut last = None;
        for name in NAMES {
            match Library::open(name, false, REMEDY) {
                Ok(library) => return Self::of(library),
                Err(error) => last = last.or(Some(error)),
            }
        }
        let looked: Vec<_> = folders.iter().map(|folder| folder.display().to_string()).collect();
        Err(match last {
            Some(KernelError::Library { library, why, remedy }) if !looked.is_empty() => {
                KernelError::Library { library, why: format!("{why}; not in {} either", looked.join(", ")), remedy }
            }
            Some(error) => error,
            None => KernelError::Library { library: NAMES[0].into(), why: "not found".into(), remedy: REMEDY },
        })
    }

    /// Opens this file.
    ///
    /// # Errors
    /// When it does not open, or is not NVRTC.
    pub fn open(file: &Path) -> Result<Self, KernelError> {
        // NVRTC opens its builtins by name. A library that is open already is found by its name, wherever it lies.
        let beside = file.parent().and_then(|folder| std::fs::read_dir(folder).ok()).into_iter().flatten().flatten();
        for entry in beside {
            let name = entry.file_name().to_string_lossy().into_owned();
            if name.starts_with("libnvrtc-builtins.so")
                && let Ok(library) = Library::open(entry.path(), true, REMEDY)
            {
                library.leak();
            }
        }
        Self::of(Library::open(file, false, REMEDY)?)
    }

    fn of(library: Library) -> Result<Self, KernelError> {
        let functions = Functions::load(&library)?;
        let mut nvrtc = Self { functions, version: (0, 0), path: library.leak() };
        let (mut major, mut minor) = (0, 0);
        // SAFETY: both places are alive.
        nvrtc.check(unsafe { (functions.version)(&mut major, &mut minor) }, "asking its version")?;
        nvrtc.version = (major, minor);
        Ok(nvrtc)
    }

    /// As `13.0`.
    pub fn version(&self) -> String {
        format!("{}.{}", self.version.0, self.version.1)
    }

    /// Which file it is.
    pub fn path(&self) -> &str {
        &self.path
    }

    /// Architectures it compiles for, as 80, 86, 90, …
    ///
    /// # Errors
    /// What NVRTC says.
    pub fn supported(&self) -> Result<Vec<u32>, KernelError> {
        let what = "asking what it supports";
        let mut num = 0;
        // SAFETY: the place is alive.
        self.check(unsafe { (self.functions.num_archs)(&mut num) }, what)?;
        let mut archs = vec![0; usize::try_from(num).unwrap_or(0)];
        // SAFETY: as many places as it said.
        self.check(unsafe { (self.functions.archs)(archs.as_mut_ptr()) }, what)?;
        Ok(archs.into_iter().filter_map(|arch| arch.try_into().ok()).collect())
    }

    /// Compiles all kernels.
    ///
    /// # Errors
    /// What NVRTC says, with its log.
    pub fn compile(&self, target: Target, verbose: bool) -> Result<Compiled, KernelError> {
        let target_name = target.to_string();
        let text =
            |s: &str| CString::new(s).map_err(|_| self.refusal(&target_name, "a zero byte in the source".into()));
        let main = (text(MAIN.0)?, text(MAIN.1)?);
        let names = INCLUDED.iter().map(|(name, _)| text(name)).collect::<Result<Vec<_>, _>>()?;
        let texts = INCLUDED.iter().map(|(_, content)| text(content)).collect::<Result<Vec<_>, _>>()?;
        let mut options = vec![text(&format!("--gpu-architecture={target}"))?];
        for option in OPTIONS.into_iter().chain(verbose.then_some("--ptxas-options=-v")) {
            options.push(text(option)?);
        }
        let pointers = |list: &[CString]| list.iter().map(|s| s.as_ptr()).collect::<Vec<_>>();
        let (name_ptrs, text_ptrs, option_ptrs) = (pointers(&names), pointers(&texts), pointers(&options));

        let mut program: Program = null_mut();
        let (num, f) = (name_ptrs.len() as c_int, self.functions);
        // SAFETY: all strings end with zero and outlive the call, which copies them.
        let code = unsafe {
            (f.create)(&mut program, main.1.as_ptr(), main.0.as_ptr(), num, text_ptrs.as_ptr(), name_ptrs.as_ptr())
        };
        self.check(code, &target_name)?;
        // SAFETY: the program was created above; the options outlive the call.
        let code = unsafe { (f.compile)(program, option_ptrs.len() as c_int, option_ptrs.as_ptr()) };
        let log = self.fetch(program, f.log_size, f.log).unwrap_or_default();
        let log = String::from_utf8_lossy(&log).trim_matches(['\0', '\n']).to_owned();
        let result = if code == 0 {
            let (size, get) = match target {
                Target::Cubin(_) => (f.cubin_size, f.cubin),
                Target::Ptx(_) => (f.ptx_size, f.ptx),
            };
            self.fetch(program, size, get).map_err(|code| self.refusal(&target_name, self.words(code)))
        } else {
            Err(self.refusal(&target_name, format!("{}\n{log}", self.words(code))))
        };
        // SAFETY: created above, and not used again.
        unsafe { (f.destroy)(&mut program) };
        result.map(|image| Compiled { image, log })
    }

    fn fetch(
        &self,
        program: Program,
        size: unsafe extern "C" fn(Program, *mut usize) -> c_int,
        get: unsafe extern "C" fn(Program, *mut c_char) -> c_int,
    ) -> Result<Vec<u8>, c_int> {
        let mut bytes = 0;
        // SAFETY: the program is alive, and so is the place.
        let code = unsafe { size(program, &mut bytes) };
        if code != 0 {
            return Err(code);
        }
        let mut out = vec![0_u8; bytes];
        // SAFETY: as many bytes as it said.
        match unsafe { get(program, out.as_mut_ptr().cast()) } {
            0 => Ok(out),
            code => Err(code),
        }
    }

    fn words(&self, code: c_int) -> String {
        // SAFETY: NVRTC gives a constant string for every code, or null.
        unsafe {
            let text = (self.functions.error)(code);
            if text.is_null() { format!("error {code}") } else { CStr::from_ptr(text).to_string_lossy().into_owned() }
        }
    }

    fn refusal(&self, target: &str, said: String) -> KernelError {
        KernelError::Compile { version: self.version(), target: target.to_owned(), said }
    }

    fn check(&self, code: c_int, what: &str) -> Result<(), KernelError> {
        if code == 0 { Ok(()) } else { Err(self.refusal(what, self.words(code))) }
    }
}

/// Folders in which an installed PyTorch keeps NVRTC, from its `torch/lib`: `nvidia/` is a sibling of `torch/`.
pub fn folders_beside(torch_lib: &Path) -> Vec<PathBuf> {
    let packages = torch_lib.parent().and_then(Path::parent);
    let nvidia = packages.map(|packages| packages.join("nvidia"));
    let below = |nvidia: PathBuf| ["cu13/lib", "cuda_nvrtc/lib"].map(|folder| nvidia.join(folder));
    nvidia.into_iter().flat_map(below).chain([torch_lib.to_owned()]).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn device(major: u32, minor: u32) -> Device {
        Device { multiprocessors: 1, major, minor }
    }

    #[test]
    fn a_device_gets_a_cubin_of_its_kind_or_else_ptx() {
        let supported = [75, 80, 86, 90, 100, 120];
        let choose = |major, minor| Target::choose(&device(major, minor), &supported);
        assert_eq!(choose(8, 0).unwrap(), Target::Cubin(80));
        assert_eq!(choose(8, 9).unwrap(), Target::Cubin(86));
        assert_eq!(choose(9, 0).unwrap(), Target::Cubin(90));
        assert_eq!(choose(10, 3).unwrap(), Target::Cubin(100));
        assert_eq!(choose(11, 0).unwrap(), Target::Ptx(100));
        assert_eq!(choose(13, 0).unwrap(), Target::Ptx(120));
        let error = choose(7, 5).unwrap_err();
        assert!(error.is_unusable() && error.to_string().starts_with("compute capability 7.5 is too old"), "{error}");
    }

    #[test]
    fn without_nvrtc_the_error_says_where_it_was_looked_for_and_what_to_do() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("libnvrtc.so.13"), "not a library").unwrap();
        let Err(error) = Nvrtc::find(&[folder.path().into()]) else { panic!("that is no library") };
        assert!(error.is_unusable());
        let said = error.to_string();
        assert!(said.contains("libnvrtc.so.13") && said.contains("pip install nvidia-cuda-nvrtc"), "{said}");
        assert!(!said.contains("panicked"), "{said}");
    }
}
