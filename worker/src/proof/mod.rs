//! `gpu-proof`: every figure that needs a GPU, against PyTorch beside it, in one table.
//!
//! ```text
//! args ─► Config                       line     what is to be shown: figures, goals, shares of the time, as data
//!           │                          child    a command: its own process group, a limit, its words in files
//!           ▼                          pairs    A B A B …
//!          Lab ── line by line ──┬─ losses    1   first losses                 ours   the commands
//!           │                    ├─ two       2   two processes, one killed    read   what they left behind
//!           ▼                    ├─ speed     3, 4, 9
//!         Table  written after   ├─ parts     5
//!                every figure    └─ accuracy  6
//! ```
//! Only public commands are run, each as a process of its own: what fails, hangs or crashes there ends with that command, and
//! the next line has its turn. May never: report what was not measured, or give a verdict about a GPU without one.

mod accuracy;
pub mod args;
mod child;
mod lab;
mod line;
mod losses;
mod machine;
mod ours;
mod pairs;
mod parts;
mod read;
mod speed;
mod table;
mod two;

use std::time::{Duration, Instant};

use lockstep_proto::exit::ExitCode;

use crate::exit::Exit;
use crate::session;
use args::ProofArgs;
use lab::Lab;
use line::{LINES, Line};
use table::{Table, Verdict};

/// Runs all lines that were asked for, and prints the table.
///
/// # Errors
/// Wrong usage; a folder that cannot be written; a signal (75). What a line finds is in the table and no error.
pub fn run(args: &ProofArgs) -> Result<(), Exit> {
    let config = args.validate()?;
    let internal = |error: std::io::Error| Exit::new(ExitCode::Software, format!("cannot start: {error}"));
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(internal)?;
    runtime.block_on(async {
        let signals = session::listen().map_err(internal)?;
        let table = Table::new(&config.out, machine::now(), &config.only);
        table.write()?;
        prove(Lab::new(config, table, signals)).await
    })
}

async fn prove(mut lab: Lab) -> Result<(), Exit> {
    let end = Instant::now() + lab.config.budget;
    machine::describe(&mut lab).await;
    let asked: Vec<&Line> = LINES.iter().filter(|line| lab.config.only.contains(&line.name)).collect();
    for (index, line) in asked.iter().enumerate() {
        // What earlier lines left over is there for all later ones.
        let shares: f64 = asked[index..].iter().map(|line| line.share).sum();
        let left = end.saturating_duration_since(Instant::now());
        lab.turn_to(line.name, Instant::now() + left.mul_f64(line.share / shares));
        tracing::info!("line {}: {}", line.name, line.title);
        measure(&mut lab, line.name).await;
        let why = if lab.interrupted { "interrupted" } else { "did not fit into the time of its line" };
        lab.could_not_rest(line.name, why);
        if lab.interrupted {
            break;
        }
    }
    lab.table.complete = !lab.interrupted;
    lab.save();
    println!("{}", lab.table.markdown());
    if let Some(exit) = lab.failure {
        return Err(exit);
    }
    if lab.interrupted {
        let reason = format!("interrupted; what was measured is in {}", lab.config.out.display());
        return Err(Exit::new(ExitCode::TempFail, reason));
    }
    let count = |verdict: Verdict| lab.table.rows.iter().filter(|row| row.verdict == verdict).count();
    let (missed, unable) = (count(Verdict::Miss), count(Verdict::CouldNotRun));
    let seconds = Duration::from_secs(lab.elapsed().as_secs());
    tracing::info!(
        "{missed} missed, {unable} could not run; {seconds:?}; {}",
        lab.config.out.join("proof.md").display()
    );
    Ok(())
}

async fn measure(lab: &mut Lab, line: &str) {
    match line {
        "1" => losses::run(lab).await,
        "2" => two::run(lab).await,
        "3" => speed::cifar(lab).await,
        "4" => speed::imagenet(lab).await,
        "5" => parts::run(lab).await,
        "6" => accuracy::run(lab).await,
        "9" => speed::fed(lab).await,
        _ => {}
    }
}
