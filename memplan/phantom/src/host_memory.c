/* Pinned and managed memory: the host's own, remembered so that pointers can be told apart. */
#include "phantom.h"
#include <stdlib.h>

static struct ranges *known; /* data: the cudaMemoryType */
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;

static int note(void *pointer, size_t size, intptr_t kind) {
  pthread_mutex_lock(&lock);
  if (!known) known = ranges_create();
  int failed = !known || ranges_add(known, (struct range){(uintptr_t)pointer, size, (void *)kind});
  pthread_mutex_unlock(&lock);
  return failed;
}

static int forget(void *pointer, struct range *one) {
  pthread_mutex_lock(&lock);
  int there = known && ranges_remove(known, (uintptr_t)pointer, one);
  pthread_mutex_unlock(&lock);
  return there;
}

static int find(const void *pointer, struct range *one) {
  pthread_mutex_lock(&lock);
  int there = known && ranges_containing(known, (uintptr_t)pointer, one);
  pthread_mutex_unlock(&lock);
  return there;
}

int phantom_host_kind(const void *pointer) {
  struct range one;
  return find(pointer, &one) ? (int)(intptr_t)one.data : cudaMemoryTypeUnregistered;
}

static cudaError_t allocate(void **pointer, size_t size, int kind) {
  *pointer = NULL;
  if (!size) return cudaSuccess;
  if (posix_memalign(pointer, 4096, size)) return phantom_fail(cudaErrorMemoryAllocation);
  if (!note(*pointer, size, kind)) return cudaSuccess;
  free(*pointer);
  return phantom_fail(cudaErrorMemoryAllocation);
}

cudaError_t cudaHostAlloc(void **pointer, size_t size, unsigned flags UNUSED) {
  return allocate(pointer, size, cudaMemoryTypeHost);
}

cudaError_t cudaMallocHost(void **pointer, size_t size) {
  return allocate(pointer, size, cudaMemoryTypeHost);
}

cudaError_t cudaFreeHost(void *pointer) {
  struct range one;
  if (!pointer) return cudaSuccess;
  if (!forget(pointer, &one)) return phantom_fail(cudaErrorInvalidValue);
  free(pointer);
  return cudaSuccess;
}

cudaError_t cudaHostRegister(void *pointer, size_t size, unsigned flags UNUSED) {
  struct range one;
  if (!pointer || !size) return phantom_fail(cudaErrorInvalidValue);
  if (find(pointer, &one)) return phantom_fail(cudaErrorHostMemoryAlreadyRegistered);
  return note(pointer, size, cudaMemoryTypeHost) ? phantom_fail(cudaErrorMemoryAllocation)
                                                 : cudaSuccess;
}

cudaError_t cudaHostUnregister(void *pointer) {
  struct range one;
  return forget(pointer, &one) ? cudaSuccess : phantom_fail(cudaErrorHostMemoryNotRegistered);
}

cudaError_t cudaHostGetDevicePointer(void **device, void *host, unsigned flags UNUSED) {
  struct range one;
  if (!find(host, &one)) return phantom_fail(cudaErrorInvalidValue);
  *device = host;
  return cudaSuccess;
}

cudaError_t cudaHostGetFlags(unsigned *flags, void *host) {
  struct range one;
  if (!find(host, &one)) return phantom_fail(cudaErrorInvalidValue);
  *flags = 0;
  return cudaSuccess;
}

/* Managed memory is readable by the host, and counted on the current device from the start: the
 * pages that a real card would move there as they are touched. */
cudaError_t cudaMallocManaged(void **pointer, size_t size, unsigned flags UNUSED) {
  int device = phantom_current_device();
  if (!phantom_take_bytes(device, round_up(size, PAGE_BYTES)))
    return phantom_fail(cudaErrorMemoryAllocation);
  return allocate(pointer, size, cudaMemoryTypeManaged);
}

int phantom_managed_free(void *pointer) {
  struct range one;
  if (phantom_host_kind(pointer) != cudaMemoryTypeManaged || !forget(pointer, &one)) return 0;
  phantom_give_bytes(phantom_current_device(), round_up(one.size, PAGE_BYTES));
  free(pointer);
  return 1;
}

#if PHANTOM_CUDA_MAJOR >= 13
cudaError_t cudaMemPrefetchAsync(const void *at UNUSED, size_t size UNUSED,
                                 struct cudaMemLocation where UNUSED, unsigned flags UNUSED,
                                 cudaStream_t stream UNUSED) { return cudaSuccess; }
cudaError_t cudaMemAdvise(const void *at UNUSED, size_t size UNUSED, int advice UNUSED,
                          struct cudaMemLocation where UNUSED) { return cudaSuccess; }
#else
cudaError_t cudaMemPrefetchAsync(const void *at UNUSED, size_t size UNUSED, int device UNUSED,
                                 cudaStream_t stream UNUSED) { return cudaSuccess; }
cudaError_t cudaMemAdvise(const void *at UNUSED, size_t size UNUSED, int advice UNUSED,
                          int device UNUSED) { return cudaSuccess; }
#endif
