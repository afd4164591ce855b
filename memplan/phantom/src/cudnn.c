/* cuDNN: its own planner answers, told of the card in words, with no driver.
 *
 * The public backend calls are passed on to the real library without their handle; heuristics,
 * engines and plans get a device-properties descriptor (CUDNN_BACKEND_DEVICEPROP_DESCRIPTOR, cuDNN
 * 9.8 and up) before they are finalized, as the documentation describes for planning without a
 * device. Executing a plan does nothing. */
#define _GNU_SOURCE
#include "cudnn.h"
#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { TYPE_HANDLE = 0, TYPE_BACKEND_DESCRIPTOR = 15, TYPE_CHAR = 24 };
enum { ENGINE_DESCRIPTOR = 2, ENGINEHEUR_DESCRIPTOR = 4, EXECUTION_PLAN_DESCRIPTOR = 5,
  DEVICEPROP_DESCRIPTOR = 38 };
enum { ATTR_ENGINEHEUR_DEVICEPROP = 204, ATTR_EXECUTION_PLAN_DEVICEPROP = 407,
  ATTR_ENGINE_DEVICEPROP = 1307, ATTR_DEVICEPROP_JSON = 2702 };

typedef void *descriptor;
typedef cudnnStatus_t (*create_t)(int type, descriptor *made);
typedef cudnnStatus_t (*set_t)(descriptor d, int name, int type, int64_t count, const void *value);
typedef cudnnStatus_t (*get_t)(descriptor d, int name, int type, int64_t room, int64_t *count,
                               void *value);
typedef cudnnStatus_t (*one_t)(descriptor d);

static void *library;
static pthread_once_t library_once = PTHREAD_ONCE_INIT;

static void open_library(void) {
  library = dlopen("libcudnn.so.9", RTLD_NOW | RTLD_NOLOAD);
  if (!library) library = dlopen("libcudnn.so.9", RTLD_NOW);
  if (library) return;
  fprintf(stderr, "phantom: libcudnn.so.9 is not loaded; the phantom card needs cuDNN 9\n");
  exit(1);
}

void *phantom_real_cudnn(const char *name) {
  pthread_once(&library_once, open_library);
  void *function = dlsym(library, name);
  if (function) return function;
  fprintf(stderr, "phantom: this cuDNN has no %s\n", name);
  exit(1);
}

/* Looked up once a call site; two threads may both look, and find the same. */
#define REAL(type, name) \
  static type real; \
  if (!real) real = (type)phantom_real_cudnn(name)

/* ---- handles ---- */

static cudnnHandle_t last_handle;

cudnnStatus_t cudnnCreate(cudnnHandle_t *handle) {
  *handle = last_handle = calloc(1, sizeof **handle);
  return *handle ? CUDNN_STATUS_SUCCESS : CUDNN_STATUS_ALLOC_FAILED;
}

cudnnStatus_t cudnnDestroy(cudnnHandle_t handle) {
  if (handle == last_handle) last_handle = NULL;
  free(handle);
  return CUDNN_STATUS_SUCCESS;
}

cudnnStatus_t cudnnSetStream(cudnnHandle_t handle, cudaStream_t stream) {
  handle->stream = stream;
  return CUDNN_STATUS_SUCCESS;
}

cudnnStatus_t cudnnGetStream(cudnnHandle_t handle, cudaStream_t *stream) {
  *stream = handle->stream;
  return CUDNN_STATUS_SUCCESS;
}

void phantom_handle_ran(void *handle) {
  phantom_kernel_ran(handle ? ((cudnnHandle_t)handle)->stream : NULL);
}

/* ---- the card in cuDNN's words ---- */

static descriptor device;
static pthread_once_t device_once = PTHREAD_ONCE_INIT;

static int write_device(char *text, size_t room) {
  const struct device_description *d = phantom_description();
  return snprintf(text, room,
    "{\"maxGridSize\": [2147483647, 65535, 65535], \"maxBlockSize\": [1024, 1024, 64], "
    "\"regsPerBlock\": 65536, \"multiProcessorCount\": %d, \"smClockRateKHz\": %d, "
    "\"memClockRateKHz\": %d, \"l2CacheSize\": %zu, \"warpSize\": 32, "
    "\"maxSharedMemoryPerBlock\": %zu, \"maxSharedMemoryPerBlockOptin\": %zu, "
    "\"reservedSharedMemoryPerBlock\": %zu, \"maxRegistersPerSM\": %zu, \"maxCtasPerSM\": %d, "
    "\"maxThreadsPerBlock\": 1024, \"maxThreadsPerSM\": %d, \"pciDeviceId\": 0, "
    "\"isTccDriver\": 0, \"supportCoopLaunch\": 1, \"totalGlobalMem\": %zu, \"cudaDeviceId\": 0, "
    "\"deviceVer\": %d, \"driverVer\": 13000, \"deviceName\": \"%s\"}",
    d->sms, d->clock_khz, d->mem_clock_khz, d->l2_bytes, d->smem_per_block, d->smem_optin,
    d->smem_reserved, d->regs_per_sm, d->blocks_per_sm, d->threads_per_sm, d->total_bytes,
    100 * d->major + 10 * d->minor, d->name);
}

static void make_device(void) {
  char text[4096];
  int length = write_device(text, sizeof text);
  create_t create = (create_t)phantom_real_cudnn("cudnnBackendCreateDescriptor");
  set_t set = (set_t)phantom_real_cudnn("cudnnBackendSetAttribute");
  one_t finalize = (one_t)phantom_real_cudnn("cudnnBackendFinalize");
  cudnnStatus_t status = create(DEVICEPROP_DESCRIPTOR, &device);
  if (!status) status = set(device, ATTR_DEVICEPROP_JSON, TYPE_CHAR, length, text);
  if (!status) status = finalize(device);
  if (!status) return;
  fprintf(stderr, "phantom: this cuDNN does not take a card in words (status %d): 9.8 and up do\n",
          status);
  device = NULL;
}

/* ---- descriptors that want the card, between their creation and their finalization ---- */

static struct ranges *wishes; /* at: the descriptor; data: the attribute that takes the card */
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;

static int forget_wish(descriptor d) {
  struct range one = {0, 0, NULL};
  pthread_mutex_lock(&lock);
  if (wishes) ranges_remove(wishes, (uintptr_t)d, &one);
  pthread_mutex_unlock(&lock);
  return (int)(intptr_t)one.data;
}

static void note_wish(descriptor d, intptr_t attribute) {
  forget_wish(d);
  pthread_mutex_lock(&lock);
  if (!wishes) wishes = ranges_create();
  if (wishes) ranges_add(wishes, (struct range){(uintptr_t)d, 1, (void *)attribute});
  pthread_mutex_unlock(&lock);
}

static int attribute_for_card(int type) {
  switch (type) {
    case ENGINE_DESCRIPTOR: return ATTR_ENGINE_DEVICEPROP;
    case ENGINEHEUR_DESCRIPTOR: return ATTR_ENGINEHEUR_DEVICEPROP;
    case EXECUTION_PLAN_DESCRIPTOR: return ATTR_EXECUTION_PLAN_DEVICEPROP;
    default: return 0;
  }
}

cudnnStatus_t cudnnBackendCreateDescriptor(int type, descriptor *made) {
  REAL(create_t, "cudnnBackendCreateDescriptor");
  cudnnStatus_t status = real(type, made);
  int attribute = attribute_for_card(type);
  if (!status && attribute) note_wish(*made, attribute);
  return status;
}

cudnnStatus_t cudnnBackendDestroyDescriptor(descriptor d) {
  REAL(one_t, "cudnnBackendDestroyDescriptor");
  forget_wish(d);
  return real(d);
}

cudnnStatus_t cudnnBackendSetAttribute(descriptor d, int name, int type, int64_t count,
                                       const void *value) {
  REAL(set_t, "cudnnBackendSetAttribute");
  return type == TYPE_HANDLE ? CUDNN_STATUS_SUCCESS : real(d, name, type, count, value);
}

cudnnStatus_t cudnnBackendGetAttribute(descriptor d, int name, int type, int64_t room,
                                       int64_t *count, void *value) {
  REAL(get_t, "cudnnBackendGetAttribute");
  if (type != TYPE_HANDLE) return real(d, name, type, room, count, value);
  if (count) *count = 1;
  if (value && room) *(cudnnHandle_t *)value = last_handle;
  return CUDNN_STATUS_SUCCESS;
}

cudnnStatus_t cudnnBackendFinalize(descriptor d) {
  REAL(one_t, "cudnnBackendFinalize");
  int attribute = forget_wish(d);
  if (attribute) {
    set_t set = (set_t)phantom_real_cudnn("cudnnBackendSetAttribute");
    pthread_once(&device_once, make_device);
    if (device) set(d, attribute, TYPE_BACKEND_DESCRIPTOR, 1, &device);
  }
  return real(d);
}

cudnnStatus_t cudnnBackendExecute(cudnnHandle_t handle, descriptor plan UNUSED,
                                  descriptor values UNUSED) {
  phantom_count(COUNT_CUDNN);
  phantom_kernel_ran(handle->stream);
  return CUDNN_STATUS_SUCCESS;
}

/* ---- shapes, for the questions that cudnn_sizes.c and cudnn_rnn.c answer ---- */

size_t phantom_cudnn_element_bytes(int data_type) {
  switch (data_type) { /* cudnnDataType_t */
    case 1: return 8;
    case 2: case 9: return 2;
    case 3: return 1;
    default: return 4;
  }
}

int phantom_cudnn_shape(const void *d, struct tensor_shape *shape) {
  typedef cudnnStatus_t (*shape_t)(const void *, int, int *, int *, int *, int *);
  REAL(shape_t, "cudnnGetTensorNdDescriptor");
  return !real(d, MAX_CUDNN_DIMS, &shape->data_type, &shape->num_dims, shape->dims,
               shape->strides);
}
