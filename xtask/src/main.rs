//! The repository's own automation: `cargo xtask libtorch|nccl|tools|build|bundle|demo|chaos|kubernetes|slurm|docker|torchvision|
//! kernels|test|check`.
//!
//! ```text
//! test ──► libtorch ──► system      pip, g++, cmake, nasm: found, or named with the package that has them
//!   ├────► check                    what the compiler cannot: invariants, sizes, where `unsafe` stands
//!   └────► kernels                  the CUDA kernels by the real compiler: registers, spills
//! bundle, demo, chaos, slurm, docker, torchvision ──► build ──► libtorch
//! ```
//! May never: be needed in order to run Lockstep once it is built.
#![forbid(unsafe_code)]

mod bundle;
mod chaos;
mod check;
mod compile;
mod demo;
mod kernels;
mod kubernetes;
mod launchers;
mod libtorch;
mod mutants;
mod nccl;
mod system;
mod test;
mod tools;
mod torchvision;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

use crate::system::System;

/// Builds, tests and shows Lockstep.
#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask")]
struct Args {
    /// Install missing system packages with apt-get (also when `CI` is set); otherwise they are only named.
    #[arg(long, global = true)]
    yes: bool,
    #[command(subcommand)]
    task: Task,
}

#[derive(Subcommand)]
enum Task {
    /// Put libtorch (CPU) where the build looks for it: `.libtorch`, a link into a cache that checkouts share.
    ///
    /// The cache is `$LOCKSTEP_CACHE`, else `$XDG_CACHE_HOME/lockstep`, else `~/.cache/lockstep`. A `LIBTORCH` that
    /// is set already is checked and respected.
    Libtorch,
    /// Build both executables, `lockstep` and `lockstep-worker`, into target/release.
    Build,
    /// A folder, and an archive of it, that runs on a node which has PyTorch but no Rust. See docs/gpu.md.
    Bundle {
        /// The folder [default: target/bundle/lockstep-<version>-<architecture>]; the archive is beside it.
        #[arg(long, value_name = "DIR")]
        out: Option<std::path::PathBuf>,
        /// Where `lockstep` and `lockstep-worker` are; else they are built.
        #[arg(long, value_name = "DIR")]
        bin_dir: Option<std::path::PathBuf>,
        /// A file or folder that goes into it too, such as `peers` for a proof; may be repeated.
        #[arg(long, value_name = "PATH")]
        add: Vec<std::path::PathBuf>,
    },
    /// Build, then train the `demo` recipe with two workers and print the final test error.
    Demo,
    /// Real faults against the real executables; prints which promises held. See docs/chaos.md.
    #[command(disable_help_flag = true)]
    Chaos {
        /// What the harness takes: `--minutes 20`, `--only 4,5`, `--bin-dir DIR` (else the executables are built) …
        #[arg(trailing_var_arg = true, allow_hyphen_values = true, value_name = "ARGS")]
        args: Vec<String>,
    },
    /// A Slurm of two nodes on this machine, and jobs by the scripts in deploy/slurm; prints what held.
    #[command(disable_help_flag = true)]
    Slurm {
        /// What the harness takes: `--steps 600`, `--dir DIR`, `--bin-dir DIR` (else the executables are built) …
        #[arg(trailing_var_arg = true, allow_hyphen_values = true, value_name = "ARGS")]
        args: Vec<String>,
    },
    /// Both images of deploy/docker, built here, and a run in containers; prints what held.
    #[command(disable_help_flag = true)]
    Docker {
        /// What the harness takes: `--steps 1200`, `--dir DIR`, `--bin-dir DIR` (else the executables are built) …
        #[arg(trailing_var_arg = true, allow_hyphen_values = true, value_name = "ARGS")]
        args: Vec<String>,
    },
    /// Everything that CI runs: format, lints, checks, dependencies, all tests.
    Test,
    /// The checks that the compiler does not make: invariants, file sizes, unsafe code, dependencies.
    Check,
    /// Compile the CUDA kernels by NVRTC for sm_80, sm_90 and sm_100; registers go into docs/kernels.md, a spill fails.
    ///
    /// NVRTC comes from PyPI into the cache. No GPU is needed.
    Kernels,
    /// The manifests of `deploy/kubernetes` on a real control plane; prints what held. Needs root.
    ///
    /// The control plane is built from its Go modules, once, into the cache. Pods run as processes in namespaces.
    Kubernetes {
        /// Where `lockstep` and `lockstep-worker` are; else they are built.
        #[arg(long, value_name = "DIR")]
        bin_dir: Option<std::path::PathBuf>,
    },
    /// Transforms, weights, logits and an SGD step, there and back, with real torchvision and timm; prints what held.
    ///
    /// They are fetched once, 4 GB, unless `LOCKSTEP_PEER` names a virtual environment that has them. The photographs are
    /// those of `LOCKSTEP_TEST_DATA`.
    Torchvision {
        /// Where `lockstep`, `lockstep-worker` and `examples/transforms` are; else they are built.
        #[arg(long, value_name = "DIR")]
        bin_dir: Option<std::path::PathBuf>,
        /// What the script about weights takes: `--arch resnet18`, `--count 8`.
        #[arg(last = true, value_name = "ARGS")]
        args: Vec<String>,
    },
    /// Fetch the real NCCL (196 MB) for the tests that open it, into the cache (`cargo xtask test` does, too).
    Nccl,
    /// Fetch kubectl, schemas and definitions for the tests of `deploy/` into the cache (`cargo xtask test` does, too).
    Tools,
    /// Put known bugs into a copy of the checkout, one at a time: the simulation must find each.
    Mutants {
        /// Only those with this in their names.
        #[arg(default_value = "")]
        name: String,
    },
}

fn main() -> ExitCode {
    let args = Args::parse();
    let system = System::new(args.yes);
    let result = match &args.task {
        Task::Libtorch => libtorch::provide(&system),
        Task::Build => compile::release(&system),
        Task::Bundle { out, bin_dir, add } => {
            bundle::bundle(&system, &bundle::Bundle { out: out.as_deref(), bin_dir: bin_dir.as_deref(), add })
        }
        Task::Demo => demo::demo(&system),
        Task::Chaos { args } => chaos::chaos(&system, args),
        Task::Slurm { args } => launchers::slurm(&system, args),
        Task::Docker { args } => launchers::docker(&system, args),
        Task::Test => test::run_all(&system),
        Task::Check => check::run(&system),
        Task::Kernels => kernels::record(&system),
        Task::Kubernetes { bin_dir } => kubernetes::kubernetes(&system, bin_dir.as_deref()),
        Task::Nccl => nccl::provide(&system).map(|folder| eprintln!("NCCL is in {}", folder.display())),
        Task::Tools => tools::provide(&system).map(|folder| eprintln!("tools are in {}", folder.display())),
        Task::Torchvision { bin_dir, args } => torchvision::torchvision(&system, bin_dir.as_deref(), args),
        Task::Mutants { name } => mutants::run(&system, name),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
