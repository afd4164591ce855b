/* NVML (libnvidia-ml.so.1): the described cards, their memory and this process. PyTorch's text for
 * running out of memory and tools that watch a card ask it. Source: nvml.h (public API). */
#include "runtime.h"
#include <stdio.h>
#include <string.h>
#include <unistd.h>

typedef int nvmlReturn_t;
enum { NVML_SUCCESS = 0, NVML_ERROR_INVALID_ARGUMENT = 2, NVML_ERROR_NOT_SUPPORTED = 3,
  NVML_ERROR_NOT_FOUND = 6, NVML_ERROR_INSUFFICIENT_SIZE = 7 };
/* A handle is the index and one more, so that none is NULL. */
typedef uintptr_t nvmlDevice_t;

long phantom_used_bytes(int device);

static int index_of(nvmlDevice_t device) { return (int)device - 1; }
static int is_there(nvmlDevice_t device) {
  return device && index_of(device) < phantom_description()->num_devices;
}
static nvmlReturn_t text(char *to, unsigned room, const char *from) {
  if (strlen(from) >= room) return NVML_ERROR_INSUFFICIENT_SIZE;
  strcpy(to, from);
  return NVML_SUCCESS;
}

nvmlReturn_t nvmlInit_v2(void) { return NVML_SUCCESS; }
nvmlReturn_t nvmlInit(void) { return NVML_SUCCESS; }
nvmlReturn_t nvmlInitWithFlags(unsigned flags UNUSED) { return NVML_SUCCESS; }
nvmlReturn_t nvmlShutdown(void) { return NVML_SUCCESS; }

const char *nvmlErrorString(nvmlReturn_t result) {
  switch (result) {
    case NVML_SUCCESS: return "Success";
    case NVML_ERROR_INVALID_ARGUMENT: return "Invalid Argument";
    case NVML_ERROR_NOT_SUPPORTED: return "Not Supported";
    case NVML_ERROR_NOT_FOUND: return "Not Found";
    case NVML_ERROR_INSUFFICIENT_SIZE: return "Insufficient Size";
    default: return "Unknown Error";
  }
}

nvmlReturn_t nvmlSystemGetDriverVersion(char *to, unsigned room) {
  return text(to, room, "phantom");
}
nvmlReturn_t nvmlSystemGetNVMLVersion(char *to, unsigned room) { return text(to, room, "phantom"); }
nvmlReturn_t nvmlSystemGetCudaDriverVersion_v2(int *version) {
  return cudaDriverGetVersion(version);
}
nvmlReturn_t nvmlSystemGetCudaDriverVersion(int *version) { return cudaDriverGetVersion(version); }

nvmlReturn_t nvmlDeviceGetCount_v2(unsigned *count) {
  *count = phantom_description()->num_devices;
  return NVML_SUCCESS;
}
nvmlReturn_t nvmlDeviceGetCount(unsigned *count) { return nvmlDeviceGetCount_v2(count); }

nvmlReturn_t nvmlDeviceGetHandleByIndex_v2(unsigned index, nvmlDevice_t *device) {
  *device = index + 1;
  return is_there(*device) ? NVML_SUCCESS : NVML_ERROR_INVALID_ARGUMENT;
}
nvmlReturn_t nvmlDeviceGetHandleByIndex(unsigned index, nvmlDevice_t *device) {
  return nvmlDeviceGetHandleByIndex_v2(index, device);
}
nvmlReturn_t nvmlDeviceGetHandleByPciBusId_v2(const char *id, nvmlDevice_t *device) {
  unsigned domain, bus; /* device i is on bus i + 1 */
  if (sscanf(id, "%x:%x:", &domain, &bus) != 2) return NVML_ERROR_INVALID_ARGUMENT;
  *device = bus;
  return is_there(*device) ? NVML_SUCCESS : NVML_ERROR_NOT_FOUND;
}
nvmlReturn_t nvmlDeviceGetHandleByUUID(const char *uuid, nvmlDevice_t *device) {
  unsigned index;
  if (sscanf(uuid, "GPU-phantom-card-%u", &index) != 1) return NVML_ERROR_NOT_FOUND;
  *device = index + 1;
  return is_there(*device) ? NVML_SUCCESS : NVML_ERROR_NOT_FOUND;
}

nvmlReturn_t nvmlDeviceGetIndex(nvmlDevice_t device, unsigned *index) {
  *index = index_of(device);
  return is_there(device) ? NVML_SUCCESS : NVML_ERROR_INVALID_ARGUMENT;
}
nvmlReturn_t nvmlDeviceGetName(nvmlDevice_t device UNUSED, char *to, unsigned room) {
  return text(to, room, phantom_description()->name);
}
nvmlReturn_t nvmlDeviceGetUUID(nvmlDevice_t device, char *to, unsigned room) {
  char name[64];
  snprintf(name, sizeof name, "GPU-phantom-card-%02d", index_of(device));
  return text(to, room, name);
}
nvmlReturn_t nvmlDeviceGetCudaComputeCapability(nvmlDevice_t device UNUSED, int *major,
                                                int *minor) {
  *major = phantom_description()->major;
  *minor = phantom_description()->minor;
  return NVML_SUCCESS;
}

struct memory { unsigned long long total, free, used; };
struct memory_v2 { unsigned version; unsigned long long total, reserved, free, used; };

static struct memory memory_of(nvmlDevice_t device) {
  const struct device_description *d = phantom_description();
  struct memory m = {.total = d->total_bytes};
  m.used = d->other_bytes + phantom_used_bytes(index_of(device));
  m.free = m.total - m.used;
  return m;
}
nvmlReturn_t nvmlDeviceGetMemoryInfo(nvmlDevice_t device, struct memory *memory) {
  if (!is_there(device)) return NVML_ERROR_INVALID_ARGUMENT;
  *memory = memory_of(device);
  return NVML_SUCCESS;
}
nvmlReturn_t nvmlDeviceGetMemoryInfo_v2(nvmlDevice_t device, struct memory_v2 *memory) {
  if (!is_there(device)) return NVML_ERROR_INVALID_ARGUMENT;
  struct memory m = memory_of(device);
  memory->total = m.total; memory->reserved = 0; memory->free = m.free; memory->used = m.used;
  return NVML_SUCCESS;
}

/* This process, with all that it holds and the context. The first version knows no instances. */
struct process_v1 { unsigned pid; unsigned long long used; };
struct process { unsigned pid; unsigned long long used; unsigned instance, compute_instance; };

static nvmlReturn_t only_process(nvmlDevice_t device, unsigned *count, void *processes) {
  unsigned room = *count;
  if (!is_there(device)) return NVML_ERROR_INVALID_ARGUMENT;
  *count = 1;
  return room && processes ? NVML_SUCCESS : NVML_ERROR_INSUFFICIENT_SIZE;
}
nvmlReturn_t nvmlDeviceGetComputeRunningProcesses(nvmlDevice_t device, unsigned *count,
                                                  struct process_v1 *processes) {
  nvmlReturn_t result = only_process(device, count, processes);
  if (!result) *processes = (struct process_v1){getpid(), memory_of(device).used};
  return result;
}
nvmlReturn_t nvmlDeviceGetComputeRunningProcesses_v2(nvmlDevice_t device, unsigned *count,
                                                     struct process *processes) {
  nvmlReturn_t result = only_process(device, count, processes);
  if (!result) *processes = (struct process){getpid(), memory_of(device).used, -1u, -1u};
  return result;
}
nvmlReturn_t nvmlDeviceGetComputeRunningProcesses_v3(nvmlDevice_t device, unsigned *count,
                                                     struct process *processes) {
  return nvmlDeviceGetComputeRunningProcesses_v2(device, count, processes);
}
nvmlReturn_t nvmlDeviceGetGraphicsRunningProcesses_v3(nvmlDevice_t device UNUSED, unsigned *count,
                                                      struct process *processes UNUSED) {
  *count = 0;
  return NVML_SUCCESS;
}

nvmlReturn_t nvmlDeviceGetUtilizationRates(nvmlDevice_t device UNUSED, unsigned *rates) {
  rates[0] = rates[1] = 0; /* of the card and of its memory, percent */
  return NVML_SUCCESS;
}
nvmlReturn_t nvmlDeviceGetTemperature(nvmlDevice_t device UNUSED, int sensor UNUSED,
                                      unsigned *degrees) {
  *degrees = 30;
  return NVML_SUCCESS;
}
nvmlReturn_t nvmlDeviceGetPowerUsage(nvmlDevice_t device UNUSED, unsigned *milliwatts) {
  *milliwatts = 0;
  return NVML_SUCCESS;
}
