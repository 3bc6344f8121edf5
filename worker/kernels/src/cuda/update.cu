// The end of a step: the vote, the gate, and what is behind it. In the order of the stream:
//
//   vote_write ─► all-reduce (sum) of the vote, behind the last bucket ─► nonfinite ─► vote_check ─► running_update
//   ─► sgd ─► commit
//
// A collective that was aborted may leave junk and end as if all were well. So nothing behind the gate changes a byte
// unless the vote's sum is what it must be, no gradient is infinite or NaN, and nobody set the poison word; and only what
// `commit` writes says that a step has happened.
#include "prelude.cuh"

// This rank's word of the vote: its nonce, or 0 where it was poisoned.
extern "C" __global__ void vote_write(const Step *step, const unsigned *poison, u64 *vote, unsigned *found) {
  if (threadIdx.x != 0) return;
  const volatile unsigned *word = poison;
  *vote = *word ? 0 : step->nonce;
  *found = 0;
}
EXPORT(vote_write)

// Whether a gradient is infinite or NaN: found = 1. Every thread that writes writes the same. Bytes: g once.
extern "C" __global__ void __launch_bounds__(THREADS) nonfinite(const float *g, i64 num, unsigned *found) {
  bool bad = false;
  const i64 stride = i64(gridDim.x) * THREADS * 4;
  for (i64 i = (i64(blockIdx.x) * THREADS + threadIdx.x) * 4; i < num; i += stride) {
    const Pack<float, 4> pack = fetch<float, 4>(g + i);
#pragma unroll
    for (int k = 0; k < 4; k++) bad = bad || !(fabsf(pack.at(k)) <= 3.402823466e38f);
  }
  if (bad) *found = 1;
}
EXPORT(nonfinite)

// The poison word is read again: it may have been set while the vote travelled.
extern "C" __global__ void vote_check(const Step *step, const u64 *sum, const unsigned *poison, const unsigned *found,
                                      unsigned *gate) {
  if (threadIdx.x != 0) return;
  const volatile unsigned *word = poison;
  *gate = *sum == step->expected && *found == 0 && *word == 0 ? 1 : 0;
}
EXPORT(vote_check)

// running ← (1 − momentum)·running + momentum·batch, rounded to fp32. All layers, mean and variance one after another.
extern "C" __global__ void __launch_bounds__(THREADS)
running_update(const Step *step, const unsigned *gate, float *running, const double *pending, int num) {
  if (*gate == 0) return;
  const double momentum = step->bn_momentum;
  for (int i = blockIdx.x * THREADS + threadIdx.x; i < num; i += gridDim.x * THREADS)
    running[i] = float((1.0 - momentum) * double(running[i]) + momentum * pending[i]);
}
EXPORT(running_update)

// worker/src/optim/sgd.rs, operation by operation, so that a step has the CPU's bits:
//   g += wd·p (elements before `decayed`); v = µ·v + keep·g; p −= lr·(g + µ·v) with Nesterov, p −= lr·v without;
//   p −= lr·g where there is no v. The first `cast` elements are also written in bf16, for the next forward pass.
// Bytes an element: p, v read and written, g read, 2 for the copy.
struct Sgd {
  float *master, *momentum;  // momentum may be null
  const float *gradient;
  bf16 *copy;                // may be null
  i64 num, decayed, cast;
  float mu, weight_decay;
  i64 nesterov;
};
extern "C" __global__ void __launch_bounds__(THREADS) sgd(const Step *step, const unsigned *gate, Sgd s) {
  if (*gate == 0) return;
  const float lr = step->lr, share = step->keep;
  const i64 stride = i64(gridDim.x) * THREADS * 4;
  for (i64 i = (i64(blockIdx.x) * THREADS + threadIdx.x) * 4; i < s.num; i += stride) {
    const Pack<float, 4> ps = fetch<float, 4>(s.master + i), gs = fetch<float, 4>(s.gradient + i);
    Pack<float, 4> vs;
    if (s.momentum) vs = fetch<float, 4>(s.momentum + i);
    float p[4], v[4];
#pragma unroll
    for (int k = 0; k < 4; k++) {
      float g = gs.at(k), update;
      p[k] = ps.at(k);
      if (s.weight_decay != 0 && i + k < s.decayed) g = g + p[k] * s.weight_decay;
      if (s.momentum) {
        v[k] = vs.at(k) * s.mu + g * share;
        update = s.nesterov ? g + v[k] * s.mu : v[k];
      } else {
        update = g;
      }
      p[k] = p[k] - update * lr;
    }
    keep<float, 4>(s.master + i, p);
    if (s.momentum) keep<float, 4>(s.momentum + i, v);
    if (s.copy && i < s.cast) {  // four bf16 in one store; `cast` is a multiple of four
      const uint2 w = make_uint2(bf16_bits(p[0]) | bf16_bits(p[1]) << 16, bf16_bits(p[2]) | bf16_bits(p[3]) << 16);
      *reinterpret_cast<uint2 *>(s.copy + i) = w;
    }
  }
}
EXPORT(sgd)

// The step has happened. A kernel of its own: when this is seen, everything before it in the stream has been written.
extern "C" __global__ void commit(const Step *step, const unsigned *gate, u64 *applied) {
  if (threadIdx.x == 0 && *gate) *applied = step->number;
}
EXPORT(commit)
