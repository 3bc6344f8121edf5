// BatchNorm between two passes: from sums to coefficients, in fp64, rounded once. worker/src/exec/norm.rs in CUDA.
#pragma once
#include "prelude.cuh"

struct Forward {
  const double *samples;  // in the scope of the sums
  double pixels;          // values a channel and sample
  const float *gamma, *beta;
  double eps;
  float *coef;      // [mean, scale, bias]
  double *saved;    // [mean, 1 / √(variance + eps)], for backward
  double *pending;  // [mean, unbiased variance], for the running statistics; may be null
};
static __device__ __forceinline__ void coefficients(const Forward &f, double mean, double inverse, int c, int channels) {
  const float rounded_mean = float(mean);
  const double scale = double(f.gamma[c]) * inverse;
  f.coef[c] = rounded_mean;
  f.coef[channels + c] = float(scale);
  f.coef[2 * channels + c] = float(double(f.beta[c]) - (mean - double(rounded_mean)) * scale);
}
static __device__ __forceinline__ void forward_channel(const Forward &f, double first, double second, int c, int channels) {
  const double count = *f.samples * f.pixels;
  const double mean = count > 0 ? first / count : 0.0;
  const double variance = fmax((count > 0 ? second / count : 0.0) - mean * mean, 0.0);
  const double inverse = 1.0 / sqrt(variance + f.eps);
  coefficients(f, mean, inverse, c, channels);
  f.saved[c] = mean;
  f.saved[channels + c] = inverse;
  if (f.pending) {
    f.pending[c] = mean;
    f.pending[channels + c] = count > 1 ? variance * (count / (count - 1)) : variance;
  }
}

struct Backward {
  const double *samples;
  double pixels;
  const float *gamma;
  const double *saved;
  float *coef;              // [mean, scale, slope, offset]
  float *d_gamma, *d_beta;  // this rank's part
};
static __device__ __forceinline__ void backward_channel(const Backward &b, const double *own, double sum, double product,
                                                        int c, int channels) {
  const double count = *b.samples * b.pixels, mean = b.saved[c], inverse = b.saved[channels + c];
  const float rounded_mean = float(mean);
  const double rest = mean - double(rounded_mean), scale = double(b.gamma[c]) * inverse;
  const double dot = product - rest * sum, slope = -scale * inverse * inverse * dot / count;
  b.coef[c] = rounded_mean;
  b.coef[channels + c] = float(scale);
  b.coef[2 * channels + c] = float(slope);
  b.coef[3 * channels + c] = float(-scale * sum / count - slope * rest);
  b.d_gamma[c] = float(inverse * (own[channels + c] - rest * own[c]));
  b.d_beta[c] = float(own[c]);
}
