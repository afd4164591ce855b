/* cuSPARSE: products compute nothing. Descriptors know sizes; buffers are estimates, for the real
 * library answers only to a handle made on a device. */
#include "phantom.h"
#include <stdlib.h>

typedef int cusparseStatus_t;
enum { CUSPARSE_STATUS_SUCCESS = 0, CUSPARSE_STATUS_ALLOC_FAILED = 2 };

struct handle { cudaStream_t stream; int pointer_mode; };
struct matrix { int64_t rows, columns, stored; };

void phantom_handle_ran(void *handle) {
  phantom_kernel_ran(handle ? ((struct handle *)handle)->stream : NULL);
}

static cusparseStatus_t make(void **object, struct matrix value) {
  struct matrix *made = malloc(sizeof *made);
  *object = made;
  if (!made) return CUSPARSE_STATUS_ALLOC_FAILED;
  *made = value;
  return CUSPARSE_STATUS_SUCCESS;
}
static cusparseStatus_t destroy(const void *object) {
  free((void *)object);
  return CUSPARSE_STATUS_SUCCESS;
}

cusparseStatus_t cusparseCreate(struct handle **handle) {
  *handle = calloc(1, sizeof **handle);
  return *handle ? CUSPARSE_STATUS_SUCCESS : CUSPARSE_STATUS_ALLOC_FAILED;
}
cusparseStatus_t cusparseDestroy(struct handle *handle) { return destroy(handle); }
cusparseStatus_t cusparseSetStream(struct handle *handle, cudaStream_t stream) {
  handle->stream = stream;
  return CUSPARSE_STATUS_SUCCESS;
}
cusparseStatus_t cusparseGetStream(struct handle *handle, cudaStream_t *stream) {
  *stream = handle->stream;
  return CUSPARSE_STATUS_SUCCESS;
}
cusparseStatus_t cusparseSetPointerMode(struct handle *handle, int mode) {
  handle->pointer_mode = mode;
  return CUSPARSE_STATUS_SUCCESS;
}
cusparseStatus_t cusparseGetPointerMode(struct handle *handle, int *mode) {
  *mode = handle->pointer_mode;
  return CUSPARSE_STATUS_SUCCESS;
}
cusparseStatus_t cusparseGetVersion(struct handle *handle UNUSED, int *version) {
  *version = PHANTOM_CUDA_MAJOR >= 13 ? 12603 : 12508;
  return CUSPARSE_STATUS_SUCCESS;
}
const char *cusparseGetErrorString(cusparseStatus_t status) {
  return status == CUSPARSE_STATUS_SUCCESS ? "success" : "operation not supported";
}
const char *cusparseGetErrorName(cusparseStatus_t status) {
  return status == CUSPARSE_STATUS_SUCCESS ? "CUSPARSE_STATUS_SUCCESS"
                                           : "CUSPARSE_STATUS_NOT_SUPPORTED";
}

/* ---- descriptors ---- */
#define DESCRIPTOR(create, destroy_one) \
  cusparseStatus_t create(void **d) { return make(d, (struct matrix){0}); } \
  cusparseStatus_t destroy_one(void *d) { return destroy(d); }
DESCRIPTOR(cusparseCreateMatDescr, cusparseDestroyMatDescr)
DESCRIPTOR(cusparseCreateBsrsm2Info, cusparseDestroyBsrsm2Info)
DESCRIPTOR(cusparseCreateBsrsv2Info, cusparseDestroyBsrsv2Info)
DESCRIPTOR(cusparseSpGEMM_createDescr, cusparseSpGEMM_destroyDescr)
DESCRIPTOR(cusparseSpSM_createDescr, cusparseSpSM_destroyDescr)
DESCRIPTOR(cusparseSpSV_createDescr, cusparseSpSV_destroyDescr)

#define SETTING(name) \
  cusparseStatus_t name(void *d UNUSED, int value UNUSED) { return CUSPARSE_STATUS_SUCCESS; }
SETTING(cusparseSetMatDiagType) SETTING(cusparseSetMatFillMode)
SETTING(cusparseSetMatIndexBase) SETTING(cusparseSetMatType)

cusparseStatus_t cusparseCreateCsr(void **d, int64_t rows, int64_t columns, int64_t stored,
                                   void *o UNUSED, void *i UNUSED, void *v UNUSED, int a UNUSED,
                                   int b UNUSED, int c UNUSED, int t UNUSED) {
  return make(d, (struct matrix){rows, columns, stored});
}
cusparseStatus_t cusparseCreateConstCsr(void **d, int64_t rows, int64_t columns, int64_t stored,
                                        const void *o, const void *i, const void *v, int a, int b,
                                        int c, int t) {
  return cusparseCreateCsr(d, rows, columns, stored, (void *)o, (void *)i, (void *)v, a, b, c, t);
}
cusparseStatus_t cusparseCreateCoo(void **d, int64_t rows, int64_t columns, int64_t stored,
                                   void *r UNUSED, void *c UNUSED, void *v UNUSED, int a UNUSED,
                                   int b UNUSED, int t UNUSED) {
  return make(d, (struct matrix){rows, columns, stored});
}
cusparseStatus_t cusparseDestroySpMat(const void *d) { return destroy(d); }
cusparseStatus_t cusparseCreateDnMat(void **d, int64_t rows, int64_t columns, int64_t ld UNUSED,
                                     void *v UNUSED, int t UNUSED, int order UNUSED) {
  return make(d, (struct matrix){rows, columns, rows * columns});
}
cusparseStatus_t cusparseDestroyDnMat(const void *d) { return destroy(d); }
cusparseStatus_t cusparseCreateDnVec(void **d, int64_t size, void *v UNUSED, int t UNUSED) {
  return make(d, (struct matrix){size, 1, size});
}
cusparseStatus_t cusparseDestroyDnVec(const void *d) { return destroy(d); }
cusparseStatus_t cusparseDnMatSetStridedBatch(void *d UNUSED, int count UNUSED,
                                              int64_t stride UNUSED) {
  return CUSPARSE_STATUS_SUCCESS;
}
cusparseStatus_t cusparseCsrSetStridedBatch(void *d UNUSED, int count UNUSED, int64_t a UNUSED,
                                            int64_t b UNUSED) { return CUSPARSE_STATUS_SUCCESS; }
cusparseStatus_t cusparseCsrSetPointers(void *d UNUSED, void *a UNUSED, void *b UNUSED,
                                        void *c UNUSED) { return CUSPARSE_STATUS_SUCCESS; }
cusparseStatus_t cusparseSpMatSetAttribute(void *d UNUSED, int name UNUSED, const void *v UNUSED,
                                           size_t size UNUSED) { return CUSPARSE_STATUS_SUCCESS; }
cusparseStatus_t cusparseSpMatGetSize(const struct matrix *d, int64_t *rows, int64_t *columns,
                                      int64_t *stored) {
  *rows = d->rows;
  *columns = d->columns;
  *stored = d->stored;
  return CUSPARSE_STATUS_SUCCESS;
}

/* ---- buffers ---- */
static cusparseStatus_t give(size_t *size, size_t bytes, const char *name) {
  *size = bytes;
  phantom_estimated(name);
  return CUSPARSE_STATUS_SUCCESS;
}

#define P const void *
cusparseStatus_t cusparseSpMM_bufferSize(void *h UNUSED, int a UNUSED, int b UNUSED, P al UNUSED,
                                         const struct matrix *left, P right UNUSED, P be UNUSED,
                                         P out UNUSED, int t UNUSED, int alg UNUSED,
                                         size_t *size) {
  return give(size, 4 * left->rows, "cusparseSpMM_bufferSize");
}
cusparseStatus_t cusparseSpMV_bufferSize(void *h UNUSED, int a UNUSED, P al UNUSED,
                                         const struct matrix *left, P x UNUSED, P be UNUSED,
                                         P y UNUSED, int t UNUSED, int alg UNUSED, size_t *size) {
  return give(size, 4 * left->rows, "cusparseSpMV_bufferSize");
}
cusparseStatus_t cusparseSDDMM_bufferSize(void *h UNUSED, int a UNUSED, int b UNUSED, P al UNUSED,
                                          P left UNUSED, P right UNUSED, P be UNUSED,
                                          const struct matrix *out, int t UNUSED, int alg UNUSED,
                                          size_t *size) {
  return give(size, 4 * out->rows, "cusparseSDDMM_bufferSize");
}
cusparseStatus_t cusparseSpSM_bufferSize(void *h UNUSED, int a UNUSED, int b UNUSED, P al UNUSED,
                                         const struct matrix *left, P right UNUSED, P out UNUSED,
                                         int t UNUSED, int alg UNUSED, P d UNUSED, size_t *size) {
  return give(size, 16 * left->rows, "cusparseSpSM_bufferSize");
}
cusparseStatus_t cusparseSpSV_bufferSize(void *h UNUSED, int a UNUSED, P al UNUSED,
                                         const struct matrix *left, P x UNUSED, P y UNUSED,
                                         int t UNUSED, int alg UNUSED, P d UNUSED, size_t *size) {
  return give(size, 16 * left->rows, "cusparseSpSV_bufferSize");
}

/* The product of sparse matrices is taken to hold as many elements as its two factors together. */
cusparseStatus_t cusparseSpGEMM_workEstimation(void *h UNUSED, int a UNUSED, int b UNUSED,
                                               P al UNUSED, const struct matrix *left,
                                               const struct matrix *right, P be UNUSED,
                                               struct matrix *out, int t UNUSED, int alg UNUSED,
                                               P d UNUSED, size_t *size, void *buffer UNUSED) {
  out->stored = left->stored + right->stored;
  return give(size, 8 * left->rows, "cusparseSpGEMM_workEstimation");
}
cusparseStatus_t cusparseSpGEMM_compute(void *h, int a UNUSED, int b UNUSED, P al UNUSED,
                                        const struct matrix *left, const struct matrix *right,
                                        P be UNUSED, P out UNUSED, int t UNUSED, int alg UNUSED,
                                        P d UNUSED, size_t *size, void *buffer UNUSED) {
  phantom_handle_ran(h);
  return give(size, 16 * (left->stored + right->stored), "cusparseSpGEMM_compute");
}
cusparseStatus_t cusparseSpGEMM_copy(void *h, int a UNUSED, int b UNUSED, P al UNUSED, P l UNUSED,
                                     P r UNUSED, P be UNUSED, P out UNUSED, int t UNUSED,
                                     int alg UNUSED, P d UNUSED) {
  phantom_handle_ran(h);
  return CUSPARSE_STATUS_SUCCESS;
}

cusparseStatus_t cusparseXcoosort_bufferSizeExt(void *h UNUSED, int m UNUSED, int n UNUSED,
                                                int stored, P r UNUSED, P c UNUSED, size_t *size) {
  return give(size, 8 * (size_t)stored, "cusparseXcoosort_bufferSizeExt");
}
cusparseStatus_t cusparseXcsrsort_bufferSizeExt(void *h UNUSED, int m UNUSED, int n UNUSED,
                                                int stored, P r UNUSED, P c UNUSED, size_t *size) {
  return give(size, 8 * (size_t)stored, "cusparseXcsrsort_bufferSizeExt");
}

#define TYPED(T) \
  cusparseStatus_t cusparse##T##csrgeam2_bufferSizeExt( \
      void *h UNUSED, int m, int n UNUSED, P al UNUSED, P da UNUSED, int na UNUSED, P va UNUSED, \
      P ra UNUSED, P ca UNUSED, P be UNUSED, P db UNUSED, int nb UNUSED, P vb UNUSED, P rb UNUSED, \
      P cb UNUSED, P dc UNUSED, P vc UNUSED, P rc UNUSED, P cc UNUSED, size_t *size) { \
    return give(size, 4 * (size_t)m, "cusparse" #T "csrgeam2_bufferSizeExt"); \
  } \
  cusparseStatus_t cusparse##T##bsrsv2_bufferSize( \
      void *h UNUSED, int dir UNUSED, int t UNUSED, int rows, int stored UNUSED, P d UNUSED, \
      void *v UNUSED, P r UNUSED, P c UNUSED, int block UNUSED, P info UNUSED, int *size) { \
    phantom_estimated("cusparse" #T "bsrsv2_bufferSize"); \
    *size = 16 * rows; \
    return CUSPARSE_STATUS_SUCCESS; \
  } \
  cusparseStatus_t cusparse##T##bsrsm2_bufferSize( \
      void *h UNUSED, int dir UNUSED, int ta UNUSED, int tx UNUSED, int rows, int n UNUSED, \
      int stored UNUSED, P d UNUSED, void *v UNUSED, P r UNUSED, P c UNUSED, int block UNUSED, \
      P info UNUSED, int *size) { \
    phantom_estimated("cusparse" #T "bsrsm2_bufferSize"); \
    *size = 16 * rows; \
    return CUSPARSE_STATUS_SUCCESS; \
  }
TYPED(S) TYPED(D) TYPED(C) TYPED(Z)

cusparseStatus_t cusparseXcsrgeam2Nnz(void *h, int m UNUSED, int n UNUSED, P da UNUSED, int na,
                                      P ra UNUSED, P ca UNUSED, P db UNUSED, int nb, P rb UNUSED,
                                      P cb UNUSED, P dc UNUSED, void *rc UNUSED, int *stored,
                                      void *w UNUSED) {
  phantom_handle_ran(h);
  phantom_estimated("cusparseXcsrgeam2Nnz");
  if (phantom_device_of(stored) < 0) *stored = na + nb;
  return CUSPARSE_STATUS_SUCCESS;
}

/* No pivot is zero. */
#define ZERO_PIVOT(name) \
  cusparseStatus_t name(void *h UNUSED, void *info UNUSED, int *position) { \
    if (phantom_device_of(position) < 0) *position = -1; \
    return CUSPARSE_STATUS_SUCCESS; \
  }
ZERO_PIVOT(cusparseXbsrsm2_zeroPivot) ZERO_PIVOT(cusparseXbsrsv2_zeroPivot)
