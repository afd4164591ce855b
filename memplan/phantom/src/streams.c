/* Streams and events: everything is done the moment it is asked for. */
#include "phantom.h"
#include <stdlib.h>
#include <time.h>

struct phantom_stream {
  struct phantom_stream *next; /* of all live streams */
  unsigned long long id;
  int device, priority;
  unsigned flags;
  struct phantom_capture *capture;
};

struct phantom_event { struct timespec at; int is_recorded; struct phantom_capture *capture; };

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static struct phantom_stream *all;
static struct phantom_stream default_stream = {.id = 1};

/* NULL, cudaStreamLegacy (1) and cudaStreamPerThread (2) are the default stream here. */
static struct phantom_stream *stream_of(cudaStream_t stream) {
  return (uintptr_t)stream <= 2 ? &default_stream : stream;
}

cudaError_t cudaStreamCreateWithPriority(cudaStream_t *stream, unsigned flags, int priority) {
  static unsigned long long next_id = 16;
  struct phantom_stream *one = calloc(1, sizeof *one);
  if (!one) return phantom_fail(cudaErrorMemoryAllocation);
  one->device = phantom_current_device();
  one->priority = priority; one->flags = flags;
  pthread_mutex_lock(&lock);
  one->id = next_id++;
  one->next = all;
  all = one;
  pthread_mutex_unlock(&lock);
  *stream = one;
  return cudaSuccess;
}

cudaError_t cudaStreamCreateWithFlags(cudaStream_t *stream, unsigned flags) {
  return cudaStreamCreateWithPriority(stream, flags, 0);
}

cudaError_t cudaStreamCreate(cudaStream_t *stream) {
  return cudaStreamCreateWithPriority(stream, 0, 0);
}

cudaError_t cudaStreamDestroy(cudaStream_t stream) {
  if ((uintptr_t)stream <= 2) return phantom_fail(cudaErrorInvalidResourceHandle);
  pthread_mutex_lock(&lock);
  struct phantom_stream **link = &all;
  while (*link && *link != stream) link = &(*link)->next;
  int there = *link != NULL;
  if (there) *link = stream->next;
  pthread_mutex_unlock(&lock);
  if (!there) return phantom_fail(cudaErrorInvalidResourceHandle);
  free(stream);
  return cudaSuccess;
}

cudaError_t cudaStreamGetPriority(cudaStream_t stream, int *priority) {
  *priority = stream_of(stream)->priority;
  return cudaSuccess;
}

cudaError_t cudaStreamGetFlags(cudaStream_t stream, unsigned *flags) {
  *flags = stream_of(stream)->flags;
  return cudaSuccess;
}

cudaError_t cudaStreamGetId(cudaStream_t stream, unsigned long long *id) {
  *id = stream_of(stream)->id;
  return cudaSuccess;
}

cudaError_t cudaStreamGetDevice(cudaStream_t stream, int *device) {
  *device = (uintptr_t)stream <= 2 ? phantom_current_device() : stream->device;
  return cudaSuccess;
}

cudaError_t cudaStreamQuery(cudaStream_t stream) {
  return stream_of(stream)->capture ? phantom_fail(cudaErrorStreamCaptureUnsupported)
                                    : cudaSuccess;
}

cudaError_t cudaStreamSynchronize(cudaStream_t stream) {
  phantom_count(COUNT_SYNC);
  return cudaStreamQuery(stream);
}

cudaError_t cudaStreamCopyAttributes(cudaStream_t to UNUSED, cudaStream_t from UNUSED) {
  return cudaSuccess;
}

cudaError_t cudaStreamSetAttribute(cudaStream_t stream UNUSED, int attribute UNUSED,
                                   const void *value UNUSED) { return cudaSuccess; }

cudaError_t cudaStreamAttachMemAsync(cudaStream_t stream UNUSED, void *at UNUSED,
                                     size_t length UNUSED, unsigned flags UNUSED) {
  return cudaSuccess;
}

cudaError_t cudaStreamAddCallback(cudaStream_t stream,
                                  void (*function)(cudaStream_t, cudaError_t, void *), void *data,
                                  unsigned flags UNUSED) {
  function(stream, cudaSuccess, data);
  return cudaSuccess;
}

cudaError_t cudaLaunchHostFunc(cudaStream_t stream, void (*function)(void *), void *data) {
  phantom_count_node(stream);
  /* A captured function runs when the graph is launched; here it is not called at all. */
  if (!phantom_capture_of(stream)) function(data);
  return cudaSuccess;
}

/* ---- capture: which streams take part ---- */

struct phantom_capture *phantom_capture_of(cudaStream_t stream) {
  return stream_of(stream)->capture;
}

void phantom_join_capture(cudaStream_t stream, struct phantom_capture *capture) {
  stream_of(stream)->capture = capture;
}

void phantom_end_streams_of(struct phantom_capture *capture) {
  pthread_mutex_lock(&lock);
  for (struct phantom_stream *one = all; one; one = one->next)
    if (one->capture == capture) one->capture = NULL;
  if (default_stream.capture == capture) default_stream.capture = NULL;
  pthread_mutex_unlock(&lock);
}

/* ---- events: they know the host's time when they were recorded ---- */

cudaError_t cudaEventCreateWithFlags(cudaEvent_t *event, unsigned flags UNUSED) {
  *event = calloc(1, sizeof **event);
  return *event ? cudaSuccess : phantom_fail(cudaErrorMemoryAllocation);
}

cudaError_t cudaEventCreate(cudaEvent_t *event) { return cudaEventCreateWithFlags(event, 0); }

cudaError_t cudaEventDestroy(cudaEvent_t event) {
  if (!event) return phantom_fail(cudaErrorInvalidResourceHandle);
  free(event);
  return cudaSuccess;
}

cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t stream) {
  event->capture = stream_of(stream)->capture;
  event->is_recorded = 1;
  clock_gettime(CLOCK_MONOTONIC, &event->at);
  return cudaSuccess;
}

cudaError_t cudaEventRecordWithFlags(cudaEvent_t event, cudaStream_t stream,
                                     unsigned flags UNUSED) {
  return cudaEventRecord(event, stream);
}

cudaError_t cudaEventQuery(cudaEvent_t event) {
  return event->capture ? phantom_fail(cudaErrorCapturedEvent) : cudaSuccess;
}

cudaError_t cudaEventSynchronize(cudaEvent_t event) { return cudaEventQuery(event); }

/* Waiting for an event of a capture takes the stream into it; its end frees all of them. */
cudaError_t cudaStreamWaitEvent(cudaStream_t stream, cudaEvent_t event, unsigned flags UNUSED) {
  if (event->capture && phantom_capture_is_open(event->capture))
    phantom_join_capture(stream, event->capture);
  return cudaSuccess;
}

/* Milliseconds of the host between the records: a step's host time, and never zero. */
cudaError_t cudaEventElapsedTime(float *milliseconds, cudaEvent_t from, cudaEvent_t to) {
  if (!from->is_recorded || !to->is_recorded) return phantom_fail(cudaErrorInvalidResourceHandle);
  double elapsed = (to->at.tv_sec - from->at.tv_sec) * 1e3
                   + (to->at.tv_nsec - from->at.tv_nsec) * 1e-6;
  *milliseconds = elapsed < 1e-3 ? 1e-3 : elapsed;
  return cudaSuccess;
}

#if PHANTOM_CUDA_MAJOR < 13
cudaError_t cudaEventElapsedTime_v2(float *milliseconds, cudaEvent_t from, cudaEvent_t to) {
  return cudaEventElapsedTime(milliseconds, from, to);
}
#endif
