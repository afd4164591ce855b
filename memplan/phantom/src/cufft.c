/* cuFFT: plans compute nothing. What a plan's work area takes is not published and not answered
 * without a device: one complex copy of the batch is given, and noted as an estimate. */
#include "phantom.h"

typedef int cufftResult;
typedef int cufftHandle;
enum { CUFFT_SUCCESS = 0 };

void phantom_handle_ran(void *handle UNUSED) { phantom_kernel_ran(NULL); }

static int num_plans;
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;

cufftResult cufftCreate(cufftHandle *plan) {
  pthread_mutex_lock(&lock);
  *plan = ++num_plans;
  pthread_mutex_unlock(&lock);
  return CUFFT_SUCCESS;
}
cufftResult cufftDestroy(cufftHandle plan UNUSED) { return CUFFT_SUCCESS; }
cufftResult cufftSetAutoAllocation(cufftHandle plan UNUSED, int on UNUSED) {
  return CUFFT_SUCCESS;
}
cufftResult cufftSetStream(cufftHandle plan UNUSED, cudaStream_t stream UNUSED) {
  return CUFFT_SUCCESS;
}
cufftResult cufftSetWorkArea(cufftHandle plan UNUSED, void *area UNUSED) { return CUFFT_SUCCESS; }
cufftResult cufftGetVersion(int *version) {
  *version = PHANTOM_CUDA_MAJOR >= 13 ? 12000 : 11303;
  return CUFFT_SUCCESS;
}

static cufftResult give_work(size_t *work, int rank, const long long *sizes, long long batch,
                             size_t element) {
  for (int i = 0; i < rank; i++) batch *= sizes[i];
  *work = batch * element;
  phantom_estimated("cufftMakePlan");
  return CUFFT_SUCCESS;
}

/* Bytes of a complex number of a cudaDataType's precision: half, double, else float. */
static size_t complex_bytes(int type) {
  return type == 2 || type == 6 ? 4 : type == 1 || type == 5 ? 16 : 8;
}

cufftResult cufftXtMakePlanMany(cufftHandle plan UNUSED, int rank, long long *sizes,
                                long long *a UNUSED, long long b UNUSED, long long c UNUSED,
                                int input UNUSED, long long *d UNUSED, long long e UNUSED,
                                long long f UNUSED, int output UNUSED, long long batch,
                                size_t *work, int execution) {
  return give_work(work, rank, sizes, batch, complex_bytes(execution));
}

/* cufftType: 0x69, 0x6a and 0x6c are in double precision. */
cufftResult cufftMakePlanMany64(cufftHandle plan UNUSED, int rank, long long *sizes,
                                long long *a UNUSED, long long b UNUSED, long long c UNUSED,
                                long long *d UNUSED, long long e UNUSED, long long f UNUSED,
                                int type, long long batch, size_t *work) {
  return give_work(work, rank, sizes, batch, type >= 0x69 ? 16 : 8);
}
