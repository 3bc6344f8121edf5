// CUDA's language on the host, as much of it as the kernels use, so that the same source runs without a GPU: threads are
// fibers of one OS thread. For tests.
//
// A thread runs until it waits. `order` decides who runs first, so a result that depends on it lacks a barrier. Blocks run
// one after another, but when a thread has taken a ticket (`atomicInc`), the next blocks overtake it: whoever finds that
// it is the last must find everything of the others, too. Threads
// of a block that wait at different barriers, or leave while others wait, are an error that names the lines. Shared
// memory is NaN at the start of every block and guarded at its end.
#pragma once
#define LOCKSTEP_HOST

#include <math.h>
#include <setjmp.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <ucontext.h>

#include <utility>

#define __global__
#define __device__
#define __shared__
#define __forceinline__ inline __attribute__((always_inline))
#define __launch_bounds__(...)

struct dim3 { unsigned x, y, z; };
struct uint2 { unsigned x, y; };
struct alignas(16) uint4 { unsigned x, y, z, w; };
static inline uint2 make_uint2(unsigned x, unsigned y) { return {x, y}; }
static inline uint4 make_uint4(unsigned x, unsigned y, unsigned z, unsigned w) { return {x, y, z, w}; }
static inline int min(int a, int b) { return a < b ? a : b; }

template <typename To, typename From> static inline To as(From from) {
  To to;
  static_assert(sizeof to == sizeof from, "");
  memcpy(&to, &from, sizeof to);
  return to;
}
static inline float __uint_as_float(unsigned v) { return as<float>(v); }
static inline unsigned __float_as_uint(float v) { return as<unsigned>(v); }
static inline double __longlong_as_double(long long v) { return as<double>(v); }
static inline unsigned bf16_bits(float v) {  // round to nearest even; a NaN stays one
  const unsigned bits = as<unsigned>(v);
  return (bits & 0x7fffffffu) > 0x7f800000u ? 0x7fffu : (bits + 0x7fffu + (bits >> 16 & 1u)) >> 16;
}

// ---------------------------------------------------------------------------------------------------------------------
// fibers

static const unsigned MAX_THREADS = 1024, WARP = 32, MAX_DEPTH = 4;
static const size_t STACK = 64 << 10, SHARED = 48 << 10, GUARD = 256;
alignas(16) double arena[(SHARED + GUARD) / 8];
static dim3 threadIdx, blockIdx, blockDim, gridDim;

enum State { READY, AT_BLOCK, AT_WARP, AT_TICKET, LEFT };
struct Fiber {
  ucontext_t context;  // to begin; from then on jumps, which ask nothing of the system
  jmp_buf jump;
  bool begun;
  State state;
  int line;
  char *stack;
};
// A block in flight. One that takes a ticket waits while the next ones run.
struct Block {
  Fiber fibers[MAX_THREADS];
  jmp_buf scheduler;
  uint64_t words[2][MAX_THREADS];  // what threads show each other
};
static Block blocks[MAX_DEPTH], *now;
static unsigned running, next_block;
static int order;
static char failure[512];
static void (*body)(void **);
static void **parameters;

static void wait_at(State state, int line) {
  Fiber &f = now->fibers[running];
  f.state = state;
  if (line) f.line = line;
  if (!_setjmp(f.jump)) _longjmp(now->scheduler, 1);
}
static void fiber_main() {
  body(parameters);
  now->fibers[running].state = LEFT;
  _longjmp(now->scheduler, 1);
}
static __attribute__((noinline)) void resume(unsigned thread) {
  Fiber &f = now->fibers[thread];
  running = thread;
  threadIdx = {thread, 0, 0};
  if (_setjmp(now->scheduler)) return;
  if (f.begun) _longjmp(f.jump, 1);
  f.begun = true;
  setcontext(&f.context);
}

// Lets a group of threads go on when all of them wait at the same line. Returns whether it did.
static bool release(unsigned first, unsigned num, State state) {
  Fiber *fibers = now->fibers;
  for (unsigned t = first; t < first + num; t++)
    if (fibers[t].state != state || fibers[t].line != fibers[first].line) return false;
  for (unsigned t = first; t < first + num; t++) fibers[t].state = READY;
  return true;
}

static bool run_block(unsigned depth, unsigned shared);

// Other blocks run to their ends while a thread of this one has just taken a ticket.
static bool overtake(unsigned depth, unsigned shared) {
  static double kept[MAX_DEPTH][sizeof arena / 8];
  if (depth + 1 >= MAX_DEPTH || next_block >= gridDim.x * gridDim.y) return true;
  const dim3 own = blockIdx;
  memcpy(kept[depth], arena, sizeof arena);
  const bool fine = run_block(depth + 1, shared);
  memcpy(arena, kept[depth], sizeof arena);
  blockIdx = own;
  now = &blocks[depth];
  return fine;
}

static bool run_block(unsigned depth, unsigned shared) {
  const unsigned num = blockDim.x, all = gridDim.x * gridDim.y, i = next_block++, b = order == 1 ? all - 1 - i : i;
  blockIdx = {b % gridDim.x, b / gridDim.x, 0};
  memset(arena, 0xff, sizeof arena);
  now = &blocks[depth];
  Fiber *fibers = now->fibers;
  for (unsigned t = 0; t < num; t++) {
    Fiber &f = fibers[t];
    if (!f.stack) {
      f.stack = (char *)malloc(STACK);
      getcontext(&f.context);
    }
    f.state = READY;
    f.begun = false;
    f.line = 0;
    f.context.uc_stack.ss_sp = f.stack;
    f.context.uc_stack.ss_size = STACK;
    f.context.uc_link = 0;
    makecontext(&f.context, fiber_main, 0);
  }
  for (bool going = true; going;) {
    for (unsigned k = 0; k < num; k++) {
      // ascending, descending, or mixed up by an odd multiplier: sizes are powers of two
      const unsigned t = order == 0 ? k : order == 1 ? num - 1 - k : (k * 77 + 13) % num;
      if (fibers[t].state == READY) resume(t);
      if (fibers[t].state == AT_TICKET) {
        if (!overtake(depth, shared)) return false;
        resume(t);
      }
    }
    going = release(0, num, AT_BLOCK);
    for (unsigned w = 0; w < num; w += WARP) going |= release(w, WARP, AT_WARP);
  }
  for (unsigned t = 0; t < num; t++)
    if (fibers[t].state != LEFT) {
      unsigned other = 0;
      while (other < num && fibers[other].state == fibers[t].state && fibers[other].line == fibers[t].line) other++;
      snprintf(failure, sizeof failure, "divergent barrier in block %u, %u: thread %u waits at line %d, thread %u %s %d",
               blockIdx.x, blockIdx.y, t, fibers[t].line, other,
               fibers[other].state == LEFT ? "has left; it last waited at line" : "at line", fibers[other].line);
      return false;
    }
  for (const unsigned char *c = (unsigned char *)arena + shared; c < (unsigned char *)arena + sizeof arena; c++)
    if (*c != 0xff) {
      snprintf(failure, sizeof failure, "shared memory was written behind the launch's %u bytes", shared);
      return false;
    }
  return true;
}

static int barrier_or(int value, int line) {
  uint64_t *words = now->words[0], any = 0;
  words[running] = value != 0;
  wait_at(AT_BLOCK, line);
  for (unsigned t = 0; t < blockDim.x; t++) any |= words[t];
  wait_at(AT_BLOCK, line);
  return any != 0;
}
template <typename T> static T shuffle_xor(unsigned, T value, int mask, int line) {
  uint64_t *words = now->words[1];
  words[running] = as<uint64_t>(double(value));
  wait_at(AT_WARP, line);
  const T other = T(as<double>(words[running ^ mask]));
  wait_at(AT_WARP, line);
  return other;
}
static unsigned atomicInc(unsigned *at, unsigned most) {
  const unsigned old = *at;
  *at = old >= most ? 0 : old + 1;
  wait_at(AT_TICKET, 0);
  return old;
}
#define __syncthreads() wait_at(AT_BLOCK, __LINE__)
#define __syncthreads_or(VALUE) barrier_or(VALUE, __LINE__)
#define __shfl_xor_sync(MASK, VALUE, LANES) shuffle_xor(MASK, VALUE, LANES, __LINE__)
#define __threadfence()

// ---------------------------------------------------------------------------------------------------------------------
// kernels by name

struct Entry {
  const char *name;
  void (*call)(void **);
  Entry *next;
};
static Entry *entries;
template <auto KERNEL> struct Call;
template <typename... A, void (*KERNEL)(A...)> struct Call<KERNEL> {
  template <size_t... I> static void with(void **p, std::index_sequence<I...>) { KERNEL(*static_cast<A *>(p[I])...); }
  static void call(void **p) { with(p, std::index_sequence_for<A...>()); }
};
struct Export {
  Entry entry;
  Export(const char *name, void (*call)(void **)) : entry{name, call, entries} { entries = &entry; }
};
#define EXPORT(NAME) static Export export_##NAME(#NAME, Call<NAME>::call);

// Runs a grid. Returns false and leaves the reason in `failure`.
static bool run_grid(const Entry &kernel, dim3 grid, dim3 block, unsigned shared, void **p, int who_first) {
  failure[0] = 0;
  if (block.x > MAX_THREADS || block.x % WARP || block.y != 1 || block.z != 1 || shared > SHARED || !grid.x || !grid.y) {
    snprintf(failure, sizeof failure, "a launch that no device takes: %u threads, %u bytes", block.x, shared);
    return false;
  }
  body = kernel.call;
  parameters = p;
  blockDim = block;
  gridDim = grid;
  order = who_first;
  for (next_block = 0; next_block < grid.x * grid.y;)
    if (!run_block(0, shared)) return false;
  return true;
}
