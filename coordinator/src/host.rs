//! What is asked of the machine: its name, whether a process still lives, what kind of file system a folder is on.

use std::fs;
use std::path::Path;

/// Name of this host.
pub fn name() -> String {
    gethostname::gethostname().to_string_lossy().into_owned()
}

/// Tells this host's processes from those of another host, boot or container of the same name.
pub(crate) fn namespace() -> String {
    let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    let pids = fs::read_link("/proc/self/ns/pid").map(|link| link.display().to_string()).unwrap_or_default();
    format!("{} {pids}", boot.trim())
}

/// When a process started, in ticks since boot: with the pid it names one process. `None` when there is none.
pub(crate) fn started(pid: u32) -> Option<String> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The second field is a name in parentheses that may hold anything; state is the 3rd field, start time the 22nd.
    let (_, rest) = stat.rsplit_once(')')?;
    let mut fields = rest.split_whitespace();
    if matches!(fields.next()?, "Z" | "X") {
        return None;
    }
    fields.nth(18).map(str::to_owned)
}

/// Whether `path` lies on a file system where SQLite's write-ahead log is unsafe: it needs memory shared by all its
/// users, so anything served by another machine, or that may be, counts.
pub(crate) fn is_network(path: &Path) -> bool {
    const NETWORK: [u32; 10] = [
        0x6969,      // NFS
        0x0bd0_0bd0, // Lustre
        0xff53_4d42, // CIFS
        0xfe53_4d42, // SMB2
        0x517b,      // SMB
        0x4750_4653, // GPFS
        0x00c3_6400, // Ceph
        0x1983_0326, // BeeGFS
        0x6573_5546, // FUSE
        0x0102_1997, // 9P
    ];
    rustix::fs::statfs(path).is_ok_and(|stat| NETWORK.contains(&(stat.f_type as u32)))
}

/// The CPU's own name, for provenance.
pub(crate) fn cpu_model() -> Option<String> {
    let info = fs::read_to_string("/proc/cpuinfo").ok()?;
    let line = info.lines().find(|line| line.starts_with("model name"))?;
    line.split_once(':').map(|(_, name)| name.trim().to_owned())
}

#[cfg(test)]
mod tests {
    #[test]
    fn this_process_lives_and_an_impossible_one_does_not() {
        assert!(super::started(std::process::id()).is_some());
        assert_eq!(super::started(u32::MAX), None);
    }
}
