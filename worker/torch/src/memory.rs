//! Tensors to plain slices and back, and the canonical sum.

use tch::{Kind, Tensor};
use torch_sys::C_tensor;

use crate::{TorchError, sys};

mod sealed {
    pub trait Sealed {}
    impl Sealed for f32 {}
    impl Sealed for f64 {}
    impl Sealed for i64 {}
}

/// Element types that slices may have: any bit pattern is a value.
pub trait Element: sealed::Sealed + Copy + Default + Send + Sync + 'static {
    /// The tensor's kind.
    const KIND: Kind;
}
impl Element for f32 {
    const KIND: Kind = Kind::Float;
}
impl Element for f64 {
    const KIND: Kind = Kind::Double;
}
impl Element for i64 {
    const KIND: Kind = Kind::Int64;
}

fn check<T: Element>(tensor: &Tensor, len: usize) -> Result<i64, TorchError> {
    if tensor.kind() != T::KIND || tensor.numel() != len {
        let (kind, numel) = (tensor.kind(), tensor.numel());
        return Err(TorchError::new(format!("a {kind:?} tensor of {numel} and {len} places of {:?}", T::KIND)));
    }
    Ok((len * size_of::<T>()) as i64)
}

/// Copies the memory of a dense tensor, in memory order.
///
/// # Errors
/// Another type or size, or holes.
pub fn read<T: Element>(tensor: &Tensor, out: &mut [T]) -> Result<(), TorchError> {
    let bytes = check::<T>(tensor, out.len())?;
    // SAFETY: `out` has that many bytes, and any bits are a T.
    TorchError::check(unsafe { sys::ls_read(tensor.as_ptr(), out.as_mut_ptr().cast(), bytes) })
}

/// Fills the memory of a dense tensor, in memory order.
///
/// # Errors
/// Another type or size, or holes.
pub fn write<T: Element>(tensor: &mut Tensor, values: &[T]) -> Result<(), TorchError> {
    let bytes = check::<T>(tensor, values.len())?;
    // SAFETY: `values` has that many bytes.
    TorchError::check(unsafe { sys::ls_write(tensor.as_ptr(), values.as_ptr().cast(), bytes) })
}

/// Copies `from` into `to`, of the same shape, without waiting where one of them is on a device and the other in pinned
/// memory of the host: behind what the current stream has been given, and before what it will be given.
///
/// # Errors
/// Another shape.
pub fn copy_later(to: &mut Tensor, from: &Tensor) -> Result<(), TorchError> {
    // SAFETY: both tensors are alive for the call; pinned memory is kept by libtorch until the copy has happened.
    TorchError::check(unsafe { sys::ls_copy_later(to.as_ptr(), from.as_ptr()) })
}

/// The memory of a dense tensor of any kind as bytes.
///
/// # Errors
/// Holes.
pub fn read_bytes(tensor: &Tensor) -> Result<Vec<u8>, TorchError> {
    let mut out = vec![0; tensor.numel() * tensor.kind().elt_size_in_bytes()];
    // SAFETY: `out` has as many bytes as the tensor's elements.
    TorchError::check(unsafe { sys::ls_read(tensor.as_ptr(), out.as_mut_ptr().cast(), out.len() as i64) })?;
    Ok(out)
}

/// Fills the memory of a dense tensor of any kind from bytes.
///
/// # Errors
/// Another size, or holes.
pub fn write_bytes(tensor: &mut Tensor, bytes: &[u8]) -> Result<(), TorchError> {
    // SAFETY: the C++ side compares the size before it copies.
    TorchError::check(unsafe { sys::ls_write(tensor.as_ptr(), bytes.as_ptr().cast(), bytes.len() as i64) })
}

/// Writes the sum of equally large dense tensors into `out`, in memory order, added in the canonical tree of
/// `lockstep_proto::tree` over as many leaves. bf16 sources are widened to f32 first.
///
/// # Errors
/// No sources; another type or size; holes.
pub fn tree_sum<T: Element>(sources: &[&Tensor], out: &mut [T]) -> Result<(), TorchError> {
    let fits = |kind| kind == T::KIND || (T::KIND == Kind::Float && kind == Kind::BFloat16);
    if sources.iter().any(|s| !fits(s.kind()) || s.kind() == Kind::Int64) {
        return Err(TorchError::new("tree sum: a source has another type"));
    }
    let raw: Vec<*const C_tensor> = sources.iter().map(|s| s.as_ptr()).collect();
    // SAFETY: the C++ side checks that every source has `out.len()` elements of one type, which is T (or bf16 for f32).
    TorchError::check(unsafe {
        sys::ls_tree_sum(raw.as_ptr(), raw.len() as i64, out.as_mut_ptr().cast(), out.len() as i64)
    })
}

/// Sum of squares of a dense f32 or f64 tensor, in f64, always added in the same order.
///
/// # Errors
/// Another type, or holes.
pub fn squares(tensor: &Tensor) -> Result<f64, TorchError> {
    let mut sum = 0.0;
    // SAFETY: the tensor is alive for the call; `sum` is one place.
    TorchError::check(unsafe { sys::ls_squares(tensor.as_ptr(), &mut sum) })?;
    Ok(sum)
}
