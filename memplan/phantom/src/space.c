/* A stretch of addresses: given out from the lowest hole that fits, holes joined when returned. */
#include "phantom.h"
#include <stdlib.h>

struct space { struct ranges *holes; };

struct space *space_create(uintptr_t start, size_t size) {
  struct space *space = calloc(1, sizeof *space);
  if (!space || !(space->holes = ranges_create())) return NULL;
  if (ranges_add(space->holes, (struct range){start, size, NULL})) return NULL;
  return space;
}

void space_destroy(struct space *space) {
  ranges_destroy(space->holes);
  free(space);
}

uintptr_t space_take(struct space *space, size_t size) {
  struct range hole;
  if (!ranges_lowest_fit(space->holes, size, &hole)) return 0;
  ranges_remove(space->holes, hole.at, NULL);
  if (hole.size > size) {
    struct range rest = {hole.at + size, hole.size - size, NULL};
    if (ranges_add(space->holes, rest)) return 0;
  }
  return hole.at;
}

void space_give(struct space *space, uintptr_t at, size_t size) {
  struct range before, after;
  if (ranges_last_before(space->holes, at, &before) && before.at + before.size == at) {
    ranges_remove(space->holes, before.at, NULL);
    at = before.at; size += before.size;
  }
  if (ranges_first_from(space->holes, at, &after) && at + size == after.at) {
    ranges_remove(space->holes, after.at, NULL);
    size += after.size;
  }
  ranges_add(space->holes, (struct range){at, size, NULL}); /* without memory: addresses lost */
}
