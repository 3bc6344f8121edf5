// BatchNorm over NHWC rows with addition and activation, forwards. The mathematics and the messages are those of
// worker/src/exec/norm.rs and worker/torch/src/loops.h.
#include "norm.cuh"

// ---------------------------------------------------------------------------------------------------------------------
// coefficients alone, where messages of other ranks are added in between: one thread a channel

extern "C" __global__ void __launch_bounds__(THREADS)
bn_forward(const double *message, Forward f, int channels) {
  const int c = blockIdx.x * THREADS + threadIdx.x;
  if (c < channels) forward_channel(f, message[c], message[channels + c], c, channels);
}
EXPORT(bn_forward)

// Running statistics as they are, for evaluation.
extern "C" __global__ void __launch_bounds__(THREADS)
bn_fixed(const float *running, Forward f, int channels) {
  const int c = blockIdx.x * THREADS + threadIdx.x;
  if (c < channels) coefficients(f, running[c], 1.0 / sqrt(double(running[channels + c]) + f.eps), c, channels);
}
EXPORT(bn_fixed)

extern "C" __global__ void __launch_bounds__(THREADS)
bn_backward(const double *message, const double *own, Backward b, int channels) {
  const int c = blockIdx.x * THREADS + threadIdx.x;
  if (c < channels) backward_channel(b, own, message[c], message[channels + c], c, channels);
}
EXPORT(bn_backward)

// ---------------------------------------------------------------------------------------------------------------------
// statistics. Bytes: x once

// [n·mean, M2 + n·mean²] of each channel. That is [Σ x, Σ x²], which fp64 holds as well as a detour over M2 would: what
// cancels in the variance, mean² · 10⁻¹⁶, has been lost by the message in either case. So each element costs a conversion, an
// addition and an FMA.
template <typename T, int V>
static __device__ __forceinline__ void stats(const T *x, i64 rows, int channels, int lanes, double *partials,
                                             unsigned *tickets, double *message, int solo, const Forward &f) {
  const int UNROLL = 4;
  const Place at = place<V>(channels, lanes);
  double sums[2 * V] = {};
  if (at.active)
    for (i64 r = at.row; r < rows; r += UNROLL * at.stride) {
      Pack<T, V> packs[UNROLL];
#pragma unroll
      for (int u = 0; u < UNROLL; u++)
        if (r + u * at.stride < rows) packs[u] = fetch<T, V>(x + (r + u * at.stride) * channels + at.channel);
#pragma unroll
      for (int u = 0; u < UNROLL; u++)
        if (r + u * at.stride < rows)
#pragma unroll
          for (int i = 0; i < V; i++) {
            const double v = double(packs[u].at(i));
            sums[i] += v;
            sums[V + i] = fma(v, v, sums[V + i]);
          }
    }
  fold<2 * V>(sums, at, lanes);
  double *own = partials + i64(blockIdx.x) * 2 * channels;
  if (at.active && at.slot == 0)
    for (int i = 0; i < V; i++) {
      own[at.channel + i] = sums[i];
      own[channels + at.channel + i] = sums[V + i];
    }
  if (!last_block(tickets + blockIdx.y)) return;
  const int first = blockIdx.y * lanes * V, width = min(lanes * V, channels - first);
  columns(partials, channels, first, width);
  for (int j = threadIdx.x; j < width; j += THREADS) {
    const int c = first + j;
    message[c] = arena[j];
    message[channels + c] = arena[width + j];
    if (solo) forward_channel(f, arena[j], arena[width + j], c, channels);
  }
}
#define STATS(NAME, T, V)                                                                                            \
  extern "C" __global__ void __launch_bounds__(THREADS)                                                              \
  NAME(const T *x, i64 rows, int channels, int lanes, double *partials, unsigned *tickets, double *message, int solo, \
       Forward f) {                                                                                                  \
    stats<T, V>(x, rows, channels, lanes, partials, tickets, message, solo, f);                                      \
  }                                                                                                                  \
  EXPORT(NAME)
STATS(bn_stats_f32_pack, float, 4)
STATS(bn_stats_f32_one, float, 1)
STATS(bn_stats_bf16_pack, bf16, 8)
STATS(bn_stats_bf16_one, bf16, 1)

// ---------------------------------------------------------------------------------------------------------------------
// y = act((x − mean)·scale + bias + add). Bytes: x, add, y once. y may be x or add

template <typename T, int V>
static __device__ __forceinline__ void apply(const T *x, const T *add, T *y, i64 rows, int channels, int lanes, int act,
                                             float slope, const float *coef) {
  const int UNROLL = 4;
  const Place at = place<V>(channels, lanes);
  if (!at.active) return;
  float mean[V], scale[V], bias[V];
  row_of<V>(coef + at.channel, mean);
  row_of<V>(coef + channels + at.channel, scale);
  row_of<V>(coef + 2 * channels + at.channel, bias);
  for (i64 r = at.row; r < rows; r += UNROLL * at.stride) {
    Pack<T, V> xs[UNROLL], adds[UNROLL];
#pragma unroll
    for (int u = 0; u < UNROLL; u++)
      if (r + u * at.stride < rows) {
        const i64 o = (r + u * at.stride) * channels + at.channel;
        xs[u] = fetch<T, V>(x + o);
        if (add) adds[u] = fetch<T, V>(add + o);
      }
#pragma unroll
    for (int u = 0; u < UNROLL; u++)
      if (r + u * at.stride < rows) {
        float out[V];
#pragma unroll
        for (int i = 0; i < V; i++) {
          float v = (xs[u].at(i) - mean[i]) * scale[i] + bias[i];
          if (add) v = v + adds[u].at(i);
          out[i] = activate(act, slope, v);
        }
        keep<T, V>(y + (r + u * at.stride) * channels + at.channel, out);
      }
  }
}
#define APPLY(NAME, T, V)                                                                                             \
  extern "C" __global__ void __launch_bounds__(THREADS)                                                               \
  NAME(const T *x, const T *add, T *y, i64 rows, int channels, int lanes, int act, float slope, const float *coef) {   \
    apply<T, V>(x, add, y, rows, channels, lanes, act, slope, coef);                                                  \
  }                                                                                                                   \
  EXPORT(NAME)
APPLY(bn_apply_f32_pack, float, 4)
APPLY(bn_apply_f32_one, float, 1)
APPLY(bn_apply_bf16_pack, bf16, 8)
APPLY(bn_apply_bf16_one, bf16, 1)
