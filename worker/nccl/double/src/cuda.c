// The CUDA driver, as far as Lockstep uses it, without a device: a stream is a thread with a queue.
#include "stream.h"

#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

enum { SUCCESS = 0, INVALID_VALUE = 1, OUT_OF_MEMORY = 2, NO_DEVICE = 100, NOT_READY = 600 };

typedef struct task {
  void (*run)(void *);
  void *arg;
  struct task *next;
} task;

typedef struct {
  stream head; // first: the other library sees only this
  pthread_mutex_t lock;
  pthread_cond_t changed;
  task *first, **last;
  int is_busy, is_closing;
} queue;

typedef struct {
  atomic_ulong recorded, done;
} event;

typedef struct {
  event *event;
  unsigned long number;
} mark;

typedef struct {
  void *to;
  const void *from;
  size_t bytes;
} copy;

static void *work(void *arg) {
  queue *q = arg;
  pthread_mutex_lock(&q->lock);
  for (;;) {
    while (!q->first && !q->is_closing) pthread_cond_wait(&q->changed, &q->lock);
    task *t = q->first;
    if (!t) break;
    q->first = t->next;
    if (!q->first) q->last = &q->first;
    q->is_busy = 1;
    pthread_mutex_unlock(&q->lock);
    t->run(t->arg);
    free(t);
    pthread_mutex_lock(&q->lock);
    q->is_busy = 0;
  }
  pthread_mutex_unlock(&q->lock);
  pthread_mutex_destroy(&q->lock);
  pthread_cond_destroy(&q->changed);
  free(q);
  return NULL;
}

static void enqueue(stream *s, void (*run)(void *), void *arg) {
  queue *q = (queue *)s;
  task *t = malloc(sizeof *t);
  *t = (task){run, arg, NULL};
  pthread_mutex_lock(&q->lock);
  *q->last = t;
  q->last = &t->next;
  pthread_cond_signal(&q->changed);
  pthread_mutex_unlock(&q->lock);
}

EXPORT int cuInit(unsigned flags) {
  (void)flags;
  const char *plan = getenv("LOCKSTEP_NCCL_DOUBLE");
  return plan && strstr(plan, "nodriver") ? NO_DEVICE : SUCCESS;
}

EXPORT int cuGetErrorString(int code, const char **text) {
  switch (code) {
  case NO_DEVICE: *text = "no CUDA-capable device is detected"; break;
  case INVALID_VALUE: *text = "invalid argument"; break;
  case OUT_OF_MEMORY: *text = "out of memory"; break;
  default: *text = "an error of the double";
  }
  return SUCCESS;
}

EXPORT int cuDriverGetVersion(int *version) { *version = 13000; return SUCCESS; }
EXPORT int cuDeviceGetCount(int *count) { *count = 8; return SUCCESS; }
EXPORT int cuDeviceGet(int *device, int ordinal) { *device = ordinal; return ordinal < 8 ? SUCCESS : 101; }
EXPORT int cuDeviceGetName(char *name, int len, int device) {
  if (device < 0 || device >= 8) return 101;
  return snprintf(name, (size_t)len, "double %d", device) > 0 ? SUCCESS : INVALID_VALUE;
}
EXPORT int cuDeviceTotalMem_v2(size_t *bytes, int device) { (void)device; *bytes = (size_t)1 << 34; return SUCCESS; }
EXPORT int cuDeviceGetAttribute(int *value, int attribute, int device) {
  (void)device;
  *value = attribute == 75 ? 9 : 0;
  return SUCCESS;
}
EXPORT int cuDeviceGetPCIBusId(char *bus, int len, int device) {
  return snprintf(bus, (size_t)len, "0000:%02x:00.0", device) > 0 ? SUCCESS : INVALID_VALUE;
}
EXPORT int cuDeviceCanAccessPeer(int *can, int from, int to) { *can = from / 4 == to / 4; return SUCCESS; }
EXPORT int cuDevicePrimaryCtxRetain(void **context, int device) { *context = (void *)(uintptr_t)(device + 1); return SUCCESS; }
EXPORT int cuDevicePrimaryCtxRelease_v2(int device) { (void)device; return SUCCESS; }
EXPORT int cuCtxSetCurrent(void *context) { return context ? SUCCESS : INVALID_VALUE; }

EXPORT int cuStreamCreate(void **out, unsigned flags) {
  (void)flags;
  queue *q = calloc(1, sizeof *q);
  q->head.enqueue = enqueue;
  q->last = &q->first;
  pthread_mutex_init(&q->lock, NULL);
  pthread_cond_init(&q->changed, NULL);
  pthread_t thread;
  if (pthread_create(&thread, NULL, work, q)) return OUT_OF_MEMORY;
  pthread_detach(thread);
  *out = q;
  return SUCCESS;
}

EXPORT int cuStreamDestroy_v2(void *s) {
  queue *q = s;
  pthread_mutex_lock(&q->lock);
  q->is_closing = 1; // the thread ends when its queue is empty
  pthread_cond_signal(&q->changed);
  pthread_mutex_unlock(&q->lock);
  return SUCCESS;
}

EXPORT int cuStreamQuery(void *s) {
  queue *q = s;
  pthread_mutex_lock(&q->lock);
  int idle = !q->first && !q->is_busy;
  pthread_mutex_unlock(&q->lock);
  return idle ? SUCCESS : NOT_READY;
}

EXPORT int cuEventCreate(void **out, unsigned flags) {
  (void)flags;
  *out = calloc(1, sizeof(event));
  return SUCCESS;
}

EXPORT int cuEventDestroy_v2(void *e) { free(e); return SUCCESS; }

static void set(void *arg) {
  mark *m = arg;
  atomic_store(&m->event->done, m->number);
  free(m);
}

static void await(void *arg) {
  mark *m = arg;
  while (atomic_load(&m->event->done) < m->number) {
    struct timespec pause = {0, 50000};
    nanosleep(&pause, NULL);
  }
  free(m);
}

EXPORT int cuEventRecord(void *e, void *s) {
  mark *m = malloc(sizeof *m);
  *m = (mark){e, atomic_fetch_add(&((event *)e)->recorded, 1) + 1};
  enqueue(s, set, m);
  return SUCCESS;
}

EXPORT int cuEventQuery(void *e) {
  event *v = e;
  return atomic_load(&v->done) >= atomic_load(&v->recorded) ? SUCCESS : NOT_READY;
}

EXPORT int cuStreamWaitEvent(void *s, void *e, unsigned flags) {
  (void)flags;
  mark *m = malloc(sizeof *m);
  *m = (mark){e, atomic_load(&((event *)e)->recorded)};
  enqueue(s, await, m);
  return SUCCESS;
}

static int allocate(void **out, size_t bytes) {
  *out = malloc(bytes ? bytes : 1);
  if (!*out) return OUT_OF_MEMORY;
  memset(*out, 0xa5, bytes < 4096 ? bytes : 4096); // memory that nobody wrote is not zero
  return SUCCESS;
}

EXPORT int cuMemAlloc_v2(void **out, size_t bytes) { return allocate(out, bytes); }
EXPORT int cuMemFree_v2(void *memory) { free(memory); return SUCCESS; }
EXPORT int cuMemHostAlloc(void **out, size_t bytes, unsigned flags) { (void)flags; return allocate(out, bytes); }
EXPORT int cuMemFreeHost(void *memory) { free(memory); return SUCCESS; }

static void move(void *arg) {
  copy *c = arg;
  memcpy(c->to, c->from, c->bytes);
  free(c);
}

static int later(void *to, const void *from, size_t bytes, void *s) {
  copy *c = malloc(sizeof *c);
  *c = (copy){to, from, bytes};
  enqueue(s, move, c);
  return SUCCESS;
}

EXPORT int cuMemcpyHtoDAsync_v2(void *to, const void *from, size_t bytes, void *s) { return later(to, from, bytes, s); }
EXPORT int cuMemcpyDtoHAsync_v2(void *to, const void *from, size_t bytes, void *s) { return later(to, from, bytes, s); }
