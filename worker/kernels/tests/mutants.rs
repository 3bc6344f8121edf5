//! Whether the checks find bugs that they must find: each is put into a copy of the source, which is compiled for the
//! host; the named check has to fail there.

#![allow(clippy::unwrap_used, missing_docs, reason = "a test may panic")]

mod checks;

use std::fs;
use std::path::Path;
use std::process::Command;

use lockstep_kernels::host::Host;

/// A bug: where, what stands there exactly once, what instead, and who must find it.
struct Mutant {
    what: &'static str,
    file: &'static str,
    find: &'static str,
    replace: &'static str,
    check: &'static str,
}

const fn mutant(
    what: &'static str,
    file: &'static str,
    (find, replace): (&'static str, &'static str),
    check: &'static str,
) -> Mutant {
    Mutant { what, file, find, replace, check }
}

const MUTANTS: [Mutant; 24] = [
    mutant(
        "a missing barrier in the fold",
        "prelude.cuh",
        ("    __syncthreads();\n    if (at.slot < have - half)", "    if (at.slot < have - half)"),
        "messages",
    ),
    mutant(
        "a barrier that only half of the threads reach",
        "prelude.cuh",
        (
            "    __syncthreads();\n    if (at.slot < have - half)",
            "    if (at.slot < half) __syncthreads();\n    if (at.slot < have - half)",
        ),
        "gate",
    ),
    mutant(
        "a missing barrier between the columns' two stages",
        "prelude.cuh",
        ("    arena[j] = sum;\n  }\n  __syncthreads();\n  for", "    arena[j] = sum;\n  }\n  for"),
        "messages",
    ),
    mutant(
        "the last block does not wait for its own threads",
        "prelude.cuh",
        ("  __threadfence();\n  __syncthreads();\n", "  __threadfence();\n"),
        "gate",
    ),
    mutant(
        "a ticket that is not given back",
        "prelude.cuh",
        ("atomicInc(ticket, gridDim.x - 1)", "atomicInc(ticket, 0xffffffffu)"),
        "messages",
    ),
    mutant("a fold that loses an odd slot", "prelude.cuh", ("(have + 1) / 2", "have / 2"), "messages"),
    mutant(
        "a wrong stride of rows",
        "prelude.cuh",
        ("at.stride = i64(gridDim.x) * at.slots", "at.stride = i64(gridDim.x) * (at.slots + 1)"),
        "apply",
    ),
    mutant(
        "a wrong stride of channels",
        "norm.cu",
        ("row_of<V>(coef + channels + at.channel, scale)", "row_of<V>(coef + THREADS + at.channel, scale)"),
        "apply",
    ),
    mutant(
        "sums in bf16",
        "norm_backward.cu",
        ("sums[i] += double(out[i]);", "sums[i] = double(rounded((const bf16 *)0, float(sums[i] + out[i])));"),
        "gate",
    ),
    mutant("sums in fp32", "norm.cu", ("sums[i] += v;", "sums[i] = double(float(sums[i] + v));"), "messages"),
    mutant(
        "sums of squares in fp32",
        "norm.cu",
        ("sums[V + i] = fma(v, v, sums[V + i]);", "sums[V + i] = double(float(v * v + sums[V + i]));"),
        "messages_of_a_large_mean",
    ),
    mutant("a dropped eps", "norm.cuh", ("sqrt(variance + f.eps)", "sqrt(variance)"), "forward_coefficients"),
    mutant(
        "a biased running variance",
        "norm.cuh",
        ("count > 1 ? variance * (count / (count - 1)) : variance", "variance"),
        "forward_coefficients",
    ),
    mutant(
        "the mean's rounding is forgotten",
        "norm.cuh",
        ("const double dot = product - rest * sum,", "const double dot = product,"),
        "backward_coefficients",
    ),
    mutant(
        "sums of g before it was rounded",
        "norm_backward.cu",
        ("  return rounded((const T *)0, d);", "  return d;"),
        "gate",
    ),
    mutant(
        "the mask is told from x without the bias",
        "norm_backward.cu",
        (" * c.scale[i] + c.bias[i]);", " * c.scale[i]);"),
        "gradient",
    ),
    mutant("a NaN becomes 0", "prelude.cuh", ("v > 0 ? v : (v == v ? 0.0f : v)", "v > 0 ? v : 0.0f"), "apply"),
    mutant(
        "an update without the gate",
        "update.cu",
        (
            "sgd(const Step *step, const unsigned *gate, Sgd s) {\n  if (*gate == 0) return;",
            "sgd(const Step *step, const unsigned *gate, Sgd s) {",
        ),
        "closed",
    ),
    mutant(
        "running statistics without the gate",
        "update.cu",
        ("double *pending, int num) {\n  if (*gate == 0) return;", "double *pending, int num) {"),
        "running",
    ),
    mutant("a commit without the gate", "update.cu", ("threadIdx.x == 0 && *gate)", "threadIdx.x == 0)"), "vote"),
    mutant("the poison word is not read again", "update.cu", (" && *word == 0 ? 1 : 0", " ? 1 : 0"), "vote"),
    mutant(
        "weight decay on vectors",
        "update.cu",
        ("s.weight_decay != 0 && i + k < s.decayed", "s.weight_decay != 0"),
        "sgd",
    ),
    mutant(
        "normalised where it goes and not where it comes from",
        "input.cu",
        ("- a.offset[from])", "- a.offset[first + i])"),
        "augment",
    ),
    mutant(
        "a warp sum that stops early",
        "loss.cu",
        ("for (int o = 16; o > 0; o /= 2)", "for (int o = 16; o > 1; o /= 2)"),
        "loss",
    ),
];

/// Compiles the source with the bug, and says whether its check fails.
fn found(mutant: &Mutant, folder: &Path) -> Result<String, String> {
    let crate_folder = Path::new(env!("CARGO_MANIFEST_DIR"));
    let source = folder.join("cuda");
    fs::create_dir_all(&source).unwrap();
    for entry in fs::read_dir(crate_folder.join("src/cuda")).unwrap() {
        let path = entry.unwrap().path();
        let mut text = fs::read_to_string(&path).unwrap();
        if path.ends_with(mutant.file) {
            assert_eq!(text.matches(mutant.find).count(), 1, "{}: the text must stand there once", mutant.what);
            text = text.replace(mutant.find, mutant.replace);
        }
        fs::write(source.join(path.file_name().unwrap()), text).unwrap();
    }
    let (compiler, flags) = Host::compiler();
    let library = folder.join("libcuda_host.so");
    let mut command = Command::new(compiler);
    command.args(flags).arg("-O0").arg("-I").arg(crate_folder.join("host")).arg("-I").arg(&source);
    let output = command.arg(crate_folder.join("host/driver.cpp")).arg("-o").arg(&library).output().unwrap();
    assert!(output.status.success(), "{}: {}", mutant.what, String::from_utf8_lossy(&output.stderr));
    let host = Host::open(&library).unwrap();
    let (_, check) = checks::CHECKS.into_iter().find(|(name, _)| *name == mutant.check).unwrap();
    match check(&host) {
        Err(said) => Ok(said),
        Ok(()) => Err(format!("{}: {} does not notice", mutant.what, mutant.check)),
    }
}

#[test]
fn every_bug_is_found_by_its_check() {
    let folder = tempfile::tempdir().unwrap();
    let mut survivors = Vec::new();
    for (number, mutant) in MUTANTS.iter().enumerate() {
        match found(mutant, &folder.path().join(number.to_string())) {
            Ok(said) => println!("{}: {}: {said}", mutant.what, mutant.check),
            Err(survivor) => survivors.push(survivor),
        }
    }
    assert!(survivors.is_empty(), "{survivors:#?}");
}
