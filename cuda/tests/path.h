/*
 * path.h - what the parts of the path's test share: the driver's functions, memory of both sides, numbers, captures, checks.
 */
#ifndef LAVA_PATH_H
#define LAVA_PATH_H

#include "plan_attention.h"
#include <lava_cuda.h>
#include <lava_methods.h>

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define CHECK(condition) do { if (!(condition)) { fprintf(stderr, "%s:%d: %s\n", __FILE__, __LINE__, #condition); exit(1); } } while (0)
#define OK(call) do { lava_error error = lava_error_init(); if ((call) != LAVA_OK) { \
    fprintf(stderr, "%s:%d: %s: %s (%s)\n", __FILE__, __LINE__, #call, error.message, error.argument); exit(1); } } while (0)
/* The call returns this status and names this argument. */
#define REFUSED(wanted, name, call) do { lava_error error = lava_error_init(); lava_status got = (call); \
    if (got != (wanted) || error.status != got || strcmp(error.argument, name) != 0) { \
        fprintf(stderr, "%s:%d: %s: %d (%s), not " #wanted " (%s)\n", __FILE__, __LINE__, #call, got, error.argument, name); exit(1); } } while (0)

extern void *libcuda, *stream, *cuda_context;
/* From lava_cuda_init. */
extern void *context;

/* A function of the driver, of any arguments that fit into registers or on the stack as these do. */
typedef int (*driver_function)();
driver_function driver(const char *name);
#define CU(name, ...) do { int code = driver(#name)(__VA_ARGS__); \
    if (code != 0) { fprintf(stderr, "%s:%d: %s: %d\n", __FILE__, __LINE__, #name, code); exit(1); } } while (0)

/* Memory of both sides. */
void *allocate(size_t bytes);
void release(void *memory);
void settle(void);
/* Captured, what is asked for between these two; launched by the second. */
void begin_capture(void);
void *end_capture(void);

/* The status word of the calls that are looked at together: with no fault yet, and what it says of those since the last time. */
extern uint64_t *status;
void begin_status(void);
int says(lava_status want, const char *argument, uint32_t layer, uint32_t sequence, uint32_t head);
#define expect_fault(...) CHECK(says(__VA_ARGS__))
#define expect_fine() expect_fault(LAVA_OK, "", LAVA_NONE, LAVA_NONE, LAVA_NONE)

/* In [-2, 2), exact in all three types. */
float number(void);
size_t element_size(lava_dtype dtype);
void *elements(lava_dtype dtype, size_t n, float factor);
/* Token-major, of such numbers. */
lava_tensor tensor(lava_dtype dtype, uint32_t rows, uint32_t heads, uint32_t dim, float factor);
/* The natural log-sum-exp of the last `window` of `n` tokens' queries, without their own scale or cap: f32 [window, n_q_heads, 1]. */
lava_tensor log_sum_exp(const lava_tensor *q, const lava_tensor *k, uint32_t n, uint32_t window, uint32_t n_q_heads, uint32_t n_kv_heads, uint32_t dim);

/* u = 2^-24; see score.cpp for where the bounds come from. |q|, |k| <= 2, and the scale is 1 / sqrt(d): no sum of |q||k| is larger. */
static const double U = 1.0 / (1 << 24);
static inline double logit_error(uint32_t dim) { return U * (4 * sqrt(dim) + 8) * 4 * sqrt(dim); }

/* path_stats.c: statistics of the attention, preferences, means over heads. */
void statistics(void);
/* path_decide.c: entries of layers and heads, selection, cascade, compaction. */
void decisions(void);

#endif
