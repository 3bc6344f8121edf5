//! A container without a container runtime: namespaces for network, mounts, processes, host name; a root of its own that
//! cannot be written; user and group of the Pod; no capabilities and no new privileges.
//!
//! ```text
//! ip netns exec HUB ─► unshare ─► sh: waits, and ends as the Pod did
//!                                 └─► sh: waits for its cable, builds the root ─► chroot ─► setpriv ─► env ─► the command
//!                                     └ one process, number 1 in its namespace ─────────────────────────────────────┘
//! ```
//! Both end with the thread that started them (`--pdeathsig`), so a Pod stays in its thread. `unshare --fork` would be
//! shorter, but does not tell by which signal its child ended (util-linux 2.38).
//!
//! What it is not: there is no seccomp filter, and limits on memory and CPU are not kept.

use std::fmt::Write as _;
use std::fs::{self, File};
use std::io::Write as _;
use std::os::unix::fs::{PermissionsExt as _, chown};
use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, ExitStatus, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use rustix::process::{Pid, Signal, kill_process};

use crate::net::Net;
use crate::pod::{Container, Identity, Mount, Source};
use crate::process::{run, until};

/// Programs that the sandbox is made of; all come with Debian.
pub const PROGRAMS: [&str; 5] = ["ip", "unshare", "setpriv", "mount", "chroot"];

/// What an image brings besides a plain system.
#[derive(Clone, Debug)]
pub struct Image {
    /// Found on the container's PATH.
    pub executables: Vec<PathBuf>,
    /// A folder of libraries that executables look for at its own path.
    pub libraries: Option<PathBuf>,
}

/// A Pod that runs. Dropping it kills it.
#[derive(Debug)]
pub struct Running {
    /// Who it is.
    pub identity: Identity,
    child: Child,
    /// The container's first process, as the machine numbers it.
    pid: u32,
    folder: PathBuf,
}

impl Running {
    /// Starts a container. `folder` is the Pod's own, and keeps `log` and `hosts`.
    pub fn start(container: &Container, image: &Image, identity: Identity, net: &Net, folder: &Path) -> Result<Self> {
        fs::create_dir_all(folder.join("root"))?;
        let hosts = folder.join("hosts");
        if !hosts.exists() {
            fs::write(&hosts, "127.0.0.1 localhost\n")?;
        }
        let script = script(container, image, &identity, folder)?;
        let log = File::options().create(true).append(true).open(folder.join("log"))?;
        let mut command = net.command("setpriv");
        command.args(["--pdeathsig", "KILL", "unshare", "--net", "--mount", "--pid", "--uts", "--ipc", "sh", "-ec"]);
        command.arg(script).stdin(Stdio::piped()).stdout(log.try_clone()?).stderr(log);
        let mut child = command.spawn().context("cannot start a Pod")?;
        let pid = until("a Pod's first process", Duration::from_secs(20), || {
            if let Some(status) = child.try_wait()? {
                bail!("a Pod ended with {status} before it began: {}", last_words(folder));
            }
            let of_thread = format!("/proc/{0}/task/{0}/children", child.id());
            Ok(fs::read_to_string(of_thread).unwrap_or_default().split_whitespace().next().map(str::to_owned))
        })?;
        let mut running = Self { identity, child, pid: pid.parse()?, folder: folder.into() };
        running.plug_in(net)?;
        Ok(running)
    }

    fn plug_in(&mut self, net: &Net) -> Result<()> {
        net.connect(&self.identity.ip, self.pid)?;
        let mut stdin = self.child.stdin.take().context("a Pod has no standard input")?;
        writeln!(stdin, "go").context("a Pod does not listen")
    }

    /// How it ended, if it has.
    pub fn ended(&mut self) -> Result<Option<i32>> {
        Ok(self.child.try_wait()?.map(code))
    }

    /// To the container's first process. One that is gone is no error.
    pub fn signal(&self, signal: Signal) {
        if let Some(pid) = i32::try_from(self.pid).ok().and_then(Pid::from_raw) {
            let _ = kill_process(pid, signal);
        }
    }

    /// SIGTERM, then SIGKILL after the grace period; gives the exit code, 137 if it came to that.
    pub fn stop(&mut self, grace: Duration) -> Result<i32> {
        self.signal(Signal::TERM);
        match self.wait(grace) {
            Ok(code) => Ok(code),
            Err(_) => {
                self.signal(Signal::KILL);
                self.wait(Duration::from_secs(20))
            }
        }
    }

    /// Its exit code, within a deadline.
    pub fn wait(&mut self, within: Duration) -> Result<i32> {
        let name = self.identity.name.clone();
        let folder = self.folder.clone();
        until(&format!("{name} ends"), within, || self.ended()).with_context(|| last_words(&folder))
    }

    /// All that it said.
    pub fn log(&self) -> String {
        fs::read_to_string(self.folder.join("log")).unwrap_or_default()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.signal(Signal::KILL);
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// As a shell tells it.
fn code(status: ExitStatus) -> i32 {
    status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or_default())
}

fn last_words(folder: &Path) -> String {
    let text = fs::read_to_string(folder.join("log")).unwrap_or_default();
    let lines: Vec<&str> = text.lines().filter(|line| !line.trim().is_empty()).collect();
    lines[lines.len().saturating_sub(5)..].join(" / ")
}

/// What the first process does before it becomes the command.
fn script(container: &Container, image: &Image, identity: &Identity, folder: &Path) -> Result<String> {
    let root = folder.join("root");
    let mut script = String::new();
    let mut line = |text: String| {
        let _ = writeln!(script, "{text}"); // a String takes everything
    };
    let at = |path: &str| quote(&format!("{}{path}", root.display()));
    // The first child is number 1 of the new namespace, so this shell may have no other.
    line("exec 3<&0; (read go <&3".into());
    line(format!("hostname {}", quote(&identity.name)));
    line("ip link set lo up".into());
    line(format!("ip addr add {}/16 dev eth0", identity.ip));
    line("ip link set eth0 up".into());
    line(format!("mount -t tmpfs -o mode=755,size=4m pod {}", at("")));
    line(format!("mkdir -p {} {} {} {}", at("/usr"), at("/etc"), at("/proc"), at("/dev/shm")));
    line(format!("mount -o bind,ro /usr {}", at("/usr")));
    for name in ["/bin", "/sbin", "/lib", "/lib64"] {
        line(format!("[ ! -L {name} ] || ln -s usr{name} {}", at(name)));
    }
    line(format!("mount -t tmpfs -o mode=755,size=1m local {}", at("/usr/local/bin")));
    for executable in &image.executables {
        let name = executable.file_name().context("an executable has no name")?.to_string_lossy();
        let target = at(&format!("/usr/local/bin/{name}"));
        line(format!("touch {target}; mount -o bind,ro {} {target}", quote(&executable.display().to_string())));
    }
    line(format!("mount -o remount,ro {}", at("/usr/local/bin")));
    if let Some(libraries) = &image.libraries {
        let path = libraries.display().to_string();
        line(format!("mkdir -p {0}; mount -o bind,ro {1} {0}", at(&path), quote(&path)));
    }
    etc_and_dev(&mut line, folder, &at);
    for mount in &container.mounts {
        volume(&mut line, mount, container, folder, &at)?;
    }
    line(format!("mount -t proc proc {}", at("/proc")));
    if container.is_read_only {
        line(format!("mount -o remount,ro {}", at("")));
    }
    line(format!("exec {} </dev/null 3<&-) & wait $!", command(container, &identity.name, &root)));
    Ok(script)
}

fn etc_and_dev(line: &mut impl FnMut(String), folder: &Path, at: &impl Fn(&str) -> String) {
    let hosts = quote(&folder.join("hosts").display().to_string());
    line(format!("touch {0}; mount -o bind,ro {hosts} {0}", at("/etc/hosts")));
    line(format!("touch {0}; mount -o bind,ro /etc/ld.so.cache {0}", at("/etc/ld.so.cache")));
    line(format!("echo 'hosts: files' >{}", at("/etc/nsswitch.conf")));
    for device in ["null", "zero", "full", "random", "urandom"] {
        let path = format!("/dev/{device}");
        line(format!("touch {0}; mount -o bind {path} {0}", at(&path)));
    }
}

fn volume(
    line: &mut impl FnMut(String),
    mount: &Mount,
    container: &Container,
    folder: &Path,
    at: &impl Fn(&str) -> String,
) -> Result<()> {
    let target = at(&mount.path);
    line(format!("mkdir -p {target}"));
    let source = match &mount.source {
        Source::Memory(bytes) => {
            line(format!("mount -t tmpfs -o mode=1777,size={bytes} shm {target}"));
            return Ok(());
        }
        Source::Scratch(name) => folder.join("volumes").join(name),
        Source::Claim(path) => path.clone(),
        Source::Files(name, files) => {
            let source = folder.join("volumes").join(name);
            fs::create_dir_all(&source)?;
            for (name, text) in files {
                let file = source.join(name);
                fs::write(&file, text)?;
                chown(&file, None, Some(container.gid))?;
                fs::set_permissions(&file, fs::Permissions::from_mode(0o440))?;
            }
            source
        }
    };
    fs::create_dir_all(&source)?;
    // What fsGroup means: the group owns it and may write.
    chown(&source, None, Some(container.gid))?;
    fs::set_permissions(&source, fs::Permissions::from_mode(0o2775))?;
    let ro = if mount.is_read_only { ",ro" } else { "" };
    line(format!("mount -o bind{ro} {} {target}", quote(&source.display().to_string())));
    Ok(())
}

/// Root until `setpriv`, which comes from within the new root, as does `env`.
fn command(container: &Container, name: &str, root: &Path) -> String {
    let ids = format!("--reuid={} --regid={} --clear-groups", container.uid, container.gid);
    let nothing = "--bounding-set=-all --inh-caps=-all --ambient-caps=-all --no-new-privs --pdeathsig KILL";
    // What every container finds, whatever its Pod says.
    let always = [
        ("PATH".to_owned(), "/usr/local/bin:/usr/bin:/bin".to_owned()),
        ("HOSTNAME".to_owned(), name.to_owned()),
        ("KUBERNETES_SERVICE_HOST".to_owned(), "10.96.0.1".to_owned()),
        ("KUBERNETES_SERVICE_PORT".to_owned(), "443".to_owned()),
    ];
    let env: Vec<String> =
        always.iter().chain(&container.env).map(|(name, value)| quote(&format!("{name}={value}"))).collect();
    let words: Vec<String> = container.command.iter().map(|word| quote(word)).collect();
    let root = quote(&root.display().to_string());
    format!("chroot {root} setpriv {ids} {nothing} env -i {} {}", env.join(" "), words.join(" "))
}

fn quote(text: &str) -> String {
    format!("'{}'", text.replace('\'', r"'\''"))
}

/// The folder in which an executable finds libtorch.
///
/// # Errors
/// When it finds none.
pub fn libraries(executable: &Path) -> Result<PathBuf> {
    let said = run("ldd", &[&executable.to_string_lossy()])?;
    let line = said.lines().find(|line| line.trim().starts_with("libtorch_cpu.so"));
    let path = line.and_then(|line| line.split("=>").nth(1)).and_then(|rest| rest.split_whitespace().next());
    let path = path.filter(|path| path.starts_with('/'));
    let path = path.with_context(|| format!("{} finds no libtorch", executable.display()))?;
    Ok(Path::new(path).parent().unwrap_or(Path::new("/")).into())
}
