/* Driver functions by name, as PyTorch asks the runtime for them. */
#define _GNU_SOURCE
#include "runtime.h"
#include <dlfcn.h>
#include <stdio.h>

/* enum cudaDriverEntryPointQueryResult */
enum { FOUND = 0, NOT_FOUND = 1 };

/* The newest version of a function is the one that its header gives the plain name. PyTorch stops
 * where one that it knows is not found, though it calls few of them: names/cudart.driver lists
 * those that are there to be found, and return an error when called. */
static cudaError_t find(const char *name, void **function, int *result) {
  static void *self;
  char versioned[128];
  Dl_info here;
  if (!self && dladdr((void *)find, &here)) self = dlopen(here.dli_fname, RTLD_NOW | RTLD_NOLOAD);
  snprintf(versioned, sizeof versioned, "%s_v2", name);
  *function = self ? dlsym(self, versioned) : NULL;
  if (!*function && self) *function = dlsym(self, name);
  if (!*function) phantom_missing(name);
  if (result) *result = *function ? FOUND : NOT_FOUND;
  return *function || result ? cudaSuccess : phantom_fail(cudaErrorSymbolNotFound);
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
