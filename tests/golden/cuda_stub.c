/* A CUDA runtime and driver that own no device, for running the released allocator without one.
 *
 * Memory is only counted: an allocation succeeds exactly while it fits. Addresses are drawn from
 * STUB_SEED and listed on stderr. Events finish when the program says so (stub_complete) or when they are waited for.
 */
#define _GNU_SOURCE
#include <cuda.h>
#include <cuda_runtime_api.h>
#include <dlfcn.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { NUM_SLOTS = 4096, NUM_STREAMS = 1024, SLOT_SHIFT = 33 };
static const uint64_t FIRST_ADDRESS = 0x600000000000ull;

static uint64_t total_bytes, other_bytes, used_bytes, random_state;
static uint64_t slot_bytes[NUM_SLOTS];
static uint64_t recorded[NUM_STREAMS], completed[NUM_STREAMS];

struct event { uint64_t stream, number; };

__attribute__((constructor)) static void start(void) {
  total_bytes = strtoull(getenv("STUB_TOTAL"), NULL, 10);
  other_bytes = strtoull(getenv("STUB_OTHER"), NULL, 10);
  random_state = strtoull(getenv("STUB_SEED"), NULL, 10);
}

static uint64_t new_address(uint64_t size) {
  for (;;) {
    random_state = random_state * 6364136223846793005ull + 1442695040888963407ull;
    uint64_t slot = (random_state >> 33) % NUM_SLOTS;
    if (slot_bytes[slot] == 0) {
      slot_bytes[slot] = size;
      uint64_t address = FIRST_ADDRESS + (slot << SLOT_SHIFT);
      fprintf(stderr, "address %llu\n", (unsigned long long)address);
      return address;
    }
  }
}

static uint64_t drop_address(uint64_t address) {
  uint64_t slot = (address - FIRST_ADDRESS) >> SLOT_SHIFT;
  uint64_t size = slot_bytes[slot];
  slot_bytes[slot] = 0;
  return size;
}

static int take(uint64_t size) {
  if (used_bytes + other_bytes + size > total_bytes) return 0;
  used_bytes += size;
  return 1;
}

uint64_t stub_used(void) { return used_bytes; }
void stub_complete(uint64_t stream) { completed[stream % NUM_STREAMS] = recorded[stream % NUM_STREAMS]; }

/* Runtime. */
cudaError_t cudaMalloc(void** pointer, size_t size) {
  if (!take(size)) return cudaErrorMemoryAllocation;
  *pointer = (void*)new_address(size);
  return cudaSuccess;
}
cudaError_t cudaFree(void* pointer) {
  if (pointer) used_bytes -= drop_address((uint64_t)pointer);
  return cudaSuccess;
}
cudaError_t cudaMemGetInfo(size_t* free_bytes, size_t* total) {
  *total = total_bytes;
  *free_bytes = total_bytes - other_bytes - used_bytes;
  return cudaSuccess;
}
cudaError_t cudaGetDevice(int* device) { *device = 0; return cudaSuccess; }
cudaError_t cudaSetDevice(int device) { (void)device; return cudaSuccess; }
cudaError_t cudaGetDeviceCount(int* count) { *count = 1; return cudaSuccess; }
cudaError_t cudaDriverGetVersion(int* version) { *version = CUDART_VERSION; return cudaSuccess; }
cudaError_t cudaGetLastError(void) { return cudaSuccess; }
cudaError_t cudaGetDeviceProperties(struct cudaDeviceProp* properties, int device) {
  (void)device;
  memset(properties, 0, sizeof *properties);
  properties->totalGlobalMem = total_bytes;
  properties->major = 9;
  return cudaSuccess;
}
cudaError_t cudaDeviceGetStreamPriorityRange(int* least, int* greatest) {
  *least = *greatest = 0;
  return cudaSuccess;
}
cudaError_t cudaDeviceSynchronize(void) { return cudaSuccess; }
cudaError_t cudaStreamSynchronize(cudaStream_t stream) { (void)stream; return cudaSuccess; }
cudaError_t cudaStreamIsCapturing(cudaStream_t stream, enum cudaStreamCaptureStatus* status) {
  (void)stream;
  *status = cudaStreamCaptureStatusNone;
  return cudaSuccess;
}
cudaError_t cudaThreadExchangeStreamCaptureMode(enum cudaStreamCaptureMode* mode) {
  (void)mode;
  return cudaSuccess;
}
cudaError_t cudaEventCreateWithFlags(cudaEvent_t* event, unsigned flags) {
  (void)flags;
  *event = (cudaEvent_t)calloc(1, sizeof(struct event));
  return cudaSuccess;
}
cudaError_t cudaEventDestroy(cudaEvent_t event) { free(event); return cudaSuccess; }
cudaError_t cudaEventRecord(cudaEvent_t handle, cudaStream_t stream) {
  struct event* event = (struct event*)handle;
  event->stream = (uint64_t)stream % NUM_STREAMS;
  event->number = ++recorded[event->stream];
  return cudaSuccess;
}
cudaError_t cudaEventQuery(cudaEvent_t handle) {
  struct event* event = (struct event*)handle;
  return event->number <= completed[event->stream] ? cudaSuccess : cudaErrorNotReady;
}
cudaError_t cudaEventSynchronize(cudaEvent_t handle) {
  struct event* event = (struct event*)handle;
  if (completed[event->stream] < event->number) completed[event->stream] = event->number;
  return cudaSuccess;
}

/* Driver: virtual memory, reached by name through the runtime. */
static CUresult fake_cuMemAddressReserve(CUdeviceptr* pointer, size_t size, size_t alignment,
                                         CUdeviceptr wanted, unsigned long long flags) {
  (void)alignment; (void)wanted; (void)flags;
  *pointer = new_address(size);
  return CUDA_SUCCESS;
}
static CUresult fake_cuMemAddressFree(CUdeviceptr pointer, size_t size) {
  (void)size;
  drop_address(pointer);
  return CUDA_SUCCESS;
}
static CUresult fake_cuMemCreate(CUmemGenericAllocationHandle* handle, size_t size,
                                 const CUmemAllocationProp* properties, unsigned long long flags) {
  (void)properties; (void)flags;
  if (!take(size)) return CUDA_ERROR_OUT_OF_MEMORY;
  *handle = size; /* all that release needs to know */
  return CUDA_SUCCESS;
}
static CUresult fake_cuMemRelease(CUmemGenericAllocationHandle handle) {
  used_bytes -= handle;
  return CUDA_SUCCESS;
}
static CUresult fake_cuMemGetAllocationGranularity(size_t* granularity,
                                                   const CUmemAllocationProp* properties,
                                                   CUmemAllocationGranularity_flags option) {
  (void)properties; (void)option;
  *granularity = 2097152;
  return CUDA_SUCCESS;
}
static CUresult fake_cuDeviceGet(CUdevice* device, int ordinal) {
  *device = ordinal;
  return CUDA_SUCCESS;
}
static CUresult fake_cuDeviceGetAttribute(int* value, CUdevice_attribute attribute, CUdevice device) {
  (void)attribute; (void)device;
  *value = 0;
  return CUDA_SUCCESS;
}
static CUresult fake_success(void) { return CUDA_SUCCESS; }

cudaError_t cudaGetDriverEntryPointByVersion(const char* symbol, void** function, unsigned version,
                                             unsigned long long flags,
                                             enum cudaDriverEntryPointQueryResult* result) {
  (void)version; (void)flags;
  static const struct { const char* name; void* function; } table[] = {
      {"cuMemAddressReserve", (void*)fake_cuMemAddressReserve},
      {"cuMemAddressFree", (void*)fake_cuMemAddressFree},
      {"cuMemCreate", (void*)fake_cuMemCreate},
      {"cuMemRelease", (void*)fake_cuMemRelease},
      {"cuMemGetAllocationGranularity", (void*)fake_cuMemGetAllocationGranularity},
      {"cuDeviceGet", (void*)fake_cuDeviceGet},
      {"cuDeviceGetAttribute", (void*)fake_cuDeviceGetAttribute},
  };
  *function = (void*)fake_success;
  for (size_t i = 0; i < sizeof table / sizeof *table; i++)
    if (strcmp(symbol, table[i].name) == 0) *function = table[i].function;
  if (result) *result = cudaDriverEntryPointSuccess;
  return cudaSuccess;
}

/* A machine with NVML would add its own processes to the out-of-memory text. */
void* dlopen(const char* name, int flags) {
  static void* (*next)(const char*, int);
  if (!next) next = (void* (*)(const char*, int))dlsym(RTLD_NEXT, "dlopen");
  return name && strstr(name, "nvidia-ml") ? NULL : next(name, flags);
}
