//! The rules, first to last.

use lockstep_proto::exit::ExitCode;

use super::nodelist;
use super::ticket::TicketFile;
use super::vars::Vars;
use crate::failure::Failure;

/// Step ids from here on are Slurm's own: batch scripts, interactive shells, …
const SPECIAL_STEPS: u64 = 0xffff_fff0;
/// Where a coordinator listens when nothing says otherwise.
const PORT: u16 = 7070;

/// What was said by the user, who knows best.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Told {
    /// A flag of the command line that says where this process belongs.
    pub flag: Option<&'static str>,
    /// The variable of that flag.
    pub variable: &'static str,
}

impl Told {
    /// Of `lockstep worker`.
    pub fn worker(is_given: bool) -> Self {
        Self { flag: is_given.then_some("--coordinator"), variable: "LOCKSTEP_COORDINATOR" }
    }

    /// Of `lockstep train`.
    pub fn train(is_given: bool) -> Self {
        Self { flag: is_given.then_some("--workers"), variable: "LOCKSTEP_WORKERS" }
    }
}

/// Where the coordinator of the run is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Meeting {
    /// The command line or the environment says it.
    Told,
    /// This process is alone.
    Here,
    /// At this address.
    At {
        /// Name or address.
        host: String,
        /// Port.
        port: u16,
    },
    /// Task 0 writes it into a file that all see.
    ByTicket(TicketFile),
}

/// Where a process was put.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// Whose variables decided, and which.
    pub rule: &'static str,
    /// Which of them this process is; 0 hosts the coordinator.
    pub task: u32,
    /// How many there are; unknown in an Indexed Job.
    pub tasks: Option<u32>,
    /// Which of those on its host.
    pub local_task: u32,
    /// Workers that each task is to be.
    pub processes: u32,
    /// Cores that the scheduler gave it.
    pub threads: Option<u32>,
    /// How to find the coordinator.
    pub meeting: Meeting,
    /// Names of this host, best first.
    pub names: Vec<String>,
    /// An address on the way to whoever started it.
    pub launcher: Option<String>,
    /// What looks like a mistake.
    pub warnings: Vec<String>,
}

impl Place {
    fn new(rule: &'static str, meeting: Meeting) -> Self {
        Self {
            rule,
            task: 0,
            tasks: None,
            local_task: 0,
            processes: 1,
            threads: None,
            meeting,
            names: Vec::new(),
            launcher: None,
            warnings: Vec::new(),
        }
    }

    /// Where this process was put, by the first rule that has something to say.
    ///
    /// # Errors
    /// Variables that contradict themselves (64).
    pub fn find(vars: &Vars, told: Told) -> Result<Self, Failure> {
        if let Some(flag) = told.flag {
            return Ok(Self::new(flag, Meeting::Told));
        }
        if vars.has(told.variable) {
            return Ok(Self::new(told.variable, Meeting::Told));
        }
        for rule in [torchrun, kubeflow, slurm, indexed_job] {
            if let Some(place) = rule(vars)? {
                return place.checked();
            }
        }
        let mut alone = Self::new("alone", Meeting::Here);
        alone.warnings.extend(srun_was_not_used(vars)?);
        Ok(alone)
    }

    fn checked(self) -> Result<Self, Failure> {
        match self.tasks {
            Some(tasks) if self.task >= tasks => {
                let reason = format!("{}: task {} of {tasks}: tasks count from 0", self.rule, self.task);
                Err(Failure::new(ExitCode::Usage, reason))
            }
            // One of one is alone, but keeps what the scheduler said of its cores.
            Some(1) if self.processes == 1 => Ok(Self { meeting: Meeting::Here, ..self }),
            _ => Ok(self),
        }
    }

    /// Whether other tasks belong to the run.
    pub fn is_shared(&self) -> bool {
        !matches!(self.meeting, Meeting::Told | Meeting::Here)
    }

    /// In a line; `None` where there is nothing to tell.
    pub fn describe(&self) -> Option<String> {
        let tasks = self.tasks.map_or(String::new(), |tasks| format!(" of {tasks}"));
        let at = match &self.meeting {
            Meeting::Told | Meeting::Here => return None,
            Meeting::At { host, port } => format!("the coordinator is at {host}:{port}"),
            Meeting::ByTicket(file) => format!("task 0 says in {} where the coordinator is", file.path().display()),
        };
        Some(format!("placed by {}: task {}{tasks}, {} on this host; {at}", self.rule, self.task, self.local_task))
    }
}

fn missing(rule: &str, name: &str) -> Failure {
    Failure::new(ExitCode::Usage, format!("{rule}: {name} is not set, although the others are; set it, or unset them"))
}

fn torchrun(vars: &Vars) -> Result<Option<Place>, Failure> {
    const RULE: &str = "torchrun (RANK, WORLD_SIZE, MASTER_ADDR)";
    let (Some(rank), Some(host)) = (vars.number("RANK")?, vars.get("MASTER_ADDR")) else { return Ok(None) };
    let tasks: Option<u32> = vars.number("WORLD_SIZE")?;
    let port: Option<u16> = vars.number("MASTER_PORT")?;
    let mut port = port.ok_or_else(|| missing(RULE, "MASTER_PORT"))?;
    if vars.get("TORCHELASTIC_USE_AGENT_STORE") == Some("True") {
        port = port.checked_add(1).unwrap_or(PORT); // torchrun itself listens at the other
    }
    let mut place = Place::new(RULE, Meeting::At { host: host.to_owned(), port });
    place.task = rank;
    place.tasks = Some(tasks.ok_or_else(|| missing(RULE, "WORLD_SIZE"))?);
    place.local_task = vars.number("LOCAL_RANK")?.unwrap_or(0);
    place.threads = shared_cores(vars.number("LOCAL_WORLD_SIZE")?);
    Ok(Some(place))
}

fn kubeflow(vars: &Vars) -> Result<Option<Place>, Failure> {
    const RULE: &str = "Kubeflow (PET_NODE_RANK, PET_NNODES, PET_MASTER_ADDR)";
    let (Some(rank), Some(host)) = (vars.number("PET_NODE_RANK")?, vars.get("PET_MASTER_ADDR")) else {
        return Ok(None);
    };
    let port = vars.number("PET_MASTER_PORT")?.unwrap_or(PORT);
    let mut place = Place::new(RULE, Meeting::At { host: host.to_owned(), port });
    place.task = rank;
    // `2:4` is torchrun's way of an elastic number of nodes.
    let nodes = vars.get("PET_NNODES").map(|nodes| nodes.rsplit_once(':').map_or(nodes, |(_, most)| most));
    let nodes: &str = nodes.ok_or_else(|| missing(RULE, "PET_NNODES"))?;
    let wrong = || Failure::new(ExitCode::Usage, format!("PET_NNODES={nodes}: expected a number of nodes"));
    place.tasks = Some(nodes.parse().map_err(|_| wrong())?);
    // `auto`, `gpu` and `cpu` leave it to the program: one process a node, unless --devices says more.
    place.processes = vars.get("PET_NPROC_PER_NODE").and_then(|number| number.parse().ok()).unwrap_or(1).max(1);
    Ok(Some(place))
}

fn slurm(vars: &Vars) -> Result<Option<Place>, Failure> {
    const RULE: &str = "Slurm (SLURM_PROCID, SLURM_STEP_ID)";
    let (Some(task), Some(step), Some(job)) =
        (vars.number("SLURM_PROCID")?, vars.number::<u64>("SLURM_STEP_ID")?, vars.get("SLURM_JOB_ID"))
    else {
        return Ok(None);
    };
    if step >= SPECIAL_STEPS {
        return Ok(None); // a batch script or a shell
    }
    let tasks: Option<u32> = match vars.number("SLURM_STEP_NUM_TASKS")? {
        Some(tasks) => Some(tasks),
        None => vars.number("SLURM_NTASKS")?,
    };
    let nodes = vars.get("SLURM_STEP_NODELIST").or(vars.get("SLURM_NODELIST"));
    let nodes = nodes.ok_or_else(|| missing(RULE, "SLURM_STEP_NODELIST"))?;
    let nodes = nodelist::expand(nodes).ok_or_else(|| {
        Failure::new(ExitCode::Usage, format!("SLURM_STEP_NODELIST={nodes}: expected names such as n[1-3],m"))
    })?;
    let restart = vars.number("SLURM_RESTART_COUNT")?.unwrap_or(0);
    let file = TicketFile::new(vars, (job, step, restart), nodes.len() == 1)?;
    let mut place = Place::new(RULE, Meeting::ByTicket(file));
    place.task = task;
    place.tasks = Some(tasks.ok_or_else(|| missing(RULE, "SLURM_STEP_NUM_TASKS"))?);
    place.local_task = vars.number("SLURM_LOCALID")?.unwrap_or(0);
    place.threads = match vars.number("SLURM_CPUS_PER_TASK")? {
        Some(cores) => Some(cores),
        None => shared_cores(tasks_on_this_node(vars)?),
    };
    place.names = vars.get("SLURMD_NODENAME").into_iter().map(str::to_owned).collect();
    place.names.push(vars.host.clone());
    place.launcher = vars.get("SLURM_LAUNCH_NODE_IPADDR").map(str::to_owned);
    Ok(Some(place))
}

/// Of `2(x3),1`, the entry of this node.
fn tasks_on_this_node(vars: &Vars) -> Result<Option<u32>, Failure> {
    let node: usize = vars.number("SLURM_NODEID")?.unwrap_or(0);
    let Some(list) = vars.get("SLURM_STEP_TASKS_PER_NODE").or(vars.get("SLURM_TASKS_PER_NODE")) else {
        return Ok(None);
    };
    let entries = list.split(',').flat_map(|entry| {
        let (number, times) = entry.split_once("(x").map_or((entry, "1"), |(number, times)| (number, times));
        let times = times.trim_end_matches(')').parse().unwrap_or(1);
        std::iter::repeat_n(number.parse().ok(), times)
    });
    Ok(entries.into_iter().nth(node).flatten())
}

fn indexed_job(vars: &Vars) -> Result<Option<Place>, Failure> {
    const RULE: &str = "an Indexed Job (JOB_COMPLETION_INDEX)";
    let Some(index): Option<u32> = vars.number("JOB_COMPLETION_INDEX")? else { return Ok(None) };
    let usage = |reason: String| Failure::new(ExitCode::Usage, reason);
    let head = vars.host.strip_suffix(&index.to_string()).ok_or_else(|| {
        usage(format!(
            "JOB_COMPLETION_INDEX is {index}, but the host name {} does not end with it; set LOCKSTEP_COORDINATOR",
            vars.host
        ))
    })?;
    // Kubernetes writes `10.0.0.7 run-3.workers.ns.svc.cluster.local run-3` where the Pod has a subdomain.
    let full = vars.hosts.lines().flat_map(|line| line.split_whitespace().skip(1));
    let domain = full
        .filter_map(|name| name.strip_prefix(vars.host.as_str())?.strip_prefix('.'))
        .next()
        .ok_or_else(|| usage("an Indexed Job whose Pods have no subdomain cannot find its first Pod: add a headless Service and `subdomain`, or set LOCKSTEP_COORDINATOR".into()))?;
    let host = format!("{head}0.{domain}");
    let mut place = Place::new(RULE, Meeting::At { host, port: PORT });
    place.task = index;
    Ok(Some(place))
}

/// Cores of each of several processes on this host.
fn shared_cores(processes: Option<u32>) -> Option<u32> {
    let cores = std::thread::available_parallelism().map_or(1, |cores| cores.get() as u32);
    processes.map(|processes| (cores / processes.max(1)).max(1))
}

/// Slurm gave several tasks, and only one process is there.
fn srun_was_not_used(vars: &Vars) -> Result<Option<String>, Failure> {
    let tasks: Option<u32> = vars.number("SLURM_NTASKS")?;
    let is_step = vars.number::<u64>("SLURM_STEP_ID")?.is_some_and(|step| step < SPECIAL_STEPS);
    let name = vars.get("SLURM_JOB_NAME").unwrap_or_default();
    let is_interactive = matches!(name, "bash" | "sh" | "zsh" | "interactive");
    Ok(match (vars.get("SLURM_JOB_ID"), tasks) {
        (Some(job), Some(tasks @ 2..)) if !is_step && !is_interactive => Some(format!(
            "job {job} has {tasks} tasks, but this process was not started by srun and trains alone; write \
             `srun lockstep train …` to use all of them"
        )),
        _ => None,
    })
}
