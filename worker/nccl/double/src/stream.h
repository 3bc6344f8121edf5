// What a stream shows to the other library: how to put work on it.
#pragma once

typedef struct stream {
  void (*enqueue)(struct stream *, void (*run)(void *), void *arg);
} stream;

#define EXPORT __attribute__((visibility("default")))
