// CUDA graphs, the caching allocator's figures and ranges for profilers, which c10's neutral interfaces do not have. Compiled against libtorch's
// CUDA headers into a library of its own. Functions return 0, or 1 and leave what went wrong in `lg_error`.

#include <ATen/cuda/CUDAGraph.h>
#include <c10/cuda/CUDACachingAllocator.h>
#include <c10/cuda/CUDAException.h>
#include <nvtx3/nvToolsExt.h>

#include <cstdint>
#include <string>

using at::cuda::CUDAGraph;
namespace allocator = c10::cuda::CUDACachingAllocator;

static thread_local std::string last;

template <typename F>
static int guarded(F &&f) {
  try {
    f();
    return 0;
  } catch (const std::exception &e) {
    last = e.what();
  } catch (...) {
    last = "unknown C++ exception";
  }
  return 1;
}

extern "C" {

// Lives until the thread's next failure.
const char *lg_error() { return last.c_str(); }

int lg_new(CUDAGraph **out) {
  return guarded([&] { *out = new CUDAGraph(true); });
}

// What this thread enqueues on its current stream, and on streams that wait for it, is captured from now on. Other
// threads may go on using the device.
int lg_begin(CUDAGraph *graph) {
  return guarded([&] { graph->capture_begin({0, 0}, cudaStreamCaptureModeThreadLocal); });
}

int lg_end(CUDAGraph *graph) {
  return guarded([&] {
    graph->capture_end();
    graph->instantiate();
  });
}

// Kernels, copies and waits in it.
int lg_nodes(CUDAGraph *graph, uint64_t *out) {
  return guarded([&] {
    size_t count = 0;
    C10_CUDA_CHECK(cudaGraphGetNodes(graph->raw_cuda_graph(), nullptr, &count));
    *out = count;
  });
}

// On the current stream.
int lg_replay(CUDAGraph *graph) {
  return guarded([&] { graph->replay(); });
}

// Gives its memory back. Nothing may be running it.
int lg_free(CUDAGraph *graph) {
  int failed = guarded([&] { graph->reset(); });
  guarded([&] { delete graph; });
  return failed;
}

// Bytes: allocated now, at most; reserved now, at most.
int lg_memory(int64_t device, uint64_t *out) {
  return guarded([&] {
    const auto stats = allocator::getDeviceStats(c10::DeviceIndex(device));
    const auto all = size_t(c10::CachingAllocator::StatType::AGGREGATE);
    out[0] = uint64_t(stats.allocated_bytes[all].current);
    out[1] = uint64_t(stats.allocated_bytes[all].peak);
    out[2] = uint64_t(stats.reserved_bytes[all].current);
    out[3] = uint64_t(stats.reserved_bytes[all].peak);
  });
}

// A range of this thread on a profiler's timeline; nothing where no profiler watches.
void lg_push(const char *name) { nvtxRangePushA(name); }
void lg_pop() { nvtxRangePop(); }

int lg_reset_peaks(int64_t device) {
  return guarded([&] { allocator::resetPeakStats(c10::DeviceIndex(device)); });
}

}  // extern "C"
