/* What the files of the cuDNN part share. Values of enumerations: cudnn_graph.h, cudnn_ops.h and
 * cudnn_adv.h of cuDNN 9 (public API). */
#pragma once
#include "phantom.h"

typedef int cudnnStatus_t;
enum { CUDNN_STATUS_SUCCESS = 0, CUDNN_STATUS_BAD_PARAM = 2000, CUDNN_STATUS_NOT_SUPPORTED = 3000,
  CUDNN_STATUS_INTERNAL_ERROR = 4000, CUDNN_STATUS_ALLOC_FAILED = 4003 };

/* Our handle: the real library never sees it. */
typedef struct cudnn_handle { cudaStream_t stream; } *cudnnHandle_t;

/* The real library's function of that name; ends the process where there is none. */
void *phantom_real_cudnn(const char *name);
/* The size of an element of a cudnnDataType_t in bytes. */
size_t phantom_cudnn_element_bytes(int data_type);

#define MAX_CUDNN_DIMS 8
struct tensor_shape { int data_type, num_dims, dims[MAX_CUDNN_DIMS], strides[MAX_CUDNN_DIMS]; };
/* Ask the real library what a tensor descriptor says; 1 when it answers. */
int phantom_cudnn_shape(const void *descriptor, struct tensor_shape *shape);
