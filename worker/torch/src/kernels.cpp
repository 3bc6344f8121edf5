// What tch lacks: convolution_backward, and the memory-bound half of a ResNet step as single passes over NHWC rows.
//
// Conventions
//   rows      n·h·w of a channels-last tensor; a row is C contiguous values
//   message   2·C doubles a chunk: [n·mean, M2 + n·mean²] forward, [Σ g, Σ g·(x − mean)] backward
//   apply     4·C coefficients of the element's compute type: see Apply
// The loops are in loops.h; here are checks of shapes, dispatch on types, and what goes to ATen.
// No function throws across the boundary: 0 is success, else ls_last_error() has the text of this thread's last error.

#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <ATen/core/LegacyTypeDispatch.h>
#include <ATen/ops/convolution.h>
#include <ATen/ops/convolution_backward.h>
#include <malloc.h>

#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <string>
#include <vector>

#include "loops.h"

using at::Tensor;
static thread_local std::string last_error;

template <typename F>
static int guarded(F &&f) {
  try {
    at::AutoDispatchBelowADInplaceOrView below;
    f();
    return 0;
  } catch (const std::exception &e) {
    last_error = e.what();
    return 1;
  } catch (...) {
    last_error = "unknown C++ exception";
    return 1;
  }
}

// ---------------------------------------------------------------------------------------------------------------
// shapes: everything here is channels-last dense (or 2-d contiguous), checked, so that memory is rows of channels

static void rows_of(const Tensor &t, int64_t &rows, int64_t &channels) {
  TORCH_CHECK(t.dim() == 4, "expected a 4-d tensor, got ", t.dim(), "-d");
  channels = t.size(1);
  rows = t.size(0) * t.size(2) * t.size(3);
  TORCH_CHECK(rows == 0 || t.is_contiguous(at::MemoryFormat::ChannelsLast) || (t.size(2) * t.size(3) == 1 && t.is_contiguous()),
              "expected channels-last memory");
}
static void same(const Tensor &a, const Tensor &b, const char *what) {
  TORCH_CHECK(a.sizes() == b.sizes() && a.scalar_type() == b.scalar_type(), what, " has another shape or type");
}
template <typename T> static T *ptr(const Tensor &t) { return reinterpret_cast<T *>(t.data_ptr()); }
template <typename T> static T *ptr(const Tensor *t) { return t ? reinterpret_cast<T *>(t->data_ptr()) : nullptr; }
static int64_t accumulate_size(const Tensor &t) { return t.scalar_type() == at::kDouble ? 8 : 4; }

template <typename D, typename Leaf, typename Add>
static void tree_block(Tensor *const *src, int64_t leaves, int64_t at_, int64_t count, D *out, Leaf leaf, Add add,
                       D *scratch) {
  if (leaves == 1) {
    leaf(src[0], at_, count, out);
    return;
  }
  int64_t left = 1;
  while (left * 2 < leaves) left *= 2;
  tree_block(src, left, at_, count, out, leaf, add, scratch);
  tree_block(src + left, leaves - left, at_, count, scratch, leaf, add, scratch + count);
  add(out, scratch, count);
}

extern "C" {

const char *ls_last_error() { return last_error.c_str(); }
void ls_set_last_error(const char *text) { last_error = text; }

// Large blocks come from the heap and stay there: a step's activations are not mapped and faulted in anew each time.
void ls_keep_memory() {
  mallopt(M_ARENA_MAX, 1);
  mallopt(M_MMAP_THRESHOLD, 1 << 30);
  mallopt(M_TRIM_THRESHOLD, 0x7fffffff);
  mallopt(M_TOP_PAD, 64 << 20);
}

int ls_set_env(const char *name, const char *value) { return setenv(name, value, 1); }

int ls_set_threads(int threads) {
  return guarded([&] { at::set_num_threads(threads); });
}
int ls_threads() { return at::get_num_threads(); }
const char *ls_capability() {
  static std::string name = at::get_cpu_capability();
  return name.c_str();
}

int ls_conv(Tensor **out, const Tensor *x, const Tensor *w, const Tensor *b, int64_t stride, int64_t pad) {
  return guarded([&] {
    c10::optional<Tensor> bias;
    if (b) bias = *b;
    const int64_t s[2] = {stride, stride}, p[2] = {pad, pad}, one[2] = {1, 1}, zero[2] = {0, 0};
    Tensor y = at::convolution(*x, *w, bias, s, p, one, false, zero, 1);
    *out = new Tensor(y.contiguous(at::MemoryFormat::ChannelsLast));
  });
}

// dx and db are asked for by non-null places; dw comes in the memory order of a channels-last weight.
int ls_conv_backward(Tensor **dx, Tensor **dw, Tensor **db, const Tensor *g, const Tensor *x, const Tensor *w,
                     int64_t stride, int64_t pad) {
  return guarded([&] {
    const int64_t s[2] = {stride, stride}, p[2] = {pad, pad}, one[2] = {1, 1}, zero[2] = {0, 0};
    c10::OptionalArrayRef<int64_t> bias_sizes;
    const int64_t bs[1] = {w->size(0)};
    if (db) bias_sizes = at::IntArrayRef(bs, 1);
    auto r = at::convolution_backward(*g, *x, *w, bias_sizes, s, p, one, false, zero, 1, {dx != nullptr, true, db != nullptr});
    if (dx) *dx = new Tensor(std::get<0>(r).contiguous(at::MemoryFormat::ChannelsLast));
    *dw = new Tensor(std::get<1>(r).contiguous(at::MemoryFormat::ChannelsLast));
    if (db) *db = new Tensor(std::get<2>(r).contiguous());
  });
}

int ls_stats(const Tensor *x, double *message) {
  return guarded([&] {
    int64_t rows, channels;
    rows_of(*x, rows, channels);
    DISPATCH(*x, stats, ptr<T>(*x), rows, channels, message);
  });
}

int ls_apply(const Tensor *x, const Tensor *add, const Tensor *y, int act, double slope, const void *coef) {
  return guarded([&] {
    int64_t rows, channels;
    rows_of(*x, rows, channels);
    same(*x, *y, "output");
    rows_of(*y, rows, channels);
    if (add) { same(*x, *add, "addend"); rows_of(*add, rows, channels); }
    DISPATCH(*x, apply, ptr<T>(*x), ptr<T>(add), ptr<T>(*y), rows, channels, act, A(slope), (const A *)coef);
  });
}

int ls_gate(const Tensor *d1, const Tensor *d2, const Tensor *y, const Tensor *x, const Tensor *g, int act,
            double slope, const void *mean, double *message) {
  return guarded([&] {
    int64_t rows, channels;
    rows_of(*x, rows, channels);
    for (const Tensor *t : {d1, d2, y, g})
      if (t) { same(*x, *t, "gradient"); rows_of(*t, rows, channels); }
    DISPATCH(*x, gate, ptr<T>(*d1), ptr<T>(d2), ptr<T>(*y), ptr<T>(*x), ptr<T>(*g), rows, channels, act, A(slope),
             (const A *)mean, message);
  });
}

int ls_gradient(const Tensor *g, const Tensor *x, const Tensor *dx, const void *coef) {
  return guarded([&] {
    int64_t rows, channels;
    rows_of(*x, rows, channels);
    same(*x, *g, "gradient"); rows_of(*g, rows, channels);
    same(*x, *dx, "output"); rows_of(*dx, rows, channels);
    DISPATCH(*x, gradient, ptr<T>(*g), ptr<T>(*x), ptr<T>(*dx), rows, channels, (const A *)coef);
  });
}

int ls_join(const Tensor *a, const Tensor *b, const Tensor *y) {
  return guarded([&] {
    int64_t rows, channels;
    rows_of(*a, rows, channels);
    same(*a, *b, "addend"); rows_of(*b, rows, channels);
    same(*a, *y, "output"); rows_of(*y, rows, channels);
    DISPATCH(*a, join, ptr<T>(*a), ptr<T>(*b), ptr<T>(*y), rows * channels);
  });
}

int ls_rectify(const Tensor *x, const Tensor *y, int act, double slope) {
  return guarded([&] {
    int64_t rows, channels;
    rows_of(*x, rows, channels);
    same(*x, *y, "output"); rows_of(*y, rows, channels);
    DISPATCH(*x, rectify, ptr<T>(*x), ptr<T>(*y), rows * channels, act, A(slope));
  });
}

int ls_rectify_backward(const Tensor *d, const Tensor *y, const Tensor *dx, int act, double slope) {
  return guarded([&] {
    int64_t rows, channels;
    rows_of(*y, rows, channels);
    same(*y, *d, "gradient"); rows_of(*d, rows, channels);
    same(*y, *dx, "output"); rows_of(*dx, rows, channels);
    DISPATCH(*y, unrectify, ptr<T>(*d), ptr<T>(*y), ptr<T>(*dx), rows * channels, act, A(slope));
  });
}

// Sum of squares of a dense tensor, always added in the same order.
int ls_squares(const Tensor *x, double *sum) {
  return guarded([&] {
    TORCH_CHECK(x->is_non_overlapping_and_dense(), "sum of squares: the tensor has holes");
    switch (x->scalar_type()) {
      case at::kFloat: *sum = squares_f32(ptr<float>(*x), x->numel()); break;
      case at::kDouble: *sum = squares_f64(ptr<double>(*x), x->numel()); break;
      default: TORCH_CHECK(false, "no kernel for this element type");
    }
  });
}

// Shortcut A: every stride-th pixel, zero channels appended. Works on bytes: a copy knows no number format.
int ls_subsample(const Tensor *x, const Tensor *y, int64_t stride) {
  return guarded([&] {
    int64_t rows, ci, co;
    rows_of(*x, rows, ci);
    rows_of(*y, rows, co);
    const int64_t n = y->size(0), h = y->size(2), w = y->size(3), H = x->size(2), W = x->size(3), e = x->element_size();
    TORCH_CHECK(x->scalar_type() == y->scalar_type() && x->size(0) == n && co >= ci && (h - 1) * stride < H && (w - 1) * stride < W,
                "shortcut A: shapes do not fit");
    const char *xs = (const char *)x->data_ptr();
    char *ys = (char *)y->data_ptr();
    for (int64_t i = 0; i < n; i++)
      for (int64_t r = 0; r < h; r++)
        for (int64_t c = 0; c < w; c++) {
          char *to = ys + ((i * h + r) * w + c) * co * e;
          std::memcpy(to, xs + ((i * H + r * stride) * W + c * stride) * ci * e, ci * e);
          std::memset(to + ci * e, 0, (co - ci) * e);
        }
  });
}

// Gradient of the above, added into dx.
int ls_subsample_backward(const Tensor *g, const Tensor *dx, int64_t stride) {
  return guarded([&] {
    int64_t rows, ci, co;
    rows_of(*dx, rows, ci);
    rows_of(*g, rows, co);
    const int64_t n = g->size(0), h = g->size(2), w = g->size(3), H = dx->size(2), W = dx->size(3);
    TORCH_CHECK(g->scalar_type() == dx->scalar_type() && dx->size(0) == n && co >= ci && (h - 1) * stride < H && (w - 1) * stride < W,
                "shortcut A: shapes do not fit");
    auto run = [&](auto *gs, auto *ds) {
      for (int64_t i = 0; i < n; i++)
        for (int64_t r = 0; r < h; r++)
          for (int64_t c = 0; c < w; c++) {
            auto *from = gs + ((i * h + r) * w + c) * co;
            auto *to = ds + ((i * H + r * stride) * W + c * stride) * ci;
            for (int64_t j = 0; j < ci; j++) store(to + j, load(to + j) + load(from + j));
          }
    };
    switch (g->scalar_type()) {
      case at::kFloat: run(ptr<float>(*g), ptr<float>(*dx)); break;
      case at::kDouble: run(ptr<double>(*g), ptr<double>(*dx)); break;
      case at::kBFloat16: run(ptr<bf16>(*g), ptr<bf16>(*dx)); break;
      default: TORCH_CHECK(false, "no kernel for this element type");
    }
  });
}

// Global average pool: y[n, c] in the compute type (f32 for bf16), sums in f64 over pixels in order.
int ls_pool(const Tensor *x, const Tensor *y) {
  return guarded([&] {
    int64_t rows, channels;
    rows_of(*x, rows, channels);
    TORCH_CHECK(y->dim() == 2 && y->is_contiguous() && y->size(0) == x->size(0) && y->size(1) == channels &&
                    y->element_size() == accumulate_size(*x), "pool: shapes do not fit");
    const int64_t n = x->size(0), pixels = x->size(2) * x->size(3);
    auto run = [&](auto *xs, auto *ys) {
      for (int64_t i = 0; i < n; i++)
        for (int64_t j = 0; j < channels; j++) {
          double sum = 0;
          for (int64_t p = 0; p < pixels; p++) sum += double(load(xs + (i * pixels + p) * channels + j));
          ys[i * channels + j] = std::remove_reference_t<decltype(ys[0])>(sum / double(pixels));
        }
    };
    switch (x->scalar_type()) {
      case at::kFloat: run(ptr<float>(*x), ptr<float>(*y)); break;
      case at::kDouble: run(ptr<double>(*x), ptr<double>(*y)); break;
      case at::kBFloat16: run(ptr<bf16>(*x), ptr<float>(*y)); break;
      default: TORCH_CHECK(false, "no kernel for this element type");
    }
  });
}

int ls_pool_backward(const Tensor *g, const Tensor *dx) {
  return guarded([&] {
    int64_t rows, channels;
    rows_of(*dx, rows, channels);
    TORCH_CHECK(g->dim() == 2 && g->is_contiguous() && g->size(0) == dx->size(0) && g->size(1) == channels &&
                    g->element_size() == accumulate_size(*dx), "pool: shapes do not fit");
    const int64_t n = dx->size(0), pixels = dx->size(2) * dx->size(3);
    auto run = [&](auto *gs, auto *ds) {
      for (int64_t i = 0; i < n; i++)
        for (int64_t p = 0; p < pixels; p++)
          for (int64_t j = 0; j < channels; j++)
            store(ds + (i * pixels + p) * channels + j, gs[i * channels + j] / std::remove_const_t<std::remove_reference_t<decltype(gs[0])>>(pixels));
    };
    switch (dx->scalar_type()) {
      case at::kFloat: run(ptr<float>(*g), ptr<float>(*dx)); break;
      case at::kDouble: run(ptr<double>(*g), ptr<double>(*dx)); break;
      case at::kBFloat16: run(ptr<float>(*g), ptr<bf16>(*dx)); break;
      default: TORCH_CHECK(false, "no kernel for this element type");
    }
  });
}

// dst (f32, or f64 for f64 sources) = canonical tree sum of the sources' memory, which all have `count` elements.
int ls_tree_sum(Tensor *const *src, int64_t leaves, void *dst, int64_t count) {
  return guarded([&] {
    TORCH_CHECK(leaves > 0, "tree sum of nothing");
    for (int64_t i = 0; i < leaves; i++)
      TORCH_CHECK(src[i]->numel() == count && src[i]->is_non_overlapping_and_dense() && src[i]->scalar_type() == src[0]->scalar_type(),
                  "tree sum: a source has another size, type or holes");
    const int64_t block = 1024;
    const int64_t depth = 64;
    if (src[0]->scalar_type() == at::kDouble) {
      std::vector<double> scratch(block * depth);
      for (int64_t i = 0; i < count; i += block)
        tree_block<double>(src, leaves, i, std::min(block, count - i), (double *)dst + i,
          [](Tensor *t, int64_t a, int64_t n, double *o) { leaf_f64(ptr<double>(*t) + a, n, o); }, add_f64, scratch.data());
    } else {
      std::vector<float> scratch(block * depth);
      const bool half = src[0]->scalar_type() == at::kBFloat16;
      TORCH_CHECK(half || src[0]->scalar_type() == at::kFloat, "tree sum: no kernel for this element type");
      for (int64_t i = 0; i < count; i += block)
        tree_block<float>(src, leaves, i, std::min(block, count - i), (float *)dst + i,
          [half](Tensor *t, int64_t a, int64_t n, float *o) {
            if (half) leaf_bf16(ptr<bf16>(*t) + a, n, o); else leaf_f32(ptr<float>(*t) + a, n, o);
          }, add_f32, scratch.data());
    }
  });
}

// Raw memory of a dense tensor, in and out.
int ls_copy_later(const Tensor *to, const Tensor *from) {
  return guarded([&] { to->copy_(*from, true); });
}

int ls_read(const Tensor *t, void *dst, int64_t bytes) {
  return guarded([&] {
    TORCH_CHECK(t->is_non_overlapping_and_dense() && int64_t(t->nbytes()) == bytes, "read: tensor has holes or another size");
    std::memcpy(dst, t->data_ptr(), bytes);
  });
}
int ls_write(const Tensor *t, const void *src, int64_t bytes) {
  return guarded([&] {
    TORCH_CHECK(t->is_non_overlapping_and_dense() && int64_t(t->nbytes()) == bytes, "write: tensor has holes or another size");
    std::memcpy(t->data_ptr(), src, bytes);
  });
}
}
