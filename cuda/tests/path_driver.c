/*
 * The driver as path.c uses it, and what path.h promises.
 */
#define _POSIX_C_SOURCE 200809L
#include "path.h"

#include <dlfcn.h>

/* ------------------------------------------------------------------ the driver ---- */

void *libcuda, *context;

driver_function driver(const char *name) {
    driver_function function;
    void *found = dlsym(libcuda, name);
    if (!found) { fprintf(stderr, "libcuda has no %s\n", name); exit(1); }
    memcpy(&function, &found, sizeof(function));
    return function;
}
void *stream, *cuda_context;

/* Memory of both sides: managed, or the host's where there is none, or with LAVA_PINNED. */
static int is_pinned(void) {
    static int pinned = -1;
    if (pinned >= 0) return pinned;
    void *managed = NULL;
    int code = getenv("LAVA_PINNED") ? 0 : driver("cuMemAllocManaged")(&managed, (size_t) 1, 1u);
    if (code != 0) fprintf(stderr, "cuMemAllocManaged: %d; cuMemHostAlloc instead\n", code);
    pinned = managed == NULL;
    if (managed) CU(cuMemFree_v2, managed);
    return pinned;
}
void *allocate(size_t bytes) {
    void *memory = NULL;
    if (bytes == 0) bytes = 1;
    if (is_pinned()) CU(cuMemHostAlloc, &memory, bytes, 3u); /* for every context, mapped */
    else CU(cuMemAllocManaged, &memory, bytes, 1u);
    CHECK(memory != NULL);
    return memory;
}
void release(void *memory) {
    if (is_pinned()) CU(cuMemFreeHost, memory);
    else CU(cuMemFree_v2, memory);
}
void settle(void) {
    CU(cuStreamSynchronize, stream);
}

/* --------------------------------------------------------------------- numbers ---- */

static uint32_t seed = 1;
float number(void) {
    seed = seed * 1664525u + 1013904223u;
    return (float) (seed >> 24) / 64.0f - 2.0f; /* exact in all three types */
}

size_t element_size(lava_dtype dtype) { return dtype == LAVA_F32 ? 4 : 2; }

/* x, which the type has exactly. */
static void set(lava_dtype dtype, void *data, size_t i, float x) {
    uint32_t bits;
    memcpy(&bits, &x, 4);
    if (dtype == LAVA_F32) ((uint32_t *) data)[i] = bits;
    else if (dtype == LAVA_BF16) ((uint16_t *) data)[i] = (uint16_t) (bits >> 16);
    else if (bits << 1 == 0) ((uint16_t *) data)[i] = 0;
    else ((uint16_t *) data)[i] = (uint16_t) ((bits >> 16 & 0x8000) | (((bits >> 23 & 0xff) - 112) << 10) | (bits >> 13 & 0x3ff));
}

void *elements(lava_dtype dtype, size_t n, float factor) {
    void *data = allocate(n * element_size(dtype));
    for (size_t i = 0; i < n; i++) set(dtype, data, i, factor * number());
    return data;
}

lava_tensor tensor(lava_dtype dtype, uint32_t rows, uint32_t heads, uint32_t dim, float factor) {
    size_t n = (size_t) rows * heads * dim;
    return lava_tensor_token_major(dtype, elements(dtype, n, factor), n * element_size(dtype), heads, dim);
}

/* Element c of a row, of any type; it reads what `set` writes. */
static double get(const lava_tensor *t, uint32_t head, uint32_t row, uint32_t c) {
    const size_t i = (size_t) (row * t->stride_token + head * t->stride_head + c * t->stride_dim);
    uint32_t bits;
    float x;
    if (t->dtype == LAVA_F32) return ((const float *) t->data)[i];
    bits = ((const uint16_t *) t->data)[i];
    if (t->dtype == LAVA_BF16) bits <<= 16;
    else bits = (bits & 0x7fff) == 0 ? 0 : (bits & 0x8000) << 16 | ((bits >> 10 & 0x1f) + 112) << 23 | (bits & 0x3ff) << 13;
    memcpy(&x, &bits, 4);
    return x;
}

lava_tensor log_sum_exp(const lava_tensor *q, const lava_tensor *k, uint32_t n, uint32_t window, uint32_t n_q_heads, uint32_t n_kv_heads, uint32_t dim) {
    lava_tensor t = tensor(LAVA_F32, window, n_q_heads, 1, 1);
    for (uint32_t h = 0; h < n_q_heads; h++)
        for (uint32_t j = 0; j < window; j++) {
            double sum = 0;
            for (uint32_t i = 0; i <= n - window + j; i++) {
                double dot = 0;
                for (uint32_t c = 0; c < dim; c++) dot += get(q, h, j, c) * get(k, h / (n_q_heads / n_kv_heads), i, c);
                sum += exp(dot / sqrt(dim));
            }
            ((float *) t.data)[j * n_q_heads + h] = (float) log(sum);
        }
    return t;
}

/* Captured, what is asked for between these two; launched by the second. */
void begin_capture(void) { CU(cuStreamBeginCapture_v2, stream, 0); }
void *end_capture(void) {
    void *graph = NULL, *executable = NULL;
    CU(cuStreamEndCapture, stream, &graph);
    CU(cuGraphInstantiateWithFlags, &executable, graph, 0ull);
    CU(cuGraphDestroy, graph);
    CU(cuGraphLaunch, executable, stream);
    return executable;
}

uint64_t *status;
void begin_status(void) {
    status = allocate(sizeof(*status));
    *status = UINT64_MAX;
}
int says(lava_status want, const char *argument, uint32_t layer, uint32_t sequence, uint32_t head) {
    uint32_t found = 0;
    lava_error error = lava_error_init();
    settle();
    lava_status got = lava_cuda_result(*status, &found, &error);
    *status = UINT64_MAX;
    return got == want && found == sequence && strcmp(error.argument, argument) == 0 && error.layer == layer && error.head == head;
}
