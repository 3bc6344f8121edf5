//! A command of the proof: a process group of its own with a time limit, its words in files.

use std::fs::File;
use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::time::Instant;

use rustix::process::{Pid, Signal, kill_process_group};
use tokio::process::{Child, Command};

/// Variables of Lockstep's that children take over; all others are flags of the proof itself.
const INHERITED: [&str; 4] = ["LOCKSTEP_NCCL", "LOCKSTEP_CUDA_DRIVER", "LOCKSTEP_TRANSPORT", "LOCKSTEP_CACHE"];

/// A command.
#[derive(Clone, Debug)]
pub struct Spec {
    /// What it is, for names of files.
    pub name: String,
    /// The program.
    pub program: PathBuf,
    /// Its arguments.
    pub args: Vec<String>,
    /// Variables that are set for it.
    pub env: Vec<(String, String)>,
}

impl Spec {
    /// Without variables.
    pub fn new(name: impl Into<String>, program: &Path, args: &[&str]) -> Self {
        let args = args.iter().map(|arg| (*arg).to_owned()).collect();
        Self { name: name.into(), program: program.to_owned(), args, env: Vec::new() }
    }

    /// With one more argument.
    pub fn arg(mut self, arg: impl Into<String>) -> Self {
        self.args.push(arg.into());
        self
    }

    /// With more keys of the recipe.
    pub fn sets<S: AsRef<str>>(mut self, sets: impl IntoIterator<Item = S>) -> Self {
        self.args.extend(sets.into_iter().flat_map(|set| ["--set".to_owned(), set.as_ref().to_owned()]));
        self
    }

    /// With a variable.
    pub fn env(mut self, name: &str, value: &str) -> Self {
        self.env.push((name.into(), value.into()));
        self
    }

    /// As a shell takes it.
    pub fn shown(&self) -> String {
        let quoted = |word: &str| {
            let is_plain = !word.is_empty() && word.chars().all(|c| c.is_alphanumeric() || "/._-+:=@%,".contains(c));
            if is_plain { word.to_owned() } else { format!("'{}'", word.replace('\'', r"'\''")) }
        };
        let env = self.env.iter().map(|(name, value)| format!("{name}={}", quoted(value)));
        let program = quoted(&self.program.display().to_string());
        let args = self.args.iter().map(|arg| quoted(arg));
        env.chain([program]).chain(args).collect::<Vec<_>>().join(" ")
    }
}

/// A command that runs. Dropping it kills it and what it started.
pub struct Running {
    /// What it is.
    pub name: String,
    /// Its number among all commands.
    pub number: usize,
    /// When it was started.
    pub began: Instant,
    child: Child,
    /// Its group; `None` once it was waited for.
    group: Option<Pid>,
    stem: PathBuf,
}

impl Running {
    /// Starts it; its words go to `STEM.out` and `STEM.err`.
    ///
    /// # Errors
    /// There is no such program, or a file cannot be made.
    pub fn start(spec: &Spec, number: usize, stem: PathBuf) -> Result<Self, String> {
        let file = |kind: &str| {
            let path = stem.with_added_extension(kind);
            File::create(&path).map_err(|error| format!("cannot write {}: {error}", path.display()))
        };
        let mut command = Command::new(&spec.program);
        for (name, _) in std::env::vars_os() {
            let name = name.to_string_lossy().into_owned();
            if name.starts_with("LOCKSTEP_") && !INHERITED.contains(&name.as_str()) {
                command.env_remove(name);
            }
        }
        command.args(&spec.args).envs(spec.env.iter().map(|(name, value)| (name, value)));
        // Standard input stays open while this lives, for those who watch it.
        command.stdin(Stdio::piped()).stdout(file("out")?).stderr(file("err")?).process_group(0).kill_on_drop(true);
        let child = command.spawn().map_err(|error| format!("cannot start {}: {error}", spec.program.display()))?;
        let group = child.id().and_then(|pid| i32::try_from(pid).ok()).and_then(Pid::from_raw);
        Ok(Self { name: spec.name.clone(), number, began: Instant::now(), child, group, stem })
    }

    /// Waits for its end; what it started and left behind ends with it.
    ///
    /// # Errors
    /// The system refuses.
    pub async fn wait(&mut self) -> Result<ExitStatus, String> {
        let input = self.child.stdin.take();
        let status = self.child.wait().await.map_err(|error| format!("cannot wait: {error}"));
        drop(input);
        self.kill();
        self.group = None;
        status
    }

    /// SIGKILL to all of its group.
    pub fn kill(&self) {
        if let Some(group) = self.group {
            // Gone already is as good.
            let _ = kill_process_group(group, Signal::KILL);
        }
    }

    /// What it wrote on standard output so far.
    pub fn stdout(&self) -> String {
        read(&self.stem.with_added_extension("out"))
    }

    /// The last thing that it complained of.
    pub fn last_words(&self) -> String {
        last_words(&read(&self.stem.with_added_extension("err")))
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.kill();
    }
}

fn read(path: &Path) -> String {
    String::from_utf8_lossy(&std::fs::read(path).unwrap_or_default()).into_owned()
}

/// The line that begins with `error: `, else the last one with anything in it.
fn last_words(stderr: &str) -> String {
    let lines = || stderr.lines().map(str::trim).filter(|line| !line.is_empty());
    let line = lines().rfind(|line| line.starts_with("error: ")).or_else(|| lines().next_back());
    line.unwrap_or_default().chars().take(400).collect()
}

/// How a process ended, for people.
pub fn describe(status: ExitStatus) -> String {
    match (status.code(), status.signal()) {
        (Some(0), _) => "done".into(),
        (Some(code), _) => format!("exit code {code}"),
        (None, Some(signal)) => format!("killed by signal {signal}"),
        (None, None) => "ended".into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_is_shown_as_a_shell_takes_it() {
        let spec = Spec::new("x", Path::new("/bin/lockstep"), &["train", "demo"]).sets(["a=[1, 2]"]).env("A", "b c");
        assert_eq!(spec.shown(), "A='b c' /bin/lockstep train demo --set 'a=[1, 2]'");
    }

    #[test]
    fn last_words_are_the_error_or_the_last_line() {
        assert_eq!(last_words("x\nerror: no GPU\n  more\n\n"), "error: no GPU");
        assert_eq!(last_words("Traceback\nValueError: no\n"), "ValueError: no");
        assert_eq!(last_words(""), "");
    }
}
