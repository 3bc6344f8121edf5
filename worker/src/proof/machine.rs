//! On what it was measured: a figure without that says nothing.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use super::child::Spec;
use super::lab::Lab;
use super::read;

/// Asking takes no longer: what hangs here would hang everywhere.
const LIMIT: Duration = Duration::from_secs(60);

const TORCH: &str = "\
import json, torch
nccl = '.'.join(map(str, torch.cuda.nccl.version())) if torch.cuda.is_available() else None
name = torch.cuda.get_device_name(0) if torch.cuda.is_available() else None
print(json.dumps({'torch': torch.__version__, 'CUDA of torch': torch.version.cuda, 'cuDNN': torch.backends.cudnn.version(),
                  'NCCL of torch': nccl, 'GPU by torch': name}))";

/// Asks everyone; who does not answer is named with the reason.
pub async fn describe(lab: &mut Lab) {
    let mut found: Vec<(String, String)> = Vec::new();
    let mut say = |name: &str, value: String| found.push((name.to_owned(), value));
    say("device", lab.config.device.clone());
    say("host", gethostname::gethostname().to_string_lossy().into_owned());
    let info = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let cpu = info.lines().find_map(|line| line.strip_prefix("model name")?.split_once(':'));
    say("CPU", cpu.map_or("unknown", |(_, name)| name.trim()).to_owned());
    say("cores", crate::args::cores().to_string());
    say("kernel", std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default().trim().to_owned());
    say("Lockstep", format!("{} ({})", env!("CARGO_PKG_VERSION"), option_env!("LOCKSTEP_COMMIT").unwrap_or("unknown")));
    say("libtorch", libtorch());
    let smi = Spec::new(
        "nvidia-smi",
        "nvidia-smi".as_ref(),
        &["--query-gpu=name,driver_version,memory.total,clocks.sm,clocks.mem", "--format=csv,noheader"],
    );
    match lab.run_within(&smi, LIMIT).await {
        Ok(text) => say("GPU, driver, memory, clocks", text.trim().to_owned()),
        Err(why) => say("GPU, driver, memory, clocks", format!("unknown: {why}")),
    }
    let torch = Spec::new("torch", &lab.config.python.clone(), &["-c", TORCH]);
    match lab.run_within(&torch, LIMIT).await.and_then(|text| read::last_json(&text)) {
        Ok(versions) => {
            for (name, value) in versions.as_object().into_iter().flatten() {
                say(name, value.as_str().map_or_else(|| value.to_string(), str::to_owned));
            }
        }
        Err(why) => say("torch", format!("unknown: {why}")),
    }
    let doctor = Spec::new("doctor", &lab.config.lockstep.clone(), &["doctor"]);
    let doctor = doctor.env("LOCKSTEP_WORKER", &lab.config.worker.display().to_string());
    match lab.run_within(&doctor, LIMIT).await {
        Ok(text) => say("lockstep doctor", text.lines().map(str::trim).collect::<Vec<_>>().join("; ")),
        Err(why) => say("lockstep doctor", format!("unknown: {why}")),
    }
    lab.table.machine = found;
    lab.save();
}

/// The file that this process has open, and the version that lies beside it.
fn libtorch() -> String {
    let maps = std::fs::read_to_string("/proc/self/maps").unwrap_or_default();
    let Some(path) = maps
        .lines()
        .find_map(|line| line.find('/').map(|at| &line[at..]).filter(|path| path.contains("libtorch_cpu.so")))
    else {
        return "unknown".into();
    };
    let root = std::path::Path::new(path).ancestors().nth(2);
    let text = |name: &str| root.and_then(|root| std::fs::read_to_string(root.join(name)).ok());
    let of_wheel = text("version.py").and_then(|text| {
        let line = text.lines().find(|line| line.starts_with("__version__"))?;
        Some(line.split(['\'', '"']).nth(1)?.to_owned())
    });
    let version = of_wheel.or_else(|| text("build-version").map(|text| text.trim().to_owned()));
    format!("{} ({path})", version.as_deref().unwrap_or("unknown version"))
}

/// Now, UTC: `2026-11-26T07:00:00Z`.
pub fn now() -> String {
    let seconds = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_secs());
    stamp(seconds)
}

/// Days to a date by H. Hinnant's algorithm, for years from 1970.
fn stamp(seconds: u64) -> String {
    let (days, rest) = (seconds / 86_400, seconds % 86_400);
    let days = days + 719_468;
    let (era, day_of_era) = (days / 146_097, days % 146_097);
    let year_of_era = (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted + 2) / 5 + 1;
    let month = if shifted < 10 { shifted + 3 } else { shifted - 9 };
    let year = year_of_era + era * 400 + u64::from(month <= 2);
    format!("{year}-{month:02}-{day:02}T{:02}:{:02}:{:02}Z", rest / 3_600, rest / 60 % 60, rest % 60)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_are_those_of_a_calendar() {
        assert_eq!(stamp(0), "1970-01-01T00:00:00Z");
        assert_eq!(stamp(951_782_400), "2000-02-29T00:00:00Z");
        assert_eq!(stamp(1_795_676_645), "2026-11-26T07:04:05Z");
    }
}
