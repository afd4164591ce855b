/* Attributes of kernels, and how many of their blocks a multiprocessor holds.
 *
 * Source of the law: cuda_occupancy.h, "cudaOccMaxActiveBlocksPerMultiprocessor", which NVIDIA
 * ships for use in other programs; CUDA C++ Programming Guide for the granularities. */
#include "phantom.h"
#include <string.h>

enum { WARP = 32, REGISTER_UNIT = 256, SUB_PARTITIONS = 4, SHARED_UNIT = 128 };

/* The binary that a card of this compute capability runs: the newest of its major version that is
 * not newer than the card, among what PyTorch is built for. CUB chooses its policies by it. */
static int built_for(void) {
#if PHANTOM_CUDA_MAJOR >= 13
  static const int built[] = {75, 80, 86, 90, 100, 120};
#else
  static const int built[] = {50, 60, 70, 75, 80, 86, 90, 100, 120};
#endif
  const struct device_description *d = phantom_description();
  int capability = d->major * 10 + d->minor, best = built[0];
  for (unsigned i = 0; i < sizeof built / sizeof *built; i++)
    if (built[i] <= capability) best = built[i];
  return best;
}

static int registers_of(const void *kernel UNUSED) {
  return phantom_description()->registers_default;
}

cudaError_t cudaFuncGetAttributes(struct cudaFuncAttributes *a, const void *kernel) {
  memset(a, 0, sizeof *a);
  a->maxThreadsPerBlock = 1024;
  a->numRegs = registers_of(kernel);
  a->ptxVersion = a->binaryVersion = built_for();
  a->maxDynamicSharedSizeBytes = phantom_description()->smem_per_block;
  a->preferredShmemCarveout = -1;
  return cudaSuccess;
}

cudaError_t cudaFuncSetAttribute(const void *kernel UNUSED, int attribute, int value) {
  /* 8: dynamic shared memory, which a card refuses beyond its opt-in limit. */
  if (attribute == 8 && (value < 0 || (size_t)value > phantom_description()->smem_optin))
    return phantom_fail(cudaErrorInvalidValue);
  return cudaSuccess;
}

cudaError_t cudaKernelSetAttributeForDevice(const void *kernel, int attribute, int value,
                                            int device UNUSED) {
  return cudaFuncSetAttribute(kernel, attribute, value);
}

cudaError_t cudaFuncSetCacheConfig(const void *kernel UNUSED, int config UNUSED) {
  return cudaSuccess;
}

static int blocks_by_registers(int warps, int registers) {
  size_t warp_registers = round_up((size_t)registers * WARP, REGISTER_UNIT);
  size_t share = phantom_description()->regs_per_sm / SUB_PARTITIONS;
  return (int)(share / warp_registers) * SUB_PARTITIONS / warps;
}

static int smaller(int a, int b) { return a < b ? a : b; }

static int active_blocks(const void *kernel, int block, size_t shared) {
  const struct device_description *d = phantom_description();
  int warps = (int)round_up(block, WARP) / WARP, registers = registers_of(kernel);
  int blocks = smaller(d->blocks_per_sm, d->threads_per_sm / WARP / warps);
  if (registers) blocks = smaller(blocks, blocks_by_registers(warps, registers));
  size_t used = round_up(shared + d->smem_reserved, SHARED_UNIT);
  return used ? smaller(blocks, (int)(d->smem_per_sm / used)) : blocks;
}

cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(int *blocks, const void *kernel,
                                                                   int block, size_t shared,
                                                                   unsigned flags UNUSED) {
  if (block <= 0 || block > 1024) return phantom_fail(cudaErrorInvalidValue);
  *blocks = active_blocks(kernel, block, shared);
  return cudaSuccess;
}

cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessor(int *blocks, const void *kernel,
                                                          int block, size_t shared) {
  return cudaOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(blocks, kernel, block, shared, 0);
}

cudaError_t cudaOccupancyAvailableDynamicSMemPerBlock(size_t *shared, const void *kernel UNUSED,
                                                      int blocks, int block UNUSED) {
  const struct device_description *d = phantom_description();
  if (blocks <= 0) return phantom_fail(cudaErrorInvalidValue);
  size_t part = d->smem_per_sm / blocks / SHARED_UNIT * SHARED_UNIT;
  part = part > d->smem_reserved ? part - d->smem_reserved : 0;
  *shared = part < d->smem_optin ? part : d->smem_optin;
  return cudaSuccess;
}

/* Clusters of thread blocks: 8 is the portable size (compute capability 9.0 and up). */
cudaError_t cudaOccupancyMaxPotentialClusterSize(int *size, const void *kernel UNUSED,
                                                 const cudaLaunchConfig_t *config UNUSED) {
  if (phantom_description()->major < 9) return phantom_fail(cudaErrorNotSupported);
  *size = 8;
  return cudaSuccess;
}

cudaError_t cudaOccupancyMaxActiveClusters(int *count, const void *kernel UNUSED,
                                           const cudaLaunchConfig_t *config UNUSED) {
  if (phantom_description()->major < 9) return phantom_fail(cudaErrorNotSupported);
  *count = phantom_description()->sms / 8;
  return cudaSuccess;
}
