// The memory-bound loops of a ResNet step, over NHWC rows. Conventions: see kernels.cpp.
//
// Every sum has a fixed order that does not depend on vector width: lanes are channels, rows go one after another in
// two interleaved accumulators. Built without contraction to FMA, so these loops give the same bits on every CPU.
#pragma once

#include <c10/util/BFloat16.h>

#include <cstdint>
#include <cstring>

typedef c10::BFloat16 bf16;

#if defined(__x86_64__)
#define CLONES __attribute__((target_clones("arch=x86-64-v4", "avx2", "default")))
#else
#define CLONES
#endif
#define INLINE inline __attribute__((always_inline))

// ---------------------------------------------------------------------------------------------------------------
// element types: storage type T, compute type of T

template <typename T> struct Compute { typedef T type; };
template <> struct Compute<bf16> { typedef float type; };

static INLINE float load(const float *p) { return *p; }
static INLINE double load(const double *p) { return *p; }
static INLINE float load(const bf16 *p) {
  uint32_t bits = uint32_t(*reinterpret_cast<const uint16_t *>(p)) << 16;
  float f;
  std::memcpy(&f, &bits, 4);
  return f;
}
static INLINE void store(float *p, float v) { *p = v; }
static INLINE void store(double *p, double v) { *p = v; }
static INLINE void store(bf16 *p, float v) {  // round to nearest even; values here are finite or infinite, NaN stays NaN
  uint32_t bits;
  std::memcpy(&bits, &v, 4);
  uint32_t rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
  uint32_t nan = (bits & 0x7fffffffu) > 0x7f800000u ? 1u : 0u;
  *reinterpret_cast<uint16_t *>(p) = uint16_t(nan ? 0x7fc0u : rounded);
}

// ---------------------------------------------------------------------------------------------------------------
// loops. LANES channels at a time; the body is instantiated for 16 lanes and for the rest

template <typename T, int FIXED>
static INLINE void stats_block(const T *x, int64_t rows, int64_t channels, int64_t at, int lanes_, double *message) {
  const int lanes = FIXED ? FIXED : lanes_;
  double shift[16], sum[2][16] = {}, square[2][16] = {};
  for (int j = 0; j < lanes; j++) shift[j] = rows ? double(load(x + at + j)) : 0.0;
  for (int64_t r = 0; r < rows; r += 2) {
    const int pair = r + 1 < rows ? 2 : 1;
    for (int k = 0; k < pair; k++) {
      const T *row = x + (r + k) * channels + at;
      for (int j = 0; j < lanes; j++) {
        double d = double(load(row + j)) - shift[j];
        sum[k][j] += d;
        square[k][j] += d * d;
      }
    }
  }
  for (int j = 0; j < lanes; j++) {
    double s = sum[0][j] + sum[1][j], q = square[0][j] + square[1][j], n = double(rows);
    double mean = rows ? shift[j] + s / n : 0.0;
    double m2 = rows ? q - s * (s / n) : 0.0;
    message[at + j] = n * mean;
    message[channels + at + j] = (m2 > 0.0 ? m2 : 0.0) + n * mean * mean;
  }
}

template <typename T>
static INLINE void stats_body(const T *x, int64_t rows, int64_t channels, double *message) {
  int64_t at = 0;
  for (; at + 16 <= channels; at += 16) stats_block<T, 16>(x, rows, channels, at, 16, message);
  if (at < channels) stats_block<T, 0>(x, rows, channels, at, int(channels - at), message);
}

// Activations, and what their gradient does to d where the output was y. A NaN stays one.
enum Act { IDENTITY = 0, RELU = 1, LEAKY = 2 };
template <int ACT, typename A> static INLINE A activate(A v, A slope) {
  if (ACT == RELU) return v > A(0) ? v : (v == v ? A(0) : v);
  if (ACT == LEAKY) return v > A(0) ? v : slope * v;
  return v;
}
template <int ACT, typename A> static INLINE A slope_at(A y, A d, A slope) {
  if (ACT == RELU) return y > A(0) ? d : A(0);
  if (ACT == LEAKY) return y > A(0) ? d : slope * d;
  return d;
}
#define PER_ACT(ACT, CALL)                 \
  switch (ACT) {                           \
    case RELU: CALL(RELU); break;          \
    case LEAKY: CALL(LEAKY); break;        \
    default: CALL(IDENTITY); break;        \
  }

// Apply: y = act((x − mean)·scale + bias + add); mean is the rounded mean, bias carries what rounding took from it.
template <typename T, bool ADD, int ACT>
static INLINE void apply_rows(const T *x, const T *add, T *y, int64_t rows, int64_t channels,
                              typename Compute<T>::type slope, const typename Compute<T>::type *coef) {
  typedef typename Compute<T>::type A;
  const A *mean = coef, *scale = coef + channels, *bias = coef + 2 * channels;
  for (int64_t r = 0; r < rows; r++) {
    const T *xr = x + r * channels, *ar = ADD ? add + r * channels : nullptr;
    T *yr = y + r * channels;
    for (int64_t j = 0; j < channels; j++) {
      A v = (load(xr + j) - mean[j]) * scale[j] + bias[j];
      if (ADD) v = v + load(ar + j);
      store(yr + j, activate<ACT>(v, slope));
    }
  }
}

template <typename T>
static INLINE void apply_body(const T *x, const T *add, T *y, int64_t rows, int64_t channels, int act,
                              typename Compute<T>::type slope, const typename Compute<T>::type *coef) {
#define WITH(ACT) apply_rows<T, true, ACT>(x, add, y, rows, channels, slope, coef)
#define WITHOUT(ACT) apply_rows<T, false, ACT>(x, add, y, rows, channels, slope, coef)
  if (add) PER_ACT(act, WITH) else PER_ACT(act, WITHOUT)
#undef WITH
#undef WITHOUT
}

// Gate: g = (d1 + d2) through the activation whose output was y; sums Σ g and Σ g·(x − mean). g may be d1.
template <typename T, int FIXED, bool TWO, int ACT>
static INLINE void gate_block(const T *d1, const T *d2, const T *y, const T *x, T *g, int64_t rows, int64_t channels,
                              int64_t at, int lanes_, typename Compute<T>::type slope,
                              const typename Compute<T>::type *mean_, double *message) {
  typedef typename Compute<T>::type A;
  const int lanes = FIXED ? FIXED : lanes_;
  double sum[2][16] = {}, dot[2][16] = {};
  A mean[16];
  for (int j = 0; j < lanes; j++) mean[j] = mean_[at + j];
  for (int64_t r = 0; r < rows; r += 2) {
    const int pair = r + 1 < rows ? 2 : 1;
    for (int k = 0; k < pair; k++) {
      const int64_t o = (r + k) * channels + at;
      for (int j = 0; j < lanes; j++) {
        A v = load(d1 + o + j);
        if (TWO) v = v + load(d2 + o + j);
        if (ACT != IDENTITY) v = slope_at<ACT>(A(load(y + o + j)), v, slope);
        if (TWO || ACT != IDENTITY) {
          store(g + o + j, v);
          v = load(g + o + j);  // what was stored is what is summed, in bf16 too
        }
        A d = load(x + o + j) - mean[j];
        sum[k][j] += double(v);
        dot[k][j] += double(v) * double(d);
      }
    }
  }
  for (int j = 0; j < lanes; j++) {
    message[at + j] = sum[0][j] + sum[1][j];
    message[channels + at + j] = dot[0][j] + dot[1][j];
  }
}

template <typename T, bool TWO, int ACT>
static INLINE void gate_rows(const T *d1, const T *d2, const T *y, const T *x, T *g, int64_t rows, int64_t channels,
                             typename Compute<T>::type slope, const typename Compute<T>::type *mean, double *message) {
  int64_t at = 0;
  for (; at + 16 <= channels; at += 16)
    gate_block<T, 16, TWO, ACT>(d1, d2, y, x, g, rows, channels, at, 16, slope, mean, message);
  if (at < channels)
    gate_block<T, 0, TWO, ACT>(d1, d2, y, x, g, rows, channels, at, int(channels - at), slope, mean, message);
}

template <typename T>
static INLINE void gate_body(const T *d1, const T *d2, const T *y, const T *x, T *g, int64_t rows, int64_t channels,
                             int act, typename Compute<T>::type slope, const typename Compute<T>::type *mean,
                             double *message) {
#define TWO(ACT) gate_rows<T, true, ACT>(d1, d2, y, x, g, rows, channels, slope, mean, message)
#define ONE(ACT) gate_rows<T, false, ACT>(d1, d2, y, x, g, rows, channels, slope, mean, message)
  if (d2) PER_ACT(act, TWO) else PER_ACT(act, ONE)
#undef TWO
#undef ONE
}

// Gradient of BatchNorm: dx = scale·g + slope·(x − mean) + offset
template <typename T>
static INLINE void gradient_body(const T *g, const T *x, T *dx, int64_t rows, int64_t channels,
                                 const typename Compute<T>::type *coef) {
  typedef typename Compute<T>::type A;
  const A *mean = coef, *scale = coef + channels, *slope = coef + 2 * channels, *offset = coef + 3 * channels;
  for (int64_t r = 0; r < rows; r++) {
    const int64_t o = r * channels;
    for (int64_t j = 0; j < channels; j++)
      store(dx + o + j, (scale[j] * load(g + o + j) + slope[j] * (load(x + o + j) - mean[j])) + offset[j]);
  }
}

// Join: y = a + b
template <typename T>
static INLINE void join_body(const T *a, const T *b, T *y, int64_t count) {
  for (int64_t i = 0; i < count; i++) store(y + i, load(a + i) + load(b + i));
}

// Activation alone, y = act(x), and its gradient dx = d·act'(x), told from y. dx may be d.
template <typename T, int ACT>
static INLINE void rectify_each(const T *x, T *y, int64_t count, typename Compute<T>::type slope) {
  for (int64_t i = 0; i < count; i++) store(y + i, activate<ACT>(load(x + i), slope));
}
template <typename T>
static INLINE void rectify_body(const T *x, T *y, int64_t count, int act, typename Compute<T>::type slope) {
#define EACH(ACT) rectify_each<T, ACT>(x, y, count, slope)
  PER_ACT(act, EACH)
#undef EACH
}
template <typename T, int ACT>
static INLINE void unrectify_each(const T *d, const T *y, T *dx, int64_t count, typename Compute<T>::type slope) {
  for (int64_t i = 0; i < count; i++) store(dx + i, slope_at<ACT>(load(y + i), load(d + i), slope));
}
template <typename T>
static INLINE void unrectify_body(const T *d, const T *y, T *dx, int64_t count, int act,
                                  typename Compute<T>::type slope) {
#define EACH(ACT) unrectify_each<T, ACT>(d, y, dx, count, slope)
  PER_ACT(act, EACH)
#undef EACH
}

// Σ x² in f64: sixteen lanes, then the lanes in order.
template <typename T>
static INLINE double squares_body(const T *x, int64_t count) {
  double lanes[16] = {}, sum = 0;
  int64_t i = 0;
  for (; i + 16 <= count; i += 16)
    for (int j = 0; j < 16; j++) lanes[j] += double(x[i + j]) * double(x[i + j]);
  for (; i < count; i++) lanes[0] += double(x[i]) * double(x[i]);
  for (int j = 0; j < 16; j++) sum += lanes[j];
  return sum;
}

// Tree: dst = the sum of `leaves` equally long arrays, in the canonical binary tree.
template <typename T, typename D>
static INLINE void leaf_block(const T *src, int64_t count, D *out) {
  for (int64_t i = 0; i < count; i++) out[i] = D(load(src + i));
}
template <typename D>
static INLINE void add_block(D *out, const D *in, int64_t count) {
  for (int64_t i = 0; i < count; i++) out[i] = out[i] + in[i];
}

#define PER_TYPE(NAME, PARAMS, CALL)                 \
  CLONES static void NAME##_f32 PARAMS(float) { CALL } \
  CLONES static void NAME##_f64 PARAMS(double) { CALL } \
  CLONES static void NAME##_bf16 PARAMS(bf16) { CALL }

#define STATS_P(T) (const T *x, int64_t rows, int64_t channels, double *message)
PER_TYPE(stats, STATS_P, stats_body(x, rows, channels, message);)
#define APPLY_P(T) \
  (const T *x, const T *add, T *y, int64_t rows, int64_t channels, int act, Compute<T>::type slope,                 \
   const Compute<T>::type *coef)
PER_TYPE(apply, APPLY_P, apply_body(x, add, y, rows, channels, act, slope, coef);)
#define GATE_P(T)                                                                                                   \
  (const T *d1, const T *d2, const T *y, const T *x, T *g, int64_t rows, int64_t channels, int act,                 \
   Compute<T>::type slope, const Compute<T>::type *mean, double *message)
PER_TYPE(gate, GATE_P, gate_body(d1, d2, y, x, g, rows, channels, act, slope, mean, message);)
#define GRADIENT_P(T) (const T *g, const T *x, T *dx, int64_t rows, int64_t channels, const Compute<T>::type *coef)
PER_TYPE(gradient, GRADIENT_P, gradient_body(g, x, dx, rows, channels, coef);)
#define JOIN_P(T) (const T *a, const T *b, T *y, int64_t count)
PER_TYPE(join, JOIN_P, join_body(a, b, y, count);)
#define RECTIFY_P(T) (const T *x, T *y, int64_t count, int act, Compute<T>::type slope)
PER_TYPE(rectify, RECTIFY_P, rectify_body(x, y, count, act, slope);)
#define UNRECTIFY_P(T) (const T *d, const T *y, T *dx, int64_t count, int act, Compute<T>::type slope)
PER_TYPE(unrectify, UNRECTIFY_P, unrectify_body(d, y, dx, count, act, slope);)

CLONES static void leaf_f32(const float *s, int64_t n, float *o) { leaf_block(s, n, o); }
CLONES static void leaf_bf16(const bf16 *s, int64_t n, float *o) { leaf_block(s, n, o); }
CLONES static void leaf_f64(const double *s, int64_t n, double *o) { leaf_block(s, n, o); }
CLONES static double squares_f32(const float *x, int64_t n) { return squares_body(x, n); }
CLONES static double squares_f64(const double *x, int64_t n) { return squares_body(x, n); }
CLONES static void add_f32(float *o, const float *i, int64_t n) { add_block(o, i, n); }
CLONES static void add_f64(double *o, const double *i, int64_t n) { add_block(o, i, n); }

#define DISPATCH(TENSOR, F, ...)                                                       \
  switch ((TENSOR).scalar_type()) {                                                    \
    case at::kFloat: { typedef float T; typedef float A; F##_f32(__VA_ARGS__); break; }   \
    case at::kDouble: { typedef double T; typedef double A; F##_f64(__VA_ARGS__); break; } \
    case at::kBFloat16: { typedef bf16 T; typedef float A; F##_bf16(__VA_ARGS__); break; } \
    default: TORCH_CHECK(false, "no kernel for element type ", (TENSOR).scalar_type()); \
  }
