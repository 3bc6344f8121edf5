//! Which GPUs the driver shows to a process: known before any library of theirs is opened.

/// How many this process may use: device files `/dev/nvidia0`, `/dev/nvidia1`, …, and of these what `CUDA_VISIBLE_DEVICES`
/// leaves.
pub fn num_visible() -> usize {
    let is_gpu = |name: &str| name.strip_prefix("nvidia").is_some_and(|rest| rest.parse::<u32>().is_ok());
    let entries = std::fs::read_dir("/dev").into_iter().flatten().flatten();
    let present = entries.filter(|entry| entry.file_name().to_str().is_some_and(is_gpu)).count();
    left(present, std::env::var("CUDA_VISIBLE_DEVICES").ok().as_deref())
}

/// Of `present` devices those that the variable leaves: entries after one that names no device do not count (CUDA
/// programming guide, environment variables).
fn left(present: usize, variable: Option<&str>) -> usize {
    let Some(list) = variable else { return present };
    let names = |entry: &str| match entry.parse::<usize>() {
        Ok(ordinal) => ordinal < present,
        Err(_) => entry.starts_with("GPU-") || entry.starts_with("MIG-"),
    };
    list.split(',').map(str::trim).take_while(|entry| names(entry)).count().min(present)
}

#[cfg(test)]
mod tests {
    use super::left;

    #[test]
    fn the_variable_hides_devices() {
        assert_eq!(left(4, None), 4);
        assert_eq!(left(4, Some("1,3")), 2);
        assert_eq!(left(4, Some("")), 0);
        assert_eq!(left(4, Some("0,-1,2")), 1);
        assert_eq!(left(4, Some("0, 9")), 1);
        assert_eq!(left(4, Some("GPU-5ebe,MIG-1")), 2);
        assert_eq!(left(0, Some("0")), 0);
    }
}
