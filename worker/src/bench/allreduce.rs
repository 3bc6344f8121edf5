//! `bench allreduce --ranks N`: processes of this program over loopback, one line a size.
//!
//! ```text
//! parent ── spawns ──► rank r: binds, prints its address ──► parent: all addresses to everyone's stdin
//!                      rank 0: prints results            ──► parent's stdout
//! ```

use std::io::{BufRead as _, BufReader, Write as _};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use lockstep_collective::{Listener, TcpMesh, bench::all_reduce};
use lockstep_proto::exit::ExitCode;
use lockstep_proto::ids::{Generation, Rank};
use serde_json::json;

use super::median;
use crate::args::BenchAllreduceArgs;
use crate::exit::Exit;

const DEADLINE: Duration = Duration::from_secs(60);

/// Measures and prints one JSON line a size.
///
/// # Errors
/// A process or a socket that cannot be had.
pub fn run(args: &BenchAllreduceArgs) -> Result<(), Exit> {
    if args.ranks == 0 {
        return Err(Exit::new(ExitCode::Usage, "--ranks 0: expected at least 1"));
    }
    match args.rank {
        Some(rank) => be(Rank(rank), &args.sizes),
        None => lead(args),
    }
}

fn internal(what: &str, error: impl std::fmt::Display) -> Exit {
    Exit::new(ExitCode::Software, format!("{what}: {error}"))
}

/// Starts the processes, introduces them to each other, passes on what rank 0 prints.
fn lead(args: &BenchAllreduceArgs) -> Result<(), Exit> {
    let program = std::env::current_exe().map_err(|error| internal("cannot find this program", error))?;
    let sizes: Vec<String> = args.sizes.iter().map(ToString::to_string).collect();
    let mut children = Children(Vec::new());
    for rank in 0..args.ranks {
        let child = Command::new(&program)
            .args(["bench", "allreduce", "--ranks", &args.ranks.to_string(), "--rank", &rank.to_string()])
            .args(["--sizes", &sizes.join(",")])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .map_err(|error| internal("cannot start a process", error))?;
        children.0.push(child);
    }
    let mut outputs = Vec::new();
    let mut addresses = Vec::new();
    for child in &mut children.0 {
        // invariant: both ends were piped above.
        let Some(output) = child.stdout.take() else { continue };
        let mut output = BufReader::new(output);
        let mut line = String::new();
        output.read_line(&mut line).map_err(|error| internal("a rank said nothing", error))?;
        addresses.push(line.trim().to_owned());
        outputs.push(output);
    }
    for child in &mut children.0 {
        if let Some(mut input) = child.stdin.take() {
            writeln!(input, "{}", addresses.join(" ")).map_err(|error| internal("a rank is gone", error))?;
        }
    }
    for line in outputs.swap_remove(0).lines() {
        println!("{}", line.map_err(|error| internal("rank 0 is gone", error))?);
    }
    for (rank, child) in children.0.iter_mut().enumerate() {
        let status = child.wait().map_err(|error| internal("cannot wait", error))?;
        if !status.success() {
            return Err(internal("the benchmark failed", format!("rank {rank} ended with {status}")));
        }
    }
    Ok(())
}

/// Processes that do not outlive this one's error.
struct Children(Vec<Child>);

impl Drop for Children {
    fn drop(&mut self) {
        for child in &mut self.0 {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// One rank.
fn be(rank: Rank, sizes: &[usize]) -> Result<(), Exit> {
    let collective = |error: lockstep_collective::CollectiveError| internal("all-reduce", error);
    let listener = Listener::bind("127.0.0.1").map_err(collective)?;
    println!("{}", listener.address());
    let mut line = String::new();
    std::io::stdin().read_line(&mut line).map_err(|error| internal("no addresses", error))?;
    let addresses: Vec<String> = line.split_whitespace().map(str::to_owned).collect();
    let mesh = TcpMesh::connect(&listener, Generation(1), "bench", rank, &addresses, DEADLINE).map_err(collective)?;
    for &size in sizes {
        let repetitions = match size {
            0..10_000 => 200,
            10_000..1_000_000 => 60,
            _ => 10,
        };
        let seconds = median(all_reduce(&mesh, size, repetitions).map_err(collective)?);
        if rank == Rank(0) {
            let bytes = 4 * size;
            let line = json!({
                "bench": "allreduce", "ranks": addresses.len(), "bytes": bytes,
                "seconds": seconds, "bytes_per_s": bytes as f64 / seconds,
            });
            println!("{line}");
        }
    }
    Ok(())
}
