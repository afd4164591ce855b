/* The public types of the CUDA runtime and driver that the phantom answers in.
 *
 * Declared here and not included, so that gcc alone builds the libraries, for either CUDA major,
 * on a machine with no CUDA headers. tests/unit/test_phantom_types.py holds sizes and offsets
 * against NVIDIA's headers where the installed wheels bring them.
 * Source: cuda_runtime_api.h, driver_types.h, cuda.h of CUDA 12.8 and 13.0 (public API). */
#pragma once
#include <stddef.h>
#include <stdint.h>

#ifndef PHANTOM_CUDA_MAJOR
#error "PHANTOM_CUDA_MAJOR is 12 or 13"
#endif

typedef int cudaError_t;
#define PHANTOM_ERROR(code, name, text) name = code,
enum {
#include "cuda_errors.def"
};
#undef PHANTOM_ERROR

typedef struct phantom_stream *cudaStream_t;
typedef struct phantom_event *cudaEvent_t;
typedef struct phantom_graph *cudaGraph_t;
typedef struct phantom_graph *cudaGraphExec_t;
typedef struct phantom_node *cudaGraphNode_t;
typedef struct phantom_pool *cudaMemPool_t;

typedef struct { unsigned x, y, z; } dim3;

enum cudaMemcpyKind { cudaMemcpyHostToHost, cudaMemcpyHostToDevice, cudaMemcpyDeviceToHost,
  cudaMemcpyDeviceToDevice, cudaMemcpyDefault };

enum cudaMemoryType { cudaMemoryTypeUnregistered, cudaMemoryTypeHost, cudaMemoryTypeDevice,
  cudaMemoryTypeManaged };

struct cudaPointerAttributes {
  int type, device;
  void *devicePointer, *hostPointer;
#if PHANTOM_CUDA_MAJOR >= 13
  long reserved[8];
#endif
};

struct cudaFuncAttributes {
  size_t sharedSizeBytes, constSizeBytes, localSizeBytes;
  int maxThreadsPerBlock, numRegs, ptxVersion, binaryVersion, cacheModeCA;
  int maxDynamicSharedSizeBytes, preferredShmemCarveout, clusterDimMustBeSet;
  int requiredClusterWidth, requiredClusterHeight, requiredClusterDepth;
  int clusterSchedulingPolicyPreference, nonPortableClusterSizeAllowed;
  int reserved[16];
};

typedef struct {
  dim3 gridDim, blockDim;
  size_t dynamicSmemBytes;
  cudaStream_t stream;
  void *attrs;
  unsigned numAttrs;
} cudaLaunchConfig_t;

struct cudaExtent { size_t width, height, depth; };
struct cudaPos { size_t x, y, z; };
struct cudaPitchedPtr { void *ptr; size_t pitch, xsize, ysize; };
struct cudaMemcpy3DParms {
  void *srcArray; struct cudaPos srcPos; struct cudaPitchedPtr srcPtr;
  void *dstArray; struct cudaPos dstPos; struct cudaPitchedPtr dstPtr;
  struct cudaExtent extent; int kind;
};

struct cudaMemLocation { int type, id; };
struct cudaMemPoolProps {
  int allocType, handleTypes; struct cudaMemLocation location; void *win32SecurityAttributes;
  size_t maxSize; unsigned short usage; unsigned char reserved[54];
};
struct cudaMemAccessDesc { struct cudaMemLocation location; int flags; };

/* The fields of struct cudaDeviceProp in order. CUDA 13 took those away that ONLY_12 holds. */
#if PHANTOM_CUDA_MAJOR >= 13
#define ONLY_12(field)
#define PROP_RESERVED int reserved[56];
#else
#define ONLY_12(field) int field;
#define PROP_RESERVED int reserved[56];
#endif
struct cudaDeviceProp {
  char name[256]; struct { char bytes[16]; } uuid; char luid[8]; unsigned luidDeviceNodeMask;
  size_t totalGlobalMem, sharedMemPerBlock; int regsPerBlock, warpSize; size_t memPitch;
  int maxThreadsPerBlock, maxThreadsDim[3], maxGridSize[3]; ONLY_12(clockRate)
  size_t totalConstMem; int major, minor; size_t textureAlignment, texturePitchAlignment;
  ONLY_12(deviceOverlap) int multiProcessorCount; ONLY_12(kernelExecTimeoutEnabled)
  int integrated, canMapHostMemory; ONLY_12(computeMode)
  int maxTexture1D, maxTexture1DMipmap; ONLY_12(maxTexture1DLinear)
  int maxTexture2D[2], maxTexture2DMipmap[2], maxTexture2DLinear[3], maxTexture2DGather[2];
  int maxTexture3D[3], maxTexture3DAlt[3], maxTextureCubemap, maxTexture1DLayered[2];
  int maxTexture2DLayered[3], maxTextureCubemapLayered[2], maxSurface1D, maxSurface2D[2];
  int maxSurface3D[3], maxSurface1DLayered[2], maxSurface2DLayered[3], maxSurfaceCubemap;
  int maxSurfaceCubemapLayered[2]; size_t surfaceAlignment; int concurrentKernels, ECCEnabled;
  int pciBusID, pciDeviceID, pciDomainID, tccDriver, asyncEngineCount, unifiedAddressing;
  ONLY_12(memoryClockRate) int memoryBusWidth, l2CacheSize, persistingL2CacheMaxSize;
  int maxThreadsPerMultiProcessor, streamPrioritiesSupported, globalL1CacheSupported;
  int localL1CacheSupported; size_t sharedMemPerMultiprocessor; int regsPerMultiprocessor;
  int managedMemory, isMultiGpuBoard, multiGpuBoardGroupID, hostNativeAtomicSupported;
  ONLY_12(singleToDoublePrecisionPerfRatio) int pageableMemoryAccess, concurrentManagedAccess;
  int computePreemptionSupported, canUseHostPointerForRegisteredMem, cooperativeLaunch;
  ONLY_12(cooperativeMultiDeviceLaunch) size_t sharedMemPerBlockOptin;
  int pageableMemoryAccessUsesHostPageTables, directManagedMemAccessFromHost;
  int maxBlocksPerMultiProcessor, accessPolicyMaxWindowSize; size_t reservedSharedMemPerBlock;
  int hostRegisterSupported, sparseCudaArraySupported, hostRegisterReadOnlySupported;
  int timelineSemaphoreInteropSupported, memoryPoolsSupported, gpuDirectRDMASupported;
  unsigned gpuDirectRDMAFlushWritesOptions; int gpuDirectRDMAWritesOrdering;
  unsigned memoryPoolSupportedHandleTypes; int deferredMappingCudaArraySupported;
  int ipcEventSupported, clusterLaunch, unifiedFunctionPointers;
#if PHANTOM_CUDA_MAJOR >= 13
  int deviceNumaConfig, deviceNumaId, mpsEnabled, hostNumaId;
  unsigned gpuPciDeviceID, gpuPciSubsystemID; int hostNumaMultinodeIpcSupported;
  int reserved[56];
#else
  int reserved[63];
#endif
};

/* The driver's side. */
typedef int CUresult;
enum { CUDA_SUCCESS = 0, CUDA_ERROR_INVALID_VALUE = 1, CUDA_ERROR_OUT_OF_MEMORY = 2,
  CUDA_ERROR_INVALID_DEVICE = 101, CUDA_ERROR_NOT_FOUND = 500, CUDA_ERROR_NOT_SUPPORTED = 801 };
typedef uint64_t CUdeviceptr;
