/* What memplan.phantom.control asks; its other half is in copies.c, errors.c and memory.c. */
#include "phantom.h"
#include <string.h>

static long counters[NUM_COUNTERS];
static const char *const names[NUM_COUNTERS] = {"kernel_launches", "allocations", "frees",
  "device_to_host_copies", "host_to_device_copies", "device_to_device_copies", "synchronizations",
  "cudnn_plans", "collectives"};

void phantom_count(enum phantom_counter which) {
  __atomic_fetch_add(&counters[which], 1, __ATOMIC_RELAXED);
}

long phantom_counted(const char *name) {
  for (int i = 0; i < NUM_COUNTERS; i++)
    if (!strcmp(names[i], name)) return __atomic_load_n(&counters[i], __ATOMIC_RELAXED);
  return -1;
}
