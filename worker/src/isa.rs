//! Which rung of the instruction-set ladder this machine reaches.

use lockstep_proto::exit::ExitCode;
use lockstep_proto::isa::{LADDER, rung};

use crate::exit::Exit;

/// The best rung of this CPU, but no higher than `LOCKSTEP_ISA` where that is set.
///
/// # Errors
/// `LOCKSTEP_ISA` names no rung, or one that this CPU lacks.
pub fn best() -> Result<&'static str, Exit> {
    let cap = std::env::var("LOCKSTEP_ISA").ok().filter(|name| !name.is_empty());
    capped(detect(), cap.as_deref())
}

/// `detected`, lowered to `cap`.
fn capped(detected: usize, cap: Option<&str>) -> Result<&'static str, Exit> {
    let Some(name) = cap else { return Ok(LADDER[detected]) };
    let Some(wanted) = rung(name) else {
        let known = LADDER.join(", ");
        return Err(Exit::new(ExitCode::Usage, format!("LOCKSTEP_ISA: {name:?} is not one of {known}")));
    };
    if wanted > detected {
        let has = LADDER[detected];
        let reason =
            format!("LOCKSTEP_ISA asks for {name}, but this CPU goes no further than {has}; unset it or use {has}");
        return Err(Exit::new(ExitCode::Config, reason));
    }
    Ok(LADDER[wanted])
}

/// Index of the best rung that this CPU has, with everything below it.
#[cfg(target_arch = "x86_64")]
fn detect() -> usize {
    let has_avx2 = is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma");
    let has_avx512 = has_avx2
        && is_x86_feature_detected!("avx512f")
        && is_x86_feature_detected!("avx512bw")
        && is_x86_feature_detected!("avx512dq")
        && is_x86_feature_detected!("avx512vl")
        && is_x86_feature_detected!("avx512vnni");
    let has_bf16 = has_avx512 && is_x86_feature_detected!("avx512bf16");
    let has_amx = has_bf16 && kernel_flags(&["amx_tile", "amx_bf16"]);
    [has_avx2, has_avx512, has_bf16, has_amx].into_iter().filter(|has| *has).count()
}

#[cfg(not(target_arch = "x86_64"))]
fn detect() -> usize {
    0
}

/// Whether the kernel lists all of these flags. AMX needs the kernel's consent, so its word is what counts.
#[cfg(target_arch = "x86_64")]
fn kernel_flags(wanted: &[&str]) -> bool {
    let text = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let flags = text.lines().find(|line| line.starts_with("flags")).unwrap_or_default();
    wanted.iter().all(|flag| flags.split_whitespace().any(|word| word == *flag))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cap_lowers_but_never_raises() {
        assert_eq!(capped(3, None).unwrap(), "avx512_bf16");
        assert_eq!(capped(3, Some("avx2")).unwrap(), "avx2");
        assert_eq!(capped(1, Some("amx")).unwrap_err().code, ExitCode::Config);
        let unknown = capped(1, Some("avx")).unwrap_err();
        assert_eq!(unknown.code, ExitCode::Usage);
        assert!(unknown.reason.contains("sse4.1, avx2"), "{unknown}");
    }

    #[test]
    fn this_machine_has_a_rung() {
        assert!(detect() < LADDER.len());
    }
}
