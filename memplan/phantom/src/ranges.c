/* Address ranges in order: a treap whose nodes know the largest size below them. */
#include "phantom.h"
#include <stdlib.h>

struct node {
  struct range range;
  size_t largest; /* of this range and all below */
  unsigned priority;
  struct node *left, *right;
};

struct ranges { struct node *root; size_t count; unsigned seed; };

struct ranges *ranges_create(void) {
  struct ranges *set = calloc(1, sizeof *set);
  if (set) set->seed = 2463534242u;
  return set;
}

static void free_below(struct node *node) {
  if (!node) return;
  free_below(node->left);
  free_below(node->right);
  free(node);
}

void ranges_destroy(struct ranges *set) {
  free_below(set->root);
  free(set);
}

size_t ranges_count(struct ranges *set) { return set->count; }

static unsigned next_priority(struct ranges *set) { /* xorshift32, Marsaglia 2003 */
  set->seed ^= set->seed << 13; set->seed ^= set->seed >> 17; set->seed ^= set->seed << 5;
  return set->seed;
}

static struct node *refresh(struct node *node) {
  size_t largest = node->range.size;
  if (node->left && node->left->largest > largest) largest = node->left->largest;
  if (node->right && node->right->largest > largest) largest = node->right->largest;
  node->largest = largest;
  return node;
}

/* Split by address: `low` gets those below `at`, `high` the others. */
static void split(struct node *root, uintptr_t at, struct node **low, struct node **high) {
  if (!root) { *low = *high = NULL; return; }
  if (root->range.at < at) {
    split(root->right, at, &root->right, high);
    *low = refresh(root);
  } else {
    split(root->left, at, low, &root->left);
    *high = refresh(root);
  }
}

static struct node *merge(struct node *low, struct node *high) {
  if (!low || !high) return low ? low : high;
  if (low->priority > high->priority) {
    low->right = merge(low->right, high);
    return refresh(low);
  }
  high->left = merge(low, high->left);
  return refresh(high);
}

int ranges_add(struct ranges *set, struct range one) {
  struct node *node = calloc(1, sizeof *node), *low, *high;
  if (!node) return 1;
  node->range = one; node->largest = one.size; node->priority = next_priority(set);
  split(set->root, one.at, &low, &high);
  set->root = merge(merge(low, node), high);
  set->count++;
  return 0;
}

int ranges_remove(struct ranges *set, uintptr_t at, struct range *removed) {
  struct node *low, *rest, *one, *high;
  split(set->root, at, &low, &rest);
  split(rest, at + 1, &one, &high);
  set->root = merge(low, high);
  if (!one) return 0;
  if (removed) *removed = one->range;
  free(one);
  set->count--;
  return 1;
}

int ranges_last_before(struct ranges *set, uintptr_t address, struct range *found) {
  struct node *best = NULL;
  for (struct node *node = set->root; node;) {
    if (node->range.at < address) { best = node; node = node->right; } else node = node->left;
  }
  if (best) *found = best->range;
  return best != NULL;
}

int ranges_first_from(struct ranges *set, uintptr_t address, struct range *found) {
  struct node *best = NULL;
  for (struct node *node = set->root; node;) {
    if (node->range.at >= address) { best = node; node = node->left; } else node = node->right;
  }
  if (best) *found = best->range;
  return best != NULL;
}

int ranges_containing(struct ranges *set, uintptr_t address, struct range *found) {
  return ranges_last_before(set, address + 1, found) && address - found->at < found->size;
}

int ranges_lowest_fit(struct ranges *set, size_t size, struct range *found) {
  struct node *node = set->root;
  if (!node || node->largest < size) return 0;
  for (;;) {
    if (node->left && node->left->largest >= size) node = node->left;
    else if (node->range.size >= size) { *found = node->range; return 1; }
    else node = node->right;
  }
}
