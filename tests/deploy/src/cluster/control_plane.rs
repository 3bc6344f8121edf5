//! etcd, kube-apiserver, kube-controller-manager and kube-scheduler, as processes on loopback.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};

use super::api::{Api, kubeconfig};
use crate::process::{run, until};

/// One that runs. Dropping it kills it.
#[derive(Debug)]
struct Server {
    name: &'static str,
    child: Child,
    log: PathBuf,
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// All of them.
#[derive(Debug)]
pub struct ControlPlane {
    /// How they are spoken to.
    pub api: Api,
    servers: Vec<Server>,
}

/// Any secret does: the server listens on the loopback of a namespace of its own.
const TOKEN: &str = "root-of-this-test";
const ADDRESS: &str = "https://127.0.0.1:6443";

impl ControlPlane {
    /// Starts them with programs of `bin`; what they keep and say lies in `folder`.
    pub fn start(bin: &Path, kubectl: &Path, folder: &Path) -> Result<Self> {
        std::fs::create_dir_all(folder)?;
        let at = |name: &str| folder.join(name).display().to_string();
        run("openssl", &["genrsa", "-out", &at("sa.key"), "2048"]).context("a key for service accounts")?;
        std::fs::write(folder.join("tokens.csv"), format!("{TOKEN},root,0,\"system:masters\"\n"))?;
        let config = folder.join("kubeconfig");
        kubeconfig(&config, ADDRESS, TOKEN)?;
        let api = Api { port: 8001, kubectl: kubectl.into(), kubeconfig: config };
        let mut plane = Self { api, servers: Vec::new() };
        let etcd = "http://127.0.0.1:2379";
        plane.serve(
            folder,
            "etcd",
            &bin.join("etcd"),
            &[
                format!("--data-dir={}", at("etcd")),
                format!("--listen-client-urls={etcd}"),
                format!("--advertise-client-urls={etcd}"),
                "--listen-peer-urls=http://127.0.0.1:2380".into(),
                "--unsafe-no-fsync".into(),
            ],
        )?;
        plane.serve(
            folder,
            "kube-apiserver",
            &bin.join("kube-apiserver"),
            &[
                format!("--etcd-servers={etcd}"),
                "--bind-address=127.0.0.1".into(),
                "--advertise-address=10.98.0.1".into(),
                "--secure-port=6443".into(),
                format!("--cert-dir={}", at("certificates")),
                "--service-cluster-ip-range=10.96.0.0/16".into(),
                "--service-account-issuer=https://kubernetes.default.svc".into(),
                format!("--service-account-key-file={}", at("sa.key")),
                format!("--service-account-signing-key-file={}", at("sa.key")),
                format!("--token-auth-file={}", at("tokens.csv")),
                "--authorization-mode=RBAC".into(),
            ],
        )?;
        plane.ready("kube-apiserver")?;
        let config = format!("--kubeconfig={}", at("kubeconfig"));
        plane.serve(
            folder,
            "kube-controller-manager",
            &bin.join("kube-controller-manager"),
            &[
                config.clone(),
                "--leader-elect=false".into(),
                "--bind-address=127.0.0.1".into(),
                format!("--cert-dir={}", at("certificates")),
                format!("--service-account-private-key-file={}", at("sa.key")),
            ],
        )?;
        plane.serve(
            folder,
            "kube-scheduler",
            &bin.join("kube-scheduler"),
            &[
                config.clone(),
                "--leader-elect=false".into(),
                "--bind-address=127.0.0.1".into(),
                format!("--cert-dir={}", at("certificates")),
            ],
        )?;
        plane.serve(folder, "kubectl-proxy", kubectl, &[config, "proxy".into(), "--port=8001".into()])?;
        let api = plane.api.clone();
        plane.wait("the proxy", || Ok(api.get("/api/v1/namespaces/default").ok().flatten().map(drop)))?;
        Ok(plane)
    }

    fn serve(&mut self, folder: &Path, name: &'static str, program: &Path, args: &[String]) -> Result<()> {
        let log = folder.join(format!("{name}.log"));
        let file = File::create(&log)?;
        // They end with this process, however it ends.
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", "KILL"]).arg(program).args(args);
        command.stdin(Stdio::null()).stdout(file.try_clone()?).stderr(file);
        let child = command.spawn().with_context(|| format!("cannot start {name}"))?;
        self.servers.push(Server { name, child, log });
        Ok(())
    }

    fn ready(&mut self, name: &str) -> Result<()> {
        let api = self.api.clone();
        self.wait(name, || Ok(api.kubectl(&["get", "--raw", "/readyz"], None)?.0.then_some(())))
    }

    fn wait(&mut self, what: &str, mut look: impl FnMut() -> Result<Option<()>>) -> Result<()> {
        until(what, Duration::from_secs(180), || {
            self.check()?;
            look()
        })
    }

    /// # Errors
    /// When one of them has ended: with its last words.
    pub fn check(&mut self) -> Result<()> {
        for server in &mut self.servers {
            if let Some(status) = server.child.try_wait()? {
                let text = std::fs::read_to_string(&server.log).unwrap_or_default();
                let last: Vec<&str> = text.lines().rev().take(3).collect();
                bail!("{} ended with {status}: {}", server.name, last.join(" / "));
            }
        }
        Ok(())
    }
}
