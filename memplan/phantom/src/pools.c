/* Memory pools (cudaMallocAsync): a pool takes chunks from the card and gives pieces of them out.
 *
 * Limits: the size of a chunk is not documented; 32 MiB is what cudaMemGetInfo shows on current
 * cards. Pieces are given out lowest first, in units of 512 bytes; the order that a real pool
 * prefers, and what streams keep from one another, is not modelled. */
#include "runtime.h"
#include <stdlib.h>
#include <string.h>

#define CHUNK_BYTES ((size_t)32 << 20)
#define PIECE_UNIT ((size_t)512)

struct chunk { struct chunk *next; struct phantom_pool *pool; uintptr_t at; size_t size, live;
  struct space *space; };

struct phantom_pool {
  int device, is_default;
  struct chunk *chunks;
  uint64_t release_threshold;
  uint64_t reserved, reserved_high, used, used_high; /* as cudaMemPoolAttr counts */
};

static struct phantom_pool default_pools[MAX_DEVICES];
static struct phantom_pool *current_pools[MAX_DEVICES];
static struct ranges *pieces; /* data: the chunk */
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_once_t once = PTHREAD_ONCE_INIT;

static void create_defaults(void) {
  pieces = ranges_create();
  for (int i = 0; i < MAX_DEVICES; i++) {
    default_pools[i] = (struct phantom_pool){.device = i, .is_default = 1};
    current_pools[i] = &default_pools[i];
  }
}

static struct phantom_pool *pool_of_device(int device) {
  pthread_once(&once, create_defaults);
  return current_pools[device];
}

static struct chunk *add_chunk(struct phantom_pool *pool, size_t size) {
  size = round_up(size, size > CHUNK_BYTES ? PAGE_BYTES : CHUNK_BYTES);
  struct chunk *chunk = calloc(1, sizeof *chunk);
  if (!chunk || !phantom_take_bytes(pool->device, size)) { free(chunk); return NULL; }
  chunk->pool = pool; chunk->size = size;
  chunk->at = phantom_take_addresses(pool->device, size);
  chunk->space = space_create(chunk->at, size);
  chunk->next = pool->chunks;
  pool->chunks = chunk;
  pool->reserved += size;
  if (pool->reserved > pool->reserved_high) pool->reserved_high = pool->reserved;
  return chunk;
}

/* Give chunks without a live piece back to the card while the pool holds more than `keep`. */
static size_t trim(struct phantom_pool *pool, uint64_t keep) {
  size_t given = 0;
  for (struct chunk **link = &pool->chunks; *link;) {
    struct chunk *chunk = *link;
    if (chunk->live || pool->reserved <= keep) { link = &chunk->next; continue; }
    *link = chunk->next;
    pool->reserved -= chunk->size;
    given += chunk->size;
    phantom_give_addresses(pool->device, chunk->at, chunk->size);
    phantom_give_bytes(pool->device, chunk->size);
    space_destroy(chunk->space);
    free(chunk);
  }
  return given;
}

size_t phantom_pools_trim(int device) {
  if (!pieces) return 0;
  pthread_mutex_lock(&lock);
  size_t given = trim(&default_pools[device], 0);
  pthread_mutex_unlock(&lock);
  return given;
}

static uintptr_t take_piece(struct phantom_pool *pool, size_t size) {
  struct chunk *chunk = pool->chunks;
  uintptr_t at = 0;
  while (chunk && !(at = space_take(chunk->space, size))) chunk = chunk->next;
  if (!at && (chunk = add_chunk(pool, size))) at = space_take(chunk->space, size);
  if (!at) return 0;
  chunk->live++;
  ranges_add(pieces, (struct range){at, size, chunk});
  pool->used += size;
  if (pool->used > pool->used_high) pool->used_high = pool->used;
  return at;
}

cudaError_t cudaMallocFromPoolAsync(void **pointer, size_t size, cudaMemPool_t pool,
                                    cudaStream_t stream UNUSED) {
  phantom_count(COUNT_MALLOC);
  *pointer = NULL;
  if (!size) return cudaSuccess;
  size = round_up(size, PIECE_UNIT);
  pthread_mutex_lock(&lock);
  uintptr_t at = take_piece(pool, size);
  if (!at && trim(pool, 0)) at = take_piece(pool, size);
  pthread_mutex_unlock(&lock);
  if (!at) return phantom_fail(cudaErrorMemoryAllocation);
  *pointer = (void *)at;
  return cudaSuccess;
}

cudaError_t cudaMallocAsync(void **pointer, size_t size, cudaStream_t stream) {
  struct phantom_pool *pool = pool_of_device(phantom_current_device());
  return cudaMallocFromPoolAsync(pointer, size, pool, stream);
}

int phantom_pool_free(void *pointer) {
  struct range piece;
  if (!pieces) return 0;
  pthread_mutex_lock(&lock);
  int there = ranges_remove(pieces, (uintptr_t)pointer, &piece);
  if (there) {
    struct chunk *chunk = piece.data;
    struct phantom_pool *pool = chunk->pool;
    space_give(chunk->space, piece.at, piece.size);
    chunk->live--;
    pool->used -= piece.size;
    if (!chunk->live && pool->reserved > pool->release_threshold)
      trim(pool, pool->release_threshold);
  }
  pthread_mutex_unlock(&lock);
  return there;
}

cudaError_t cudaFreeAsync(void *pointer, cudaStream_t stream UNUSED) { return cudaFree(pointer); }

cudaError_t cudaDeviceGetDefaultMemPool(cudaMemPool_t *pool, int device) {
  int count;
  cudaGetDeviceCount(&count);
  if (device < 0 || device >= count) return phantom_fail(cudaErrorInvalidDevice);
  pool_of_device(device);
  *pool = &default_pools[device];
  return cudaSuccess;
}

cudaError_t cudaDeviceGetMemPool(cudaMemPool_t *pool, int device) {
  cudaError_t error = cudaDeviceGetDefaultMemPool(pool, device);
  if (!error) *pool = current_pools[device];
  return error;
}

cudaError_t cudaDeviceSetMemPool(int device, cudaMemPool_t pool) {
  cudaMemPool_t before;
  cudaError_t error = cudaDeviceGetDefaultMemPool(&before, device);
  if (!error) current_pools[device] = pool;
  return error;
}

cudaError_t cudaMemPoolCreate(cudaMemPool_t *pool, const struct cudaMemPoolProps *properties) {
  pool_of_device(0);
  *pool = calloc(1, sizeof **pool);
  if (!*pool) return phantom_fail(cudaErrorMemoryAllocation);
  (*pool)->device = properties->location.id;
  return cudaSuccess;
}

cudaError_t cudaMemPoolDestroy(cudaMemPool_t pool) {
  if (pool->is_default) return phantom_fail(cudaErrorInvalidValue);
  pthread_mutex_lock(&lock);
  trim(pool, 0);
  int in_use = pool->chunks != NULL;
  pthread_mutex_unlock(&lock);
  if (!in_use) free(pool);
  return cudaSuccess;
}

cudaError_t cudaMemPoolTrimTo(cudaMemPool_t pool, size_t keep) {
  pthread_mutex_lock(&lock);
  trim(pool, keep);
  pthread_mutex_unlock(&lock);
  return cudaSuccess;
}

/* enum cudaMemPoolAttr: 1 to 3 say what is reused, 4 the release threshold, 5 to 8 what is held. */
static uint64_t *figure_of(cudaMemPool_t pool, int attribute) {
  switch (attribute) {
    case 4: return &pool->release_threshold;
    case 5: return &pool->reserved;
    case 6: return &pool->reserved_high;
    case 7: return &pool->used;
    case 8: return &pool->used_high;
    default: return NULL;
  }
}

cudaError_t cudaMemPoolGetAttribute(cudaMemPool_t pool, int attribute, void *value) {
  uint64_t *figure = figure_of(pool, attribute);
  if (figure) *(uint64_t *)value = *figure;
  else if (attribute >= 1 && attribute <= 3) *(int *)value = 1;
  else return phantom_fail(cudaErrorInvalidValue);
  return cudaSuccess;
}

cudaError_t cudaMemPoolSetAttribute(cudaMemPool_t pool, int attribute, void *value) {
  if (attribute == 4) pool->release_threshold = *(uint64_t *)value;
  if (attribute == 6) pool->reserved_high = pool->reserved; /* a high mark can only be reset */
  if (attribute == 8) pool->used_high = pool->used;
  return cudaSuccess;
}

cudaError_t cudaMemPoolSetAccess(cudaMemPool_t pool UNUSED,
                                 const struct cudaMemAccessDesc *list UNUSED,
                                 size_t count UNUSED) { return cudaSuccess; }

cudaError_t cudaMemPoolGetAccess(int *flags, cudaMemPool_t pool, struct cudaMemLocation *where) {
  *flags = where->id == pool->device ? 3 : 0; /* read and write at home */
  return cudaSuccess;
}
