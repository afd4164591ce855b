/* Properties and attributes of the described cards. What no card differs in since compute
 * capability 7.0 is written here. Source: CUDA C++ Programming Guide, "Technical Specifications
 * per Compute Capability"; CUDA Runtime API, cudaDeviceProp and cudaDeviceAttr. */
#include "phantom.h"
#include <stdio.h>
#include <string.h>

static void fill(struct cudaDeviceProp *p, int device) {
  const struct device_description *d = phantom_description();
  memset(p, 0, sizeof *p);
  snprintf(p->name, sizeof p->name, "%s", d->name);
  snprintf(p->uuid.bytes, sizeof p->uuid.bytes, "phantom-card-%02d", device);
  p->totalGlobalMem = d->total_bytes;
  p->sharedMemPerBlock = d->smem_per_block; p->sharedMemPerBlockOptin = d->smem_optin;
  p->sharedMemPerMultiprocessor = d->smem_per_sm; p->reservedSharedMemPerBlock = d->smem_reserved;
  p->regsPerBlock = 65536; p->regsPerMultiprocessor = d->regs_per_sm; p->warpSize = 32;
  p->memPitch = 2147483647; p->maxThreadsPerBlock = 1024;
  p->maxThreadsDim[0] = p->maxThreadsDim[1] = 1024; p->maxThreadsDim[2] = 64;
  p->maxGridSize[0] = 2147483647; p->maxGridSize[1] = p->maxGridSize[2] = 65535;
  p->totalConstMem = 65536; p->major = d->major; p->minor = d->minor;
  p->textureAlignment = 512; p->texturePitchAlignment = 32; p->surfaceAlignment = 512;
  p->multiProcessorCount = d->sms; p->maxThreadsPerMultiProcessor = d->threads_per_sm;
  p->maxBlocksPerMultiProcessor = d->blocks_per_sm; p->canMapHostMemory = 1;
  p->concurrentKernels = 1; p->pciBusID = device + 1; p->asyncEngineCount = 2;
  p->unifiedAddressing = 1; p->memoryBusWidth = d->bus_width; p->l2CacheSize = d->l2_bytes;
  p->streamPrioritiesSupported = p->globalL1CacheSupported = p->localL1CacheSupported = 1;
  p->managedMemory = p->concurrentManagedAccess = p->computePreemptionSupported = 1;
  p->canUseHostPointerForRegisteredMem = p->cooperativeLaunch = p->hostRegisterSupported = 1;
  p->memoryPoolsSupported = 1; p->clusterLaunch = d->major >= 9;
#if PHANTOM_CUDA_MAJOR < 13
  p->clockRate = d->clock_khz; p->memoryClockRate = d->mem_clock_khz; p->deviceOverlap = 1;
  p->singleToDoublePrecisionPerfRatio = d->major * 10 + d->minor == 80 || d->major == 9 ? 2 : 32;
#endif
}

cudaError_t cudaGetDeviceProperties(struct cudaDeviceProp *properties, int device) {
  if (device < 0 || device >= phantom_description()->num_devices)
    return phantom_fail(cudaErrorInvalidDevice);
  fill(properties, device);
  return cudaSuccess;
}

#if PHANTOM_CUDA_MAJOR < 13
/* What CUDA 12's header makes of cudaGetDeviceProperties. */
cudaError_t cudaGetDeviceProperties_v2(struct cudaDeviceProp *properties, int device) {
  return cudaGetDeviceProperties(properties, device);
}
#endif

/* By the numbers of enum cudaDeviceAttr, which are also those of the driver's CUdevice_attribute. */
static int attribute_of(const struct cudaDeviceProp *p, int attribute) {
  switch (attribute) {
    case 1: return p->maxThreadsPerBlock;
    case 2: case 3: case 4: return p->maxThreadsDim[attribute - 2];
    case 5: case 6: case 7: return p->maxGridSize[attribute - 5];
    case 8: return p->sharedMemPerBlock;
    case 9: return p->totalConstMem;
    case 10: return p->warpSize;
    case 11: return p->memPitch;
    case 12: return p->regsPerBlock;
    case 13: return phantom_description()->clock_khz;
    case 14: return p->textureAlignment;
    case 15: return 1; /* copies overlap with kernels */
    case 16: return p->multiProcessorCount;
    case 19: return p->canMapHostMemory;
    case 30: return p->surfaceAlignment;
    case 31: return p->concurrentKernels;
    case 33: return p->pciBusID;
    case 36: return phantom_description()->mem_clock_khz;
    case 37: return p->memoryBusWidth;
    case 38: return p->l2CacheSize;
    case 39: return p->maxThreadsPerMultiProcessor;
    case 40: return p->asyncEngineCount;
    case 41: return p->unifiedAddressing;
    case 51: return p->texturePitchAlignment;
    case 75: return p->major;
    case 76: return p->minor;
    case 78: return p->streamPrioritiesSupported;
    case 79: return p->globalL1CacheSupported;
    case 80: return p->localL1CacheSupported;
    case 81: return p->sharedMemPerMultiprocessor;
    case 82: return p->regsPerMultiprocessor;
    case 83: return p->managedMemory;
    case 89: return p->concurrentManagedAccess;
    case 90: return p->computePreemptionSupported;
    case 91: return p->canUseHostPointerForRegisteredMem;
    case 95: return p->cooperativeLaunch;
    case 97: return p->sharedMemPerBlockOptin;
    case 99: return p->hostRegisterSupported;
    case 102: return 1; /* virtual memory management (cuMemCreate and its kin) */
    case 106: return p->maxBlocksPerMultiProcessor;
    case 111: return p->reservedSharedMemPerBlock;
    case 115: return p->memoryPoolsSupported;
    case 120: return p->clusterLaunch;
    case 126: return 1;
    default: return 0; /* textures, interoperability and what this card does not have */
  }
}

cudaError_t cudaDeviceGetAttribute(int *value, int attribute, int device) {
  static __thread struct cudaDeviceProp properties;
  static __thread int filled = -1;
  if (device < 0 || device >= phantom_description()->num_devices)
    return phantom_fail(cudaErrorInvalidDevice);
  if (filled != device) fill(&properties, filled = device);
  *value = attribute_of(&properties, attribute);
  return cudaSuccess;
}
