//! Lets executables and tests of this crate find libtorch at run time: link arguments do not propagate from torch-sys.

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    if let Some(folder) = std::env::var_os("DEP_TCH_LIBTORCH_LIB") {
        println!("cargo:rustc-link-arg=-Wl,-rpath,{}", folder.to_string_lossy());
    }
    println!("cargo:rerun-if-env-changed=LOCKSTEP_COMMIT");
    let commit = std::env::var("LOCKSTEP_COMMIT").ok().or_else(commit).unwrap_or_else(|| "unknown".into());
    println!("cargo:rustc-env=LOCKSTEP_COMMIT={commit}");
}

/// The checked-out commit, when this is built from a checkout.
fn commit() -> Option<String> {
    let output = std::process::Command::new("git").args(["rev-parse", "--short=12", "HEAD"]).output().ok()?;
    let text = String::from_utf8(output.stdout).ok()?;
    output.status.success().then(|| text.trim().to_owned()).filter(|text| !text.is_empty())
}
