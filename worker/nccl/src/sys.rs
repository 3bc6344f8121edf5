//! Types of the two C interfaces, as NCCL 2.18 and the CUDA driver 11 have them. Later versions only append.

use std::ffi::{c_char, c_int, c_uint, c_void};

pub(crate) type NcclResult = c_int;
pub(crate) const NCCL_SUCCESS: NcclResult = 0;
pub(crate) const NCCL_IN_PROGRESS: NcclResult = 7;
/// `ncclSum`.
pub(crate) const NCCL_SUM: c_int = 0;

pub(crate) type CudaResult = c_int;
pub(crate) const CUDA_SUCCESS: CudaResult = 0;
pub(crate) const CUDA_NOT_READY: CudaResult = 600;

/// `ncclComm_t`
pub(crate) type RawComm = *mut c_void;
/// `CUstream`, which is `cudaStream_t`
pub(crate) type RawStream = *mut c_void;
/// `CUevent`
pub(crate) type RawEvent = *mut c_void;
/// `CUcontext`
pub(crate) type RawContext = *mut c_void;
/// `CUdeviceptr`
pub(crate) type RawDevicePtr = u64;

/// `ncclUniqueId`
#[repr(C)]
#[derive(Clone, Copy)]
pub(crate) struct RawId(pub(crate) [u8; 128]);

/// `ncclConfig_t` of 2.18. NCCL copies as many bytes as `size` says and fills in what was added after `version`.
#[repr(C)]
pub(crate) struct Config {
    pub(crate) size: usize,
    pub(crate) magic: c_uint,
    pub(crate) version: c_uint,
    pub(crate) blocking: c_int,
    pub(crate) cga_cluster_size: c_int,
    pub(crate) min_ctas: c_int,
    pub(crate) max_ctas: c_int,
    pub(crate) net_name: *const c_char,
    pub(crate) split_share: c_int,
}

/// `NCCL_CONFIG_UNDEF_INT`
pub(crate) const UNDEFINED: c_int = c_int::MIN;

impl Config {
    /// Non-blocking; `max_ctas` bounds the blocks of its kernels, `None` leaves them to NCCL.
    pub(crate) fn new(max_ctas: Option<u32>) -> Self {
        Self {
            size: size_of::<Self>(),
            magic: 0xcafe_beef,
            version: 21800,
            blocking: 0,
            cga_cluster_size: UNDEFINED,
            min_ctas: UNDEFINED,
            max_ctas: max_ctas.map_or(UNDEFINED, |max| max as c_int),
            net_name: std::ptr::null(),
            split_share: UNDEFINED,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_layout_is_that_of_the_header() {
        assert_eq!(size_of::<Config>(), 48);
        assert_eq!(std::mem::offset_of!(Config, net_name), 32);
        assert_eq!(std::mem::offset_of!(Config, split_share), 40);
        assert_eq!(size_of::<RawId>(), 128);
    }
}
