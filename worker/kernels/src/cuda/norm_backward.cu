// BatchNorm backwards. The gradient that arrives may be two that meet, and goes through the activation first; its mask is
// read from the output y, or, where nothing was added, told from x again, which saves reading y.
#include "norm.cuh"

template <typename T> struct Arriving {
  const T *d1, *d2, *y;  // d2 and y may be null
  int act;
  float slope;
  const float *coef;  // of the forward pass: [mean, scale, bias]
};

// What a thread needs of the forward pass's coefficients.
template <int V> struct Channels {
  float mean[V], scale[V], bias[V];
};
template <typename T, int V>
static __device__ __forceinline__ Channels<V> channels_of(const Arriving<T> &a, int channel, int channels) {
  Channels<V> c;
  row_of<V>(a.coef + channel, c.mean);
  row_of<V>(a.coef + channels + channel, c.scale);
  row_of<V>(a.coef + 2 * channels + channel, c.bias);
  return c;
}

template <typename T, int V> struct Packs {
  Pack<T, V> d1, d2, y, x;
};
template <typename T, int V>
static __device__ __forceinline__ Packs<T, V> packs_of(const Arriving<T> &a, const T *x, i64 o) {
  Packs<T, V> p;
  p.x = fetch<T, V>(x + o);
  p.d1 = fetch<T, V>(a.d1 + o);
  if (a.d2) p.d2 = fetch<T, V>(a.d2 + o);
  if (a.y) p.y = fetch<T, V>(a.y + o);
  return p;
}

// g of one element, rounded to T as if it had been stored: sums and dx are of the same g, stored or not.
template <typename T, int V>
static __device__ __forceinline__ float gated(const Arriving<T> &a, const Packs<T, V> &p, const Channels<V> &c, int i) {
  float d = p.d1.at(i);
  if (a.d2) d = d + p.d2.at(i);
  if (a.act != IDENTITY) {
    // Only the sign of y counts, which the activation keeps.
    const float y = a.y ? p.y.at(i) : rounded((const T *)0, (p.x.at(i) - c.mean[i]) * c.scale[i] + c.bias[i]);
    d = slope_at(a.act, a.slope, y, d);
  }
  return rounded((const T *)0, d);
}

// ---------------------------------------------------------------------------------------------------------------------
// [Σ g, Σ g·(x − mean)]. Bytes: d1, d2, y, x once, and g where it is wanted. g may be d1 or d2

template <typename T, int V>
static __device__ __forceinline__ void gate(const Arriving<T> &a, const T *x, T *g, i64 rows, int channels, int lanes,
                                            double *partials, unsigned *tickets, double *message, int solo,
                                            const Backward &b) {
  const int UNROLL = V == 8 ? 1 : 2;  // more of eight would not fit into the registers
  const Place at = place<V>(channels, lanes);
  double sums[2 * V] = {};
  if (at.active) {
    const Channels<V> c = channels_of<T, V>(a, at.channel, channels);
    for (i64 r = at.row; r < rows; r += UNROLL * at.stride) {
      Packs<T, V> packs[UNROLL];
#pragma unroll
      for (int u = 0; u < UNROLL; u++)
        if (r + u * at.stride < rows) packs[u] = packs_of<T, V>(a, x, (r + u * at.stride) * channels + at.channel);
#pragma unroll
      for (int u = 0; u < UNROLL; u++)
        if (r + u * at.stride < rows) {
          float out[V];
#pragma unroll
          for (int i = 0; i < V; i++) {
            out[i] = gated<T, V>(a, packs[u], c, i);
            const float d = packs[u].x.at(i) - c.mean[i];
            sums[i] += double(out[i]);
            sums[V + i] = fma(double(out[i]), double(d), sums[V + i]);
          }
          if (g) keep<T, V>(g + (r + u * at.stride) * channels + at.channel, out);
        }
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
    if (solo) backward_channel(b, message, arena[j], arena[width + j], c, channels);
  }
}
#define GATE(NAME, T, V)                                                                                          \
  extern "C" __global__ void __launch_bounds__(THREADS)                                                           \
  NAME(Arriving<T> a, const T *x, T *g, i64 rows, int channels, int lanes, double *partials, unsigned *tickets,     \
       double *message, int solo, Backward b) {                                                                   \
    gate<T, V>(a, x, g, rows, channels, lanes, partials, tickets, message, solo, b);                              \
  }                                                                                                               \
  EXPORT(NAME)
GATE(bn_gate_f32_pack, float, 4)
GATE(bn_gate_f32_one, float, 1)
GATE(bn_gate_bf16_pack, bf16, 8)
GATE(bn_gate_bf16_one, bf16, 1)

// ---------------------------------------------------------------------------------------------------------------------
// dx = scale·g + slope·(x − mean) + offset. Bytes: d1, d2, y, x, dx once. dx may be d1 or d2

template <typename T, int V>
static __device__ __forceinline__ void gradient(const Arriving<T> &a, const T *x, T *dx, i64 rows, int channels,
                                                int lanes, const float *coef) {
  const int UNROLL = 2;
  const Place at = place<V>(channels, lanes);
  if (!at.active) return;
  const Channels<V> c = channels_of<T, V>(a, at.channel, channels);
  float slope[V], offset[V];
  row_of<V>(coef + 2 * channels + at.channel, slope);
  row_of<V>(coef + 3 * channels + at.channel, offset);
  for (i64 r = at.row; r < rows; r += UNROLL * at.stride) {
    Packs<T, V> packs[UNROLL];
#pragma unroll
    for (int u = 0; u < UNROLL; u++)
      if (r + u * at.stride < rows) packs[u] = packs_of<T, V>(a, x, (r + u * at.stride) * channels + at.channel);
#pragma unroll
    for (int u = 0; u < UNROLL; u++)
      if (r + u * at.stride < rows) {
        float out[V];
#pragma unroll
        for (int i = 0; i < V; i++)  // mean and scale are the forward pass's
          out[i] = (c.scale[i] * gated<T, V>(a, packs[u], c, i) + slope[i] * (packs[u].x.at(i) - c.mean[i])) + offset[i];
        keep<T, V>(dx + (r + u * at.stride) * channels + at.channel, out);
      }
  }
}
#define GRADIENT(NAME, T, V)                                                                                       \
  extern "C" __global__ void __launch_bounds__(THREADS)                                                            \
  NAME(Arriving<T> a, const T *x, T *dx, i64 rows, int channels, int lanes, const float *coef) {                    \
    gradient<T, V>(a, x, dx, rows, channels, lanes, coef);                                                         \
  }                                                                                                                \
  EXPORT(NAME)
GRADIENT(bn_gradient_f32_pack, float, 4)
GRADIENT(bn_gradient_f32_one, float, 1)
GRADIENT(bn_gradient_bf16_pack, bf16, 8)
GRADIENT(bn_gradient_bf16_one, bf16, 1)
