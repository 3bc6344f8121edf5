//! Records as an engine gives them, and a worker that reports without computing.
#![allow(dead_code, clippy::unwrap_used)] // each test file uses its part; a panic is how a test fails

pub mod records;
pub mod worker;

use lockstep_coordinator::CoordinatorConfig;
use lockstep_proto::recipe::Recipe;
use lockstep_proto::wire::TlsFiles;

/// Two epochs of three steps: batches of 16, 16 and 8 in chunks of 4.
pub fn recipe() -> Recipe {
    let text = "name = \"small\"\n[data]\nkind = \"shapes\"\n[schedule]\nkind = \"constant\"\n\
                [train]\nbatch = 16\nchunk = 4\nepochs = 2\nwindow = 2\n[elastic]\njoin_timeout_s = 30.0\n";
    Recipe::from_toml(text, "test").unwrap()
}

/// On any free port of this host, on the run directory of a test.
pub fn config(run_dir: &std::path::Path, resume: bool) -> CoordinatorConfig {
    CoordinatorConfig {
        recipe: recipe(),
        run_dir: run_dir.to_owned(),
        link_latest: false,
        resume,
        listen: ([127, 0, 0, 1], 0).into(),
        token: None,
        insecure: false,
        tls: TlsFiles::default(),
        http: None,
    }
}
