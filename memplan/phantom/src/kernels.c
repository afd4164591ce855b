/* Kernels: registered by the libraries as they load, launched into nothing. */
#include "phantom.h"
#include <stdlib.h>
#include <string.h>

/* ---- the registered kernels: an open hash table by the address that stands for a kernel ---- */
struct kernel { const void *host; const char *name; };
static struct kernel *table;
static size_t num_slots, num_kernels;
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;

static size_t slot_of(const void *host) {
  size_t slot = ((uintptr_t)host * 0x9E3779B97F4A7C15ul >> 32) & (num_slots - 1);
  while (table[slot].host && table[slot].host != host) slot = (slot + 1) & (num_slots - 1);
  return slot;
}

static int grow(void) {
  struct kernel *before = table;
  size_t count = num_slots, size = count ? 2 * count : 1 << 16;
  struct kernel *made = calloc(size, sizeof *made);
  if (!made) return 1;
  table = made;
  num_slots = size;
  for (size_t i = 0; i < count; i++) if (before[i].host) table[slot_of(before[i].host)] = before[i];
  free(before);
  return 0;
}

/* What nvcc's host code calls at start-up. Source: crt/host_runtime.h of the toolkit. */
void **__cudaRegisterFatBinary(void *wrapper) {
  void **handle = malloc(sizeof *handle);
  if (handle) *handle = wrapper;
  return handle;
}

void __cudaRegisterFatBinaryEnd(void **handle UNUSED) {}
void __cudaUnregisterFatBinary(void **handle) { free(handle); }
char __cudaInitModule(void **handle UNUSED) { return 1; }

void __cudaRegisterFunction(void **handle UNUSED, const char *host, char *device UNUSED,
                            const char *name, int limit UNUSED, void *a UNUSED, void *b UNUSED,
                            void *c UNUSED, void *d UNUSED, int *e UNUSED) {
  pthread_mutex_lock(&lock);
  if (2 * num_kernels < num_slots || !grow()) {
    struct kernel *one = &table[slot_of(host)];
    num_kernels += !one->host;
    *one = (struct kernel){host, name};
  }
  pthread_mutex_unlock(&lock);
}

void __cudaRegisterVar(void **handle UNUSED, char *host UNUSED, char *device UNUSED,
                       const char *name UNUSED, int a UNUSED, size_t size UNUSED, int b UNUSED,
                       int c UNUSED) {}
void __cudaRegisterManagedVar(void **handle UNUSED, void **host UNUSED, char *device UNUSED,
                              const char *name UNUSED, int a UNUSED, size_t size UNUSED,
                              int b UNUSED, int c UNUSED) {}
void __cudaRegisterHostVar(void **handle UNUSED, const char *name UNUSED, char *host UNUSED,
                           size_t size UNUSED) {}

const char *phantom_kernel_name(const void *host) {
  pthread_mutex_lock(&lock);
  const char *name = num_slots ? table[slot_of(host)].name : NULL;
  pthread_mutex_unlock(&lock);
  return name;
}

long phantom_num_kernels(void) { return num_kernels; }

/* ---- launches ---- */
static __thread struct { dim3 grid, block; size_t shared; cudaStream_t stream; } pushed[8];
static __thread int num_pushed;

unsigned __cudaPushCallConfiguration(dim3 grid, dim3 block, size_t shared, cudaStream_t stream) {
  if (num_pushed == 8) return 1;
  pushed[num_pushed].grid = grid; pushed[num_pushed].block = block;
  pushed[num_pushed].shared = shared; pushed[num_pushed++].stream = stream;
  return 0;
}

cudaError_t __cudaPopCallConfiguration(dim3 *grid, dim3 *block, size_t *shared, void *stream) {
  if (!num_pushed) return phantom_fail(cudaErrorMissingConfiguration);
  num_pushed--;
  *grid = pushed[num_pushed].grid; *block = pushed[num_pushed].block;
  *shared = pushed[num_pushed].shared; *(cudaStream_t *)stream = pushed[num_pushed].stream;
  return cudaSuccess;
}

void phantom_kernel_ran(cudaStream_t stream) {
  phantom_count(COUNT_LAUNCH);
  phantom_count_node(stream);
  phantom_forget_kept();
}

/* A grid or block outside the limits fails on every card, and here. */
static cudaError_t launch(dim3 grid, dim3 block, size_t shared, cudaStream_t stream) {
  if (!grid.x || !grid.y || !grid.z || !block.x || !block.y || !block.z ||
      grid.x > 2147483647u || grid.y > 65535 || grid.z > 65535 || block.x > 1024 ||
      block.y > 1024 || block.z > 64 || (size_t)block.x * block.y * block.z > 1024)
    return phantom_fail(cudaErrorInvalidConfiguration);
  if (shared > phantom_description()->smem_optin) return phantom_fail(cudaErrorInvalidValue);
  phantom_kernel_ran(stream);
  return cudaSuccess;
}

cudaError_t cudaLaunchKernel(const void *kernel UNUSED, dim3 grid, dim3 block, void **a UNUSED,
                             size_t shared, cudaStream_t stream) {
  return launch(grid, block, shared, stream);
}

cudaError_t cudaLaunchCooperativeKernel(const void *kernel UNUSED, dim3 grid, dim3 block,
                                        void **a UNUSED, size_t shared, cudaStream_t stream) {
  return launch(grid, block, shared, stream);
}

cudaError_t cudaLaunchKernelExC(const cudaLaunchConfig_t *c, const void *kernel UNUSED,
                                void **a UNUSED) {
  return launch(c->gridDim, c->blockDim, c->dynamicSmemBytes, c->stream);
}

/* The handle of a kernel is the address that stands for it. */
cudaError_t cudaGetKernel(void **made, const void *kernel) {
  *made = (void *)kernel;
  return cudaSuccess;
}

cudaError_t __cudaGetKernel(void **made, const void *kernel) {
  return cudaGetKernel(made, kernel);
}

cudaError_t cudaGetFuncBySymbol(void **made, const void *kernel) {
  return cudaGetKernel(made, kernel);
}

cudaError_t __cudaLaunchKernel(const void *kernel, dim3 grid, dim3 block, void **a, size_t shared,
                               cudaStream_t stream) {
  return cudaLaunchKernel(kernel, grid, block, a, shared, stream);
}

cudaError_t cudaFuncGetName(const char **name, const void *kernel) {
  *name = phantom_kernel_name(kernel);
  return *name ? cudaSuccess : phantom_fail(cudaErrorInvalidDeviceFunction);
}

/* Variables of kernels: an address on the device, whose values nobody knows. */
cudaError_t cudaGetSymbolAddress(void **pointer, const void *symbol UNUSED) {
  static void *addresses[MAX_DEVICES];
  int device = phantom_current_device();
  pthread_mutex_lock(&lock);
  if (!addresses[device]) addresses[device] = (void *)phantom_take_addresses(device, PAGE_BYTES);
  pthread_mutex_unlock(&lock);
  *pointer = addresses[device];
  return cudaSuccess;
}

cudaError_t cudaProfilerStart(void) { return cudaSuccess; }
cudaError_t cudaProfilerStop(void) { return cudaSuccess; }
