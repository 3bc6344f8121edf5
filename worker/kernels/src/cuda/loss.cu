// Softmax cross-entropy with label smoothing, its gradient and the counts: worker/src/exec/loss.rs, a warp a sample, in
// fp64. The target is (1 − smoothing) on the label plus smoothing / classes on every class (Szegedy et al. 2016).
// Bytes: the logits once (what is read again comes from the L1 cache), the gradient once.
#include "prelude.cuh"

#define INF __longlong_as_double(0x7ff0000000000000ll)
#define NOT_A_NUMBER __longlong_as_double(0x7ff8000000000000ll)

template <typename F> static __device__ __forceinline__ double warp_all(double v, F combine) {
  for (int o = 16; o > 0; o /= 2) v = combine(v, __shfl_xor_sync(0xffffffffu, v, o));
  return v;
}
static __device__ __forceinline__ double plus(double a, double b) { return a + b; }
static __device__ __forceinline__ double larger(double a, double b) { return b > a ? b : a; }

struct Loss {
  const int *labels;
  i64 num;
  i64 classes;
  double smoothing;
  const Step *step;  // the gradient is divided by the samples of the global batch
  double *partials;  // 3 a block
  unsigned *ticket;
  double *counts;    // Σ loss, samples whose best class is not the label, whose label is not among the five best
};

// `gradient` may be null. A label that is no class gives a loss of NaN. A tie goes to the lower class.
template <typename T> static __device__ __forceinline__ void cross_entropy(const T *logits, T *gradient, const Loss &l) {
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, warps = THREADS / 32, classes = int(l.classes);
  double sums[3] = {};
  for (i64 n = i64(blockIdx.x) * warps + warp; n < l.num; n += i64(gridDim.x) * warps) {
    const T *row = logits + n * classes;
    const int label = l.labels[n];
    const bool known = label >= 0 && label < classes;
    const double own = known ? double(fetch<T, 1>(row + label).at(0)) : NOT_A_NUMBER;
    double largest = -INF, sum = 0, ahead = 0, total = 0;
    for (int c = lane; c < classes; c += 32) {
      const double x = double(fetch<T, 1>(row + c).at(0));
      largest = larger(largest, x);
      ahead += x > own || (x == own && c < label) ? 1 : 0;
    }
    largest = warp_all(largest, larger);
    for (int c = lane; c < classes; c += 32) {
      const double x = double(fetch<T, 1>(row + c).at(0)) - largest;
      sum += exp(x);
      total += x;
    }
    sum = warp_all(sum, plus);
    total = warp_all(total, plus);
    ahead = warp_all(ahead, plus);
    // Without smoothing an infinite logit of another class does no harm; 0 · ∞ would.
    const double mean = l.smoothing != 0 ? l.smoothing * (total / classes) : 0.0;
    sums[0] += log(sum) - ((1 - l.smoothing) * (own - largest) + mean);
    sums[1] += own != own || ahead > 0 ? 1 : 0;
    sums[2] += own != own || ahead > 4 ? 1 : 0;
    if (gradient)
      for (int c = lane; c < classes; c += 32) {
        const double x = double(fetch<T, 1>(row + c).at(0)) - largest;
        const double target = l.smoothing / classes + (c == label ? 1 - l.smoothing : 0.0);
        const float g[1] = {float((exp(x) / sum - target) / l.step->samples)};
        keep<T, 1>(gradient + n * classes + c, g);
      }
  }
  if (lane == 0)
    for (int k = 0; k < 3; k++) arena[warp * 3 + k] = sums[k];
  __syncthreads();
  if (threadIdx.x < 3) {
    double sum = 0;
    for (int w = 0; w < warps; w++) sum += arena[w * 3 + threadIdx.x];
    l.partials[i64(blockIdx.x) * 3 + threadIdx.x] = sum;
  }
  if (!last_block(l.ticket)) return;
  if (threadIdx.x < 3) {
    const volatile double *from = l.partials;
    double sum = 0;
    for (int b = 0; b < int(gridDim.x); b++) sum += from[i64(b) * 3 + threadIdx.x];
    l.counts[threadIdx.x] = sum;
  }
}
#define LOSS(NAME, T)                                                                                              \
  extern "C" __global__ void __launch_bounds__(THREADS) NAME(const T *logits, T *gradient, Loss l) {                \
    cross_entropy<T>(logits, gradient, l);                                                                         \
  }                                                                                                                \
  EXPORT(NAME)
LOSS(cross_entropy_f32, float)
LOSS(cross_entropy_bf16, bf16)
