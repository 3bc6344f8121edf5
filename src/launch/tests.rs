//! Each launcher's variables, as it sets them, and what comes of them.

use std::os::unix::fs::PermissionsExt as _;
use std::time::Duration;

use lockstep_proto::exit::ExitCode;

use super::place::{Meeting, Place, Told};
use super::ticket::{Ticket, TicketFile};
use super::vars::Vars;
use crate::failure::Failure;

const TORCHRUN: &[(&str, &str)] = &[
    ("RANK", "3"),
    ("LOCAL_RANK", "1"),
    ("WORLD_SIZE", "4"),
    ("LOCAL_WORLD_SIZE", "2"),
    ("GROUP_RANK", "1"),
    ("MASTER_ADDR", "node-a"),
    ("MASTER_PORT", "29500"),
    ("TORCHELASTIC_USE_AGENT_STORE", "True"),
    ("TORCHELASTIC_RUN_ID", "none"),
];
const KUBEFLOW: &[(&str, &str)] = &[
    ("PET_NNODES", "4"),
    ("PET_NPROC_PER_NODE", "auto"),
    ("PET_NODE_RANK", "2"),
    ("PET_MASTER_ADDR", "train-node-0-0.train"),
    ("PET_MASTER_PORT", "29400"),
];
const SLURM: &[(&str, &str)] = &[
    ("HOME", "/home/u"),
    ("SLURM_JOB_ID", "4711"),
    ("SLURM_JOB_NAME", "cifar"),
    ("SLURM_STEP_ID", "0"),
    ("SLURM_PROCID", "5"),
    ("SLURM_LOCALID", "1"),
    ("SLURM_NODEID", "2"),
    ("SLURM_NTASKS", "6"),
    ("SLURM_STEP_NUM_TASKS", "6"),
    ("SLURM_STEP_NUM_NODES", "3"),
    ("SLURM_STEP_NODELIST", "gpu[07-09]"),
    ("SLURM_STEP_TASKS_PER_NODE", "2(x3)"),
    ("SLURM_CPUS_PER_TASK", "8"),
    ("SLURMD_NODENAME", "gpu09"),
    ("SLURM_LAUNCH_NODE_IPADDR", "10.0.0.1"),
];

fn with<'a>(base: &[(&'a str, &'a str)], others: &[(&'a str, &'a str)]) -> Vars {
    Vars::of(&[base, others].concat())
}

fn trained(vars: &Vars) -> Place {
    Place::find(vars, Told::train(false)).unwrap_or_else(|failure| panic!("{failure}"))
}

fn wrong(vars: &Vars) -> Failure {
    let failure = Place::find(vars, Told::train(false)).expect_err("was accepted");
    assert_eq!(failure.code, ExitCode::Usage, "{failure}");
    failure
}

#[test]
fn torchrun_leaves_its_own_port_to_its_store() {
    let place = trained(&with(TORCHRUN, &[]));
    assert_eq!(
        place.describe().as_deref(),
        Some(
            "placed by torchrun (RANK, WORLD_SIZE, MASTER_ADDR): task 3 of 4, 1 on this host; the coordinator is at node-a:29501"
        )
    );
    let plain = trained(&with(&TORCHRUN[..7], &[]));
    assert_eq!(plain.meeting, Meeting::At { host: "node-a".into(), port: 29500 });
    assert_eq!(plain.invitation().unwrap().unwrap().url, "http://node-a:29500");
}

#[test]
fn kubeflow_names_nodes_and_processes() {
    let place = trained(&with(KUBEFLOW, &[]));
    assert_eq!((place.task, place.tasks, place.processes), (2, Some(4), 1));
    assert_eq!(place.meeting, Meeting::At { host: "train-node-0-0.train".into(), port: 29400 });
    assert_eq!(trained(&with(KUBEFLOW, &[("PET_NPROC_PER_NODE", "8")])).processes, 8);
    assert_eq!(trained(&with(KUBEFLOW, &[("PET_NNODES", "2:6")])).tasks, Some(6));
}

#[test]
fn a_step_of_srun_meets_by_a_ticket() {
    let place = trained(&with(SLURM, &[]));
    assert_eq!(
        place.describe().as_deref(),
        Some(
            "placed by Slurm (SLURM_PROCID, SLURM_STEP_ID): task 5 of 6, 1 on this host; task 0 says in \
             /home/u/.lockstep/4711.token where the coordinator is"
        )
    );
    assert_eq!((place.threads, place.names[0].as_str()), (Some(8), "gpu09"));
    assert!(place.listen().ip().is_unspecified() && (20_000..32_000).contains(&place.listen().port()));
    let later = trained(&with(SLURM, &[("SLURM_STEP_ID", "3"), ("SLURM_STEP_NODELIST", "gpu07")]));
    assert!(later.describe().unwrap().contains("4711.3.token"));
    assert_ne!(later.listen().port(), place.listen().port());
    assert!(later.listen().ip().is_loopback(), "one node needs no more");
    let elsewhere = trained(&with(SLURM, &[("LOCKSTEP_TOKEN_DIR", "/shared/u")]));
    assert!(elsewhere.describe().unwrap().contains("/shared/u/4711.token"));
}

#[test]
fn cores_are_the_tasks_share_of_its_node_where_slurm_does_not_say() {
    let without: Vec<_> = SLURM.iter().filter(|(name, _)| *name != "SLURM_CPUS_PER_TASK").copied().collect();
    let cores = std::thread::available_parallelism().unwrap().get() as u32;
    assert_eq!(trained(&with(&without, &[])).threads, Some((cores / 2).max(1)));
    let uneven = with(&without, &[("SLURM_STEP_TASKS_PER_NODE", "4(x2),1")]);
    assert_eq!(trained(&uneven).threads, Some(cores));
}

#[test]
fn an_indexed_job_finds_its_first_pod() {
    let mut vars = Vars::of(&[("JOB_COMPLETION_INDEX", "3"), ("KUBERNETES_SERVICE_HOST", "10.96.0.1")]);
    vars.host = "run-3".into();
    vars.hosts = "127.0.0.1 localhost\n10.244.1.7\trun-3.workers.ml.svc.cluster.local\trun-3\n".into();
    let place = trained(&vars);
    assert_eq!((place.task, place.tasks), (3, None));
    assert_eq!(place.meeting, Meeting::At { host: "run-0.workers.ml.svc.cluster.local".into(), port: 7070 });
    vars.hosts = "10.244.1.7 run-3\n".into();
    assert!(wrong(&vars).reason.contains("subdomain"));
    vars.host = "elsewhere".into();
    assert!(wrong(&vars).reason.contains("LOCKSTEP_COORDINATOR"));
}

#[test]
fn the_first_rule_decides() {
    let all = [TORCHRUN, KUBEFLOW, SLURM].concat();
    assert!(trained(&Vars::of(&all)).rule.starts_with("torchrun"));
    assert!(trained(&Vars::of(&[KUBEFLOW, SLURM].concat())).rule.starts_with("Kubeflow"));
    let told = with(&all, &[("LOCKSTEP_WORKERS", "2"), ("LOCKSTEP_COORDINATOR", "http://a:1")]);
    assert_eq!(trained(&told).rule, "LOCKSTEP_WORKERS");
    assert_eq!(Place::find(&told, Told::worker(false)).unwrap().rule, "LOCKSTEP_COORDINATOR");
    let flag = Place::find(&told, Told::worker(true)).unwrap();
    assert_eq!((flag.rule, flag.describe()), ("--coordinator", None));
}

#[test]
fn alone_is_alone_and_a_forgotten_srun_is_said() {
    assert_eq!(trained(&Vars::default()).meeting, Meeting::Here);
    let batch = &[("SLURM_JOB_ID", "9"), ("SLURM_NTASKS", "4"), ("SLURM_PROCID", "0"), ("SLURM_JOB_NAME", "x")];
    let place = trained(&Vars::of(batch));
    assert_eq!(place.meeting, Meeting::Here);
    assert!(place.warnings[0].contains("srun lockstep train"), "{:?}", place.warnings);
    // A shell in an allocation is nobody's mistake.
    assert!(trained(&with(batch, &[("SLURM_JOB_NAME", "interactive")])).warnings.is_empty());
    let shell = with(SLURM, &[("SLURM_STEP_ID", "4294967290"), ("SLURM_JOB_NAME", "bash")]);
    assert_eq!(trained(&shell).meeting, Meeting::Here);
    let one = with(SLURM, &[("SLURM_PROCID", "0"), ("SLURM_STEP_NUM_TASKS", "1")]);
    assert_eq!((trained(&one).meeting, trained(&one).threads), (Meeting::Here, Some(8)));
}

#[test]
fn what_contradicts_itself_is_named() {
    assert!(wrong(&with(TORCHRUN, &[("RANK", "first")])).reason.contains("RANK=first"));
    assert!(wrong(&with(TORCHRUN, &[("RANK", "4")])).reason.contains("task 4 of 4"));
    assert!(wrong(&with(&TORCHRUN[..5], &[("MASTER_ADDR", "a")])).reason.contains("MASTER_PORT"));
    assert!(wrong(&with(SLURM, &[("SLURM_STEP_NODELIST", "gpu[07-")])).reason.contains("gpu[07-"));
    assert!(wrong(&with(SLURM, &[("HOME", "")])).reason.contains("LOCKSTEP_TOKEN_DIR"));
    assert!(wrong(&with(KUBEFLOW, &[("PET_NNODES", "many")])).reason.contains("PET_NNODES=many"));
}

#[test]
fn tickets_are_private_of_one_start_and_tell_of_failures() {
    let folder = tempfile::tempdir().unwrap();
    let home = folder.path().to_str().unwrap();
    let vars = Vars::of(&[("HOME", home)]);
    let of = |restart| TicketFile::new(&vars, ("12", 0, restart), true).unwrap();
    let ticket = Ticket { url: "http://n1:20192".into(), token: "secret".into() };

    let posted = of(0).post(ticket.clone()).unwrap();
    assert_eq!(of(0).wait(Duration::ZERO).unwrap(), ticket);
    let mode = std::fs::metadata(of(0).path()).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    // After a requeue it is an old one.
    let failure = of(1).wait(Duration::ZERO).unwrap_err();
    assert_eq!(failure.code, ExitCode::Unavailable);
    assert!(failure.reason.contains("an earlier start"), "{failure}");

    // A later start's ticket is not removed by whoever wrote the earlier one.
    let next = of(1).post(ticket.clone()).unwrap();
    drop(posted);
    assert_eq!(of(1).wait(Duration::ZERO).unwrap(), ticket);

    std::fs::set_permissions(of(1).path(), std::fs::Permissions::from_mode(0o644)).unwrap();
    assert_eq!(of(1).wait(Duration::ZERO).unwrap_err().code, ExitCode::NoPermission);
    drop(next);
    assert!(!of(1).path().exists());

    of(2).post_failure(&Failure::new(ExitCode::CantCreate, "disk full"));
    let failure = of(2).wait(Duration::from_secs(60)).unwrap_err();
    assert_eq!((failure.code, failure.reason.as_str()), (ExitCode::CantCreate, "task 0: disk full"));
}
