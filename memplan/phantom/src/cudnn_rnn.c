/* Recurrent networks in cuDNN's older interface: the weights' layout from the documentation of
 * cudnnGetRNNWeightParams, the temporary sizes as estimates (the real library answers them only to
 * a handle made on a device). */
#include "cudnn.h"
#include <stdlib.h>

enum { CELL_LSTM = 2, CELL_GRU = 3 };

struct rnn {
  int cell, bias, num_directions, data_type, input, hidden, projection, layers;
};

static struct ranges *known; /* at: the descriptor; data: a struct rnn */
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;

static void forget(void *descriptor) {
  struct range one;
  if (known && ranges_remove(known, (uintptr_t)descriptor, &one)) free(one.data);
}

static struct rnn *find(const void *descriptor) {
  struct range one = {0, 0, NULL};
  pthread_mutex_lock(&lock);
  if (known) ranges_containing(known, (uintptr_t)descriptor, &one);
  pthread_mutex_unlock(&lock);
  return one.data;
}

cudnnStatus_t cudnnSetRNNDescriptor_v8(void *descriptor, int algorithm UNUSED, int cell, int bias,
                                       int direction, int input_mode UNUSED, int data_type,
                                       int math_precision UNUSED, int math_type UNUSED,
                                       int32_t input, int32_t hidden, int32_t projection,
                                       int32_t layers, void *dropout UNUSED,
                                       uint32_t flags UNUSED) {
  struct rnn *made = malloc(sizeof *made);
  if (!made) return CUDNN_STATUS_ALLOC_FAILED;
  *made = (struct rnn){cell, bias, direction + 1, data_type, input, hidden, projection, layers};
  pthread_mutex_lock(&lock);
  forget(descriptor);
  if (!known) known = ranges_create();
  int failed = !known || ranges_add(known, (struct range){(uintptr_t)descriptor, 1, made});
  pthread_mutex_unlock(&lock);
  return failed ? CUDNN_STATUS_ALLOC_FAILED : CUDNN_STATUS_SUCCESS;
}

cudnnStatus_t cudnnDestroyRNNDescriptor(void *descriptor) {
  static cudnnStatus_t (*real)(void *);
  if (!real) real = (cudnnStatus_t(*)(void *))phantom_real_cudnn("cudnnDestroyRNNDescriptor");
  pthread_mutex_lock(&lock);
  forget(descriptor);
  pthread_mutex_unlock(&lock);
  return real(descriptor);
}

/* ---- weights: the matrices of every layer in turn, then the biases ---- */

static int num_gates(const struct rnn *r) {
  return r->cell == CELL_LSTM ? 4 : r->cell == CELL_GRU ? 3 : 1;
}

static int output_size(const struct rnn *r) {
  return r->projection && r->projection != r->hidden ? r->projection : r->hidden;
}

static int has_projection(const struct rnn *r) { return output_size(r) != r->hidden; }

/* Rows and columns of a matrix: gates on the input, then gates on the state, then the projection. */
static void matrix_size(const struct rnn *r, int pseudo_layer, int id, int *rows, int *columns) {
  int first = pseudo_layer < r->num_directions, gates = num_gates(r);
  if (id == 2 * gates) { *rows = r->projection; *columns = r->hidden; return; }
  *rows = r->hidden;
  *columns = id >= gates ? output_size(r) : first ? r->input : output_size(r) * r->num_directions;
}

static int num_matrices(const struct rnn *r) { return 2 * num_gates(r) + has_projection(r); }

/* Elements before a matrix, over all layers. */
static size_t matrix_offset(const struct rnn *r, int pseudo_layer, int id) {
  size_t offset = 0;
  int rows, columns;
  for (int layer = 0; layer <= pseudo_layer; layer++) {
    int end = layer == pseudo_layer ? id : num_matrices(r);
    for (int i = 0; i < end; i++) {
      matrix_size(r, layer, i, &rows, &columns);
      offset += (size_t)rows * columns;
    }
  }
  return offset;
}

/* Biases: none (0), on the input or the state only (1 and 3), on both (2). */
static int biases_of_layer(const struct rnn *r) {
  return r->bias == 0 ? 0 : r->bias == 2 ? 2 * num_gates(r) : num_gates(r);
}

static size_t num_weights(const struct rnn *r) {
  int pseudo_layers = r->layers * r->num_directions;
  return matrix_offset(r, pseudo_layers, 0)
         + (size_t)pseudo_layers * biases_of_layer(r) * r->hidden;
}

cudnnStatus_t cudnnGetRNNWeightSpaceSize(cudnnHandle_t handle UNUSED, const void *descriptor,
                                         size_t *bytes) {
  struct rnn *r = find(descriptor);
  if (!r) return CUDNN_STATUS_BAD_PARAM;
  *bytes = num_weights(r) * phantom_cudnn_element_bytes(r->data_type);
  return CUDNN_STATUS_SUCCESS;
}

static cudnnStatus_t describe(void *descriptor, int data_type, int rows, int columns) {
  typedef cudnnStatus_t (*set_t)(void *, int, int, const int *, const int *);
  static set_t set;
  if (!set) set = (set_t)phantom_real_cudnn("cudnnSetTensorNdDescriptor");
  int dims[3] = {1, rows, columns}, strides[3] = {rows * columns, columns, 1};
  return descriptor ? set(descriptor, data_type, 3, dims, strides) : CUDNN_STATUS_SUCCESS;
}

cudnnStatus_t cudnnGetRNNWeightParams(cudnnHandle_t handle UNUSED, const void *descriptor,
                                      int32_t pseudo_layer, size_t size UNUSED, const void *space,
                                      int32_t id, void *matrix_descriptor, void **matrix,
                                      void *bias_descriptor, void **bias) {
  struct rnn *r = find(descriptor);
  if (!r || id < 0 || id >= num_matrices(r)) return CUDNN_STATUS_BAD_PARAM;
  size_t element = phantom_cudnn_element_bytes(r->data_type);
  int rows, columns, per_layer = biases_of_layer(r);
  matrix_size(r, pseudo_layer, id, &rows, &columns);
  if (matrix) *matrix = (char *)space + matrix_offset(r, pseudo_layer, id) * element;
  cudnnStatus_t status = describe(matrix_descriptor, r->data_type, rows, columns);
  if (bias) *bias = NULL;
  if (id >= per_layer || status) return status;
  size_t before = matrix_offset(r, r->layers * r->num_directions, 0)
                  + ((size_t)pseudo_layer * per_layer + id) * r->hidden;
  if (bias) *bias = (char *)space + before * element;
  return describe(bias_descriptor, r->data_type, r->hidden, 1);
}

/* ---- temporary sizes ---- */

/* Training keeps, for every time step, sample, layer and direction, the activated gates and the
 * state (two for LSTM); the workspace holds the gates of all time steps of one layer. */
cudnnStatus_t cudnnGetRNNTempSpaceSizes(cudnnHandle_t handle UNUSED, const void *descriptor,
                                        int mode, const void *data, size_t *workspace,
                                        size_t *reserve) {
  typedef cudnnStatus_t (*get_t)(const void *, int *, int *, int *, int *, int *, int, int *,
                                 void *);
  static get_t get;
  if (!get) get = (get_t)phantom_real_cudnn("cudnnGetRNNDataDescriptor");
  struct rnn *r = find(descriptor);
  int data_type, layout, steps, batch, vector, length;
  double padding;
  if (!r || get(data, &data_type, &layout, &steps, &batch, &vector, 1, &length, &padding))
    return CUDNN_STATUS_BAD_PARAM;
  size_t cells = (size_t)steps * batch * r->hidden * r->num_directions
                 * phantom_cudnn_element_bytes(data_type);
  size_t states = r->cell == CELL_LSTM ? 2 : 1;
  if (workspace) *workspace = cells * num_gates(r);
  if (reserve) *reserve = mode ? cells * r->layers * (num_gates(r) + states) : 0;
  phantom_estimated("cudnnGetRNNTempSpaceSizes");
  return CUDNN_STATUS_SUCCESS;
}
