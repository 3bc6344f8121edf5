//! The component `tls`: its flags, its mounts, its name in the certificate, with certificates as cert-manager makes them.

use std::path::Path;
use std::process::Command;

use lockstep_deploy::policy::Component;
use lockstep_deploy::tools::skip;

use crate::site::{PATIENCE, Site, run};

const SETS: [&str; 7] = [
    "data.train_size=64",
    "data.test_size=16",
    "model.n=1",
    "model.width=8",
    "train.batch=32",
    "train.chunk=8",
    "train.epochs=1",
];

/// Puts an authority's certificate, and what it signed for a name, into the Secrets of the component.
fn certificates(site: &mut Site, folder: &Path) {
    let at = |name: &str| folder.join(name).display().to_string();
    let new = ["req", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"];
    let (key, cert) = (at("ca.key"), at("ca.crt"));
    let own = ["-x509", "-days", "2", "-subj", "/CN=lockstep-ca", "-keyout", &key, "-out", &cert];
    run("openssl", &[&new[..], &own].concat());
    for (secret, names, usage) in [
        ("lockstep-coordinator-tls", "DNS:lockstep,DNS:localhost", "serverAuth"),
        ("lockstep-worker-tls", "DNS:lockstep-worker", "clientAuth"),
    ] {
        let (tls_key, request, tls_cert) = (at("tls.key"), at("tls.csr"), at("tls.crt"));
        run("openssl", &[&new[..], &["-subj", "/CN=one", "-keyout", &tls_key, "-out", &request]].concat());
        std::fs::write(folder.join("ext"), format!("subjectAltName={names}\nextendedKeyUsage={usage}\n")).unwrap();
        let by = ["-CA", &cert, "-CAkey", &key, "-CAcreateserial", "-days", "2", "-extfile", &at("ext")];
        run("openssl", &[&["x509", "-req", "-in", &request, "-out", &tls_cert][..], &by].concat());
        // As cert-manager writes keys, unless told otherwise.
        let sec1 = run("openssl", &["ec", "-in", &tls_key]);
        let read = |path: &str| std::fs::read_to_string(path).unwrap();
        let files = [("tls.key", sec1), ("tls.crt", read(&tls_cert)), ("ca.crt", read(&cert))];
        site.secrets.insert(secret.into(), files.map(|(name, text)| (name.to_owned(), text)).into());
    }
}

#[test]
fn with_tls_a_run_completes_and_a_worker_without_a_certificate_stays_outside() {
    let Some(mut site) = Site::new(&["tls"]) else { return };
    if Command::new("openssl").arg("version").output().is_err() {
        skip("no `openssl`: apt-get install openssl");
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    certificates(&mut site, folder.path());
    let identity = site.identity(Component::Coordinator);
    let hosts = format!("{} lockstep\n", identity.ip);
    let mut container = site.container(Component::Coordinator, &identity);
    container.command.extend(SETS.iter().map(|set| format!("--set={set}")));
    let mut coordinator = site.start(Component::Coordinator, &container, identity, "");

    let identity = site.identity(Component::Worker);
    let mut container = site.container(Component::Worker, &identity);
    container.env.retain(|(name, _)| !["LOCKSTEP_TLS_CERT", "LOCKSTEP_TLS_KEY"].contains(&name.as_str()));
    for (_, value) in container.env.iter_mut().filter(|(name, _)| name == "LOCKSTEP_CONNECT_TIMEOUT_S") {
        *value = "3".into();
    }
    let mut stranger = site.start(Component::Worker, &container, identity, &hosts);
    assert_ne!(stranger.wait(PATIENCE).unwrap(), 0, "{}", stranger.log());
    assert_eq!(coordinator.ended().unwrap(), None, "{}", coordinator.log());

    let identity = site.identity(Component::Worker);
    let container = site.container(Component::Worker, &identity);
    let mut worker = site.start(Component::Worker, &container, identity, &hosts);
    for pod in [&mut coordinator, &mut worker] {
        assert_eq!(pod.wait(PATIENCE).unwrap(), 0, "{}: {}", pod.identity.name, pod.log());
    }
    println!("the stranger said: {}", stranger.log().trim());
}
