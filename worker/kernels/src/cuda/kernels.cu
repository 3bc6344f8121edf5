// All kernels, one program.
#include "prelude.cuh"
#include "norm.cuh"
#include "norm.cu"
#include "norm_backward.cu"
#include "update.cu"
#include "input.cu"
#include "loss.cu"
