// A test double of the CUDA driver, with its ABI: `libcuda.so` by name, whose kernels are ours, compiled for the host by
// device.h. Device memory is host memory, every call is done when it returns, a stream is any number.
// The launching code above it is the one that a GPU sees. Error codes are CUDA's (cuda.h).
#include "device.h"

#include "kernels.cu"

enum { SUCCESS = 0, INVALID_VALUE = 1, INVALID_IMAGE = 200, NOT_FOUND = 500, LAUNCH_FAILED = 719 };
static int who_first;

extern "C" {

// Who runs first: 0 ascending, 1 descending, 2 mixed. Not CUDA's.
void lockstep_host_order(int value) { who_first = value; }
// Names of all kernels, one after another; null at the end. Not CUDA's.
const char *lockstep_host_kernel(int index) {
  const Entry *e = entries;
  while (e && index--) e = e->next;
  return e ? e->name : 0;
}

int cuInit(unsigned) { return SUCCESS; }
int cuDriverGetVersion(int *version) { *version = 13000; return SUCCESS; }
int cuCtxGetDevice(int *device) { *device = 0; return SUCCESS; }
int cuDeviceGetAttribute(int *value, int attribute, int) {
  switch (attribute) {
    case 16: *value = 2; return SUCCESS;  // multiprocessors: few, so that small grids have blocks with several rounds
    case 75: *value = 9; return SUCCESS;  // compute capability 9.0
    case 76: *value = 0; return SUCCESS;
    default: return INVALID_VALUE;
  }
}
int cuGetErrorString(int code, const char **text) {
  *text = code == LAUNCH_FAILED ? failure : code == NOT_FOUND ? "named symbol not found" : "error of the test double";
  return SUCCESS;
}
// An image begins as a cubin does, or as PTX; the kernels are here anyway.
int cuModuleLoadData(void **module, const void *image) {
  if (memcmp(image, "\x7f" "ELF", 4) && memcmp(image, "//", 2)) return INVALID_IMAGE;
  *module = &entries;
  return SUCCESS;
}
int cuModuleUnload(void *) { return SUCCESS; }
int cuModuleGetFunction(void **function, void *, const char *name) {
  for (Entry *e = entries; e; e = e->next)
    if (!strcmp(e->name, name)) {
      *function = e;
      return SUCCESS;
    }
  return NOT_FOUND;
}
int cuLaunchKernel(void *function, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by, unsigned bz,
                   unsigned shared, void *, void **params, void **) {
  if (gz != 1) return INVALID_VALUE;
  return run_grid(*static_cast<Entry *>(function), {gx, gy, 1}, {bx, by, bz}, shared, params, who_first) ? SUCCESS : LAUNCH_FAILED;
}
}
