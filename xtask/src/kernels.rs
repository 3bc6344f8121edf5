//! `cargo xtask kernels`: the CUDA kernels, compiled by the real NVRTC for every architecture that we name, and what
//! ptxas says of each: registers and spills. The table stands in docs/kernels.md.
//!
//! ```text
//! cache/nvrtc-13.0.88 ◄── pip install --target (90 MB)
//!        └─► lockstep_kernels::Nvrtc ─► compile for sm_80, sm_90, sm_100 ─► usage ─► the table; a spill is an error
//! ```

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};
use lockstep_kernels::{Nvrtc, Target, Usage, usage};

use crate::system::{System, in_ci, run};

/// The compiler of the CUDA that libtorch 2.11 is built with, so of the machines that have one. Its folder in the cache
/// has this number; worker/kernels/tests/nvrtc.rs has the same.
const VERSION: &str = "13.0.88";
/// Ampere, Hopper, Blackwell.
const ARCHITECTURES: [u32; 3] = [80, 90, 100];
const TABLE: &str = "docs/kernels.md";
const BEGIN: &str = "<!-- registers: written by `cargo xtask kernels` -->\n";
const END: &str = "<!-- end of registers -->\n";

/// Compiles, writes the table.
///
/// # Errors
/// No compiler, a kernel that does not compile, a spill.
pub fn record(system: &System) -> Result<()> {
    let file = system.root.join(TABLE);
    let text = fs::read_to_string(&file).with_context(|| format!("cannot read {TABLE}"))?;
    let table = table(&measure(system)?)?;
    fs::write(&file, replace(&text, &table)?).with_context(|| format!("cannot write {TABLE}"))?;
    eprint!("{table}");
    Ok(())
}

/// Compiles, and holds the table against what comes out. Where the compiler cannot be had it says so and goes on, but not
/// in CI or with `LOCKSTEP_TEST_REQUIRE`.
///
/// # Errors
/// A kernel that does not compile, a spill, a table that is not of this source.
pub fn verify(system: &System) -> Result<()> {
    if let Err(error) = provide(system) {
        if in_ci() || std::env::var_os("LOCKSTEP_TEST_REQUIRE").is_some() {
            return Err(error);
        }
        eprintln!("CUDA kernels were not compiled: {error:#}");
        return Ok(());
    }
    let text = fs::read_to_string(system.root.join(TABLE)).with_context(|| format!("cannot read {TABLE}"))?;
    let current = replace(&text, &table(&measure(system)?)?)?;
    ensure!(current == text, "{TABLE} does not show what the kernels need now: run `cargo xtask kernels`");
    eprintln!("CUDA kernels: compiled for {ARCHITECTURES:?}, no spill");
    Ok(())
}

/// Makes sure that NVRTC is in the cache; gives the folder of its libraries.
///
/// # Errors
/// When it cannot be fetched.
pub fn provide(system: &System) -> Result<PathBuf> {
    let folder = system.cache()?.join(format!("nvrtc-{VERSION}"));
    let libraries = folder.join("nvidia/cu13/lib");
    if libraries.join("libnvrtc.so.13").is_file() {
        return Ok(libraries);
    }
    system.need("python3", &["-m", "pip", "--version"], &["python3", "python3-pip"])?;
    let cache = folder.parent().context("the cache has no parent folder")?;
    fs::create_dir_all(cache).with_context(|| format!("cannot create {}", cache.display()))?;
    let work = cache.join(format!(".nvrtc-{}", std::process::id()));
    let mut pip = Command::new("python3");
    pip.args(["-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-cache-dir", "--no-compile"]);
    pip.args(["--no-deps", "--target"]).arg(&work).arg(format!("nvidia-cuda-nvrtc=={VERSION}"));
    let result = run(&mut pip).context("cannot fetch NVRTC: is a package index reachable (PIP_INDEX_URL)?");
    let result = result.and_then(|()| match fs::rename(&work, &folder) {
        Err(_) if libraries.is_dir() => Ok(()), // another checkout was first
        other => other.with_context(|| format!("cannot create {}", folder.display())),
    });
    let _ = fs::remove_dir_all(&work);
    result.map(|()| libraries)
}

/// What ptxas says, by architecture.
fn measure(system: &System) -> Result<BTreeMap<u32, Vec<Usage>>> {
    let nvrtc = Nvrtc::find(&[provide(system)?])?;
    let compile =
        |arch| -> Result<(u32, Vec<Usage>)> { Ok((arch, usage(&nvrtc.compile(Target::Cubin(arch), true)?.log))) };
    // Seconds each, and independent.
    let workers: Vec<Result<(u32, Vec<Usage>)>> = std::thread::scope(|scope| {
        let threads = ARCHITECTURES.map(|arch| scope.spawn(move || compile(arch)));
        let joined = threads.into_iter().map(|thread| thread.join());
        joined.map(|result| result.unwrap_or_else(|_| bail!("compiling panicked"))).collect()
    });
    workers.into_iter().collect()
}

/// One line a kernel.
///
/// # Errors
/// Spills, all of them.
fn table(measured: &BTreeMap<u32, Vec<Usage>>) -> Result<String> {
    let mut spills = String::new();
    let mut lines: BTreeMap<&str, String> = BTreeMap::new();
    for (arch, kernels) in measured {
        ensure!(!kernels.is_empty(), "the compiler says nothing about registers for sm_{arch}");
        for kernel in kernels {
            let Usage { kernel, registers, stack, spill_stores, spill_loads } = kernel;
            if spill_stores + spill_loads > 0 {
                let _ = write!(spills, "\n{kernel} on sm_{arch}: {spill_stores} bytes out, {spill_loads} in");
            }
            let stack = if *stack > 0 { format!(" ({stack} B stack)") } else { String::new() };
            let _ = write!(lines.entry(kernel).or_default(), " {registers}{stack} |");
        }
    }
    ensure!(spills.is_empty(), "kernels spill registers:{spills}");
    let heads: String = measured.keys().map(|arch| format!(" sm_{arch} |")).collect();
    let rule = "---|".repeat(measured.len() + 1);
    let mut out = format!("| kernel |{heads}\n|{rule}\n");
    for (kernel, cells) in lines {
        let _ = writeln!(out, "| `{kernel}` |{cells}");
    }
    Ok(format!("{out}\nRegisters a thread, by NVRTC {VERSION}. No kernel spills.\n"))
}

fn replace(text: &str, table: &str) -> Result<String> {
    let parts = text.split_once(BEGIN).and_then(|(head, rest)| Some((head, rest.split_once(END)?.1)));
    let (head, tail) = parts.with_context(|| format!("{TABLE} lacks the lines that the table stands between"))?;
    Ok(format!("{head}{BEGIN}\n{table}\n{END}{tail}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(kernel: &str, registers: u32, spill_stores: u32) -> Usage {
        Usage { kernel: kernel.into(), registers, spill_stores, ..Usage::default() }
    }

    #[test]
    fn a_table_has_a_line_a_kernel_and_none_with_a_spill() {
        let mut measured = BTreeMap::from([(80, vec![of("sgd", 31, 0)]), (90, vec![of("sgd", 32, 0)])]);
        let text = table(&measured).unwrap();
        assert!(text.starts_with("| kernel | sm_80 | sm_90 |\n|---|---|---|\n| `sgd` | 31 | 32 |\n"), "{text}");
        measured.insert(100, vec![of("sgd", 128, 8)]);
        assert!(table(&measured).unwrap_err().to_string().contains("sgd on sm_100: 8 bytes out"));
        assert!(table(&BTreeMap::from([(80, Vec::new())])).is_err(), "silence is no proof");
    }

    #[test]
    fn only_what_stands_between_the_lines_is_replaced() {
        let text = format!("a\n{BEGIN}old\n{END}b\n");
        let new = replace(&text, "new\n").unwrap();
        assert_eq!(new, format!("a\n{BEGIN}\nnew\n\n{END}b\n"));
        assert_eq!(replace(&new, "new\n").unwrap(), new);
        assert!(replace("a\nb\n", "new").is_err());
    }
}
