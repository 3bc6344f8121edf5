//! All-reduce over loopback, a process a rank: median seconds for each size, one JSON line each.
//!
//! ```text
//! cargo run --release -p lockstep-collective --example allreduce -- --ranks 2 [ELEMENTS…]
//! ```

use std::error::Error;
use std::io::{BufRead, BufReader, Write};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use lockstep_collective::{Listener, TcpMesh, bench};
use lockstep_proto::ids::{Generation, Rank};

const DEADLINE: Duration = Duration::from_secs(60);
/// Elements: 4 B, 4 KiB, ResNet-20's gradients, ResNet-50's.
const SIZES: [usize; 4] = [1, 1024, 270_410, 25_557_032];

fn main() -> Result<(), Box<dyn Error>> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    match args.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["--rank", rank, ref sizes @ ..] => work(rank.parse()?, sizes),
        ["--ranks", ranks, ref sizes @ ..] => spawn(ranks.parse()?, sizes),
        _ => Err("usage: allreduce --ranks N [ELEMENTS…]".into()),
    }
}

/// Starts the ranks and tells each where the others are.
fn spawn(ranks: u32, sizes: &[&str]) -> Result<(), Box<dyn Error>> {
    let mut children: Vec<Child> = Vec::new();
    let mut addresses = Vec::new();
    for rank in 0..ranks {
        let mut child = Command::new(std::env::current_exe()?)
            .args(["--rank", &rank.to_string()])
            .args(sizes)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        let mut line = String::new();
        if let Some(out) = &mut child.stdout {
            // The child says one line and waits, so nothing is lost with the buffer.
            BufReader::new(out).read_line(&mut line)?;
        }
        addresses.push(line.trim().to_string());
        children.push(child);
    }
    for child in &mut children {
        if let Some(mut stdin) = child.stdin.take() {
            writeln!(stdin, "{}", addresses.join(" "))?;
        }
    }
    for (rank, child) in children.into_iter().enumerate() {
        let output = child.wait_with_output()?;
        if rank == 0 {
            print!("{}", String::from_utf8_lossy(&output.stdout));
        }
    }
    Ok(())
}

fn work(rank: u32, sizes: &[&str]) -> Result<(), Box<dyn Error>> {
    let sizes: Vec<usize> = match sizes {
        [] => SIZES.into(),
        sizes => sizes.iter().map(|size| size.parse()).collect::<Result<_, _>>()?,
    };
    let listener = Listener::bind("127.0.0.1")?;
    println!("{}", listener.address());
    let mut line = String::new();
    std::io::stdin().read_line(&mut line)?;
    let addresses: Vec<String> = line.split_whitespace().map(str::to_string).collect();
    let mesh = TcpMesh::connect(&listener, Generation(1), "example", Rank(rank), &addresses, DEADLINE)?;
    for num_elements in sizes {
        let repetitions = match num_elements {
            0..10_000 => 200,
            10_000..1_000_000 => 60,
            _ => 10,
        };
        let mut seconds = bench::all_reduce(&mesh, num_elements, repetitions)?;
        seconds.sort_by(f64::total_cmp);
        let (ranks, bytes, median) = (addresses.len(), 4 * num_elements, seconds[seconds.len() / 2]);
        println!(
            r#"{{"collective": "tcp", "ranks": {ranks}, "bytes": {bytes}, "seconds": {median:.7}, "bytes_per_s": {:.4e}}}"#,
            bytes as f64 / median
        );
    }
    Ok(())
}
