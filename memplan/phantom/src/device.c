/* What the described cards are. */
#include "phantom.h"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static struct device_description the_description;
static pthread_once_t once = PTHREAD_ONCE_INIT;
static __thread int current_device;

/* The value after `key=` in "key=value;key=value", or NULL. */
static const char *value_of(const char *text, const char *key) {
  size_t length = strlen(key);
  while (text) {
    if (!strncmp(text, key, length) && text[length] == '=') return text + length + 1;
    text = strchr(text, ';');
    if (text) text++;
  }
  return NULL;
}

static long number(const char *text, const char *key, long otherwise) {
  const char *value = value_of(text, key);
  return value ? strtol(value, NULL, 10) : otherwise;
}

/* How many of the cards CUDA_VISIBLE_DEVICES leaves: those listed up to the first that names none.
 * The cards are alike, so which they are does not matter. Source: CUDA C++ Programming Guide,
 * "CUDA Environment Variables". */
static int num_visible(int num_devices) {
  const char *list = getenv("CUDA_VISIBLE_DEVICES");
  int count = 0;
  if (!list) return num_devices;
  while (count < num_devices) {
    char *end;
    long index = strtol(list, &end, 10);
    int is_uuid = end == list && !strncmp(list, "GPU-", 4);
    if ((end == list && !is_uuid) || index < 0 || index >= num_devices) break;
    count++;
    list = strchr(list, ',');
    if (!list++) break;
  }
  return count;
}

/* Where a key is missing, an A100 80 GB answers; memplan.phantom.description gives every key. */
static void read_description(void) {
  const char *text = getenv("PHANTOM_DEVICE");
  struct device_description *d = &the_description;
  if (!text) text = "";
  const char *name = value_of(text, "name");
  snprintf(d->name, sizeof d->name, "%.*s", name ? (int)strcspn(name, ";") : 7,
           name ? name : "Phantom");
  d->num_devices = number(text, "devices", 1);
  if (d->num_devices < 1 || d->num_devices > MAX_DEVICES) d->num_devices = 1;
  d->num_present = d->num_devices;
  d->num_devices = num_visible(d->num_present);
  d->total_bytes = number(text, "total", 80L << 30); d->other_bytes = number(text, "other", 0);
  d->major = number(text, "major", 8); d->minor = number(text, "minor", 0);
  d->sms = number(text, "sms", 108); d->threads_per_sm = number(text, "threads_per_sm", 2048);
  d->blocks_per_sm = number(text, "blocks_per_sm", 32);
  d->smem_per_sm = number(text, "smem_per_sm", 167936);
  d->smem_per_block = number(text, "smem_per_block", 49152);
  d->smem_optin = number(text, "smem_optin", 166912);
  d->smem_reserved = number(text, "smem_reserved", 1024);
  d->regs_per_sm = number(text, "regs_per_sm", 65536);
  d->l2_bytes = number(text, "l2", 40 << 20);
  d->clock_khz = number(text, "clock_khz", 1410000);
  d->mem_clock_khz = number(text, "mem_clock_khz", 1593000);
  d->bus_width = number(text, "bus_width", 5120);
  d->nccl_bytes = number(text, "nccl_bytes", 0);
  d->cublaslt_workspace = number(text, "cublaslt_workspace", 4 << 20);
  d->registers_default = number(text, "registers", 32);
}

const struct device_description *phantom_description(void) {
  pthread_once(&once, read_description);
  return &the_description;
}

static int is_device(int device) {
  return device >= 0 && device < phantom_description()->num_devices;
}

int phantom_current_device(void) { return current_device; }

cudaError_t cudaGetDeviceCount(int *count) {
  *count = phantom_description()->num_devices;
  return *count ? cudaSuccess : phantom_fail(cudaErrorNoDevice);
}

cudaError_t cudaGetDevice(int *device) {
  *device = current_device;
  return cudaSuccess;
}

cudaError_t cudaSetDevice(int device) {
  if (!is_device(device)) return phantom_fail(cudaErrorInvalidDevice);
  current_device = device;
  return cudaSuccess;
}

cudaError_t cudaInitDevice(int device, unsigned flags UNUSED, unsigned unused UNUSED) {
  return is_device(device) ? cudaSuccess : phantom_fail(cudaErrorInvalidDevice);
}

cudaError_t cudaSetValidDevices(int *devices UNUSED, int count UNUSED) { return cudaSuccess; }
cudaError_t cudaSetDeviceFlags(unsigned flags UNUSED) { return cudaSuccess; }

cudaError_t cudaGetDeviceFlags(unsigned *flags) {
  *flags = 0;
  return cudaSuccess;
}

cudaError_t cudaChooseDevice(int *device, const struct cudaDeviceProp *wanted UNUSED) {
  *device = 0;
  return cudaSuccess;
}

cudaError_t cudaDriverGetVersion(int *version) {
  *version = PHANTOM_CUDA_MAJOR >= 13 ? 13000 : 12080;
  return cudaSuccess;
}

cudaError_t cudaRuntimeGetVersion(int *version) { return cudaDriverGetVersion(version); }

cudaError_t cudaDeviceReset(void) { return cudaSuccess; }

cudaError_t cudaDeviceSynchronize(void) {
  phantom_count(COUNT_SYNC);
  return cudaSuccess;
}

cudaError_t cudaDeviceGetStreamPriorityRange(int *least, int *greatest) {
  if (least) *least = 0;
  if (greatest) *greatest = -5; /* compute capability 7.0 and up */
  return cudaSuccess;
}

cudaError_t cudaDeviceGetPCIBusId(char *text, int room, int device) {
  if (!is_device(device)) return phantom_fail(cudaErrorInvalidDevice);
  snprintf(text, room, "0000:%02X:00.0", device + 1);
  return cudaSuccess;
}

cudaError_t cudaDeviceGetByPCIBusId(int *device, const char *text) {
  unsigned domain, bus;
  if (sscanf(text, "%x:%x:", &domain, &bus) != 2 || !is_device((int)bus - 1))
    return phantom_fail(cudaErrorInvalidDevice);
  *device = bus - 1;
  return cudaSuccess;
}

/* Stack, printf buffer, heap and others, as a fresh context has them (CUDA C++ Programming Guide). */
static size_t limits[8] = {1024, 1 << 20, 8 << 20, 2, 2048, 128};

cudaError_t cudaDeviceGetLimit(size_t *value, int limit) {
  if (limit < 0 || limit > 6) return phantom_fail(cudaErrorUnsupportedLimit);
  *value = limits[limit];
  return cudaSuccess;
}

cudaError_t cudaDeviceSetLimit(int limit, size_t value) {
  if (limit < 0 || limit > 6) return phantom_fail(cudaErrorUnsupportedLimit);
  limits[limit] = value;
  return cudaSuccess;
}

cudaError_t cudaDeviceGetCacheConfig(int *config) {
  *config = 0;
  return cudaSuccess;
}

cudaError_t cudaDeviceSetCacheConfig(int config UNUSED) { return cudaSuccess; }

/* Cards do not reach one another: what a script does without peer access is what is counted. */
cudaError_t cudaDeviceCanAccessPeer(int *can, int device, int peer) {
  if (!is_device(device) || !is_device(peer)) return phantom_fail(cudaErrorInvalidDevice);
  *can = 0;
  return cudaSuccess;
}

cudaError_t cudaDeviceEnablePeerAccess(int peer, unsigned flags UNUSED) {
  return phantom_fail(is_device(peer) ? cudaErrorPeerAccessUnsupported : cudaErrorInvalidDevice);
}

cudaError_t cudaDeviceDisablePeerAccess(int peer UNUSED) {
  return phantom_fail(cudaErrorPeerAccessNotEnabled);
}

cudaError_t cudaDeviceGetP2PAttribute(int *value, int attribute UNUSED, int from, int to) {
  if (!is_device(from) || !is_device(to)) return phantom_fail(cudaErrorInvalidDevice);
  *value = 0;
  return cudaSuccess;
}
