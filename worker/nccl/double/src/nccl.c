// NCCL 2.18's ABI on shared memory; see lib.rs. A communicator's operations run one after another, in the order of
// their calls, as tasks of their streams.
#include "stream.h"

#include <fcntl.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

enum { SUCCESS = 0, SYSTEM = 2, INTERNAL = 3, INVALID_ARGUMENT = 4, INVALID_USAGE = 5, REMOTE = 6, IN_PROGRESS = 7 };
enum { ALL_REDUCE = 1, BROADCAST, ALL_GATHER, SEND, RECV };
enum { FLOAT = 7, DOUBLE = 8 };
#define MOST 8
#define CHUNK (128 << 10)
#define BOX (32 << 10)
#define GROUP 64

typedef struct {
  char bytes[128];
} unique_id;

// As in 2.18; later versions append.
typedef struct {
  size_t size;
  unsigned magic, version;
  int blocking, cga, min_ctas, max_ctas;
  const char *net;
  int split_share;
} config;

typedef struct {
  atomic_ulong in, out, call; // chunks given, chunks taken, what this rank is doing
  atomic_int aborted;
} seat;

typedef struct {
  atomic_int full;
  char data[BOX];
} box;

typedef struct {
  atomic_uint attached, detached;
  seat seats[MOST];
  box boxes[MOST][MOST]; // from, to
  char data[MOST][CHUNK];
} segment;

typedef struct {
  segment *shared;
  char name[64];
  unsigned rank, world;
  atomic_int state, abort;
  atomic_ulong issued, done; // tickets
  unsigned long chunk;
  int how; // of the initialisation
  pthread_t starter;
} comm;

typedef struct {
  int kind, type, root, how;
  const char *from;
  char *to;
  size_t bytes; // of one rank
  unsigned long ticket;
  comm *c;
  int n; // of a group of sends and receives
  struct part {
    int kind, peer;
    char *at;
    size_t bytes, moved;
  } parts[GROUP];
} job;

// ---- misbehaviour

enum { NOTHING, HANG, MUTE, STALL, ERROR, ASYNC, DIE };
static atomic_int calls[MOST], inits[MOST], aborts[MOST];

static int misbehaviour(const char *what, unsigned rank, int number) {
  const char *plan = getenv("LOCKSTEP_NCCL_DOUBLE");
  char text[512], *rest = text, *item;
  snprintf(text, sizeof text, "%s", plan ? plan : "");
  while ((item = strsep(&rest, ";"))) {
    int in_rank = -1, at = -1;
    char how[16] = "", *word;
    while ((word = strsep(&item, " "))) {
      size_t len = strlen(what);
      if (sscanf(word, "rank=%d", &in_rank) == 1 || sscanf(word, "do=%15s", how) == 1) continue;
      if (!strncmp(word, what, len) && word[len] == '=') at = atoi(word + len + 1);
    }
    if (at != number || (in_rank >= 0 && in_rank != (int)rank)) continue;
    const char *names[] = {"", "hang", "mute", "stall", "error", "async", "die"};
    for (int i = HANG; i <= DIE; i++)
      if (!strcmp(how, names[i])) return i;
  }
  return NOTHING;
}

static int completes_with_junk(void) {
  const char *plan = getenv("LOCKSTEP_NCCL_DOUBLE");
  return plan && strstr(plan, "junk");
}

static void nap(int *turns) {
  if ((*turns)++ < 20) {
    sched_yield();
  } else {
    struct timespec pause = {0, *turns < 200 ? 50000 : 500000};
    nanosleep(&pause, NULL);
  }
}

static void die(void) { kill(getpid(), SIGKILL); }

// ---- collectives

// 0 once `counter` of every rank is at least `n`; -1 after an abort; 1 if someone else aborted and junk is wanted.
static int wait_for(comm *c, int is_out, unsigned long n) {
  for (unsigned r = 0; r < c->world; r++) {
    seat *s = &c->shared->seats[r];
    for (int turns = 0; atomic_load(is_out ? &s->out : &s->in) < n; nap(&turns)) {
      if (atomic_load(&c->abort)) return -1;
      if (atomic_load(&s->aborted) && completes_with_junk()) return 1;
    }
  }
  return 0;
}

static void never(comm *c) {
  for (int turns = 0; !atomic_load(&c->abort);) nap(&turns);
}

#define SUM(T)                                                              \
  for (size_t i = 0; i < len / sizeof(T); i++) {                            \
    T sum = ((T *)c->shared->data[c->world - 1])[i]; /* not a tree's order */ \
    for (int r = (int)c->world - 2; r >= 0; r--) sum += ((T *)c->shared->data[r])[i]; \
    ((T *)to)[i] = sum;                                                     \
  }

static void collective(job *j) {
  comm *c = j->c;
  segment *s = c->shared;
  unsigned long call = (unsigned long)j->kind << 56 ^ (unsigned long)j->type << 48 ^ (unsigned long)j->root << 40 ^ j->bytes;
  for (size_t at = 0; at < j->bytes; at += CHUNK) {
    size_t len = j->bytes - at < CHUNK ? j->bytes - at : CHUNK;
    unsigned long n = ++c->chunk;
    int how = wait_for(c, 1, n - 1);
    if (!how) {
      if (j->kind != BROADCAST || (int)c->rank == j->root) memcpy(s->data[c->rank], j->from + at, len);
      atomic_store(&s->seats[c->rank].call, call);
      atomic_store(&s->seats[c->rank].in, n);
      how = wait_for(c, 0, n);
    }
    for (unsigned r = 0; !how && r < c->world; r++)
      if (atomic_load(&s->seats[r].call) != call) {
        never(c); // as with the real one: different calls end in no particular way
        how = -1;
      }
    if (how < 0) return;
    if (how > 0) {
      memset(j->to, 0x3f, j->kind == ALL_GATHER ? j->bytes * c->world : j->bytes);
      return;
    }
    char *to = j->to + at;
    if (j->kind == BROADCAST) memcpy(to, s->data[j->root], len);
    if (j->kind == ALL_GATHER)
      for (unsigned r = 0; r < c->world; r++) memcpy(to + r * j->bytes, s->data[r], len);
    if (j->kind == ALL_REDUCE && j->type == FLOAT) SUM(float)
    if (j->kind == ALL_REDUCE && j->type == DOUBLE) SUM(double)
    atomic_store(&s->seats[c->rank].out, n);
  }
}

static int pass(comm *c, struct part *p) {
  int is_send = p->kind == SEND;
  box *b = is_send ? &c->shared->boxes[c->rank][p->peer] : &c->shared->boxes[p->peer][c->rank];
  if (p->moved == p->bytes || atomic_load(&b->full) == is_send) return 0;
  size_t len = p->bytes - p->moved < BOX ? p->bytes - p->moved : BOX;
  if (is_send) memcpy(b->data, p->at + p->moved, len);
  else memcpy(p->at + p->moved, b->data, len);
  p->moved += len;
  atomic_store(&b->full, is_send);
  return 1;
}

static void messages(job *j) {
  int turns = 0;
  for (;;) {
    int moved = 0, open = 0;
    for (int i = 0; i < j->n; i++) {
      moved |= pass(j->c, &j->parts[i]);
      open |= j->parts[i].moved < j->parts[i].bytes;
      if (open && completes_with_junk() && atomic_load(&j->c->shared->seats[j->parts[i].peer].aborted)) return;
    }
    if (!open || atomic_load(&j->c->abort)) return;
    if (moved) turns = 0;
    else nap(&turns);
  }
}

static void perform(void *arg) {
  job *j = arg;
  comm *c = j->c;
  for (int turns = 0; atomic_load(&c->done) < j->ticket && !atomic_load(&c->abort);) nap(&turns);
  if (j->how == MUTE || j->how == ASYNC) never(c);
  if (!atomic_load(&c->abort)) {
    if (j->n) messages(j);
    else collective(j);
  }
  if (j->how == HANG) never(c);
  free(j);
  atomic_fetch_add(&c->done, 1);
}

static _Thread_local int depth;
static _Thread_local job *pending[GROUP];
static _Thread_local stream *streams[GROUP];
static _Thread_local int num_pending;

static void issue(job *j, stream *s) {
  j->ticket = atomic_fetch_add(&j->c->issued, 1);
  s->enqueue(s, perform, j);
}

static int begin(comm *c, int *how) {
  if (!c || c->rank >= MOST) return INVALID_ARGUMENT;
  if (atomic_load(&c->state) != SUCCESS) return INVALID_USAGE;
  *how = misbehaviour("call", c->rank, atomic_fetch_add(&calls[c->rank], 1) + 1);
  if (*how == DIE) die();
  if (*how == STALL) never(c);
  if (*how == ASYNC) atomic_store(&c->state, REMOTE);
  return *how == ERROR ? INTERNAL : SUCCESS;
}

static int add(job made, stream *s) {
  int how, code = begin(made.c, &how);
  if (code) return code;
  if (depth && num_pending == GROUP) return INVALID_USAGE;
  job *j = malloc(sizeof *j);
  *j = made;
  j->how = how;
  if (!depth) issue(j, s);
  else pending[num_pending] = j, streams[num_pending++] = s;
  return SUCCESS;
}

static size_t size_of(int type) {
  switch (type) {
  case 0: case 1: return 1;
  case 6: case 9: return 2;
  case 2: case 3: case FLOAT: return 4;
  default: return 8;
  }
}

EXPORT int ncclAllReduce(const void *from, void *to, size_t count, int type, int op, comm *c, stream *s) {
  if (op != 0 || (type != FLOAT && type != DOUBLE)) return INVALID_ARGUMENT;
  return add((job){.kind = ALL_REDUCE, .type = type, .from = from, .to = to, .bytes = count * size_of(type), .c = c}, s);
}

EXPORT int ncclBroadcast(const void *from, void *to, size_t count, int type, int root, comm *c, stream *s) {
  if (root < 0 || root >= (int)c->world) return INVALID_ARGUMENT;
  return add((job){.kind = BROADCAST, .type = type, .root = root, .from = from, .to = to, .bytes = count * size_of(type), .c = c}, s);
}

EXPORT int ncclAllGather(const void *from, void *to, size_t count, int type, comm *c, stream *s) {
  return add((job){.kind = ALL_GATHER, .type = type, .from = from, .to = to, .bytes = count * size_of(type), .c = c}, s);
}

// All sends and receives of a group go on at the same time.
static int message(int kind, void *at, size_t count, int type, int peer, comm *c, stream *s) {
  if (peer < 0 || peer >= (int)c->world) return INVALID_ARGUMENT;
  struct part part = {kind, peer, at, count * size_of(type), 0};
  for (int i = 0; depth && i < num_pending; i++)
    if (pending[i]->n && pending[i]->c == c && pending[i]->n < GROUP) {
      pending[i]->parts[pending[i]->n++] = part;
      return SUCCESS;
    }
  job made = {.kind = kind, .c = c, .n = 1};
  made.parts[0] = part;
  return add(made, s);
}

EXPORT int ncclSend(const void *at, size_t count, int type, int peer, comm *c, stream *s) {
  return message(SEND, (void *)at, count, type, peer, c, s);
}

EXPORT int ncclRecv(void *at, size_t count, int type, int peer, comm *c, stream *s) {
  return message(RECV, at, count, type, peer, c, s);
}

EXPORT int ncclGroupStart(void) { depth++; return SUCCESS; }

EXPORT int ncclGroupEnd(void) {
  if (!depth) return INVALID_USAGE;
  if (--depth) return SUCCESS;
  for (int i = 0; i < num_pending; i++) issue(pending[i], streams[i]);
  num_pending = 0;
  return SUCCESS;
}

// ---- life

EXPORT int ncclGetVersion(int *version) { *version = 21899; return SUCCESS; }
EXPORT const char *ncclGetLastError(comm *c) { (void)c; return "the double was told to misbehave"; }

EXPORT const char *ncclGetErrorString(int code) {
  const char *names[] = {"no error", "unhandled cuda error", "unhandled system error", "internal error", "invalid argument",
                         "invalid usage", "remote process exited or there was a network error", "NCCL operation in progress"};
  return code >= 0 && code <= IN_PROGRESS ? names[code] : "unknown result code";
}

EXPORT int ncclGetUniqueId(unique_id *id) {
  static atomic_uint made;
  struct timespec now;
  clock_gettime(CLOCK_MONOTONIC, &now);
  memset(id, 0, sizeof *id);
  snprintf(id->bytes, 64, "/lockstep-double-%d-%u-%ld", getpid(), atomic_fetch_add(&made, 1), now.tv_nsec);
  int fd = shm_open(id->bytes, O_CREAT | O_EXCL | O_RDWR, 0600);
  if (fd < 0) return SYSTEM;
  int code = ftruncate(fd, sizeof(segment));
  close(fd);
  return code ? SYSTEM : SUCCESS;
}

static void *start(void *arg) {
  comm *c = arg;
  if (c->how != MUTE && atomic_fetch_add(&c->shared->attached, 1) + 1 == c->world) shm_unlink(c->name);
  for (int turns = 0; !atomic_load(&c->abort); nap(&turns))
    if (c->how == NOTHING && atomic_load(&c->shared->attached) == c->world) {
      atomic_store(&c->state, SUCCESS);
      break;
    }
  return NULL;
}

EXPORT int ncclCommInitRankConfig(comm **out, int world, unique_id id, int rank, config *with) {
  if (with->size < sizeof(config) || with->magic != 0xcafebeef || with->blocking != 0) return INVALID_ARGUMENT;
  if (world < 1 || world > MOST || rank < 0 || rank >= world) return INVALID_ARGUMENT;
  int how = misbehaviour("init", rank, atomic_fetch_add(&inits[rank], 1) + 1);
  if (how == DIE) die();
  if (how == ERROR) return SYSTEM;
  int fd = shm_open(id.bytes, O_RDWR, 0600);
  if (fd < 0) return SYSTEM;
  void *memory = mmap(NULL, sizeof(segment), PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
  close(fd);
  if (memory == MAP_FAILED) return SYSTEM;
  comm *c = calloc(1, sizeof *c);
  c->shared = memory;
  c->rank = rank;
  c->world = world;
  c->how = how;
  snprintf(c->name, sizeof c->name, "%.63s", id.bytes);
  atomic_store(&c->state, IN_PROGRESS);
  if (pthread_create(&c->starter, NULL, start, c)) return SYSTEM;
  *out = c;
  return IN_PROGRESS;
}

EXPORT int ncclCommGetAsyncError(comm *c, int *state) {
  *state = atomic_load(&c->state);
  return SUCCESS;
}

EXPORT int ncclCommFinalize(comm *c) {
  (void)c;
  return SUCCESS;
}

static void end(comm *c) {
  atomic_store(&c->abort, 1);
  pthread_join(c->starter, NULL);
  for (int turns = 0; atomic_load(&c->done) < atomic_load(&c->issued);) nap(&turns);
  atomic_store(&c->shared->seats[c->rank].aborted, 1);
  shm_unlink(c->name); // where not everyone came
  munmap(c->shared, sizeof(segment));
  free(c);
}

EXPORT int ncclCommDestroy(comm *c) {
  for (int turns = 0; atomic_load(&c->done) < atomic_load(&c->issued);) nap(&turns);
  end(c);
  return SUCCESS;
}

EXPORT int ncclCommAbort(comm *c) {
  int how = misbehaviour("abort", c->rank, atomic_fetch_add(&aborts[c->rank], 1) + 1);
  if (how == HANG) for (int turns = 0;;) nap(&turns);
  end(c);
  return SUCCESS;
}
