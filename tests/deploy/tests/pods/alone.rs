//! One Pod alone: what it may, and what it says when something is wrong.

use std::time::Duration;

use lockstep_deploy::codes;
use lockstep_deploy::policy::Component;
use lockstep_deploy::process::until;
use lockstep_deploy::sandbox::Running;

use crate::site::{PATIENCE, Site};

#[test]
fn a_container_is_nobody_and_writes_only_what_is_mounted() {
    let Some(mut site) = Site::new(&[]) else { return };
    let identity = site.identity(Component::Worker);
    let mut container = site.container(Component::Worker, &identity);
    let script = "id -u; id -g; id -G; hostname; echo pid $$; grep -E 'CapEff|CapBnd|NoNewPrivs' /proc/self/status
        for path in / /etc /usr/local/bin /dev /var; do touch $path/x 2>/dev/null && echo wrote $path; done
        for path in /tmp /dev/shm; do touch $path/x || echo cannot write $path; done
        df -k --output=size /dev/shm | tail -1; cat /etc/hosts; env | sort";
    container.command = vec!["sh".into(), "-c".into(), script.into()];
    let mut pod = site.start(Component::Worker, &container, identity, "10.98.9.9 lockstep\n");
    assert_eq!(pod.wait(PATIENCE).unwrap(), 0, "{}", pod.log());
    let said: Vec<String> =
        pod.log().lines().map(|line| line.split_whitespace().collect::<Vec<_>>().join(" ")).collect();
    let wanted = [
        "65532",
        "65532",
        "65532",
        "lockstep-worker-1",
        "pid 1",
        "CapBnd: 0000000000000000",
        "CapEff: 0000000000000000",
        "NoNewPrivs: 1",
        "262144",
        "10.98.9.9 lockstep",
        "LOCKSTEP_ADVERTISE=10.98.0.2",
        "LOCKSTEP_COORDINATOR=http://lockstep:7070",
        "LOCKSTEP_DEVICES=cpu",
        "LOCKSTEP_ID=lockstep-worker-1",
        "LOCKSTEP_THREADS=1",
        "LOCKSTEP_TOKEN=a-secret-of-this-test",
    ];
    for line in wanted {
        assert!(said.iter().any(|said| said == line), "no {line:?} in {said:#?}");
    }
    for line in &said {
        assert!(!line.starts_with("wrote") && !line.starts_with("cannot"), "{line}");
        assert!(!line.starts_with("LOCKSTEP_PORT"), "{line}");
    }
}

/// Ends with this code and with these words in what it says last.
#[track_caller]
fn ends(pod: &mut Running, code: i32, words: &[&str]) {
    assert_eq!(pod.wait(PATIENCE).unwrap(), code, "{}", pod.log());
    let log = pod.log();
    let last = log.lines().rev().find(|line| line.contains("error: ")).unwrap_or_default();
    let said = &log[log.find(last).unwrap_or(0)..];
    println!("{code}: {}", said.trim());
    for word in words {
        assert!(said.contains(word), "no {word:?} in: {log}");
    }
}

#[test]
fn without_the_secret_a_coordinator_says_which_command_makes_it() {
    let Some(mut site) = Site::new(&[]) else { return };
    site.secrets.clear();
    let identity = site.identity(Component::Coordinator);
    let container = site.container(Component::Coordinator, &identity);
    let mut pod = site.start(Component::Coordinator, &container, identity, "");
    // One of the codes after which the Job fails at once.
    let code = i64::from(pod.wait(PATIENCE).unwrap());
    assert!(codes::fatal(&codes::table().unwrap()).contains(&code), "{code}");
    for words in ["LOCKSTEP_TOKEN", "kubectl create secret generic lockstep-token"] {
        assert!(pod.log().contains(words), "{}", pod.log());
    }
}

#[test]
fn a_name_that_does_not_resolve_is_said() {
    let Some(mut site) = Site::new(&[]) else { return };
    let identity = site.identity(Component::Worker);
    let mut container = site.container(Component::Worker, &identity);
    for (_, value) in container.env.iter_mut().filter(|(name, _)| name == "LOCKSTEP_CONNECT_TIMEOUT_S") {
        *value = "2".into();
    }
    let mut pod = site.start(Component::Worker, &container, identity, "");
    ends(&mut pod, 69, &["lockstep:7070"]);
}

#[test]
fn a_second_coordinator_on_the_same_claim_is_refused() {
    let Some(mut site) = Site::new(&[]) else { return };
    let identity = site.identity(Component::Coordinator);
    let container = site.container(Component::Coordinator, &identity);
    let first = identity.name.clone();
    let mut holder = site.start(Component::Coordinator, &container, identity, "");
    let db = site.run_dir().join("run.db");
    until("a run", PATIENCE, || {
        assert_eq!(holder.ended()?, None, "{}", holder.log());
        Ok(db.is_file().then_some(()))
    })
    .unwrap();
    let identity = site.identity(Component::Coordinator);
    let container = site.container(Component::Coordinator, &identity);
    let mut second = site.start(Component::Coordinator, &container, identity, "");
    ends(&mut second, 73, &[&first]);
    assert_eq!(holder.stop(Duration::from_secs(60)).unwrap(), 75, "{}", holder.log());
}

#[test]
fn a_worker_without_a_gpu_that_is_to_use_one_ends_at_once() {
    let Some(mut site) = Site::new(&[]) else { return };
    let identity = site.identity(Component::Worker);
    let mut container = site.container(Component::Worker, &identity);
    for (_, value) in container.env.iter_mut().filter(|(name, _)| name == "LOCKSTEP_DEVICES") {
        *value = "cuda".into();
    }
    let mut pod = site.start(Component::Worker, &container, identity, "");
    ends(&mut pod, 78, &["cuda"]);
}
