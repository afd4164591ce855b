/* The driver's modules, kernels and launches: what is loaded holds nothing and runs nothing. */
#include "runtime.h"

static char the_module[64];

static CUresult give(void **handle) {
  *handle = the_module;
  return CUDA_SUCCESS;
}

CUresult cuModuleLoad(void **m, const char *name UNUSED) { return give(m); }
CUresult cuModuleLoadData(void **m, const void *image UNUSED) { return give(m); }
CUresult cuModuleLoadDataEx(void **m, const void *image UNUSED, unsigned count UNUSED,
                            int *options UNUSED, void **values UNUSED) { return give(m); }
CUresult cuModuleUnload(void *m UNUSED) { return CUDA_SUCCESS; }
CUresult cuModuleGetFunction(void **f, void *m UNUSED, const char *name UNUSED) { return give(f); }
CUresult cuModuleGetLoadingMode(int *mode) {
  *mode = 2; /* lazy */
  return CUDA_SUCCESS;
}

CUresult cuLibraryLoadData(void **l, const void *code UNUSED, int *a UNUSED, void **b UNUSED,
                           unsigned c UNUSED, int *d UNUSED, void **e UNUSED, unsigned f UNUSED) {
  return give(l);
}
CUresult cuLibraryLoadFromFile(void **l, const char *name UNUSED, int *a UNUSED, void **b UNUSED,
                               unsigned c UNUSED, int *d UNUSED, void **e UNUSED,
                               unsigned f UNUSED) { return give(l); }
CUresult cuLibraryUnload(void *l UNUSED) { return CUDA_SUCCESS; }
CUresult cuLibraryGetKernel(void **k, void *l UNUSED, const char *name UNUSED) { return give(k); }
CUresult cuLibraryGetModule(void **m, void *l UNUSED) { return give(m); }
CUresult cuKernelGetFunction(void **f, void *k UNUSED) { return give(f); }

CUresult cuLinkCreate(unsigned count UNUSED, int *options UNUSED, void **values UNUSED,
                      void **state) { return give(state); }
CUresult cuLinkCreate_v2(unsigned count, int *options, void **values, void **state) {
  return cuLinkCreate(count, options, values, state);
}
CUresult cuLinkAddData(void *state UNUSED, int type UNUSED, void *data UNUSED, size_t size UNUSED,
                       const char *name UNUSED, unsigned count UNUSED, int *options UNUSED,
                       void **values UNUSED) { return CUDA_SUCCESS; }
CUresult cuLinkAddData_v2(void *state, int type, void *data, size_t size, const char *name,
                          unsigned count, int *options, void **values) {
  return cuLinkAddData(state, type, data, size, name, count, options, values);
}
CUresult cuLinkComplete(void *state UNUSED, void **image, size_t *size) {
  *size = sizeof the_module;
  return give(image);
}
CUresult cuLinkDestroy(void *state UNUSED) { return CUDA_SUCCESS; }

/* By the numbers of enum CUfunction_attribute. A compiled kernel that nobody compiled is taken to
 * be small: no spills, the default count of registers. */
CUresult cuFuncGetAttribute(int *value, int attribute, void *f UNUSED) {
  switch (attribute) {
    case 0: *value = 1024; break; /* threads a block */
    case 4: *value = phantom_description()->registers_default; break;
    default: *value = 0;
  }
  return CUDA_SUCCESS;
}
CUresult cuKernelGetAttribute(int *value, int attribute, void *k, int device UNUSED) {
  return cuFuncGetAttribute(value, attribute, k);
}
CUresult cuFuncSetAttribute(void *f UNUSED, int attribute UNUSED, int value UNUSED) {
  return CUDA_SUCCESS;
}
CUresult cuKernelSetAttribute(int attribute UNUSED, int value UNUSED, void *k UNUSED,
                              int device UNUSED) { return CUDA_SUCCESS; }
CUresult cuFuncSetCacheConfig(void *f UNUSED, int config UNUSED) { return CUDA_SUCCESS; }

CUresult cuLaunchKernel(void *f UNUSED, unsigned grid_x UNUSED, unsigned grid_y UNUSED,
                        unsigned grid_z UNUSED, unsigned block_x UNUSED, unsigned block_y UNUSED,
                        unsigned block_z UNUSED, unsigned shared UNUSED, cudaStream_t stream,
                        void **parameters UNUSED, void **extra UNUSED) {
  phantom_kernel_ran(stream);
  return CUDA_SUCCESS;
}
CUresult cuLaunchCooperativeKernel(void *f, unsigned grid_x, unsigned grid_y, unsigned grid_z,
                                   unsigned block_x, unsigned block_y, unsigned block_z,
                                   unsigned shared, cudaStream_t stream, void **parameters) {
  return cuLaunchKernel(f, grid_x, grid_y, grid_z, block_x, block_y, block_z, shared, stream,
                        parameters, NULL);
}

struct launch_config { unsigned grid[3], block[3], shared; cudaStream_t stream; };
CUresult cuLaunchKernelEx(const struct launch_config *config, void *f UNUSED,
                          void **parameters UNUSED, void **extra UNUSED) {
  phantom_kernel_ran(config->stream);
  return CUDA_SUCCESS;
}

CUresult cuOccupancyMaxActiveBlocksPerMultiprocessor(int *blocks, void *f, int block,
                                                     size_t shared) {
  return cudaOccupancyMaxActiveBlocksPerMultiprocessor(blocks, f, block, shared);
}
CUresult cuOccupancyMaxActiveClusters(int *count, void *f UNUSED, const void *config UNUSED) {
  *count = phantom_description()->sms / 8;
  return CUDA_SUCCESS;
}
CUresult cuOccupancyMaxPotentialClusterSize(int *size, void *f UNUSED, const void *c UNUSED) {
  *size = 8; /* the portable size */
  return CUDA_SUCCESS;
}

/* A tensor map is 128 bytes that only the device reads. */
CUresult cuTensorMapEncodeTiled(void *map UNUSED, int type UNUSED, uint32_t rank UNUSED,
                                void *at UNUSED, const uint64_t *sizes UNUSED,
                                const uint64_t *strides UNUSED, const uint32_t *box UNUSED,
                                const uint32_t *steps UNUSED, int a UNUSED, int b UNUSED,
                                int c UNUSED, int d UNUSED) { return CUDA_SUCCESS; }
CUresult cuTensorMapEncodeIm2col(void *map UNUSED, int type UNUSED, uint32_t rank UNUSED,
                                 void *at UNUSED, const uint64_t *sizes UNUSED,
                                 const uint64_t *strides UNUSED, const int *lower UNUSED,
                                 const int *upper UNUSED, uint32_t channels UNUSED,
                                 uint32_t pixels UNUSED, const uint32_t *steps UNUSED, int a UNUSED,
                                 int b UNUSED, int c UNUSED, int d UNUSED) { return CUDA_SUCCESS; }
