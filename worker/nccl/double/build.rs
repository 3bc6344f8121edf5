//! Links the two stand-ins as the shared libraries whose names they bear.

use std::path::PathBuf;

fn main() {
    let out = PathBuf::from(std::env::var_os("OUT_DIR").unwrap_or_default());
    for (source, library) in [("src/nccl.c", "libnccl.so.2"), ("src/cuda.c", "libcuda.so.1")] {
        println!("cargo:rerun-if-changed={source}");
        let compiler = cc::Build::new().opt_level(2).warnings(true).get_compiler();
        let mut command = compiler.to_command();
        command.args(["-std=gnu11", "-shared", "-fPIC", "-pthread", "-fvisibility=hidden"]);
        command.arg("-o").arg(out.join(library)).arg(source).arg("-lrt");
        let status = command.status();
        assert!(status.as_ref().is_ok_and(std::process::ExitStatus::success), "cannot link {library}: {status:?}");
    }
    println!("cargo:rerun-if-changed=src/stream.h");
}
