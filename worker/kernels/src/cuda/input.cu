// A batch out of a data set that lies in device memory as bytes: worker/data/src/augment.rs and normalize.rs on the device.
#include "prelude.cuh"

struct Gather {
  const unsigned char *images;  // N × height × width × channels
  const int *labels;            // N
  const i64 *samples;           // which; one for each image of the batch
  const short *draws;           // down, right, flip, 0; likewise
  const float *offset, *scale;  // one for each value of an image
  int height, width, channels, padding;
};

// Row y shows what row y + down of the original shows, column x what column x + right shows, or zeros; then, with a
// flip, left and right change places. Values are normalised before they are shifted: (value − offset)·scale at the place
// where they come from. A block has one image, a thread V values of it.
// Bytes: an image's once, the batch once; offsets and scales stay in the caches.
template <typename T, int V> static __device__ __forceinline__ void augment(const Gather &a, T *out, int *labels) {
  const i64 sample = a.samples[blockIdx.x];
  if (blockIdx.y == 0 && threadIdx.x == 0) labels[blockIdx.x] = a.labels[sample];
  const int size = a.height * a.width * a.channels, first = (blockIdx.y * THREADS + threadIdx.x) * V;
  if (first >= size) return;
  const short *draw = a.draws + i64(blockIdx.x) * 4;
  const int down = draw[0], right = draw[1], flip = draw[2];
  const unsigned char *image = a.images + sample * size;
  int channel = first % a.channels, x = first / a.channels % a.width, y = first / a.channels / a.width;
  float values[V];
#pragma unroll
  for (int i = 0; i < V; i++) {
    const int row = y + down, column = (flip ? a.width - 1 - x : x) + right;
    values[i] = 0;
    if (row >= 0 && row < a.height && column >= 0 && column < a.width) {
      const int from = (row * a.width + column) * a.channels + channel;
      values[i] = (float(image[from]) - a.offset[from]) * a.scale[from];
    }
    if (++channel == a.channels) {
      channel = 0;
      if (++x == a.width) x = 0, y++;
    }
  }
  keep<T, V>(out + i64(blockIdx.x) * size + first, values);
}
#define AUGMENT(NAME, T, V)                                                                                \
  extern "C" __global__ void __launch_bounds__(THREADS) NAME(Gather a, T *out, int *labels) {               \
    augment<T, V>(a, out, labels);                                                                         \
  }                                                                                                        \
  EXPORT(NAME)
AUGMENT(augment_f32_pack, float, 4)
AUGMENT(augment_f32_one, float, 1)
AUGMENT(augment_bf16_pack, bf16, 8)
AUGMENT(augment_bf16_one, bf16, 1)
