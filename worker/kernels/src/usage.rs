//! What ptxas says of the kernels: registers, stack, spills.

/// Of one kernel.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// Its name.
    pub kernel: String,
    /// Registers a thread.
    pub registers: u32,
    /// Bytes of local memory a thread.
    pub stack: u32,
    /// Bytes of registers that are written to local memory.
    pub spill_stores: u32,
    /// Bytes that are read back.
    pub spill_loads: u32,
}

/// Reads the log of a verbose compilation, kernel by kernel.
pub fn usage(log: &str) -> Vec<Usage> {
    let mut all: Vec<Usage> = Vec::new();
    let before = |line: &str, words: &str| -> Option<u32> {
        line.split(words).next().filter(|head| head.len() < line.len())?.split_whitespace().last()?.parse().ok()
    };
    for line in log.lines() {
        if let Some((_, rest)) = line.split_once("Compiling entry function '") {
            let kernel = rest.split('\'').next().unwrap_or_default().to_owned();
            all.push(Usage { kernel, ..Usage::default() });
        }
        let Some(last) = all.last_mut() else { continue };
        // A function that a kernel calls counts as the kernel's.
        last.registers = last.registers.max(before(line, " registers").unwrap_or(0));
        last.stack += before(line, " bytes stack frame").unwrap_or(0);
        last.spill_stores += before(line, " bytes spill stores").unwrap_or(0);
        last.spill_loads += before(line, " bytes spill loads").unwrap_or(0);
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_log_is_read() {
        let log = "ptxas info    : 0 bytes gmem\n\
            ptxas info    : Compiling entry function 'sgd' for 'sm_90'\n\
            ptxas info    : Function properties for sgd\n\
            ptxas         .     8 bytes stack frame, 12 bytes spill stores, 20 bytes spill loads\n\
            ptxas info    : Used 128 registers, used 1 barriers, 8 bytes cumulative stack size\n\
            ptxas info    : Compiling entry function 'commit' for 'sm_90'\n\
            ptxas         .     0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads\n\
            ptxas info    : Used 8 registers, used 0 barriers\n";
        let sgd = Usage { kernel: "sgd".into(), registers: 128, stack: 8, spill_stores: 12, spill_loads: 20 };
        let commit = Usage { kernel: "commit".into(), registers: 8, ..Usage::default() };
        assert_eq!(usage(log), [sgd, commit]);
    }
}
