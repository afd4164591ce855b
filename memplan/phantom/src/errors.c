/* Errors: the last one of each thread, their names and texts, and calls of what is not there. */
#include "phantom.h"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static __thread cudaError_t last_error;

cudaError_t phantom_fail(cudaError_t error) { return last_error = error; }

cudaError_t cudaPeekAtLastError(void) { return last_error; }

cudaError_t cudaGetLastError(void) {
  cudaError_t error = last_error;
  last_error = cudaSuccess;
  return error;
}

static const struct { int code; const char *name, *text; } errors[] = {
#define PHANTOM_ERROR(code, name, text) {code, #name, text},
#include "cuda_errors.def"
#undef PHANTOM_ERROR
};
enum { NUM_ERRORS = sizeof errors / sizeof *errors };

const char *cudaGetErrorName(cudaError_t code) {
  for (int i = 0; i < NUM_ERRORS; i++) if (errors[i].code == code) return errors[i].name;
  return "unrecognized error code";
}

const char *cudaGetErrorString(cudaError_t code) {
  for (int i = 0; i < NUM_ERRORS; i++) if (errors[i].code == code) return errors[i].text;
  return "unrecognized error code";
}

int phantom_is_verbose(void) {
  static int verbose = -1;
  if (verbose < 0) verbose = getenv("PHANTOM_VERBOSE") != NULL;
  return verbose;
}

/* ---- calls worth telling: few names, so a list does ---- */
struct names { struct names *next; const char *name; };
static pthread_mutex_t names_lock = PTHREAD_MUTEX_INITIALIZER;
static struct names *missing, *estimated;

/* Note a name; 1 when it is new. */
static int note(struct names **list, const char *name) {
  pthread_mutex_lock(&names_lock);
  struct names *one = *list;
  while (one && strcmp(one->name, name)) one = one->next;
  int is_new = !one && (one = malloc(sizeof *one));
  if (is_new) {
    *one = (struct names){*list, strdup(name)}; /* the caller's text may not last */
    *list = one;
  }
  pthread_mutex_unlock(&names_lock);
  return is_new;
}

void phantom_missing(const char *name) {
  if (note(&missing, name))
    fprintf(stderr, "phantom: %s was called and is not implemented; it returned an error\n", name);
}

void phantom_estimated(const char *name) {
  if (note(&estimated, name) && phantom_is_verbose())
    fprintf(stderr, "phantom: the answer of %s is an estimate\n", name);
}

/* Write the names, one a line, into `text`; return the room they need without the final zero. */
static size_t list_names(struct names *const *list, char *text, size_t room) {
  size_t used = 0;
  pthread_mutex_lock(&names_lock);
  for (struct names *one = *list; one; one = one->next) {
    size_t length = strlen(one->name);
    if (text && used + length + 1 < room) {
      memcpy(text + used, one->name, length);
      text[used + length] = '\n';
    }
    used += length + 1;
  }
  if (room) text[used < room ? used : room - 1] = 0;
  pthread_mutex_unlock(&names_lock);
  return used;
}

size_t phantom_missing_calls(char *text, size_t room) { return list_names(&missing, text, room); }

size_t phantom_estimated_calls(char *text, size_t room) {
  return list_names(&estimated, text, room);
}
