/* Device memory: bytes counted against a card's capacity, addresses that nobody may touch.
 *
 * Addresses come from one reservation without access rights, so that no host object shares one and
 * a stray access ends the process as it would with a card. Requests of a mebibyte and more take
 * pages of 2 MiB, smaller ones share such pages. Source: what cudaMemGetInfo shows on cards of
 * compute capability 7.0 and up; PyTorch's own requests are multiples of 2 MiB. */
#include "phantom.h"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#define DEVICE_SPAN ((size_t)1 << 41) /* addresses a device: room for reservations of segments */
#define SMALL_BYTES ((size_t)1 << 20)
#define SMALL_UNIT ((size_t)512)

struct small_page { struct small_page *next; uintptr_t at; size_t live; struct space *space; };

static struct device_memory {
  size_t used, peak;
  struct space *addresses;
  struct small_page *small_pages;
} devices[MAX_DEVICES];
static struct ranges *allocations; /* of all devices; data: the small page or pool it is from */
static uintptr_t arena, arena_end;
static size_t span;
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_once_t once = PTHREAD_ONCE_INIT;

size_t round_up(size_t size, size_t unit) { return (size + unit - 1) / unit * unit; }

/* A limit on address space (ulimit -v) makes the reservation smaller, not impossible. */
static void reserve(void) {
  int count = phantom_description()->num_devices;
  void *start = MAP_FAILED;
  for (span = DEVICE_SPAN; span >= (size_t)1 << 36; span /= 2) {
    start = mmap(NULL, span * count + PAGE_BYTES, PROT_NONE,
                 MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (start != MAP_FAILED) break;
  }
  allocations = ranges_create();
  if (start == MAP_FAILED || !allocations) {
    fprintf(stderr, "phantom: no address space for %d device(s): raise ulimit -v\n", count);
    exit(1);
  }
  for (int i = 0; i < count; i++)
    devices[i].addresses = space_create(round_up((uintptr_t)start, PAGE_BYTES) + i * span, span);
  arena_end = round_up((uintptr_t)start, PAGE_BYTES) + count * span;
  arena = round_up((uintptr_t)start, PAGE_BYTES);
}

int phantom_device_of(const void *pointer) {
  uintptr_t at = (uintptr_t)pointer;
  return arena && at >= arena && at < arena_end ? (int)((at - arena) / span) : -1;
}

/* ---- bytes ---- */

static int take_bytes(int device, size_t size) {
  const struct device_description *d = phantom_description();
  struct device_memory *m = &devices[device];
  size_t left = d->total_bytes - d->other_bytes;
  if (size > left || m->used > left - size) return 0;
  m->used += size;
  if (m->used > m->peak) m->peak = m->used;
  return 1;
}

int phantom_take_bytes(int device, size_t size) {
  pthread_mutex_lock(&lock);
  int fits = take_bytes(device, size);
  pthread_mutex_unlock(&lock);
  return fits;
}

void phantom_give_bytes(int device, size_t size) {
  pthread_mutex_lock(&lock);
  devices[device].used -= size;
  pthread_mutex_unlock(&lock);
}

long phantom_used_bytes(int device) {
  return device >= 0 && device < MAX_DEVICES ? (long)devices[device].used : 0;
}

long phantom_peak_bytes(int device) {
  return device >= 0 && device < MAX_DEVICES ? (long)devices[device].peak : 0;
}

/* ---- addresses ---- */

uintptr_t phantom_take_addresses(int device, size_t size) {
  pthread_once(&once, reserve);
  pthread_mutex_lock(&lock);
  uintptr_t at = space_take(devices[device].addresses, round_up(size, PAGE_BYTES));
  pthread_mutex_unlock(&lock);
  return at;
}

void phantom_give_addresses(int device, uintptr_t at, size_t size) {
  pthread_mutex_lock(&lock);
  space_give(devices[device].addresses, at, round_up(size, PAGE_BYTES));
  pthread_mutex_unlock(&lock);
}

int phantom_allocation_at(const void *pointer, struct range *found) {
  if (phantom_device_of(pointer) < 0) return 0;
  pthread_mutex_lock(&lock);
  int there = ranges_containing(allocations, (uintptr_t)pointer, found);
  pthread_mutex_unlock(&lock);
  return there;
}

/* ---- small requests share pages ---- */

static struct small_page *new_small_page(int device) {
  struct small_page *page = calloc(1, sizeof *page);
  if (!page || !take_bytes(device, PAGE_BYTES)) { free(page); return NULL; }
  page->at = space_take(devices[device].addresses, PAGE_BYTES);
  page->space = space_create(page->at, PAGE_BYTES);
  page->next = devices[device].small_pages;
  return devices[device].small_pages = page;
}

static uintptr_t take_small(int device, size_t size, struct small_page **from) {
  uintptr_t at = 0;
  struct small_page *page = devices[device].small_pages;
  while (page && !(at = space_take(page->space, size))) page = page->next;
  if (!at && (page = new_small_page(device))) at = space_take(page->space, size);
  if (at) page->live++;
  *from = page;
  return at;
}

static void give_small(int device, struct small_page *page, uintptr_t at, size_t size) {
  space_give(page->space, at, size);
  if (--page->live) return;
  struct small_page **link = &devices[device].small_pages;
  while (*link != page) link = &(*link)->next;
  *link = page->next;
  space_give(devices[device].addresses, page->at, PAGE_BYTES);
  devices[device].used -= PAGE_BYTES;
  space_destroy(page->space);
  free(page);
}

/* ---- cudaMalloc and cudaFree ---- */

static uintptr_t allocate(int device, size_t size) {
  struct range one = {0, size, NULL};
  if (size < SMALL_BYTES) {
    one.size = round_up(size, SMALL_UNIT);
    one.at = take_small(device, one.size, (struct small_page **)&one.data);
  } else {
    one.size = round_up(size, PAGE_BYTES);
    if (!take_bytes(device, one.size)) return 0;
    one.at = space_take(devices[device].addresses, one.size);
    if (!one.at) devices[device].used -= one.size;
  }
  if (one.at) ranges_add(allocations, one);
  return one.at;
}

static uintptr_t allocate_locked(int device, size_t size) {
  pthread_mutex_lock(&lock);
  uintptr_t at = allocate(device, size);
  pthread_mutex_unlock(&lock);
  return at;
}

cudaError_t cudaMalloc(void **pointer, size_t size) {
  int device = phantom_current_device();
  pthread_once(&once, reserve);
  phantom_count(COUNT_MALLOC);
  *pointer = NULL;
  if (!size) return cudaSuccess;
  uintptr_t at = allocate_locked(device, size);
  /* What a pool holds and does not use is given back before a request fails. */
  if (!at && phantom_pools_trim(device)) at = allocate_locked(device, size);
  if (!at) return phantom_fail(cudaErrorMemoryAllocation);
  *pointer = (void *)at;
  return cudaSuccess;
}

cudaError_t cudaFree(void *pointer) {
  struct range one;
  phantom_count(COUNT_FREE);
  if (!pointer || phantom_pool_free(pointer) || phantom_managed_free(pointer)) return cudaSuccess;
  int device = phantom_device_of(pointer);
  if (device < 0) return phantom_fail(cudaErrorInvalidValue);
  pthread_mutex_lock(&lock);
  int there = ranges_remove(allocations, (uintptr_t)pointer, &one);
  if (there && one.data) give_small(device, one.data, one.at, one.size);
  else if (there) {
    space_give(devices[device].addresses, one.at, one.size);
    devices[device].used -= one.size;
  }
  pthread_mutex_unlock(&lock);
  return there ? cudaSuccess : phantom_fail(cudaErrorInvalidValue);
}

cudaError_t cudaMallocPitch(void **pointer, size_t *pitch, size_t width, size_t height) {
  *pitch = round_up(width, 512);
  return cudaMalloc(pointer, *pitch * height);
}

cudaError_t cudaMemGetInfo(size_t *free_bytes, size_t *total_bytes) {
  const struct device_description *d = phantom_description();
  size_t used = devices[phantom_current_device()].used;
  *total_bytes = d->total_bytes;
  *free_bytes = d->total_bytes - d->other_bytes - used;
  return cudaSuccess;
}

cudaError_t cudaPointerGetAttributes(struct cudaPointerAttributes *a, const void *pointer) {
  memset(a, 0, sizeof *a);
  a->device = phantom_device_of(pointer);
  if (a->device >= 0) {
    a->type = cudaMemoryTypeDevice;
    a->devicePointer = (void *)pointer;
    return cudaSuccess;
  }
  a->type = phantom_host_kind(pointer);
  if (a->type == cudaMemoryTypeUnregistered) {
    a->device = -2; /* cudaInvalidDeviceId, as the runtime answers for host memory it does not know */
    a->hostPointer = (void *)pointer;
    return cudaSuccess;
  }
  a->device = 0;
  a->hostPointer = a->devicePointer = (void *)pointer;
  return cudaSuccess;
}
