//! What runs and benchmarks left behind, read as anyone may: `docs/reading-runs.md`.

use std::path::{Path, PathBuf};

use safetensors::{Dtype, SafeTensors};
use serde::Deserialize;
use serde_json::Value;

use super::lab::Reason;
use crate::bench::median;

/// A line of `metrics.jsonl`.
#[derive(Clone, Debug, Deserialize)]
pub struct Step {
    /// Counts from 1.
    pub step: u64,
    /// Which world computed it.
    pub generation: u64,
    /// Ranks.
    pub world_size: u64,
    /// Absent: not a number.
    pub loss: Option<f64>,
    /// Images.
    pub samples: u64,
    /// Of all ranks.
    pub images_per_s: f64,
    /// Seconds that waited for data.
    pub data_s: f64,
    /// Seconds that computed.
    pub compute_s: f64,
    /// Seconds of communication that computing did not hide.
    pub comm_s: f64,
}

/// The committed steps of a run.
///
/// # Errors
/// There is no such file, or something else is in it.
pub fn steps(run: &Path) -> Result<Vec<Step>, Reason> {
    let path = run.join("metrics.jsonl");
    let text = std::fs::read_to_string(&path).map_err(|error| format!("{}: {error}", path.display()))?;
    // The last line may be half written while a run goes on.
    let whole = text.rfind('\n').map_or("", |end| &text[..end]);
    let parse = |line: &str| serde_json::from_str(line).map_err(|error| format!("{}: {error}: {line}", path.display()));
    whole.lines().map(parse).collect()
}

/// Losses of steps 1 to `count`.
///
/// # Errors
/// There are fewer, or one is not a number.
pub fn losses(run: &Path, count: usize) -> Result<Vec<f64>, Reason> {
    let losses: Vec<Option<f64>> = steps(run)?.iter().take(count).map(|step| step.loss).collect();
    if losses.len() < count {
        return Err(format!("{}: {} steps of {count}", run.display(), losses.len()));
    }
    losses.into_iter().collect::<Option<_>>().ok_or_else(|| format!("{}: a loss is not a number", run.display()))
}

/// The largest |a − b| ÷ |a|; infinite where lengths differ.
pub fn relative(a: &[f64], b: &[f64]) -> f64 {
    if a.len() != b.len() || a.is_empty() {
        return f64::INFINITY;
    }
    let one = |(a, b): (&f64, &f64)| if a == b { 0.0 } else { (a - b).abs() / a.abs() };
    a.iter().zip(b).map(one).fold(0.0, |most: f64, x| if x.is_nan() { f64::INFINITY } else { most.max(x) })
}

/// Images a second over steps after `skip`: all images ÷ all seconds.
///
/// # Errors
/// No such steps.
pub fn rate(steps: &[Step], skip: usize) -> Result<f64, Reason> {
    let counted: Vec<&Step> = steps.iter().skip(skip).filter(|step| step.images_per_s > 0.0).collect();
    let images: u64 = counted.iter().map(|step| step.samples).sum();
    let seconds: f64 = counted.iter().map(|step| step.samples as f64 / step.images_per_s).sum();
    if images > 0 && seconds > 0.0 { Ok(images as f64 / seconds) } else { Err(format!("no step after step {skip}")) }
}

/// The median over steps after `skip`.
pub fn middle(steps: &[Step], skip: usize, of: impl Fn(&Step) -> f64) -> f64 {
    median(steps.iter().skip(skip).map(of).collect())
}

/// A state of a run.
pub fn checkpoint(run: &Path, step: u64) -> PathBuf {
    run.join("checkpoints").join(format!("step-{step}"))
}

/// How far two states are apart.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Distance {
    /// Of every tensor, statistics too, the largest difference relative to its largest number; of these the largest.
    pub worst: f64,
    /// ‖difference‖ ÷ ‖parameters‖ over all parameters together.
    pub norm: f64,
}

/// Compares two checkpoints by their `model.safetensors`.
///
/// # Errors
/// A file that is not there or not whole; other tensors in one than in the other.
pub fn distance(a: &Path, b: &Path) -> Result<Distance, Reason> {
    let open = |folder: &Path| {
        let path = folder.join("model.safetensors");
        std::fs::read(&path).map_err(|error| format!("{}: {error}", path.display()))
    };
    let (bytes_a, bytes_b) = (open(a)?, open(b)?);
    let parse = |bytes| SafeTensors::deserialize(bytes).map_err(|error| format!("model.safetensors: {error}"));
    let (a, b) = (parse(&bytes_a)?, parse(&bytes_b)?);
    if a.len() != b.len() {
        return Err(format!("{} tensors against {}", a.len(), b.len()));
    }
    let (mut worst, mut squares, mut scale_squares) = (0.0_f64, 0.0_f64, 0.0_f64);
    for (name, tensor) in a.iter() {
        let other = b.tensor(name).map_err(|_| format!("{name}: only in one of the two"))?;
        if (tensor.dtype(), tensor.shape()) != (other.dtype(), other.shape()) {
            return Err(format!("{name}: of another shape or type"));
        }
        let (x, y) = (numbers(tensor.dtype(), tensor.data()), numbers(other.dtype(), other.data()));
        let (Some(x), Some(y)) = (x, y) else {
            if tensor.data() != other.data() {
                return Err(format!("{name}: counts differ"));
            }
            continue;
        };
        let scale = x.iter().fold(f64::MIN_POSITIVE, |scale, value| scale.max(value.abs()));
        let is_parameter = !name.contains("running");
        for (x, y) in x.iter().zip(&y) {
            let apart = (x - y).abs() / scale;
            worst = if apart.is_nan() { f64::INFINITY } else { worst.max(apart) };
            if is_parameter {
                squares += (x - y).powi(2);
                scale_squares += x.powi(2);
            }
        }
    }
    let norm = (squares / scale_squares).sqrt();
    Ok(Distance { worst, norm: if norm.is_nan() { f64::INFINITY } else { norm } })
}

fn numbers(dtype: Dtype, bytes: &[u8]) -> Option<Vec<f64>> {
    match dtype {
        Dtype::F32 => Some(bytes.as_chunks::<4>().0.iter().map(|number| f32::from_le_bytes(*number).into()).collect()),
        Dtype::F64 => Some(bytes.as_chunks::<8>().0.iter().map(|number| f64::from_le_bytes(*number)).collect()),
        _ => None,
    }
}

/// The last line of JSON that a command printed.
///
/// # Errors
/// There is none.
pub fn last_json(stdout: &str) -> Result<Value, Reason> {
    let lines = stdout.lines().rev().map(str::trim).filter(|line| line.starts_with('{'));
    lines.filter_map(|line| serde_json::from_str(line).ok()).next().ok_or_else(|| "it printed no JSON".into())
}

/// A number of the last line of JSON.
///
/// # Errors
/// There is none.
pub fn number(stdout: &str, key: &str) -> Result<f64, Reason> {
    let value = last_json(stdout)?;
    let number = value[key].as_f64().filter(|number| number.is_finite());
    number.ok_or_else(|| format!("no number {key:?} in its last line: {value}"))
}

/// The test error of the last epoch that a peer printed.
///
/// # Errors
/// There is none.
pub fn peer_error(stdout: &str) -> Result<f64, Reason> {
    let epochs = stdout.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    epochs.filter_map(|line| line["test_error"].as_f64()).next_back().ok_or_else(|| "it printed no test error".into())
}

/// The test error after the last epoch of a run.
///
/// # Errors
/// There is none.
pub fn test_error(run: &Path) -> Result<f64, Reason> {
    let path = run.join("epochs.csv");
    let text = std::fs::read_to_string(&path).map_err(|error| format!("{}: {error}", path.display()))?;
    let mut lines = text.lines();
    let column = lines.next().and_then(|header| header.split(',').position(|name| name == "test_error"));
    let value = column.and_then(|column| lines.next_back()?.split(',').nth(column)?.parse().ok());
    value.ok_or_else(|| format!("{}: no test error in its last line", path.display()))
}

/// Copies a run: a folder with all that is in it.
///
/// # Errors
/// Something cannot be read or written.
pub fn copy(from: &Path, to: &Path) -> Result<(), Reason> {
    fn all(from: &Path, to: &Path) -> std::io::Result<()> {
        std::fs::create_dir_all(to)?;
        for entry in std::fs::read_dir(from)? {
            let entry = entry?;
            let (from, to) = (entry.path(), to.join(entry.file_name()));
            if entry.file_type()?.is_dir() {
                all(&from, &to)?;
            } else {
                std::fs::copy(&from, &to)?;
            }
        }
        Ok(())
    }
    all(from, to).map_err(|error| format!("cannot copy {} to {}: {error}", from.display(), to.display()))
}

#[cfg(test)]
mod tests {
    use safetensors::tensor::TensorView;

    use super::*;

    #[test]
    fn differences_are_relative_and_nothing_hides_in_them() {
        assert_eq!(relative(&[1.0, 2.0], &[1.0, 2.5]), 0.25);
        assert_eq!(relative(&[1.0], &[f64::NAN]), f64::INFINITY);
        assert_eq!(relative(&[1.0], &[1.0, 1.0]), f64::INFINITY);
        assert_eq!(relative(&[], &[]), f64::INFINITY);
        assert_eq!(relative(&[0.0], &[0.0]), 0.0);
    }

    #[test]
    fn the_largest_difference_of_any_tensor_counts() {
        let dir = tempfile::tempdir().unwrap();
        let state = |name: &str, a: [f32; 2], b: [f64; 1], count: i64| {
            let folder = dir.path().join(name);
            std::fs::create_dir(&folder).unwrap();
            let bytes = (a.map(f32::to_le_bytes).concat(), b.map(f64::to_le_bytes).concat(), count.to_le_bytes());
            let views = [
                ("a", TensorView::new(Dtype::F32, vec![2], &bytes.0).unwrap()),
                ("b", TensorView::new(Dtype::F64, vec![1], &bytes.1).unwrap()),
                ("count", TensorView::new(Dtype::I64, vec![], &bytes.2).unwrap()),
            ];
            std::fs::write(folder.join("model.safetensors"), safetensors::serialize(views, None).unwrap()).unwrap();
            folder
        };
        let base = state("base", [1.0, 2.0], [4.0], 7);
        assert_eq!(distance(&base, &base).unwrap(), Distance { worst: 0.0, norm: 0.0 });
        let (a, b) = (state("a", [1.5, 2.0], [4.0], 7), state("b", [1.0, 2.0], [5.0], 7));
        for (other, off) in [(&a, 0.5), (&b, 1.0)] {
            let Distance { worst, norm } = distance(&base, other).unwrap();
            assert_eq!(worst, 0.25);
            assert!((norm - off / 21.0_f64.sqrt()).abs() < 1e-15, "{norm}");
        }
        let nan = distance(&base, &state("nan", [f32::NAN, 2.0], [4.0], 7)).unwrap();
        assert_eq!(nan, Distance { worst: f64::INFINITY, norm: f64::INFINITY });
        assert!(distance(&base, &state("count", [1.0, 2.0], [4.0], 8)).is_err());
        assert!(distance(&base, dir.path()).is_err());
    }

    #[test]
    fn figures_come_from_the_last_line_that_has_them() {
        let stdout =
            "{\"epoch\":1,\"test_error\":0.5}\n{\"epoch\":2,\"test_error\":0.25}\n{\"images_per_s_median\":10.5}\n";
        assert_eq!(number(stdout, "images_per_s_median"), Ok(10.5));
        assert_eq!(peer_error(stdout), Ok(0.25));
        assert!(number("nothing", "x").is_err() && number("{\"x\":null}", "x").is_err());
    }
}
