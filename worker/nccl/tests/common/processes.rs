//! Ranks as processes: the test binary again, which follows lines on its standard input.
//!
//! ```text
//! ► address A                                  at the start
//! ◄ open GENERATION RANK DEADLINE_MS HELD A,A   meet, do what `work` does
//! ► held                                       where it was asked to wait before the last operation
//! ► done HASH │ failed WAITED_MS CULPRIT TEXT
//! ```

use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use lockstep_collective::{Collective, CollectiveError, Lane, Layout};
use lockstep_nccl::NcclMesh;

use crate::common::{meet, op, rendezvous};

const ROLE: &str = "LOCKSTEP_TEST_IS_A_RANK";

/// How a generation went on one rank.
#[derive(Debug)]
pub enum Outcome {
    Done { hash: String },
    Failed { what: String, culprit: Option<u32>, waited: Duration },
}

struct Process {
    child: Child,
    stdin: ChildStdin,
    lines: Receiver<String>,
    address: String,
    is_held: bool,
}

/// Processes by number; which rank each has is a generation's.
pub struct World(Vec<Process>);

impl World {
    /// One with each plan of misbehaviour.
    pub fn start(plans: &[&str]) -> Self {
        let start = |plan: &&str| {
            let mut child = Command::new(std::env::current_exe().unwrap())
                .args(["--exact", "rank_process", "--nocapture", "--test-threads=1"])
                .env(ROLE, "1")
                .env("LOCKSTEP_NCCL_DOUBLE", plan)
                .stdin(Stdio::piped())
                .stdout(Stdio::piped())
                .spawn()
                .unwrap();
            let (send, lines) = channel();
            let stdout = BufReader::new(child.stdout.take().unwrap());
            std::thread::spawn(move || {
                for line in stdout.lines().map_while(Result::ok) {
                    // The test harness prints too, without a line's end before our first.
                    if let Some((_, said)) = line.split_once("► ") {
                        let _ = send.send(said.to_owned());
                    }
                }
            });
            let mut process =
                Process { stdin: child.stdin.take().unwrap(), child, lines, address: String::new(), is_held: false };
            process.address = process.line(Duration::from_secs(30)).strip_prefix("address ").unwrap().to_owned();
            process
        };
        Self(plans.iter().map(start).collect())
    }

    /// Tells `members` to meet; what each found.
    pub fn open<const N: usize>(&mut self, generation: u64, members: &[usize; N], deadline: Duration) -> [Outcome; N] {
        self.open_some(generation, members, deadline);
        members.map(|member| self.outcome(member, 3 * deadline + Duration::from_secs(20)))
    }

    /// Tells `members` to meet.
    pub fn open_some(&mut self, generation: u64, members: &[usize], deadline: Duration) {
        let addresses: Vec<String> = members.iter().map(|&member| self.0[member].address.clone()).collect();
        let addresses = addresses.join(",");
        for (rank, &member) in members.iter().enumerate() {
            let process = &mut self.0[member];
            let (held, ms) = (u8::from(process.is_held), deadline.as_millis());
            writeln!(process.stdin, "open {generation} {rank} {ms} {held} {addresses}").unwrap();
        }
    }

    pub fn outcome(&mut self, member: usize, patience: Duration) -> Outcome {
        let line = self.0[member].line(patience);
        let mut words = line.splitn(4, ' ');
        match (words.next(), words.next(), words.next(), words.next()) {
            (Some("done"), Some(hash), ..) => Outcome::Done { hash: hash.into() },
            (Some("failed"), Some(waited), Some(culprit), Some(what)) => Outcome::Failed {
                what: what.into(),
                culprit: culprit.parse().ok(),
                waited: Duration::from_millis(waited.parse().unwrap()),
            },
            _ => panic!("{line}"),
        }
    }

    /// In its next generation it waits before the last operation, for ever.
    pub fn hold(&mut self, member: usize) {
        self.0[member].is_held = true;
    }

    /// Stops a process that waits so.
    pub fn stop_when_held(&mut self, member: usize) {
        assert_eq!(self.0[member].line(Duration::from_secs(30)), "held");
        let pid = self.0[member].child.id().to_string();
        assert!(Command::new("kill").args(["-STOP", &pid]).status().unwrap().success());
    }
}

impl Process {
    fn line(&mut self, patience: Duration) -> String {
        self.lines.recv_timeout(patience).expect("a line in time")
    }
}

impl Drop for World {
    fn drop(&mut self) {
        for process in &mut self.0 {
            let _ = process.child.kill();
            let _ = process.child.wait();
        }
    }
}

/// The process itself; nothing where this is an ordinary test.
pub fn be_a_rank() {
    if std::env::var_os(ROLE).is_none() {
        return;
    }
    let place = rendezvous(0);
    println!("\n► address {}", place.address());
    for line in std::io::stdin().lines().map_while(Result::ok) {
        let words: Vec<&str> = line.split(' ').collect();
        let number = |at: usize| words[at].parse::<u64>().unwrap();
        let addresses: Vec<String> = words[5].split(',').map(str::to_owned).collect();
        let start = Instant::now();
        let met = meet(&place, number(1), number(2) as u32, &addresses, Duration::from_millis(number(3)));
        let result = met.and_then(|mesh| work(&mesh, number(4) == 1));
        let waited = start.elapsed().as_millis();
        match result {
            Ok(hash) => println!("► done {hash:x}"),
            Err(error) => {
                let culprit = error.culprit().map_or("-".into(), |rank| rank.to_string());
                let kind = if matches!(error, CollectiveError::Unusable { .. }) { "unusable: " } else { "" };
                println!("► failed {waited} {culprit} {kind}{error}");
            }
        }
    }
}

/// Some operations of every kind on both lanes; a hash of what came.
fn work(mesh: &NcclMesh, is_held: bool) -> Result<u64, CollectiveError> {
    let (rank, world) = (mesh.rank(), mesh.world());
    let counts: Vec<u32> = (0..world).map(|rank| 1 + rank % 2).collect();
    let layout = Layout::canonical(counts.iter().sum(), &counts);
    let mut seen = Vec::new();
    for index in 0..4 {
        let all = mesh.all_gather(&op(Lane::Norm, "gather", index), &[rank.0 as u8; 5])?;
        seen.extend(all.concat());
        let partials = vec![vec![0.1f32 + rank.0 as f32; 20_000]; layout.num_partials(rank)];
        let partials: Vec<&[f32]> = partials.iter().map(Vec::as_slice).collect();
        let mut sum = vec![0f32; 20_000];
        mesh.reduce_f32(&op(Lane::Buckets, "bucket", index), &layout, &partials, &mut sum)?;
        seen.extend(sum.iter().flat_map(|sum| sum.to_le_bytes()));
        let mut bytes = vec![rank.0 as u8 + 1; 10_000];
        mesh.broadcast(&op(Lane::Buckets, "heal", index), lockstep_proto::ids::Rank(0), &mut bytes)?;
        seen.extend(bytes);
    }
    if is_held {
        println!("► held");
        loop {
            std::thread::park();
        }
    }
    mesh.barrier(&op(Lane::Norm, "last", 0))?;
    Ok(seen
        .iter()
        .fold(0xcbf2_9ce4_8422_2325, |hash: u64, &byte| (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3)))
}
