/* Sizes that PyTorch asks cuDNN's older interface for. The real library answers them only to a
 * handle made on a device, so they are answered here, from what is public. Where that is an
 * estimate, it is noted (control.estimated_calls). */
#include "cudnn.h"

static int is_channels_last(const struct tensor_shape *x) {
  return x->num_dims >= 4 && x->dims[1] > 1 && x->strides[1] == 1;
}

/* Batch normalization needs no workspace in NCHW. In NHWC it does: for 16 x 64 x 160 x 160 on an
 * A100, cuDNN 9.19 asked 1,322,036 bytes forward in half, 3,303,476 in float, and 2,185,764
 * backward in both. All three are met to the byte by two float sums of each channel for every so
 * many pixels, forward added up in groups of 128, then two more of each. Whether other channels
 * and cards change the pixels is not known, so sizes are noted as estimates. */
enum { FORWARD_HALF = 160, FORWARD_FLOAT = 64, BACKWARD = 96, GROUP = 128, PERSISTENT = 2 };
enum { FORWARD_TAIL = 52, BACKWARD_TAIL = 36 };

static cudnnStatus_t batch_norm_size(const void *descriptor, int mode, const char *name,
                                     size_t half, size_t other, size_t group, size_t tail,
                                     size_t *bytes) {
  struct tensor_shape x;
  if (!phantom_cudnn_shape(descriptor, &x)) return CUDNN_STATUS_BAD_PARAM;
  *bytes = 0;
  if (!is_channels_last(&x) || mode != PERSISTENT) return CUDNN_STATUS_SUCCESS;
  size_t pixels = 1;
  for (int i = 0; i < x.num_dims; i++)
    if (i != 1) pixels *= (size_t)x.dims[i];
  size_t each = phantom_cudnn_element_bytes(x.data_type) == 2 ? half : other;
  size_t sums = (pixels + each - 1) / each;
  size_t again = group ? (sums + group - 1) / group : 0;
  *bytes = 8 * (size_t)x.dims[1] * (sums + again + 2) + tail;
  phantom_estimated(name);
  return CUDNN_STATUS_SUCCESS;
}

cudnnStatus_t cudnnGetBatchNormalizationForwardTrainingExWorkspaceSize(
    cudnnHandle_t handle UNUSED, int mode, int ops UNUSED, const void *x, const void *z UNUSED,
    const void *y UNUSED, const void *scale UNUSED, const void *activation UNUSED,
    size_t *bytes) {
  return batch_norm_size(x, mode, "cudnnGetBatchNormalizationForwardTrainingExWorkspaceSize",
                         FORWARD_HALF, FORWARD_FLOAT, GROUP, FORWARD_TAIL, bytes);
}

cudnnStatus_t cudnnGetBatchNormalizationBackwardExWorkspaceSize(
    cudnnHandle_t handle UNUSED, int mode, int ops UNUSED, const void *x, const void *y UNUSED,
    const void *dy UNUSED, const void *dz UNUSED, const void *dx UNUSED, const void *scale UNUSED,
    const void *activation UNUSED, size_t *bytes) {
  return batch_norm_size(x, mode, "cudnnGetBatchNormalizationBackwardExWorkspaceSize", BACKWARD,
                         BACKWARD, 0, BACKWARD_TAIL, bytes);
}

/* The reserve holds which outputs an activation let pass; PyTorch fuses none. */
cudnnStatus_t cudnnGetBatchNormalizationTrainingExReserveSpaceSize(
    cudnnHandle_t handle UNUSED, int mode UNUSED, int ops UNUSED, const void *activation UNUSED,
    const void *x UNUSED, size_t *bytes) {
  *bytes = 0;
  return CUDNN_STATUS_SUCCESS;
}

/* A generator's state of 24 bytes for every thread that a card can hold at once, as cuDNN 9.19
 * answered for an A100 (5,308,416). */
cudnnStatus_t cudnnDropoutGetStatesSize(cudnnHandle_t handle UNUSED, size_t *bytes) {
  const struct device_description *d = phantom_description();
  *bytes = (size_t)d->sms * d->threads_per_sm * 24;
  phantom_estimated("cudnnDropoutGetStatesSize");
  return CUDNN_STATUS_SUCCESS;
}

cudnnStatus_t cudnnSetDropoutDescriptor(void *descriptor UNUSED, cudnnHandle_t handle UNUSED,
                                        float p UNUSED, void *states UNUSED, size_t size UNUSED,
                                        unsigned long long seed UNUSED) {
  return CUDNN_STATUS_SUCCESS;
}

cudnnStatus_t cudnnRestoreDropoutDescriptor(void *descriptor UNUSED, cudnnHandle_t handle UNUSED,
                                            float p UNUSED, void *states UNUSED,
                                            size_t size UNUSED, unsigned long long seed UNUSED) {
  return CUDNN_STATUS_SUCCESS;
}

/* Forward variables of the deterministic algorithm: a float for every time, sample and position
 * of the longest extended label (2 x 256 + 1), and the gradients once more. */
static size_t ctc_bytes(const void *probabilities) {
  struct tensor_shape p;
  if (!phantom_cudnn_shape(probabilities, &p) || p.num_dims < 3) return 0;
  return (size_t)p.dims[0] * p.dims[1] * (513 + p.dims[2]) * sizeof(float);
}

cudnnStatus_t cudnnGetCTCLossWorkspaceSize(cudnnHandle_t handle UNUSED, const void *probabilities,
                                           const void *gradients UNUSED, const int *labels UNUSED,
                                           const int *label_lengths UNUSED,
                                           const int *input_lengths UNUSED, int algorithm UNUSED,
                                           void *descriptor UNUSED, size_t *bytes) {
  *bytes = ctc_bytes(probabilities);
  phantom_estimated("cudnnGetCTCLossWorkspaceSize");
  return CUDNN_STATUS_SUCCESS;
}

cudnnStatus_t cudnnGetCTCLossWorkspaceSize_v8(cudnnHandle_t handle UNUSED, int algorithm UNUSED,
                                              void *descriptor UNUSED, const void *probabilities,
                                              const void *gradients UNUSED, size_t *bytes) {
  *bytes = ctc_bytes(probabilities);
  phantom_estimated("cudnnGetCTCLossWorkspaceSize_v8");
  return CUDNN_STATUS_SUCCESS;
}
