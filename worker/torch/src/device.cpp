// Streams and events of a device through c10's interfaces, which every libtorch has: no header and no symbol of CUDA is
// needed, so the executable is the same where there is none. Conventions: see kernels.cpp.

#include <ATen/ATen.h>
#include <c10/core/Event.h>
#include <c10/core/impl/VirtualGuardImpl.h>
#include <torch/version.h>

#include <cstdint>
#include <string>

using at::Tensor;

extern "C" {
void ls_set_last_error(const char *text);
}

template <typename F>
static int guarded(F &&f) {
  try {
    f();
    return 0;
  } catch (const std::exception &e) {
    ls_set_last_error(e.what());
    return 1;
  } catch (...) {
    ls_set_last_error("unknown C++ exception");
    return 1;
  }
}

static c10::Device cuda(int64_t index) { return c10::Device(c10::DeviceType::CUDA, c10::DeviceIndex(index)); }

extern "C" {

// A stream of device `index` from the pool, with high priority if asked for. Streams live as long as the process.
int ls_stream_new(int64_t index, int high, c10::Stream **out) {
  return guarded([&] {
    c10::impl::VirtualGuardImpl impl(c10::DeviceType::CUDA);
    *out = new c10::Stream(impl.getStreamFromGlobalPool(cuda(index), high != 0));
  });
}

void ls_stream_free(c10::Stream *stream) { delete stream; }

// What libtorch enqueues in this thread goes to `stream` from now on.
int ls_stream_use(const c10::Stream *stream) {
  return guarded([&] {
    c10::impl::VirtualGuardImpl impl(c10::DeviceType::CUDA);
    impl.setDevice(stream->device());
    impl.exchangeStream(*stream);
  });
}

// The driver's handle (cudaStream_t).
int ls_stream_handle(const c10::Stream *stream, void **out) {
  return guarded([&] {
    c10::impl::VirtualGuardImpl impl(c10::DeviceType::CUDA);
    *out = impl.getStreamNativeHandle(*stream);
  });
}

int ls_stream_idle(const c10::Stream *stream, int *idle) {
  return guarded([&] { *idle = stream->query() ? 1 : 0; });
}

int ls_event_new(c10::Event **out) {
  return guarded([&] { *out = new c10::Event(c10::DeviceType::CUDA, c10::EventFlag::PYTORCH_DEFAULT); });
}

void ls_event_free(c10::Event *event) {
  guarded([&] { delete event; });
}

int ls_event_record(c10::Event *event, const c10::Stream *stream) {
  return guarded([&] { event->record(*stream); });
}

int ls_event_block(const c10::Event *event, const c10::Stream *stream) {
  return guarded([&] { event->block(*stream); });
}

int ls_event_reached(const c10::Event *event, int *reached) {
  return guarded([&] { *reached = event->query() ? 1 : 0; });
}

// The address of a tensor's memory, and its bytes.
int ls_memory(const Tensor *tensor, uint64_t *address, uint64_t *bytes) {
  return guarded([&] {
    TORCH_CHECK(tensor->is_non_overlapping_and_dense(), "a tensor with holes has no memory of its own");
    *address = reinterpret_cast<uint64_t>(tensor->data_ptr());
    *bytes = uint64_t(tensor->nbytes());
  });
}

// The same host memory, pinned, as a tensor of device `index`: unified addressing lets kernels read it.
int ls_as_seen_by(const Tensor *pinned, int64_t index, Tensor **out) {
  return guarded([&] {
    TORCH_CHECK(pinned->is_pinned(), "only pinned memory is seen by a device");
    Tensor held = *pinned;
    *out = new Tensor(at::for_blob(pinned->data_ptr(), pinned->sizes())
                          .deleter([held](void *) {})
                          .target_device(cuda(index))
                          .options(at::TensorOptions().dtype(pinned->scalar_type()).device(cuda(index)))
                          .make_tensor());
  });
}

// The tensor's memory is used on `stream` too: it is not given to others before what is enqueued there has happened.
int ls_record_stream(const Tensor *tensor, const c10::Stream *stream) {
  return guarded([&] {
    c10::impl::VirtualGuardImpl impl(c10::DeviceType::CUDA);
    impl.recordDataPtrOnStream(tensor->storage().data_ptr(), *stream);
  });
}

const char *ls_torch_version() { return TORCH_VERSION; }

int ls_tf32(int on) {
  return guarded([&] {
    at::globalContext().setAllowTF32CuBLAS(on != 0);
    at::globalContext().setAllowTF32CuDNN(on != 0);
  });
}

int ls_deterministic(int on) {
  return guarded([&] {
    at::globalContext().setDeterministicCuDNN(on != 0);
    at::globalContext().setBenchmarkCuDNN(on == 0);
  });
}

}  // extern "C"
