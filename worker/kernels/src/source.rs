//! The kernels' source, carried in the executable.

use sha2::{Digest, Sha256};

/// The program's file, and what it includes.
pub(crate) const MAIN: (&str, &str) = ("kernels.cu", include_str!("cuda/kernels.cu"));
pub(crate) const INCLUDED: [(&str, &str); 7] = [
    ("prelude.cuh", include_str!("cuda/prelude.cuh")),
    ("norm.cuh", include_str!("cuda/norm.cuh")),
    ("norm.cu", include_str!("cuda/norm.cu")),
    ("norm_backward.cu", include_str!("cuda/norm_backward.cu")),
    ("update.cu", include_str!("cuda/update.cu")),
    ("input.cu", include_str!("cuda/input.cu")),
    ("loss.cu", include_str!("cuda/loss.cu")),
];

/// Every kernel by name.
pub const KERNELS: [&str; 31] = [
    "bn_forward",
    "bn_fixed",
    "bn_backward",
    "bn_stats_f32_pack",
    "bn_stats_f32_one",
    "bn_stats_bf16_pack",
    "bn_stats_bf16_one",
    "bn_apply_f32_pack",
    "bn_apply_f32_one",
    "bn_apply_bf16_pack",
    "bn_apply_bf16_one",
    "bn_gate_f32_pack",
    "bn_gate_f32_one",
    "bn_gate_bf16_pack",
    "bn_gate_bf16_one",
    "bn_gradient_f32_pack",
    "bn_gradient_f32_one",
    "bn_gradient_bf16_pack",
    "bn_gradient_bf16_one",
    "vote_write",
    "nonfinite",
    "vote_check",
    "running_update",
    "sgd",
    "commit",
    "augment_f32_pack",
    "augment_f32_one",
    "augment_bf16_pack",
    "augment_bf16_one",
    "cross_entropy_f32",
    "cross_entropy_bf16",
];

/// What a compiled image depends on besides architecture and compiler.
pub(crate) const OPTIONS: [&str; 2] = ["--std=c++17", "--fmad=false"];

/// Hash of source and options, in hexadecimal: which kernels these are.
pub fn source_sha256() -> String {
    let mut hash = Sha256::new();
    for (name, text) in INCLUDED.iter().chain([&MAIN]) {
        hash.update([name.as_bytes(), b"\0", text.as_bytes(), b"\0"].concat());
    }
    OPTIONS.iter().for_each(|option| hash.update(format!("{option}\0")));
    hex(&hash.finalize())
}

pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
