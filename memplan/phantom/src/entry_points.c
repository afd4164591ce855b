/* Driver functions by name, as PyTorch asks the runtime for them. */
#define _GNU_SOURCE
#include "runtime.h"
#include <dlfcn.h>
#include <stdio.h>

/* enum cudaDriverEntryPointQueryResult */
enum { FOUND = 0, NOT_FOUND = 1 };

static CUresult not_supported(void) { return CUDA_ERROR_NOT_SUPPORTED; }

/* The newest version of a function is the one that its header gives the plain name. A function
 * that is not here is an entry that returns an error: PyTorch takes a missing one for a broken
 * driver and stops, though it calls few of those it asks for. */
static cudaError_t find(const char *name, void **function, int *result) {
  static void *self;
  char versioned[128];
  Dl_info here;
  if (!self && dladdr((void *)find, &here)) self = dlopen(here.dli_fname, RTLD_NOW | RTLD_NOLOAD);
  snprintf(versioned, sizeof versioned, "%s_v2", name);
  *function = self ? dlsym(self, versioned) : NULL;
  if (!*function && self) *function = dlsym(self, name);
  if (!*function) {
    if (phantom_is_verbose()) fprintf(stderr, "phantom: no driver function %s\n", name);
    *function = not_supported;
  }
  if (result) *result = FOUND;
  return cudaSuccess;
}

cudaError_t cudaGetDriverEntryPointByVersion(const char *name, void **function,
                                             unsigned version UNUSED,
                                             unsigned long long flags UNUSED, int *result) {
  return find(name, function, result);
}

#if PHANTOM_CUDA_MAJOR < 13
cudaError_t cudaGetDriverEntryPoint(const char *name, void **function,
                                    unsigned long long flags UNUSED, int *result) {
  return find(name, function, result);
}
#endif
