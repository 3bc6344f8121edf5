//! Which GPUs the driver shows to a process: known before any library of theirs is opened.

/// How many there are: device files `/dev/nvidia0`, `/dev/nvidia1`, …
pub fn num_visible() -> usize {
    let is_gpu = |name: &str| name.strip_prefix("nvidia").is_some_and(|rest| rest.parse::<u32>().is_ok());
    let entries = std::fs::read_dir("/dev").into_iter().flatten().flatten();
    entries.filter(|entry| entry.file_name().to_str().is_some_and(is_gpu)).count()
}
