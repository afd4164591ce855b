/* NCCL: communicators know their ranks and nothing travels. What a rank would receive is taken to
 * be what it sends itself, as if all ranks held the same: PyTorch's own checks that ranks agree
 * then pass. No rank waits for another, so a missing one does not hang the others. */
#include "runtime.h"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>

typedef int ncclResult_t;
enum { ncclSuccess = 0, ncclUnhandledCudaError = 1, ncclSystemError = 2, ncclInvalidArgument = 4 };
typedef struct { char internal[128]; } ncclUniqueId;
typedef struct communicator { int rank, num_ranks, device; size_t bytes; } *ncclComm_t;

void phantom_handle_ran(void *handle UNUSED) {}

static size_t element_bytes(int type) { /* ncclDataType_t */
  switch (type) {
    case 0: case 1: case 10: case 11: return 1;
    case 6: case 9: return 2;
    case 4: case 5: case 8: return 8;
    default: return 4;
  }
}

ncclResult_t ncclGetVersion(int *version) {
  *version = 22809; /* 2.28.9, as torch 2.11 brings */
  return ncclSuccess;
}

ncclResult_t ncclGetUniqueId(ncclUniqueId *id) {
  return getrandom(id, sizeof *id, 0) == sizeof *id ? ncclSuccess : ncclSystemError;
}

const char *ncclGetErrorString(ncclResult_t result) {
  return result == ncclSuccess ? "no error"
         : result == ncclUnhandledCudaError ? "unhandled cuda error (run with NCCL_DEBUG=INFO for details)"
         : result == ncclSystemError ? "unhandled system error (run with NCCL_DEBUG=INFO for details)"
         : "invalid argument (run with NCCL_DEBUG=WARN for details)";
}
const char *ncclGetLastError(ncclComm_t comm UNUSED) { return ""; }

/* ---- communicators: the first of a device takes the memory that the description says ---- */

static int num_on_device[MAX_DEVICES];
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;

static ncclResult_t create(ncclComm_t *made, int num_ranks, int rank) {
  if (num_ranks < 1 || rank < 0 || rank >= num_ranks) return ncclInvalidArgument;
  ncclComm_t comm = calloc(1, sizeof *comm);
  if (!comm) return ncclSystemError;
  *comm = (struct communicator){rank, num_ranks, phantom_current_device(), 0};
  pthread_mutex_lock(&lock);
  size_t wanted = num_on_device[comm->device] ? 0 : phantom_description()->nccl_bytes;
  int fits = phantom_take_bytes(comm->device, wanted);
  if (fits) { comm->bytes = wanted; num_on_device[comm->device]++; }
  pthread_mutex_unlock(&lock);
  if (!fits) { free(comm); return ncclUnhandledCudaError; }
  *made = comm;
  return ncclSuccess;
}

ncclResult_t ncclCommInitRank(ncclComm_t *made, int num_ranks, ncclUniqueId id UNUSED, int rank) {
  return create(made, num_ranks, rank);
}
ncclResult_t ncclCommInitRankConfig(ncclComm_t *made, int num_ranks, ncclUniqueId id UNUSED,
                                    int rank, void *config UNUSED) {
  return create(made, num_ranks, rank);
}
ncclResult_t ncclCommInitRankScalable(ncclComm_t *made, int num_ranks, int rank,
                                      int num_ids UNUSED, ncclUniqueId *ids UNUSED,
                                      void *config UNUSED) { return create(made, num_ranks, rank); }
ncclResult_t ncclCommInitAll(ncclComm_t *made, int num_devices, const int *devices UNUSED) {
  for (int i = 0; i < num_devices; i++) {
    ncclResult_t result = create(&made[i], num_devices, i);
    if (result) return result;
  }
  return ncclSuccess;
}

/* Of a split, every rank is taken to have chosen this rank's colour. */
ncclResult_t ncclCommSplit(ncclComm_t comm, int color, int key UNUSED, ncclComm_t *made,
                           void *config UNUSED) {
  *made = NULL; /* NCCL_SPLIT_NOCOLOR is -1 */
  return color < 0 ? ncclSuccess : create(made, comm->num_ranks, comm->rank);
}
ncclResult_t ncclCommShrink(ncclComm_t comm, int *excluded UNUSED, int count, ncclComm_t *made,
                            void *config UNUSED, int flags UNUSED) {
  int left = comm->num_ranks - count;
  return create(made, left, comm->rank < left ? comm->rank : left - 1);
}

ncclResult_t ncclCommFinalize(ncclComm_t comm UNUSED) { return ncclSuccess; }
ncclResult_t ncclCommDestroy(ncclComm_t comm) {
  if (!comm) return ncclSuccess;
  pthread_mutex_lock(&lock);
  num_on_device[comm->device]--;
  pthread_mutex_unlock(&lock);
  phantom_give_bytes(comm->device, comm->bytes);
  free(comm);
  return ncclSuccess;
}
ncclResult_t ncclCommAbort(ncclComm_t comm) { return ncclCommDestroy(comm); }

ncclResult_t ncclCommGetAsyncError(ncclComm_t comm UNUSED, ncclResult_t *error) {
  *error = ncclSuccess;
  return ncclSuccess;
}
#define ASK(name, field) \
  ncclResult_t name(const ncclComm_t comm, int *value) { \
    *value = comm->field; \
    return ncclSuccess; \
  }
ASK(ncclCommCount, num_ranks) ASK(ncclCommCuDevice, device) ASK(ncclCommUserRank, rank)

/* ---- buffers ---- */
ncclResult_t ncclMemAlloc(void **at, size_t size) {
  return cudaMalloc(at, size) ? ncclUnhandledCudaError : ncclSuccess;
}
ncclResult_t ncclMemFree(void *at) {
  return cudaFree(at) ? ncclUnhandledCudaError : ncclSuccess;
}
ncclResult_t ncclCommRegister(const ncclComm_t comm UNUSED, void *at, size_t size UNUSED,
                              void **handle) {
  *handle = at;
  return ncclSuccess;
}
ncclResult_t ncclCommDeregister(const ncclComm_t comm UNUSED, void *handle UNUSED) {
  return ncclSuccess;
}
ncclResult_t ncclCommWindowRegister(ncclComm_t comm UNUSED, void *at, size_t size UNUSED,
                                    void **window, int flags UNUSED) {
  *window = at;
  return ncclSuccess;
}
ncclResult_t ncclCommWindowDeregister(ncclComm_t comm UNUSED, void *window UNUSED) {
  return ncclSuccess;
}

/* ---- groups and operations ---- */
ncclResult_t ncclGroupStart(void) { return ncclSuccess; }
ncclResult_t ncclGroupEnd(void) { return ncclSuccess; }
ncclResult_t ncclGroupSimulateEnd(void *info UNUSED) { return ncclSuccess; }
ncclResult_t ncclRedOpCreatePreMulSum(int *operation, void *scalar UNUSED, int type UNUSED,
                                      int residence UNUSED, ncclComm_t comm UNUSED) {
  *operation = 5; /* the first number after the built-in operations */
  return ncclSuccess;
}
ncclResult_t ncclRedOpDestroy(int operation UNUSED, ncclComm_t comm UNUSED) { return ncclSuccess; }

/* ---- exchanges ---- */
static ncclResult_t exchange(const void *from, void *to, size_t size, cudaStream_t stream) {
  phantom_count(COUNT_COLLECTIVE);
  phantom_count_node(stream);
  if (from && to && from != to) phantom_copy(to, from, size);
  return ncclSuccess;
}

ncclResult_t ncclAllReduce(const void *from, void *to, size_t count, int type, int op UNUSED,
                           ncclComm_t comm UNUSED, cudaStream_t stream) {
  return exchange(from, to, count * element_bytes(type), stream);
}
ncclResult_t ncclReduce(const void *from, void *to, size_t count, int type, int op UNUSED, int root,
                        ncclComm_t comm, cudaStream_t stream) {
  return exchange(from, comm->rank == root ? to : NULL, count * element_bytes(type), stream);
}
ncclResult_t ncclBroadcast(const void *from, void *to, size_t count, int type, int root UNUSED,
                           ncclComm_t comm UNUSED, cudaStream_t stream) {
  return exchange(from, to, count * element_bytes(type), stream);
}
ncclResult_t ncclBcast(void *at UNUSED, size_t count UNUSED, int type UNUSED, int root UNUSED,
                       ncclComm_t comm UNUSED, cudaStream_t stream) {
  return exchange(NULL, NULL, 0, stream);
}
ncclResult_t ncclReduceScatter(const void *from, void *to, size_t count, int type, int op UNUSED,
                               ncclComm_t comm, cudaStream_t stream) {
  size_t size = count * element_bytes(type);
  return exchange((const char *)from + comm->rank * size, to, size, stream);
}

static ncclResult_t to_every_slot(const void *from, void *to, size_t size, int num_ranks,
                                  cudaStream_t stream) {
  for (int i = 0; i < num_ranks; i++) {
    char *slot = (char *)to + i * size;
    if (slot != from) phantom_copy(slot, from, size);
  }
  return exchange(NULL, NULL, 0, stream);
}

ncclResult_t ncclAllGather(const void *from, void *to, size_t count, int type, ncclComm_t comm,
                           cudaStream_t stream) {
  return to_every_slot(from, to, count * element_bytes(type), comm->num_ranks, stream);
}
ncclResult_t ncclGather(const void *from, void *to, size_t count, int type, int root,
                        ncclComm_t comm, cudaStream_t stream) {
  if (comm->rank != root) return exchange(NULL, NULL, 0, stream);
  return to_every_slot(from, to, count * element_bytes(type), comm->num_ranks, stream);
}
ncclResult_t ncclScatter(const void *from, void *to, size_t count, int type, int root UNUSED,
                         ncclComm_t comm, cudaStream_t stream) {
  size_t size = count * element_bytes(type);
  return exchange(from ? (const char *)from + comm->rank * size : NULL, to, size, stream);
}
ncclResult_t ncclAlltoAll(const void *from, void *to, size_t count, int type, ncclComm_t comm,
                          cudaStream_t stream) {
  return exchange(from, to, count * element_bytes(type) * comm->num_ranks, stream);
}
ncclResult_t ncclSend(const void *from UNUSED, size_t count UNUSED, int type UNUSED,
                      int peer UNUSED, ncclComm_t comm UNUSED, cudaStream_t stream) {
  return exchange(NULL, NULL, 0, stream);
}
ncclResult_t ncclRecv(void *to UNUSED, size_t count UNUSED, int type UNUSED, int peer UNUSED,
                      ncclComm_t comm UNUSED, cudaStream_t stream) {
  return exchange(NULL, NULL, 0, stream);
}
