/* cuSOLVER: factorizations compute nothing and succeed. The sizes of their work areas are answered
 * only to a handle made on a device; LAPACK's sizes stand in, noted as estimates. */
#include "phantom.h"
#include <stdlib.h>
#include <string.h>

typedef int cusolverStatus_t;
enum { CUSOLVER_STATUS_SUCCESS = 0, CUSOLVER_STATUS_ALLOC_FAILED = 2 };
enum { BLOCK = 64 }; /* columns that a blocked factorization keeps at a time */

struct handle { cudaStream_t stream; };

void phantom_handle_ran(void *handle) {
  phantom_kernel_ran(handle ? ((struct handle *)handle)->stream : NULL);
}

static cusolverStatus_t make(void **object) {
  *object = calloc(1, sizeof(struct handle));
  return *object ? CUSOLVER_STATUS_SUCCESS : CUSOLVER_STATUS_ALLOC_FAILED;
}
static cusolverStatus_t destroy(void *object) {
  free(object);
  return CUSOLVER_STATUS_SUCCESS;
}

cusolverStatus_t cusolverDnCreate(void **handle) { return make(handle); }
cusolverStatus_t cusolverDnDestroy(void *handle) { return destroy(handle); }
cusolverStatus_t cusolverDnSetStream(struct handle *handle, cudaStream_t stream) {
  handle->stream = stream;
  return CUSOLVER_STATUS_SUCCESS;
}
cusolverStatus_t cusolverDnGetStream(struct handle *handle, cudaStream_t *stream) {
  *stream = handle->stream;
  return CUSOLVER_STATUS_SUCCESS;
}
cusolverStatus_t cusolverDnCreateParams(void **p) { return make(p); }
cusolverStatus_t cusolverDnDestroyParams(void *p) { return destroy(p); }
cusolverStatus_t cusolverDnCreateGesvdjInfo(void **p) { return make(p); }
cusolverStatus_t cusolverDnDestroyGesvdjInfo(void *p) { return destroy(p); }
cusolverStatus_t cusolverDnCreateSyevjInfo(void **p) { return make(p); }
cusolverStatus_t cusolverDnDestroySyevjInfo(void *p) { return destroy(p); }
cusolverStatus_t cusolverDnSetAdvOptions(void *p UNUSED, int f UNUSED, int a UNUSED) {
  return CUSOLVER_STATUS_SUCCESS;
}
#define SET(name, type) \
  cusolverStatus_t name(void *p UNUSED, type value UNUSED) { return CUSOLVER_STATUS_SUCCESS; }
SET(cusolverDnXgesvdjSetTolerance, double) SET(cusolverDnXgesvdjSetMaxSweeps, int)
SET(cusolverDnXgesvdjSetSortEig, int) SET(cusolverDnXsyevjSetTolerance, double)
SET(cusolverDnXsyevjSetMaxSweeps, int) SET(cusolverDnXsyevjSetSortEig, int)

static cusolverStatus_t give(int *elements, size_t count, const char *name) {
  *elements = (int)count;
  phantom_estimated(name);
  return CUSOLVER_STATUS_SUCCESS;
}

static size_t least(size_t a, size_t b) { return a < b ? a : b; }

/* Sizes in elements. U marks what a size does not depend on. */
#define U UNUSED
#define FOUR_TYPES(family) family(S) family(D) family(C) family(Z)

#define GETRF(T) \
  cusolverStatus_t cusolverDn##T##getrf_bufferSize(void *h U, int m, int n, void *a U, int lda U, \
                                                   int *size) { \
    return give(size, (size_t)m * n, "cusolverDn" #T "getrf_bufferSize"); \
  }
FOUR_TYPES(GETRF)

#define GEQRF(T) \
  cusolverStatus_t cusolverDn##T##geqrf_bufferSize(void *h U, int m U, int n, void *a U, int lda U, \
                                                   int *size) { \
    return give(size, (size_t)n * BLOCK, "cusolverDn" #T "geqrf_bufferSize"); \
  }
FOUR_TYPES(GEQRF)

#define POTRF(T) \
  cusolverStatus_t cusolverDn##T##potrf_bufferSize(void *h U, int uplo U, int n, void *a U, \
                                                   int lda U, int *size) { \
    return give(size, (size_t)n * BLOCK, "cusolverDn" #T "potrf_bufferSize"); \
  }
FOUR_TYPES(POTRF)

#define SYTRF(T) \
  cusolverStatus_t cusolverDn##T##sytrf_bufferSize(void *h U, int n, void *a U, int lda U, \
                                                   int *size) { \
    return give(size, (size_t)n * BLOCK, "cusolverDn" #T "sytrf_bufferSize"); \
  }
FOUR_TYPES(SYTRF)

#define GESVD(T) \
  cusolverStatus_t cusolverDn##T##gesvd_bufferSize(void *h U, int m, int n, int *size) { \
    return give(size, 4 * (size_t)m * n, "cusolverDn" #T "gesvd_bufferSize"); \
  }
FOUR_TYPES(GESVD)

#define GESVDJ(T) \
  cusolverStatus_t cusolverDn##T##gesvdj_bufferSize( \
      void *h U, int jobz U, int econ U, int m, int n, const void *a U, int lda U, \
      const void *s U, const void *u U, int ldu U, const void *v U, int ldv U, int *size, \
      void *p U) { \
    return give(size, 4 * (size_t)m * n, "cusolverDn" #T "gesvdj_bufferSize"); \
  } \
  cusolverStatus_t cusolverDn##T##gesvdjBatched_bufferSize( \
      void *h U, int jobz U, int m, int n, const void *a U, int lda U, const void *s U, \
      const void *u U, int ldu U, const void *v U, int ldv U, int *size, void *p U, int batch) { \
    return give(size, (size_t)m * n * batch, "cusolverDn" #T "gesvdjBatched_bufferSize"); \
  } \
  cusolverStatus_t cusolverDn##T##gesvdaStridedBatched_bufferSize( \
      void *h U, int jobz U, int rank U, int m, int n, const void *a U, int lda U, \
      long long sa U, const void *s U, long long ss U, const void *u U, int ldu U, \
      long long su U, const void *v U, int ldv U, long long sv U, int *size, int batch) { \
    return give(size, 2 * (size_t)m * n * batch, \
                "cusolverDn" #T "gesvdaStridedBatched_bufferSize"); \
  }
FOUR_TYPES(GESVDJ)

/* DSYEVD: 1 + 6 n + 2 n^2. */
#define EIGEN(T, name) \
  cusolverStatus_t cusolverDn##T##name##d_bufferSize(void *h U, int jobz U, int uplo U, int n, \
                                                     const void *a U, int lda U, \
                                                     const void *w U, int *size) { \
    return give(size, 1 + 6 * (size_t)n + 2 * (size_t)n * n, \
                "cusolverDn" #T #name "d_bufferSize"); \
  } \
  cusolverStatus_t cusolverDn##T##name##j_bufferSize( \
      void *h U, int jobz U, int uplo U, int n, const void *a U, int lda U, const void *w U, \
      int *size, void *p U) { \
    return give(size, 1 + 6 * (size_t)n + 2 * (size_t)n * n, \
                "cusolverDn" #T #name "j_bufferSize"); \
  } \
  cusolverStatus_t cusolverDn##T##name##jBatched_bufferSize( \
      void *h U, int jobz U, int uplo U, int n, const void *a U, int lda U, const void *w U, \
      int *size, void *p U, int batch) { \
    return give(size, (size_t)n * n * batch, "cusolverDn" #T #name "jBatched_bufferSize"); \
  }
EIGEN(S, syev) EIGEN(D, syev) EIGEN(C, heev) EIGEN(Z, heev)

#define ORTHOGONAL(T, name) \
  cusolverStatus_t cusolverDn##T##name##gqr_bufferSize(void *h U, int m U, int n, int k U, \
                                                       const void *a U, int lda U, \
                                                       const void *tau U, int *size) { \
    return give(size, (size_t)n * BLOCK, "cusolverDn" #T #name "gqr_bufferSize"); \
  } \
  cusolverStatus_t cusolverDn##T##name##mqr_bufferSize( \
      void *h U, int side U, int trans U, int m, int n, int k U, const void *a U, int lda U, \
      const void *tau U, const void *c U, int ldc U, int *size) { \
    return give(size, least(m, n) * BLOCK, "cusolverDn" #T #name "mqr_bufferSize"); \
  }
ORTHOGONAL(S, or) ORTHOGONAL(D, or) ORTHOGONAL(C, un) ORTHOGONAL(Z, un)

/* ---- the interface of 64 bits: sizes in bytes, on the device and on the host ---- */

static size_t element_bytes(int type) { /* cudaDataType */
  return type == 0 ? 4 : type == 5 ? 16 : 8;
}

static cusolverStatus_t give_bytes(size_t *device, size_t *host, size_t elements, int type,
                                   const char *name) {
  *device = elements * element_bytes(type);
  *host = 0;
  phantom_estimated(name);
  return CUSOLVER_STATUS_SUCCESS;
}

cusolverStatus_t cusolverDnXgeqrf_bufferSize(void *h U, void *p U, int64_t m U, int64_t n, int type,
                                             const void *a U, int64_t lda U, int t U,
                                             const void *tau U, int compute U, size_t *device,
                                             size_t *host) {
  return give_bytes(device, host, n * BLOCK, type, "cusolverDnXgeqrf_bufferSize");
}
cusolverStatus_t cusolverDnXgetrf_bufferSize(void *h U, void *p U, int64_t m, int64_t n, int type,
                                             const void *a U, int64_t lda U, int compute U,
                                             size_t *device, size_t *host) {
  return give_bytes(device, host, m * n, type, "cusolverDnXgetrf_bufferSize");
}
cusolverStatus_t cusolverDnXpotrf_bufferSize(void *h U, void *p U, int uplo U, int64_t n, int type,
                                             const void *a U, int64_t lda U, int compute U,
                                             size_t *device, size_t *host) {
  return give_bytes(device, host, n * BLOCK, type, "cusolverDnXpotrf_bufferSize");
}
cusolverStatus_t cusolverDnXsyevd_bufferSize(void *h U, void *p U, int jobz U, int uplo U, int64_t n,
                                             int type, const void *a U, int64_t lda U, int t U,
                                             const void *w U, int compute U, size_t *device,
                                             size_t *host) {
  return give_bytes(device, host, 1 + 6 * n + 2 * n * n, type, "cusolverDnXsyevd_bufferSize");
}
cusolverStatus_t cusolverDnXsyevBatched_bufferSize(void *h U, void *p U, int jobz U, int uplo U,
                                                   int64_t n, int type, const void *a U,
                                                   int64_t lda U, int t U, const void *w U,
                                                   int compute U, size_t *device, size_t *host,
                                                   int64_t batch) {
  return give_bytes(device, host, n * n * batch, type, "cusolverDnXsyevBatched_bufferSize");
}
cusolverStatus_t cusolverDnXsytrs_bufferSize(void *h U, int uplo U, int64_t n, int64_t columns,
                                             int type, const void *a U, int64_t lda U,
                                             const int64_t *pivots U, int t U, void *b U,
                                             int64_t ldb U, size_t *device, size_t *host) {
  return give_bytes(device, host, n * columns, type, "cusolverDnXsytrs_bufferSize");
}
cusolverStatus_t cusolverDnXgeev_bufferSize(void *h U, void *p U, int left U, int right U, int64_t n,
                                            int type, const void *a U, int64_t lda U, int tw U,
                                            const void *w U, int tl U, const void *l U,
                                            int64_t ldl U, int tr U, const void *r U,
                                            int64_t ldr U, int compute U, size_t *device,
                                            size_t *host) {
  return give_bytes(device, host, 4 * n * n, type, "cusolverDnXgeev_bufferSize");
}
