//! `lockstep-deploy`: what deploy/kubernetes promises, shown on a real control plane. `cargo xtask kubernetes` runs it.
#![forbid(unsafe_code)]

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context as _, Result};
use lockstep_deploy::cluster::{Line, Places, show};
use lockstep_deploy::net::Net;

fn main() -> ExitCode {
    match run() {
        Ok(code) => code,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// `CONTROL-PLANE TOOLS EXECUTABLES [NAMESPACE]`: with the last, this is the process that already is beside the bridge.
fn run() -> Result<ExitCode> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let path = |index: usize| args.get(index).map(PathBuf::from).context("usage: CONTROL-PLANE TOOLS EXECUTABLES");
    let places = Places { control_plane: path(0)?, tools: path(1)?, executables: path(2)? };
    let Some(namespace) = args.get(3) else {
        let net = Net::new()?;
        let own = std::env::current_exe()?;
        let mut command = net.command(&own.to_string_lossy());
        let status = command.args(&args).arg(net.namespace()).status().context("cannot start again")?;
        return Ok(if status.success() { ExitCode::SUCCESS } else { ExitCode::FAILURE });
    };
    let lines = show(&places, Net::beside(namespace))?;
    print!("{}", table(&lines));
    Ok(if lines.iter().all(|line| line.held) { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn table(lines: &[Line]) -> String {
    let mut text = "| promise | held | seen |\n|---|---|---|\n".to_owned();
    for line in lines {
        let seen = line.seen.replace('|', "/").replace('\n', " ");
        text += &format!("| {} | {} | {seen} |\n", line.what, if line.held { "yes" } else { "NO" });
    }
    text
}
