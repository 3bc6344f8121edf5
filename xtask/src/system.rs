//! What surrounds a build: the checkout, its cache, programs and the system packages that bring them.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

/// The checkout and how freely packages may be installed.
pub struct System {
    /// Root of the checkout.
    pub root: PathBuf,
    install: bool,
}

impl System {
    /// `yes`: install what is missing. `CI` in the environment says so too.
    pub fn new(yes: bool) -> Self {
        let manifest = Path::new(env!("CARGO_MANIFEST_DIR"));
        let root = manifest.parent().unwrap_or(manifest).to_path_buf();
        Self { root, install: yes || in_ci() }
    }

    /// The folder that checkouts share.
    ///
    /// # Errors
    /// When neither `LOCKSTEP_CACHE`, `XDG_CACHE_HOME` nor `HOME` is set.
    pub fn cache(&self) -> Result<PathBuf> {
        let set = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
        if let Some(own) = set("LOCKSTEP_CACHE") {
            return Ok(own);
        }
        let base = set("XDG_CACHE_HOME").or_else(|| set("HOME").map(|home| home.join(".cache")));
        Ok(base.context("no folder for the cache: set LOCKSTEP_CACHE")?.join("lockstep"))
    }

    /// Checks that `program args` succeeds; else installs `packages` when that is allowed, or names them.
    ///
    /// # Errors
    /// When the program is missing and was not or could not be installed.
    pub fn need(&self, program: &str, args: &[&str], packages: &[&str]) -> Result<()> {
        if answers(program, args) {
            return Ok(());
        }
        let list = packages.join(" ");
        let command = [program].iter().chain(args).copied().collect::<Vec<_>>().join(" ");
        if !self.install {
            bail!(
                "`{command}` does not work: install it with `apt-get install {list}`, or say --yes to have that done"
            );
        }
        eprintln!("installing {list}");
        apt_get(&["update", "-qq"])?;
        apt_get(&[&["install", "-y", "-qq", "--no-install-recommends"], packages].concat())?;
        if !answers(program, args) {
            bail!("`{command}` does not work although `apt-get install {list}` succeeded: put it on PATH");
        }
        Ok(())
    }

    /// A cargo command in the root; `--locked` in CI, so that what was committed is what is tested.
    pub fn cargo(&self, args: &[&str]) -> Command {
        let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
        command.current_dir(&self.root).args(cargo_args(args, in_ci()));
        command
    }

    /// Checks the compiler's version against `rust-version` of the root manifest.
    ///
    /// There is no rust-toolchain.toml: with a version number in it rustup downloads that toolchain, which not every
    /// machine can do, even where a newer one that would serve is installed. So the manifest pins the least version
    /// and this refuses what is older.
    ///
    /// # Errors
    /// When it is older, or either cannot be read.
    pub fn check_rustc(&self) -> Result<()> {
        let manifest = std::fs::read_to_string(self.root.join("Cargo.toml")).context("cannot read Cargo.toml")?;
        let wanted = manifest
            .lines()
            .find_map(|line| line.trim().strip_prefix("rust-version = \""))
            .and_then(version)
            .context("Cargo.toml names no rust-version")?;
        let rustc = std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
        let found = output(Command::new(rustc).arg("--version"))?;
        let have = found.split(' ').nth(1).and_then(version).context("cannot read the version that rustc gives")?;
        if have < wanted {
            bail!("{} is too old: Lockstep needs {}.{}; run `rustup update stable`", found.trim(), wanted.0, wanted.1);
        }
        Ok(())
    }
}

/// Whether this is a machine of continuous integration.
pub fn in_ci() -> bool {
    std::env::var_os("CI").is_some_and(|value| !value.is_empty() && value != "0" && value != "false")
}

/// Runs a command with this process's input and output.
///
/// # Errors
/// When it cannot be started or does not succeed.
pub fn run(command: &mut Command) -> Result<()> {
    let text = describe(command);
    eprintln!("$ {text}");
    let status = command.status().with_context(|| format!("cannot start `{text}`"))?;
    if !status.success() {
        bail!("`{text}` failed: {status}");
    }
    Ok(())
}

/// Runs a command and returns what it printed.
///
/// # Errors
/// When it cannot be started or does not succeed: with what it said.
pub fn output(command: &mut Command) -> Result<String> {
    let text = describe(command);
    let output = command.output().with_context(|| format!("cannot start `{text}`"))?;
    if !output.status.success() {
        bail!("`{text}` failed: {}\n{}", output.status, String::from_utf8_lossy(&output.stderr).trim_end());
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

fn answers(program: &str, args: &[&str]) -> bool {
    let mut command = Command::new(program);
    command.args(args).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    command.status().is_ok_and(|status| status.success())
}

fn apt_get(args: &[&str]) -> Result<()> {
    let root = output(Command::new("id").arg("-u")).is_ok_and(|id| id.trim() == "0");
    let mut command = if root { Command::new("apt-get") } else { Command::new("sudo") };
    if !root {
        command.arg("apt-get");
    }
    run(command.args(args).env("DEBIAN_FRONTEND", "noninteractive"))
}

fn describe(command: &Command) -> String {
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    let words: Vec<_> = words.map(|word| word.to_string_lossy()).collect();
    let text = words.join(" ");
    match text.strip_prefix(&*std::env::var("CARGO").unwrap_or_default()) {
        Some(rest) if rest.len() < text.len() => format!("cargo{rest}"),
        _ => text,
    }
}

/// Major and minor of `1.95.0…`.
fn version(text: &str) -> Option<(u32, u32)> {
    let mut numbers = text.split(|c: char| !c.is_ascii_digit());
    Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
}

/// `--locked` comes right behind the subcommand: behind a `--` it would be the subcommand's tool's.
fn cargo_args<'a>(args: &[&'a str], locked: bool) -> Vec<&'a str> {
    let mut all = args.to_vec();
    if locked && !matches!(args.first(), Some(&("fmt" | "deny"))) {
        all.insert(1, "--locked");
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn locked_stands_before_what_is_passed_on() {
        assert_eq!(cargo_args(&["clippy", "--", "-D"], true), ["clippy", "--locked", "--", "-D"]);
        assert_eq!(cargo_args(&["fmt", "--all"], true), ["fmt", "--all"]);
        assert_eq!(cargo_args(&["test"], false), ["test"]);
    }

    #[test]
    fn versions_compare_as_numbers() {
        assert_eq!(version("1.95.0 (abc 2026)"), Some((1, 95)));
        assert_eq!(version("1.100\""), Some((1, 100)));
        assert!(version("1.100") > version("1.95.1"));
        assert_eq!(version("stable"), None);
    }

    #[test]
    fn a_missing_program_is_named_with_its_package() {
        let system = System { root: PathBuf::new(), install: false };
        let error = system.need("no-such-program", &["--version"], &["some-package"]).unwrap_err().to_string();
        assert_eq!(
            error,
            "`no-such-program --version` does not work: install it with `apt-get install some-package`, \
             or say --yes to have that done"
        );
    }
}
