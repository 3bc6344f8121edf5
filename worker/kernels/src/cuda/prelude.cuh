// What all kernels share. None of CUDA's headers is included: NVRTC alone compiles this, and so does a C++ compiler
// behind host/device.h, which says LOCKSTEP_HOST.
//
// Every block has THREADS threads. A tensor is rows of C channels, channels-last; a *pack* is 16 bytes of a row (eight
// bf16, four fp32), or one element where C or an address is no multiple of that. Lanes of a block are neighbouring packs
// of a row, slots are rows, so that a warp reads memory in one piece however small C is.
//
// Compiled without contraction to FMA, as the CPU's loops are: what is computed element by element has the CPU's bits.
// Sums are kept in fp64 from the first addition on. That costs a conversion, an addition and an FMA an element, which on
// sm_80 and sm_90 is still less time than the element's bytes take to arrive; it makes messages equal to the CPU's to
// fp64's rounding. Nothing is added by atomics: the order of every sum depends on the launch's shape alone.
#pragma once

#define THREADS 256

typedef long long i64;
typedef unsigned long long u64;

#ifndef LOCKSTEP_HOST
#define EXPORT(NAME)
static __device__ __forceinline__ unsigned bf16_bits(float v) {  // round to nearest even
  unsigned short bits;
  asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(bits) : "f"(v));
  return bits;
}
#endif

struct bf16 {
  unsigned short bits;
};

extern __shared__ double arena[];  // as many bytes as the launch says

// ---------------------------------------------------------------------------------------------------------------------
// memory

template <typename T, int V> struct Pack;
template <> struct Pack<float, 4> {
  uint4 w;
  __device__ __forceinline__ float at(int i) const {
    return __uint_as_float(i == 0 ? w.x : i == 1 ? w.y : i == 2 ? w.z : w.w);
  }
  __device__ __forceinline__ void put(const float (&v)[4]) {
    w = make_uint4(__float_as_uint(v[0]), __float_as_uint(v[1]), __float_as_uint(v[2]), __float_as_uint(v[3]));
  }
};
template <> struct Pack<bf16, 8> {
  uint4 w;
  __device__ __forceinline__ float at(int i) const {
    const unsigned pair = i < 2 ? w.x : i < 4 ? w.y : i < 6 ? w.z : w.w;
    return __uint_as_float(i % 2 ? pair & 0xffff0000u : pair << 16);
  }
  __device__ __forceinline__ void put(const float (&v)[8]) {
    w = make_uint4(bf16_bits(v[0]) | bf16_bits(v[1]) << 16, bf16_bits(v[2]) | bf16_bits(v[3]) << 16,
                   bf16_bits(v[4]) | bf16_bits(v[5]) << 16, bf16_bits(v[6]) | bf16_bits(v[7]) << 16);
  }
};
template <> struct Pack<float, 1> {
  float w;
  __device__ __forceinline__ float at(int) const { return w; }
  __device__ __forceinline__ void put(const float (&v)[1]) { w = v[0]; }
};
template <> struct Pack<bf16, 1> {
  bf16 w;
  __device__ __forceinline__ float at(int) const { return __uint_as_float(unsigned(w.bits) << 16); }
  __device__ __forceinline__ void put(const float (&v)[1]) { w.bits = (unsigned short)bf16_bits(v[0]); }
};

template <typename T, int V> static __device__ __forceinline__ Pack<T, V> fetch(const T *p) {
  return *reinterpret_cast<const Pack<T, V> *>(p);
}
template <typename T, int V> static __device__ __forceinline__ void keep(T *p, const float (&v)[V]) {
  Pack<T, V> pack;
  pack.put(v);
  *reinterpret_cast<Pack<T, V> *>(p) = pack;
}
// V coefficients in a row, as wide as they go: a thread of a small layer has few rows to set against them.
template <int V> static __device__ __forceinline__ void row_of(const float *p, float (&out)[V]) {
  const int WIDE = V == 1 ? 1 : 4;
#pragma unroll
  for (int i = 0; i < V; i += WIDE) {
    const Pack<float, WIDE> pack = fetch<float, WIDE>(p + i);
#pragma unroll
    for (int k = 0; k < WIDE; k++) out[i + k] = pack.at(k);
  }
}
// A value as it would be read again after it was stored.
static __device__ __forceinline__ float rounded(const float *, float v) { return v; }
static __device__ __forceinline__ float rounded(const bf16 *, float v) { return __uint_as_float(bf16_bits(v) << 16); }

// ---------------------------------------------------------------------------------------------------------------------
// who does what

// A thread's packs: its own channels, and every `stride`-th row from `row` on.
struct Place {
  int lane, slot, slots, channel;
  bool active;
  i64 row, stride;
};
template <int V> static __device__ __forceinline__ Place place(int channels, int lanes) {
  Place at;
  at.slots = THREADS / lanes;
  at.lane = threadIdx.x % lanes;
  at.slot = threadIdx.x / lanes;
  at.channel = (blockIdx.y * lanes + at.lane) * V;
  at.active = at.slot < at.slots && at.channel < channels;
  at.row = i64(blockIdx.x) * at.slots + at.slot;
  at.stride = i64(gridDim.x) * at.slots;
  return at;
}

// Adds the accumulators of a block's slots, half of them to the other half; slot 0 has the sums. Uses K · THREADS
// doubles of shared memory. Each round writes what no thread reads in the same round, so one barrier a round is enough.
template <int K> static __device__ __forceinline__ void fold(double (&sums)[K], const Place &at, int lanes) {
  for (int have = at.slots; have > 1;) {
    const int half = (have + 1) / 2;
    if (at.slot >= half && at.slot < have)
#pragma unroll
      for (int k = 0; k < K; k++) arena[k * THREADS + at.slot * lanes + at.lane] = sums[k];
    __syncthreads();
    if (at.slot < have - half)
#pragma unroll
      for (int k = 0; k < K; k++) sums[k] += arena[k * THREADS + (at.slot + half) * lanes + at.lane];
    have = half;
  }
}

// Whether this block is the last of its row of the grid to come here: it sees what the others wrote before. The ticket
// is zero again afterwards. Also a barrier.
static __device__ __forceinline__ bool last_block(unsigned *ticket) {
  __threadfence();
  __syncthreads();
  const bool last = __syncthreads_or(threadIdx.x == 0 && atomicInc(ticket, gridDim.x - 1) == gridDim.x - 1);
  __threadfence();
  return last;
}

// Second stage of a sum: partials are [blocks][2][channels]; the columns first … first + width of both halves go to
// arena[0 … width) and arena[width … 2·width).
static __device__ __forceinline__ void columns(const double *partials, int channels, int first, int width) {
  const volatile double *from = partials;  // of other blocks: not through the L1 cache
  const int wanted = 2 * width, groups = wanted < THREADS ? THREADS / wanted : 1;
  for (int j = threadIdx.x; j < wanted * groups; j += THREADS) {
    const int column = j % wanted;
    const int at = column < width ? first + column : channels + first + column - width;
    double sum = 0;
    for (int b = j / wanted; b < int(gridDim.x); b += groups) sum += from[i64(b) * 2 * channels + at];
    arena[j] = sum;
  }
  __syncthreads();
  for (int j = threadIdx.x; j < wanted; j += THREADS) {
    double sum = arena[j];
    for (int g = 1; g < groups; g++) sum += arena[g * wanted + j];
    arena[j] = sum;
  }
  __syncthreads();
}

// ---------------------------------------------------------------------------------------------------------------------
// activations, as the CPU's: a NaN stays one

enum { IDENTITY = 0, RELU = 1, LEAKY = 2 };
static __device__ __forceinline__ float activate(int act, float slope, float v) {
  if (act == RELU) return v > 0 ? v : (v == v ? 0.0f : v);
  if (act == LEAKY) return v > 0 ? v : slope * v;
  return v;
}
// The gradient d through the activation whose output was y.
static __device__ __forceinline__ float slope_at(int act, float slope, float y, float d) {
  if (act == RELU) return y > 0 ? d : 0.0f;
  if (act == LEAKY) return y > 0 ? d : slope * d;
  return d;
}

// ---------------------------------------------------------------------------------------------------------------------
// what a step is told from outside, in device memory: a captured graph reads it anew at every replay. src/step.rs

struct Step {
  u64 nonce;           // this rank's word of the vote
  u64 expected;        // the sum of all ranks' words
  u64 number;          // the step
  double samples;      // of the global batch
  double bn_momentum;  // of the running statistics
  float lr;
  float keep;          // 1 − dampening; 1 at the first step
};
