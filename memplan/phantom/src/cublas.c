/* cuBLAS: products compute nothing. What a call gives to the host is given: handles, settings,
 * scalar results, and the "no error" of factorizations. */
#include "phantom.h"
#include <stdlib.h>
#include <string.h>

typedef int cublasStatus_t;
enum { CUBLAS_STATUS_SUCCESS = 0, CUBLAS_STATUS_ALLOC_FAILED = 3, CUBLAS_STATUS_INVALID_VALUE = 7 };
enum { POINTER_MODE_HOST = 0 };

typedef struct cublas_handle {
  cudaStream_t stream;
  int pointer_mode, math_mode, atomics_mode, sm_count_target;
} *cublasHandle_t;

void phantom_handle_ran(void *handle) {
  phantom_kernel_ran(handle ? ((cublasHandle_t)handle)->stream : NULL);
}

cublasStatus_t cublasCreate_v2(cublasHandle_t *handle) {
  *handle = calloc(1, sizeof **handle);
  return *handle ? CUBLAS_STATUS_SUCCESS : CUBLAS_STATUS_ALLOC_FAILED;
}

cublasStatus_t cublasDestroy_v2(cublasHandle_t handle) {
  free(handle);
  return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasGetVersion_v2(cublasHandle_t handle UNUSED, int *version) {
  *version = PHANTOM_CUDA_MAJOR >= 13 ? 130100 : 120804;
  return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasGetProperty(int property, int *value) {
  *value = property == 0 ? PHANTOM_CUDA_MAJOR : 0;
  return CUBLAS_STATUS_SUCCESS;
}

#define SETTING(type, get, set, field) \
  cublasStatus_t get(cublasHandle_t handle, type *value) { \
    *value = handle->field; \
    return CUBLAS_STATUS_SUCCESS; \
  } \
  cublasStatus_t set(cublasHandle_t handle, type value) { \
    handle->field = value; \
    return CUBLAS_STATUS_SUCCESS; \
  }
SETTING(cudaStream_t, cublasGetStream_v2, cublasSetStream_v2, stream)
SETTING(int, cublasGetPointerMode_v2, cublasSetPointerMode_v2, pointer_mode)
SETTING(int, cublasGetMathMode, cublasSetMathMode, math_mode)
SETTING(int, cublasGetAtomicsMode, cublasSetAtomicsMode, atomics_mode)
SETTING(int, cublasGetSmCountTarget, cublasSetSmCountTarget, sm_count_target)

cublasStatus_t cublasSetWorkspace_v2(cublasHandle_t handle UNUSED, void *at UNUSED,
                                     size_t size UNUSED) { return CUBLAS_STATUS_SUCCESS; }

const char *cublasGetStatusName(cublasStatus_t status) {
  switch (status) {
    case 0: return "CUBLAS_STATUS_SUCCESS";
    case 1: return "CUBLAS_STATUS_NOT_INITIALIZED";
    case 3: return "CUBLAS_STATUS_ALLOC_FAILED";
    case 7: return "CUBLAS_STATUS_INVALID_VALUE";
    case 8: return "CUBLAS_STATUS_ARCH_MISMATCH";
    case 13: return "CUBLAS_STATUS_EXECUTION_FAILED";
    case 14: return "CUBLAS_STATUS_INTERNAL_ERROR";
    case 15: return "CUBLAS_STATUS_NOT_SUPPORTED";
    default: return "CUBLAS_STATUS_UNKNOWN";
  }
}
const char *cublasGetStatusString(cublasStatus_t status) { return cublasGetStatusName(status); }

/* ---- results that go to the host when the pointer mode says so ---- */

static cublasStatus_t give_result(cublasHandle_t handle, void *result, size_t size) {
  phantom_handle_ran(handle);
  if (handle->pointer_mode == POINTER_MODE_HOST && phantom_device_of(result) < 0)
    phantom_read(result, NULL, size);
  return CUBLAS_STATUS_SUCCESS;
}

#define DOT(name, size) \
  cublasStatus_t name(cublasHandle_t handle, int n UNUSED, const void *x UNUSED, int a UNUSED, \
                      const void *y UNUSED, int b UNUSED, void *result) { \
    return give_result(handle, result, size); \
  }
DOT(cublasSdot_v2, 4) DOT(cublasDdot_v2, 8)
DOT(cublasCdotu_v2, 8) DOT(cublasCdotc_v2, 8) DOT(cublasZdotu_v2, 16) DOT(cublasZdotc_v2, 16)

/* Bytes of a cudaDataType, for the calls that name it. */
static size_t element_bytes(int type) {
  switch (type) {
    case 2: case 14: return 2; /* CUDA_R_16F, CUDA_R_16BF */
    case 1: case 4: return type == 1 ? 8 : 8; /* CUDA_R_64F, CUDA_C_32F */
    case 5: return 16; /* CUDA_C_64F */
    default: return 4;
  }
}

#define DOT_EX(name) \
  cublasStatus_t name(cublasHandle_t handle, int n UNUSED, const void *x UNUSED, int tx UNUSED, \
                      int a UNUSED, const void *y UNUSED, int ty UNUSED, int b UNUSED, \
                      void *result, int type, int execution UNUSED) { \
    return give_result(handle, result, element_bytes(type)); \
  }
DOT_EX(cublasDotEx) DOT_EX(cublasDotcEx)

cublasStatus_t cublasNrm2Ex(cublasHandle_t handle, int n UNUSED, const void *x UNUSED,
                            int tx UNUSED, int a UNUSED, void *result, int type,
                            int execution UNUSED) {
  return give_result(handle, result, element_bytes(type));
}

#define REDUCE(name, size) \
  cublasStatus_t name(cublasHandle_t handle, int n UNUSED, const void *x UNUSED, int a UNUSED, \
                      void *result) { return give_result(handle, result, size); }
REDUCE(cublasSnrm2_v2, 4) REDUCE(cublasDnrm2_v2, 8) REDUCE(cublasScnrm2_v2, 4)
REDUCE(cublasDznrm2_v2, 8) REDUCE(cublasSasum_v2, 4) REDUCE(cublasDasum_v2, 8)
REDUCE(cublasScasum_v2, 4) REDUCE(cublasDzasum_v2, 8)
REDUCE(cublasIsamax_v2, 4) REDUCE(cublasIdamax_v2, 4) REDUCE(cublasIcamax_v2, 4)
REDUCE(cublasIzamax_v2, 4) REDUCE(cublasIsamin_v2, 4) REDUCE(cublasIdamin_v2, 4)
REDUCE(cublasIcamin_v2, 4) REDUCE(cublasIzamin_v2, 4)

/* ---- batched factorizations: `info` on the host says that the arguments were right ---- */

#define GETRS(name) \
  cublasStatus_t name(cublasHandle_t handle, int trans UNUSED, int n UNUSED, int columns UNUSED, \
                      const void *a UNUSED, int lda UNUSED, const int *pivots UNUSED, \
                      void *b UNUSED, int ldb UNUSED, int *info, int batch UNUSED) { \
    phantom_handle_ran(handle); \
    *info = 0; \
    return CUBLAS_STATUS_SUCCESS; \
  }
GETRS(cublasSgetrsBatched) GETRS(cublasDgetrsBatched)
GETRS(cublasCgetrsBatched) GETRS(cublasZgetrsBatched)

#define GEQRF(name) \
  cublasStatus_t name(cublasHandle_t handle, int m UNUSED, int n UNUSED, void *a UNUSED, \
                      int lda UNUSED, void *tau UNUSED, int *info, int batch UNUSED) { \
    phantom_handle_ran(handle); \
    *info = 0; \
    return CUBLAS_STATUS_SUCCESS; \
  }
GEQRF(cublasSgeqrfBatched) GEQRF(cublasDgeqrfBatched)
GEQRF(cublasCgeqrfBatched) GEQRF(cublasZgeqrfBatched)

#define GELS(name) \
  cublasStatus_t name(cublasHandle_t handle, int trans UNUSED, int m UNUSED, int n UNUSED, \
                      int columns UNUSED, void *a UNUSED, int lda UNUSED, void *c UNUSED, \
                      int ldc UNUSED, int *info, int *device_info UNUSED, int batch UNUSED) { \
    phantom_handle_ran(handle); \
    *info = 0; \
    return CUBLAS_STATUS_SUCCESS; \
  }
GELS(cublasSgelsBatched) GELS(cublasDgelsBatched)
GELS(cublasCgelsBatched) GELS(cublasZgelsBatched)

/* ---- copies of vectors and matrices between host and device ---- */

static cublasStatus_t copy_columns(int rows, int columns, int size, const void *from, int from_step,
                                   void *to, int to_step) {
  for (int i = 0; i < columns; i++)
    phantom_copy((char *)to + (size_t)i * to_step * size,
                 (const char *)from + (size_t)i * from_step * size, (size_t)rows * size);
  return CUBLAS_STATUS_SUCCESS;
}

#define COPIES(direction) \
  cublasStatus_t cublas##direction##Vector(int n, int size, const void *from, int a, void *to, \
                                           int b) { \
    return copy_columns(1, n, size, from, a, to, b); \
  } \
  cublasStatus_t cublas##direction##VectorAsync(int n, int size, const void *from, int a, \
                                                void *to, int b, cudaStream_t s UNUSED) { \
    return copy_columns(1, n, size, from, a, to, b); \
  } \
  cublasStatus_t cublas##direction##Matrix(int rows, int columns, int size, const void *from, \
                                           int a, void *to, int b) { \
    return copy_columns(rows, columns, size, from, a, to, b); \
  } \
  cublasStatus_t cublas##direction##MatrixAsync(int rows, int columns, int size, \
                                                const void *from, int a, void *to, int b, \
                                                cudaStream_t s UNUSED) { \
    return copy_columns(rows, columns, size, from, a, to, b); \
  }
COPIES(Get) COPIES(Set)
