//! `cargo xtask kubernetes`: the manifests on a real control plane, built from its Go modules, once, into the cache.
//!
//! ```text
//! cache/control-plane-1.34.4/{etcd, kube-apiserver, kube-controller-manager, kube-scheduler} ◄── go build
//! target/<profile>/lockstep-deploy CONTROL-PLANE TOOLS EXECUTABLES ──► table
//! ```

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result};

use crate::system::{System, output, run};
use crate::{compile, tools};

/// Version of Kubernetes; its libraries have the same with 0 in front.
const KUBERNETES: &str = "34.4";
const ETCD: &str = "v3.6.8";
const SERVERS: [&str; 3] = ["kube-apiserver", "kube-controller-manager", "kube-scheduler"];
/// Staging modules that Kubernetes' manifest names and its servers do not need.
const UNNEEDED: [&str; 2] = ["k8s.io/sample-cli-plugin", "k8s.io/sample-controller"];

/// Builds what is missing and shows what is promised.
///
/// # Errors
/// When something cannot be built or a promise did not hold.
pub fn kubernetes(system: &System, bin_dir: Option<&Path>) -> Result<()> {
    let tools = tools::provide(system)?;
    let control_plane = provide(system)?;
    let executables = match bin_dir {
        Some(folder) => folder.canonicalize().with_context(|| folder.display().to_string())?,
        None => {
            compile::release(system)?;
            system.root.join("target/release")
        }
    };
    let mut show = system.cargo(&["run", "--quiet", "--package", "lockstep-deploy", "--"]);
    run(show.arg(control_plane).arg(tools).arg(executables))
}

/// The control plane's programs; gives their folder.
fn provide(system: &System) -> Result<PathBuf> {
    let folder = system.cache()?.join(format!("control-plane-1.{KUBERNETES}"));
    if folder.is_dir() {
        return Ok(folder);
    }
    system.need("go", &["version"], &["golang-go"])?;
    let cache = folder.parent().context("the cache has no parent folder")?;
    let work = cache.join(format!(".control-plane-{}", std::process::id()));
    let result = build(&work).and_then(|()| match fs::rename(work.join("bin"), &folder) {
        Err(_) if folder.is_dir() => Ok(()), // another checkout was first
        other => other.with_context(|| format!("cannot create {}", folder.display())),
    });
    let _ = fs::remove_dir_all(&work);
    result.map(|()| folder)
}

fn build(work: &Path) -> Result<()> {
    let (servers, etcd, bin) = (work.join("servers"), work.join("etcd"), work.join("bin"));
    for folder in [&servers, &etcd, &bin] {
        fs::create_dir_all(folder).with_context(|| format!("cannot create {}", folder.display()))?;
    }
    eprintln!("building Kubernetes 1.{KUBERNETES}, once: about a quarter of an hour on two cores");
    fs::write(etcd.join("go.mod"), format!("module etcd\n\ngo 1.24.0\n\nrequire go.etcd.io/etcd/server/v3 {ETCD}\n"))?;
    go_build(&etcd, "go.etcd.io/etcd/server/v3", &bin.join("etcd"))?;
    fs::write(servers.join("go.mod"), manifest(work)?)?;
    for server in SERVERS {
        go_build(&servers, &format!("k8s.io/kubernetes/cmd/{server}"), &bin.join(server))?;
    }
    Ok(())
}

/// Kubernetes' own manifest takes its libraries from folders beside it; whoever requires it names their versions.
fn manifest(work: &Path) -> Result<String> {
    let module = format!("k8s.io/kubernetes@v1.{KUBERNETES}");
    let own = tools::module_dir(work, &module)?.join("go.mod");
    let text = fs::read_to_string(&own).with_context(|| format!("cannot read {}", own.display()))?;
    let mut manifest = format!("module servers\n\ngo 1.24.0\n\nrequire (\n\tk8s.io/kubernetes v1.{KUBERNETES}\n");
    let staged = text.lines().filter_map(|line| line.split_once("=> ./staging")).map(|(name, _)| name.trim());
    for name in staged.filter(|name| !UNNEEDED.contains(name)) {
        manifest += &format!("\t{name} v0.{KUBERNETES}\n");
    }
    Ok(manifest + ")\n")
}

fn go_build(folder: &Path, package: &str, to: &Path) -> Result<()> {
    let mut go = Command::new("nice");
    go.args(["-n", "19", "go", "build", "-trimpath", "-mod=mod", "-p", "2", "-ldflags=-s -w", "-o"]).arg(to);
    // Without cgo: the programs then run wherever the cache is.
    run(go.arg(package).current_dir(folder).env("CGO_ENABLED", "0"))?;
    output(Command::new(to).arg("--version")).map(drop)
}
