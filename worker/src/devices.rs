//! The devices of a process, by name.

use lockstep_nccl::{Libraries, NcclError};
use lockstep_proto::exit::ExitCode;
use lockstep_proto::gpu;

use crate::exit::Exit;

/// The replicas' devices, checked.
///
/// # Errors
/// A name that is none, or two of different kinds (64); a GPU that is not there (78).
pub fn devices(names: &[String]) -> Result<Vec<String>, Exit> {
    let mut devices = Vec::new();
    for name in names.iter().map(|name| name.trim()) {
        if name == "cpu" || name == "host" {
            devices.push(name.to_owned());
        } else if name == "all" || name == "cuda" || name.starts_with("cuda:") {
            devices.push(gpu_named(name, gpu::num_visible())?);
        } else {
            let reason = format!(
                "--devices: {name:?} is no device; expected cpu, cpu,cpu (two replicas), cuda:0, all, or host (a device's \
                 course on the CPU)"
            );
            return Err(Exit::new(ExitCode::Usage, reason));
        }
    }
    if devices.len() > 1 && devices[0].starts_with("cuda:") {
        let reason = "--devices: one process a GPU: start a worker for each, as `lockstep train --devices all` does";
        return Err(Exit::new(ExitCode::Usage, reason));
    }
    if devices.iter().any(|name| *name != devices[0]) {
        return Err(Exit::new(ExitCode::Usage, "--devices: the replicas of a process are of one kind"));
    }
    Ok(devices)
}

/// A GPU by its full name, `cuda:0`.
fn gpu_named(name: &str, num_visible: usize) -> Result<String, Exit> {
    let refuse = |reason: &str| Err(Exit::new(ExitCode::Config, format!("--devices {name}: {reason}")));
    let ordinal = match name {
        "cuda" => 0,
        "all" if num_visible > 1 => {
            return refuse("a worker has one GPU: start one for each, as `lockstep train --devices all` does");
        }
        "all" => 0,
        _ => match name["cuda:".len()..].parse::<usize>() {
            Ok(ordinal) => ordinal,
            Err(_) => return Err(Exit::new(ExitCode::Usage, format!("--devices: {name:?}: expected cuda:0"))),
        },
    };
    if num_visible == 0 {
        return refuse(&no_gpu());
    }
    if ordinal >= num_visible {
        return refuse(&format!("this process sees {num_visible} GPUs: cuda:0 to cuda:{}", num_visible - 1));
    }
    Ok(format!("cuda:{ordinal}"))
}

/// Why there is none, as far as can be told, and what to do.
fn no_gpu() -> String {
    let driver = match (Libraries { nccl: None, driver: None }).open_driver() {
        Ok(driver) => format!("{driver:?}"),
        Err(NcclError::NoDriver { cause }) => cause,
        Err(other) => other.to_string(),
    };
    format!(
        "no GPU is visible to this process ({driver}); install NVIDIA's driver, or ask the launcher for one (Slurm: \
         --gpus-per-node; Kubernetes: limits of nvidia.com/gpu; docker: --gpus all); `lockstep doctor` tells what else is \
         missing; or use --devices cpu"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_gpu_is_refused_with_78_and_a_remedy() {
        for name in ["cuda:0", "all", "cuda"] {
            let exit = devices(&[name.to_owned()]).unwrap_err();
            assert_eq!(exit.code, ExitCode::Config);
            assert!(
                exit.reason.starts_with(&format!("--devices {name}: ")) && exit.reason.ends_with("use --devices cpu")
            );
        }
        assert_eq!(gpu_named("cuda", 2).unwrap(), "cuda:0");
        assert_eq!(gpu_named("all", 1).unwrap(), "cuda:0");
        assert_eq!(gpu_named("cuda:1", 2).unwrap(), "cuda:1");
        assert!(gpu_named("cuda:2", 2).unwrap_err().reason.ends_with("cuda:0 to cuda:1"));
        assert!(gpu_named("all", 2).unwrap_err().reason.contains("a worker has one GPU"));
        assert_eq!(gpu_named("cuda:x", 2).unwrap_err().code, ExitCode::Usage);
        assert_eq!(devices(&["tpu".to_owned()]).unwrap_err().code, ExitCode::Usage);
    }
}
