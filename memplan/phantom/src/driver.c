/* The driver's public functions that PyTorch, Triton and cuDNN's runtime-compiled engines call.
 *
 * They live in the runtime's library: the runtime gives them out as driver entry points, and the
 * libcuda.so.1 beside it only leads here. cuGetProcAddress and cuGetExportTable do not exist, so
 * the CUDA runtimes that are linked into other libraries see no driver they could use. */
#include "runtime.h"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static char the_context[64]; /* a handle that points at something, and holds nothing */

static CUresult from_runtime(cudaError_t error) {
  cudaGetLastError();
  return error; /* the codes below 1000 mean the same on both sides (enum cudaError) */
}

/* ---- initialization, devices, contexts ---- */
CUresult cuInit(unsigned flags UNUSED) { return CUDA_SUCCESS; }
CUresult cuDriverGetVersion(int *version) { return cudaDriverGetVersion(version); }
CUresult cuDeviceGetCount(int *count) { return cudaGetDeviceCount(count); }

CUresult cuDeviceGet(int *device, int ordinal) {
  *device = ordinal;
  return ordinal >= 0 && ordinal < phantom_description()->num_devices ? CUDA_SUCCESS
                                                                      : CUDA_ERROR_INVALID_DEVICE;
}

CUresult cuDeviceGetName(char *name, int room, int device UNUSED) {
  snprintf(name, room, "%s", phantom_description()->name);
  return CUDA_SUCCESS;
}

CUresult cuDeviceTotalMem(size_t *bytes, int device UNUSED) {
  *bytes = phantom_description()->total_bytes;
  return CUDA_SUCCESS;
}
CUresult cuDeviceTotalMem_v2(size_t *bytes, int device) { return cuDeviceTotalMem(bytes, device); }

CUresult cuDeviceGetAttribute(int *value, int attribute, int device) {
  return from_runtime(cudaDeviceGetAttribute(value, attribute, device));
}

CUresult cuDevicePrimaryCtxGetState(int device UNUSED, unsigned *flags, int *active) {
  if (flags) *flags = 0;
  *active = 1;
  return CUDA_SUCCESS;
}

CUresult cuDevicePrimaryCtxRetain(void **context, int device UNUSED) {
  *context = the_context;
  return CUDA_SUCCESS;
}
CUresult cuDevicePrimaryCtxRelease(int device UNUSED) { return CUDA_SUCCESS; }
CUresult cuDevicePrimaryCtxRelease_v2(int device UNUSED) { return CUDA_SUCCESS; }

CUresult cuCtxGetCurrent(void **context) {
  *context = the_context;
  return CUDA_SUCCESS;
}
CUresult cuCtxSetCurrent(void *context UNUSED) { return CUDA_SUCCESS; }
CUresult cuCtxPushCurrent(void *context UNUSED) { return CUDA_SUCCESS; }
CUresult cuCtxPushCurrent_v2(void *context UNUSED) { return CUDA_SUCCESS; }
CUresult cuCtxPopCurrent(void **context) {
  if (context) *context = the_context;
  return CUDA_SUCCESS;
}
CUresult cuCtxPopCurrent_v2(void **context) { return cuCtxPopCurrent(context); }
CUresult cuCtxGetDevice(int *device) { return cudaGetDevice(device); }
CUresult cuCtxGetLimit(size_t *value, int limit) {
  return from_runtime(cudaDeviceGetLimit(value, limit));
}
CUresult cuCtxSetLimit(int limit, size_t value) {
  return from_runtime(cudaDeviceSetLimit(limit, value));
}
CUresult cuCtxSynchronize(void) { return cudaDeviceSynchronize(); }
CUresult cuStreamGetCtx(cudaStream_t stream UNUSED, void **context) {
  return cuCtxGetCurrent(context);
}
CUresult cuStreamGetCtx_v2(cudaStream_t stream UNUSED, void **context, void **green) {
  if (green) *green = NULL;
  return cuCtxGetCurrent(context);
}

CUresult cuGetErrorString(CUresult error, const char **text) {
  *text = cudaGetErrorString(error);
  return CUDA_SUCCESS;
}
CUresult cuGetErrorName(CUresult error, const char **name) {
  *name = error == CUDA_ERROR_OUT_OF_MEMORY ? "CUDA_ERROR_OUT_OF_MEMORY" : cudaGetErrorName(error);
  return CUDA_SUCCESS;
}

/* ---- memory mapped by the program: PyTorch's expandable segments ---- */
struct physical { int device; size_t size; };
struct allocation_properties { int type, handle_types; struct cudaMemLocation location; };

CUresult cuMemAddressReserve(CUdeviceptr *at, size_t size, size_t alignment UNUSED,
                             CUdeviceptr wanted UNUSED, unsigned long long flags UNUSED) {
  *at = phantom_take_addresses(phantom_current_device(), size);
  return *at ? CUDA_SUCCESS : CUDA_ERROR_OUT_OF_MEMORY;
}

CUresult cuMemAddressFree(CUdeviceptr at, size_t size) {
  int device = phantom_device_of((void *)at);
  if (device < 0) return CUDA_ERROR_INVALID_VALUE;
  phantom_give_addresses(device, at, size);
  return CUDA_SUCCESS;
}

CUresult cuMemCreate(uint64_t *handle, size_t size, const struct allocation_properties *p,
                     unsigned long long flags UNUSED) {
  int device = p->location.type == 1 ? p->location.id : phantom_current_device();
  if (size % PAGE_BYTES || device < 0 || device >= phantom_description()->num_devices)
    return CUDA_ERROR_INVALID_VALUE;
  struct physical *made = malloc(sizeof *made);
  if (!made || !phantom_take_bytes(device, size)) { free(made); return CUDA_ERROR_OUT_OF_MEMORY; }
  phantom_count(COUNT_MALLOC);
  *made = (struct physical){device, size};
  *handle = (uintptr_t)made;
  return CUDA_SUCCESS;
}

/* The memory is held until it is neither named nor mapped; PyTorch unmaps before it releases. */
CUresult cuMemRelease(uint64_t handle) {
  struct physical *one = (struct physical *)(uintptr_t)handle;
  if (!one) return CUDA_ERROR_INVALID_VALUE;
  phantom_count(COUNT_FREE);
  phantom_give_bytes(one->device, one->size);
  free(one);
  return CUDA_SUCCESS;
}

CUresult cuMemMap(CUdeviceptr at UNUSED, size_t size UNUSED, size_t offset UNUSED,
                  uint64_t handle UNUSED, unsigned long long flags UNUSED) { return CUDA_SUCCESS; }
CUresult cuMemUnmap(CUdeviceptr at UNUSED, size_t size UNUSED) { return CUDA_SUCCESS; }
CUresult cuMemSetAccess(CUdeviceptr at UNUSED, size_t size UNUSED, const void *list UNUSED,
                        size_t count UNUSED) { return CUDA_SUCCESS; }

CUresult cuMemGetAllocationGranularity(size_t *bytes, const void *properties UNUSED,
                                       int option UNUSED) {
  *bytes = PAGE_BYTES;
  return CUDA_SUCCESS;
}

/* ---- other memory ---- */
CUresult cuMemAlloc_v2(CUdeviceptr *at, size_t size) {
  return from_runtime(cudaMalloc((void **)at, size));
}
CUresult cuMemFree_v2(CUdeviceptr at) { return from_runtime(cudaFree((void *)at)); }
CUresult cuMemGetInfo_v2(size_t *free_bytes, size_t *total) {
  return cudaMemGetInfo(free_bytes, total);
}
CUresult cuMemcpyHtoD_v2(CUdeviceptr to, const void *from, size_t size) {
  return phantom_copy((void *)to, from, size);
}
CUresult cuMemcpyDtoH_v2(void *to, CUdeviceptr from, size_t size) {
  return phantom_copy(to, (void *)from, size);
}
CUresult cuMemsetD32Async(CUdeviceptr at UNUSED, unsigned value UNUSED, size_t count UNUSED,
                          cudaStream_t stream) {
  phantom_kernel_ran(stream);
  return CUDA_SUCCESS;
}
CUresult cuStreamWriteValue32(cudaStream_t stream, CUdeviceptr at UNUSED, uint32_t value UNUSED,
                              unsigned flags UNUSED) {
  phantom_kernel_ran(stream);
  return CUDA_SUCCESS;
}

CUresult cuMemGetAddressRange(CUdeviceptr *base, size_t *size, CUdeviceptr at) {
  struct range found;
  if (!phantom_allocation_at((void *)at, &found)) return CUDA_ERROR_NOT_FOUND;
  if (base) *base = found.at;
  if (size) *size = found.size;
  return CUDA_SUCCESS;
}
CUresult cuMemGetAddressRange_v2(CUdeviceptr *base, size_t *size, CUdeviceptr at) {
  return cuMemGetAddressRange(base, size, at);
}

/* enum CUpointer_attribute: context, memory type (1 host, 2 device), device and host pointer,
 * managed, device ordinal. */
CUresult cuPointerGetAttribute(void *value, int attribute, CUdeviceptr at) {
  int device = phantom_device_of((void *)at);
  if (device < 0 && phantom_host_kind((void *)at) == cudaMemoryTypeUnregistered)
    return CUDA_ERROR_INVALID_VALUE;
  switch (attribute) {
    case 1: *(void **)value = the_context; break;
    case 2: *(unsigned *)value = device < 0 ? 1 : 2; break;
    case 3: case 4: *(CUdeviceptr *)value = at; break;
    case 8: *(unsigned *)value = phantom_host_kind((void *)at) == cudaMemoryTypeManaged; break;
    case 9: *(int *)value = device < 0 ? 0 : device; break;
    default: return CUDA_ERROR_NOT_SUPPORTED;
  }
  return CUDA_SUCCESS;
}
