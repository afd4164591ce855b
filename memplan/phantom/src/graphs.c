/* Capture and graphs: a graph knows how many nodes it has, and launching it does nothing. */
#include "phantom.h"
#include <stdio.h>
#include <stdlib.h>

struct phantom_graph { size_t num_nodes; };
struct phantom_node { int unused; };
struct phantom_capture { unsigned long long id; struct phantom_graph *graph; };

static struct phantom_node the_node; /* nodes are counted, not told apart */

/* A few captures at a time; ids are never used twice. */
enum { MAX_CAPTURES = 64 };
static struct phantom_capture captures[MAX_CAPTURES];
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;

int phantom_capture_is_open(struct phantom_capture *capture) { return capture->graph != NULL; }

void phantom_count_node(cudaStream_t stream) {
  struct phantom_capture *capture = phantom_capture_of(stream);
  if (capture && capture->graph) capture->graph->num_nodes++;
}

static struct phantom_capture *open_capture(struct phantom_graph *graph) {
  static unsigned long long next_id = 1;
  struct phantom_capture *found = NULL;
  pthread_mutex_lock(&lock);
  for (int i = 0; i < MAX_CAPTURES && !found; i++)
    if (!captures[i].graph) found = &captures[i];
  if (found) *found = (struct phantom_capture){next_id++, graph};
  pthread_mutex_unlock(&lock);
  return found;
}

cudaError_t cudaGraphCreate(cudaGraph_t *graph, unsigned flags UNUSED) {
  *graph = calloc(1, sizeof **graph);
  return *graph ? cudaSuccess : phantom_fail(cudaErrorMemoryAllocation);
}

cudaError_t cudaStreamBeginCapture(cudaStream_t stream, int mode UNUSED) {
  struct phantom_graph *graph;
  if ((uintptr_t)stream <= 1) return phantom_fail(cudaErrorStreamCaptureUnsupported);
  if (phantom_capture_of(stream)) return phantom_fail(cudaErrorIllegalState);
  if (cudaGraphCreate(&graph, 0)) return cudaErrorMemoryAllocation;
  struct phantom_capture *capture = open_capture(graph);
  if (!capture) { free(graph); return phantom_fail(cudaErrorMemoryAllocation); }
  phantom_join_capture(stream, capture);
  return cudaSuccess;
}

cudaError_t cudaStreamEndCapture(cudaStream_t stream, cudaGraph_t *graph) {
  struct phantom_capture *capture = phantom_capture_of(stream);
  *graph = NULL;
  if (!capture) return phantom_fail(cudaErrorIllegalState);
  *graph = capture->graph;
  phantom_end_streams_of(capture);
  capture->graph = NULL;
  return cudaSuccess;
}

cudaError_t cudaStreamIsCapturing(cudaStream_t stream, int *status) {
  *status = phantom_capture_of(stream) != NULL; /* 0 none, 1 active */
  return cudaSuccess;
}

static cudaError_t capture_info(cudaStream_t stream, int *status, unsigned long long *id,
                                cudaGraph_t *graph, const cudaGraphNode_t **dependencies,
                                size_t *num_dependencies) {
  struct phantom_capture *capture = phantom_capture_of(stream);
  *status = capture != NULL;
  if (id && capture) *id = capture->id;
  if (graph) *graph = capture ? capture->graph : NULL;
  if (dependencies) *dependencies = NULL;
  if (num_dependencies) *num_dependencies = 0;
  return cudaSuccess;
}

#if PHANTOM_CUDA_MAJOR >= 13
cudaError_t cudaStreamGetCaptureInfo(cudaStream_t stream, int *status, unsigned long long *id,
                                     cudaGraph_t *graph, const cudaGraphNode_t **dependencies,
                                     const void **edges, size_t *num_dependencies) {
  if (edges) *edges = NULL;
  return capture_info(stream, status, id, graph, dependencies, num_dependencies);
}
#else
cudaError_t cudaStreamGetCaptureInfo_v2(cudaStream_t stream, int *status, unsigned long long *id,
                                        cudaGraph_t *graph, const cudaGraphNode_t **dependencies,
                                        size_t *num_dependencies) {
  return capture_info(stream, status, id, graph, dependencies, num_dependencies);
}

cudaError_t cudaStreamGetCaptureInfo_v3(cudaStream_t stream, int *status, unsigned long long *id,
                                        cudaGraph_t *graph, const cudaGraphNode_t **dependencies,
                                        const void **edges, size_t *num_dependencies) {
  if (edges) *edges = NULL;
  return capture_info(stream, status, id, graph, dependencies, num_dependencies);
}
#endif

cudaError_t cudaStreamUpdateCaptureDependencies(cudaStream_t stream UNUSED,
                                                cudaGraphNode_t *nodes UNUSED, size_t a UNUSED,
                                                size_t b UNUSED, unsigned c UNUSED) {
  return cudaSuccess;
}

cudaError_t cudaThreadExchangeStreamCaptureMode(int *mode) {
  static __thread int current; /* cudaStreamCaptureModeGlobal */
  int before = current;
  current = *mode;
  *mode = before;
  return cudaSuccess;
}

/* ---- graphs ---- */

cudaError_t cudaGraphInstantiate(cudaGraphExec_t *made, cudaGraph_t graph,
                                 unsigned long long flags UNUSED) {
  *made = calloc(1, sizeof **made);
  if (!*made) return phantom_fail(cudaErrorMemoryAllocation);
  **made = *graph;
  return cudaSuccess;
}

cudaError_t cudaGraphInstantiateWithFlags(cudaGraphExec_t *made, cudaGraph_t graph,
                                          unsigned long long flags) {
  return cudaGraphInstantiate(made, graph, flags);
}

cudaError_t cudaGraphLaunch(cudaGraphExec_t graph UNUSED, cudaStream_t stream) {
  phantom_kernel_ran(stream);
  return cudaSuccess;
}

cudaError_t cudaGraphUpload(cudaGraphExec_t graph UNUSED, cudaStream_t stream UNUSED) {
  return cudaSuccess;
}

cudaError_t cudaGraphExecDestroy(cudaGraphExec_t graph) {
  free(graph);
  return cudaSuccess;
}

cudaError_t cudaGraphDestroy(cudaGraph_t graph) {
  free(graph);
  return cudaSuccess;
}

cudaError_t cudaGraphClone(cudaGraph_t *made, cudaGraph_t graph) {
  return cudaGraphInstantiate(made, graph, 0);
}

cudaError_t cudaGraphGetNodes(cudaGraph_t graph, cudaGraphNode_t *nodes, size_t *count) {
  size_t room = nodes ? *count : 0;
  for (size_t i = 0; i < room; i++) nodes[i] = i < graph->num_nodes ? &the_node : NULL;
  *count = graph->num_nodes;
  return cudaSuccess;
}

cudaError_t cudaGraphGetRootNodes(cudaGraph_t graph, cudaGraphNode_t *nodes, size_t *count) {
  if (nodes && *count) nodes[0] = &the_node;
  *count = graph->num_nodes > 0;
  return cudaSuccess;
}

#if PHANTOM_CUDA_MAJOR >= 13
cudaError_t cudaGraphNodeGetDependencies(cudaGraphNode_t node UNUSED,
                                         cudaGraphNode_t *dependencies UNUSED, void *edges UNUSED,
                                         size_t *count) {
  *count = 0;
  return cudaSuccess;
}
#else
cudaError_t cudaGraphNodeGetDependencies(cudaGraphNode_t node UNUSED,
                                         cudaGraphNode_t *dependencies UNUSED, size_t *count) {
  *count = 0;
  return cudaSuccess;
}
#endif

cudaError_t cudaGraphDebugDotPrint(cudaGraph_t graph, const char *path, unsigned flags UNUSED) {
  FILE *file = fopen(path, "w");
  if (!file) return phantom_fail(cudaErrorOperatingSystem);
  fprintf(file, "digraph { label=\"%zu nodes\" }\n", graph->num_nodes);
  fclose(file);
  return cudaSuccess;
}

/* User objects live as long as a graph that holds them; released, they are destroyed. */
struct phantom_object { void (*destroy)(void *); void *data; };

cudaError_t cudaUserObjectCreate(struct phantom_object **made, void *data,
                                 void (*destroy)(void *), unsigned count UNUSED,
                                 unsigned flags UNUSED) {
  *made = calloc(1, sizeof **made);
  if (!*made) return phantom_fail(cudaErrorMemoryAllocation);
  **made = (struct phantom_object){destroy, data};
  return cudaSuccess;
}

cudaError_t cudaGraphRetainUserObject(cudaGraph_t graph UNUSED, struct phantom_object *object UNUSED,
                                      unsigned count UNUSED, unsigned flags UNUSED) {
  return cudaSuccess;
}
