//! The few things tch lacks, as a little C++ (`kernels.cpp`, `loops.h`) and its safe Rust face.
//!
//! ```text
//! process   limit_isa · keep_memory · set_threads          before the first tensor, or per thread
//! conv      conv · conv_backward                           ATen
//! norm      stats ─► apply                                 forward: message out, coefficients in
//!           gate  ─► gradient                              backward, likewise
//! joins     join · rectify · subsample · pool              and their gradients
//! composed  the same passes of ATen's operations         any device, nothing waits
//! device    open · Stream · Event                      CUDA's library, found at run time
//! memory    tree_sum · squares · read · write              tensors to plain slices and back
//! ```
//! All others work in the calling thread on CPU tensors with channels-last memory; shapes, types and layouts are
//! checked on the C++ side and come back as [`TorchError`]. May never: keep a tensor, start a thread, know a rank.

mod activation;
pub mod composed;
pub mod device;
mod error;
mod memory;
mod norm;
mod ops;
mod process;

pub use activation::{Activation, rectify, rectify_backward};
pub use error::TorchError;
pub use memory::{Element, copy_later, read, read_bytes, squares, tree_sum, write, write_bytes};
pub use norm::{Real, apply, gate, gradient, stats};
pub use ops::{ConvGradients, conv, conv_backward, join, pool, pool_backward, subsample, subsample_backward};
pub use process::{capability, keep_memory, limit_isa, num_threads, set_threads};

mod sys {
    //! The C face of `kernels.cpp`. Tensors are pointers to live `at::Tensor`s.
    use std::ffi::{c_char, c_int, c_void};

    use torch_sys::C_tensor;

    unsafe extern "C" {
        pub fn ls_last_error() -> *const c_char;
        pub fn ls_keep_memory();
        pub fn ls_set_env(name: *const c_char, value: *const c_char) -> c_int;
        pub fn ls_set_threads(threads: c_int) -> c_int;
        pub fn ls_threads() -> c_int;
        pub fn ls_capability() -> *const c_char;
        pub fn ls_conv(
            out: *mut *mut C_tensor,
            x: *const C_tensor,
            w: *const C_tensor,
            b: *const C_tensor,
            stride: i64,
            pad: i64,
        ) -> c_int;
        pub fn ls_conv_backward(
            dx: *mut *mut C_tensor,
            dw: *mut *mut C_tensor,
            db: *mut *mut C_tensor,
            g: *const C_tensor,
            x: *const C_tensor,
            w: *const C_tensor,
            stride: i64,
            pad: i64,
        ) -> c_int;
        pub fn ls_stats(x: *const C_tensor, message: *mut f64) -> c_int;
        pub fn ls_apply(
            x: *const C_tensor,
            add: *const C_tensor,
            y: *const C_tensor,
            act: c_int,
            slope: f64,
            coef: *const c_void,
        ) -> c_int;
        pub fn ls_gate(
            d1: *const C_tensor,
            d2: *const C_tensor,
            y: *const C_tensor,
            x: *const C_tensor,
            g: *const C_tensor,
            act: c_int,
            slope: f64,
            mean: *const c_void,
            message: *mut f64,
        ) -> c_int;
        pub fn ls_gradient(g: *const C_tensor, x: *const C_tensor, dx: *const C_tensor, coef: *const c_void) -> c_int;
        pub fn ls_join(a: *const C_tensor, b: *const C_tensor, y: *const C_tensor) -> c_int;
        pub fn ls_rectify(x: *const C_tensor, y: *const C_tensor, act: c_int, slope: f64) -> c_int;
        pub fn ls_rectify_backward(
            d: *const C_tensor,
            y: *const C_tensor,
            dx: *const C_tensor,
            act: c_int,
            slope: f64,
        ) -> c_int;
        pub fn ls_squares(x: *const C_tensor, sum: *mut f64) -> c_int;
        pub fn ls_subsample(x: *const C_tensor, y: *const C_tensor, stride: i64) -> c_int;
        pub fn ls_subsample_backward(g: *const C_tensor, dx: *const C_tensor, stride: i64) -> c_int;
        pub fn ls_pool(x: *const C_tensor, y: *const C_tensor) -> c_int;
        pub fn ls_pool_backward(g: *const C_tensor, dx: *const C_tensor) -> c_int;
        pub fn ls_tree_sum(src: *const *const C_tensor, leaves: i64, dst: *mut c_void, count: i64) -> c_int;
        pub fn ls_copy_later(to: *const C_tensor, from: *const C_tensor) -> c_int;
        pub fn ls_read(t: *const C_tensor, dst: *mut c_void, bytes: i64) -> c_int;
        pub fn ls_write(t: *const C_tensor, src: *const c_void, bytes: i64) -> c_int;
    }
}
