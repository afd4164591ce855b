/* cuBLASLt: one algorithm is always found, and computes nothing.
 *
 * PyTorch allocates the workspace it offers before it asks, so the answer does not change its
 * memory. cuDNN does ask: it plans most 1x1 convolutions as products here, allows 4 MiB, and gives
 * the algorithm's workspace out as its own. What a card's cuBLASLt would ask is not known without
 * the card: the description says (`cublaslt_workspace`). By default it is all that cuDNN allows, as
 * in the one public recording of such a convolution; too little would be the costly error. */
#include "phantom.h"
#include <stdlib.h>
#include <string.h>

typedef int cublasStatus_t;
enum { CUBLAS_STATUS_SUCCESS = 0, CUBLAS_STATUS_ALLOC_FAILED = 3, CUBLAS_STATUS_INVALID_VALUE = 7 };

/* cublasLtMatmulHeuristicResult_t */
struct heuristic { uint64_t algorithm[8]; size_t workspace; cublasStatus_t state; float waves;
  int reserved[4]; };

void phantom_handle_ran(void *handle UNUSED) { phantom_kernel_ran(NULL); }

static cublasStatus_t make(void **object) {
  *object = malloc(1); /* descriptors are written and never read */
  return *object ? CUBLAS_STATUS_SUCCESS : CUBLAS_STATUS_ALLOC_FAILED;
}

static cublasStatus_t destroy(void *object) {
  free(object);
  return CUBLAS_STATUS_SUCCESS;
}

size_t cublasLtGetVersion(void) { return PHANTOM_CUDA_MAJOR >= 13 ? 130100 : 120804; }
size_t cublasLtGetCudartVersion(void) { return PHANTOM_CUDA_MAJOR >= 13 ? 13000 : 12080; }
const char *cublasLtGetStatusName(cublasStatus_t status) {
  return status ? "CUBLAS_STATUS (phantom)" : "CUBLAS_STATUS_SUCCESS";
}
const char *cublasLtGetStatusString(cublasStatus_t status) {
  return cublasLtGetStatusName(status);
}

cublasStatus_t cublasLtCreate(void **handle) { return make(handle); }
cublasStatus_t cublasLtDestroy(void *handle) { return destroy(handle); }
cublasStatus_t cublasLtMatmulDescCreate(void **d, int compute UNUSED, int scale UNUSED) {
  return make(d);
}
cublasStatus_t cublasLtMatmulDescDestroy(void *d) { return destroy(d); }
cublasStatus_t cublasLtMatmulDescSetAttribute(void *d UNUSED, int name UNUSED,
                                              const void *value UNUSED, size_t size UNUSED) {
  return CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t cublasLtMatrixLayoutCreate(void **d, int type UNUSED, uint64_t rows UNUSED,
                                          uint64_t columns UNUSED, int64_t ld UNUSED) {
  return make(d);
}
cublasStatus_t cublasLtMatrixLayoutDestroy(void *d) { return destroy(d); }
cublasStatus_t cublasLtMatrixLayoutSetAttribute(void *d UNUSED, int name UNUSED,
                                                const void *value UNUSED, size_t size UNUSED) {
  return CUBLAS_STATUS_SUCCESS;
}
/* A preference remembers CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES. */
enum { MAX_WORKSPACE_BYTES = 1 };

cublasStatus_t cublasLtMatmulPreferenceCreate(size_t **most) {
  *most = calloc(1, sizeof **most);
  return *most ? CUBLAS_STATUS_SUCCESS : CUBLAS_STATUS_ALLOC_FAILED;
}
cublasStatus_t cublasLtMatmulPreferenceDestroy(size_t *most) { return destroy(most); }
cublasStatus_t cublasLtMatmulPreferenceSetAttribute(size_t *most, int name, const void *value,
                                                    size_t size) {
  if (name == MAX_WORKSPACE_BYTES && size == sizeof *most) memcpy(most, value, sizeof *most);
  return CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t cublasLtMatrixTransformDescCreate(void **d, int scale UNUSED) { return make(d); }
cublasStatus_t cublasLtMatrixTransformDescDestroy(void *d) { return destroy(d); }
cublasStatus_t cublasLtMatrixTransformDescSetAttribute(void *d UNUSED, int name UNUSED,
                                                       const void *value UNUSED,
                                                       size_t size UNUSED) {
  return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasLtMatmulAlgoGetHeuristic(void *handle UNUSED, void *operation UNUSED,
                                              void *a UNUSED, void *b UNUSED, void *c UNUSED,
                                              void *d UNUSED, const size_t *most, int room,
                                              struct heuristic *results, int *found) {
  size_t wanted = phantom_description()->cublaslt_workspace;
  if (room < 1) return CUBLAS_STATUS_INVALID_VALUE;
  memset(results, 0, sizeof *results);
  results->workspace = wanted < *most ? wanted : *most;
  *found = 1;
  return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasLtMatmul(void *handle UNUSED, void *operation UNUSED, const void *alpha UNUSED,
                              const void *a UNUSED, void *la UNUSED, const void *b UNUSED,
                              void *lb UNUSED, const void *beta UNUSED, const void *c UNUSED,
                              void *lc UNUSED, void *d UNUSED, void *ld UNUSED,
                              const void *algorithm UNUSED, void *workspace UNUSED,
                              size_t size UNUSED, cudaStream_t stream) {
  phantom_kernel_ran(stream);
  return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasLtMatrixTransform(void *handle UNUSED, void *d UNUSED,
                                       const void *alpha UNUSED, const void *a UNUSED,
                                       void *la UNUSED, const void *beta UNUSED,
                                       const void *b UNUSED, void *lb UNUSED, void *c UNUSED,
                                       void *lc UNUSED, cudaStream_t stream) {
  phantom_kernel_ran(stream);
  return CUBLAS_STATUS_SUCCESS;
}
