/* Copies. Between host buffers they copy; to the device they keep what a later read may want; from
 * the device they deliver, in this order: bytes queued for a copy of that size, the very bytes
 * that the host put there (when nothing can have changed them since), what the reader says, zeros. */
#include "phantom.h"
#include <stdlib.h>
#include <string.h>

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;

/* ---- queued bytes, first in first out within a size ---- */
enum { NUM_BUCKETS = 256 };
struct queued { struct queued *next; size_t size; unsigned char data[]; };
static struct { struct queued *head, *tail; } queue[NUM_BUCKETS];
static long num_queued, num_unqueued;

int phantom_queue_read(const void *data, size_t size) {
  struct queued *one = malloc(sizeof *one + size);
  if (!one) return 1;
  one->next = NULL; one->size = size;
  memcpy(one->data, data, size);
  pthread_mutex_lock(&lock);
  if (queue[size % NUM_BUCKETS].tail) queue[size % NUM_BUCKETS].tail->next = one;
  else queue[size % NUM_BUCKETS].head = one;
  queue[size % NUM_BUCKETS].tail = one;
  num_queued++;
  pthread_mutex_unlock(&lock);
  return 0;
}

void phantom_clear_reads(void) {
  pthread_mutex_lock(&lock);
  for (int i = 0; i < NUM_BUCKETS; i++) {
    while (queue[i].head) {
      struct queued *one = queue[i].head;
      queue[i].head = one->next;
      free(one);
    }
    queue[i].tail = NULL;
  }
  num_queued = 0;
  pthread_mutex_unlock(&lock);
}

long phantom_num_queued_reads(void) { return num_queued; }
long phantom_num_unqueued_reads(void) { return num_unqueued; }

static int deliver_queued(void *to, size_t size) {
  struct queued *before = NULL, *one = queue[size % NUM_BUCKETS].head;
  while (one && one->size != size) { before = one; one = one->next; }
  if (!one) return 0;
  if (before) before->next = one->next;
  else queue[size % NUM_BUCKETS].head = one->next;
  if (queue[size % NUM_BUCKETS].tail == one) queue[size % NUM_BUCKETS].tail = before;
  memcpy(to, one->data, size);
  free(one);
  num_queued--;
  return 1;
}

/* ---- what the host wrote: true until a kernel, which may have written anywhere ---- */
enum { MAX_KEPT_BYTES = 1 << 16, MAX_KEPT = 64 };
static struct kept { uintptr_t at; size_t size; unsigned char *data; } kept[MAX_KEPT];
static int num_kept, oldest;

static void forget_overlaps(uintptr_t at, size_t size) {
  for (int i = num_kept - 1; i >= 0; i--) {
    if (kept[i].at >= at + size || at >= kept[i].at + kept[i].size) continue;
    free(kept[i].data);
    kept[i] = kept[--num_kept];
  }
}

static void keep(uintptr_t at, const void *data, size_t size) {
  forget_overlaps(at, size);
  if (size > MAX_KEPT_BYTES) return;
  struct kept one = {at, size, malloc(size)};
  if (!one.data) return;
  memcpy(one.data, data, size);
  if (num_kept < MAX_KEPT) { kept[num_kept++] = one; return; }
  free(kept[oldest].data);
  kept[oldest] = one;
  oldest = (oldest + 1) % MAX_KEPT;
}

static const unsigned char *find_kept(uintptr_t at, size_t size) {
  for (int i = 0; i < num_kept; i++)
    if (at >= kept[i].at && at + size <= kept[i].at + kept[i].size)
      return kept[i].data + (at - kept[i].at);
  return NULL;
}

void phantom_forget_kept(void) {
  if (!__atomic_load_n(&num_kept, __ATOMIC_RELAXED)) return;
  pthread_mutex_lock(&lock);
  forget_overlaps(0, UINTPTR_MAX);
  pthread_mutex_unlock(&lock);
}

/* ---- the reader ---- */
static int (*reader)(void *to, const void *from, size_t size);

void phantom_set_reader(int (*function)(void *to, const void *from, size_t size)) {
  reader = function;
}

void phantom_read(void *to, const void *from, size_t size) {
  phantom_count(COUNT_D2H);
  pthread_mutex_lock(&lock);
  int done = num_queued && deliver_queued(to, size);
  if (!done) {
    const unsigned char *data = find_kept((uintptr_t)from, size);
    if (data) memcpy(to, data, size);
    num_unqueued++;
    done = data != NULL;
  }
  pthread_mutex_unlock(&lock);
  /* Outside the lock: the reader may be Python, and copy on its own. */
  if (done || (reader && reader(to, from, size))) return;
  memset(to, 0, size);
}

static void write_device(void *to, const void *from, size_t size) {
  phantom_count(COUNT_H2D);
  if (size > MAX_KEPT_BYTES && !num_kept) return;
  pthread_mutex_lock(&lock);
  keep((uintptr_t)to, from, size);
  pthread_mutex_unlock(&lock);
}

static void move_on_device(void *to, const void *from, size_t size) {
  phantom_count(COUNT_D2D);
  if (!num_kept) return;
  pthread_mutex_lock(&lock);
  const unsigned char *data = find_kept((uintptr_t)from, size);
  if (data) {
    unsigned char *copy = malloc(size);
    if (copy) { memcpy(copy, data, size); keep((uintptr_t)to, copy, size); }
    free(copy);
  } else forget_overlaps((uintptr_t)to, size);
  pthread_mutex_unlock(&lock);
}

cudaError_t phantom_copy(void *to, const void *from, size_t size) {
  if (!size) return cudaSuccess;
  int into_device = phantom_device_of(to) >= 0, out_of_device = phantom_device_of(from) >= 0;
  if (into_device && out_of_device) move_on_device(to, from, size);
  else if (into_device) write_device(to, from, size);
  else if (out_of_device) phantom_read(to, from, size);
  else memmove(to, from, size);
  return cudaSuccess;
}

cudaError_t cudaMemcpy(void *to, const void *from, size_t size, int kind UNUSED) {
  return phantom_copy(to, from, size);
}

cudaError_t cudaMemcpyAsync(void *to, const void *from, size_t size, int kind UNUSED,
                            cudaStream_t stream) {
  phantom_count_node(stream);
  return phantom_copy(to, from, size);
}

cudaError_t cudaMemcpyPeer(void *to, int to_device UNUSED, const void *from,
                           int from_device UNUSED, size_t size) {
  return phantom_copy(to, from, size);
}

cudaError_t cudaMemcpyPeerAsync(void *to, int to_device UNUSED, const void *from,
                                int from_device UNUSED, size_t size, cudaStream_t stream) {
  phantom_count_node(stream);
  return phantom_copy(to, from, size);
}

cudaError_t cudaMemcpy2D(void *to, size_t to_pitch, const void *from, size_t from_pitch,
                         size_t width, size_t height, int kind UNUSED) {
  for (size_t row = 0; row < height; row++)
    phantom_copy((char *)to + row * to_pitch, (const char *)from + row * from_pitch, width);
  return cudaSuccess;
}

cudaError_t cudaMemcpy2DAsync(void *to, size_t to_pitch, const void *from, size_t from_pitch,
                              size_t width, size_t height, int kind, cudaStream_t stream) {
  phantom_count_node(stream);
  return cudaMemcpy2D(to, to_pitch, from, from_pitch, width, height, kind);
}

cudaError_t cudaMemcpy3D(const struct cudaMemcpy3DParms *p) {
  if (p->srcArray || p->dstArray) return phantom_fail(cudaErrorNotSupported);
  const char *from = (const char *)p->srcPtr.ptr + p->srcPos.x;
  char *to = (char *)p->dstPtr.ptr + p->dstPos.x;
  for (size_t plane = 0; plane < p->extent.depth; plane++)
    for (size_t row = 0; row < p->extent.height; row++)
      phantom_copy(
        to + ((p->dstPos.z + plane) * p->dstPtr.ysize + p->dstPos.y + row) * p->dstPtr.pitch,
        from + ((p->srcPos.z + plane) * p->srcPtr.ysize + p->srcPos.y + row) * p->srcPtr.pitch,
        p->extent.width);
  return cudaSuccess;
}

cudaError_t cudaMemcpy3DAsync(const struct cudaMemcpy3DParms *p, cudaStream_t stream) {
  phantom_count_node(stream);
  return cudaMemcpy3D(p);
}

/* Device variables have no values here. */
cudaError_t cudaMemcpyToSymbol(const void *symbol UNUSED, const void *from UNUSED,
                               size_t size UNUSED, size_t offset UNUSED, int kind UNUSED) {
  return cudaSuccess;
}

cudaError_t cudaMemcpyToSymbolAsync(const void *symbol UNUSED, const void *from UNUSED,
                                    size_t size UNUSED, size_t offset UNUSED, int kind UNUSED,
                                    cudaStream_t stream) {
  phantom_count_node(stream);
  return cudaSuccess;
}

cudaError_t cudaMemcpyFromSymbol(void *to, const void *symbol, size_t size, size_t offset,
                                 int kind UNUSED) {
  if (phantom_device_of(to) < 0) phantom_read(to, (const char *)symbol + offset, size);
  return cudaSuccess;
}

cudaError_t cudaMemset(void *at, int value, size_t size) {
  if (phantom_device_of(at) < 0) { memset(at, value, size); return cudaSuccess; }
  if (!num_kept && size > MAX_KEPT_BYTES) return cudaSuccess;
  unsigned char *data = size <= MAX_KEPT_BYTES ? malloc(size) : NULL;
  if (data) memset(data, value, size);
  pthread_mutex_lock(&lock);
  if (data) keep((uintptr_t)at, data, size);
  else forget_overlaps((uintptr_t)at, size);
  pthread_mutex_unlock(&lock);
  free(data);
  return cudaSuccess;
}

cudaError_t cudaMemsetAsync(void *at, int value, size_t size, cudaStream_t stream) {
  phantom_count_node(stream);
  return cudaMemset(at, value, size);
}

cudaError_t cudaMemset2D(void *at, size_t pitch, int value, size_t width, size_t height) {
  for (size_t row = 0; row < height; row++) cudaMemset((char *)at + row * pitch, value, width);
  return cudaSuccess;
}

cudaError_t cudaMemset2DAsync(void *at, size_t pitch, int value, size_t width, size_t height,
                              cudaStream_t stream) {
  phantom_count_node(stream);
  return cudaMemset2D(at, pitch, value, width, height);
}
