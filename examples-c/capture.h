/*
 * What the examples share: the captured KV cache of a small model as lava_tensors, and what to do when a call fails.
 *
 * eval/model/captures.safetensors holds, for a few prompts and every layer: the queries of the prompt's last tokens,
 * its keys and values (all after RoPE), and the same of some decode steps after it, computed with the full cache. It
 * stands for what an engine has in its buffers at the end of prefill. Everything here exits with a message when
 * something is wrong.
 */
#ifndef CAPTURE_H
#define CAPTURE_H

#include "lava.h"

#include "safetensors.h"

#define CAPTURE_PATH "eval/model/captures.safetensors"

/*
 * CHECK(lava_score(..., &error)): for a call that gets `&error`, a lava_error of the caller's. On anything but LAVA_OK
 * it says what went wrong and where, and exits.
 */
#define CHECK(call) check((call), &error, __FILE__, __LINE__, #call)

static inline void check(lava_status status, const lava_error *error, const char *file, int line, const char *call) {
    if (status == LAVA_OK) return;
    fprintf(stderr, "%s:%d: %.*s: %s", file, line, (int) strcspn(call, "("), call, lava_status_string(status));
    if (error->argument != NULL && error->argument[0] != '\0') fprintf(stderr, "; argument: %s", error->argument);
    if (error->layer != LAVA_NONE) fprintf(stderr, "; layer %u", error->layer);
    if (error->head != LAVA_NONE) fprintf(stderr, "; KV head %u", error->head);
    fprintf(stderr, "\n");
    exit(1);
}

/* For what these programs assert about results. */
static inline void expect(int truth, const char *what) {
    if (truth) return;
    fprintf(stderr, "check failed: %s\n", what);
    exit(1);
}

static inline void *allocate(size_t size) {
    void *memory = malloc(size == 0 ? 1 : size);  /* aligned to LAVA_WORKSPACE_ALIGN, as malloc is on 64-bit machines */
    if (memory == NULL) {
        fprintf(stderr, "out of memory (%zu bytes)\n", size);
        exit(1);
    }
    return memory;
}

typedef struct {
    st_file file;
    uint32_t n_prompts, n_layers, n_q_heads, n_kv_heads, head_dim;
    uint32_t n_queries;  /* last queries captured of each prompt: a window may be as long as that */
    uint32_t n_next;     /* decode steps captured after each prompt */
} capture;

/* One layer of one prompt, as views of the file's memory: they are read, never written. */
typedef struct {
    uint32_t n_tokens;
    lava_tensor q;                     /* f32 [window, n_q_heads, head_dim] */
    lava_tensor k, v;                  /* f16 [n_tokens, n_kv_heads, head_dim] */
    lava_tensor q_next;                /* f32 [n_next, n_q_heads, head_dim] */
    lava_tensor k_next, v_next;        /* f16 [n_next, n_kv_heads, head_dim] */
} capture_layer;

static inline uint32_t capture_number(const capture *c, const char *key) {
    const char *text = st_text(&c->file, key);
    char *end = NULL;
    unsigned long value = text == NULL || text[0] < '0' || text[0] > '9' ? 0 : strtoul(text, &end, 10);
    if (value == 0 || *end != '\0' || value > 1u << 20) {
        fprintf(stderr, "%s: the metadata's %s is missing or not a valid number\n", c->file.path, key);
        exit(1);
    }
    return (uint32_t) value;
}

static inline capture capture_open(const char *path) {
    capture c;
    if (!st_open(&c.file, path)) exit(1);
    c.n_prompts = capture_number(&c, "n_prompts");
    c.n_layers = capture_number(&c, "n_layers");
    c.n_q_heads = capture_number(&c, "n_q_heads");
    c.n_kv_heads = capture_number(&c, "n_kv_heads");
    c.head_dim = capture_number(&c, "head_dim");
    c.n_queries = capture_number(&c, "window");
    c.n_next = capture_number(&c, "n_next");
    return c;
}

static inline void capture_close(capture *c) {
    st_close(&c->file);
}

static inline const char *capture_kind(const capture *c, uint32_t prompt) {
    char key[32];
    snprintf(key, sizeof(key), "prompt%u.kind", prompt);
    const char *kind = st_text(&c->file, key);
    return kind == NULL ? "of unknown kind" : kind;
}

/* One tensor [n_rows, n_heads, head_dim], token-major; *n_rows is checked, or set where it is 0. */
static inline lava_tensor capture_tensor(const capture *c, uint32_t prompt, uint32_t layer, const char *which,
                                         st_dtype dtype, uint32_t n_heads, uint32_t *n_rows) {
    char name[64];
    snprintf(name, sizeof(name), "prompt%u.layer%u.%s", prompt, layer, which);
    const st_tensor *t = st_find(&c->file, name);
    if (t == NULL || t->dtype != dtype || t->n_dims != 3 || t->shape[0] == 0 || t->shape[0] > 1u << 24
        || (*n_rows != 0 && t->shape[0] != *n_rows) || t->shape[1] != n_heads || t->shape[2] != c->head_dim) {
        fprintf(stderr, "%s: %s is missing, or not of the type and shape that the metadata implies\n", c->file.path,
                name);
        exit(1);
    }
    *n_rows = (uint32_t) t->shape[0];
    /* const is cast away: lava.h has one tensor type for inputs and outputs, and never writes to an input */
    return lava_tensor_token_major(dtype == ST_F32 ? LAVA_F32 : LAVA_F16, (void *) (uintptr_t) t->data, t->size,
                                   n_heads, c->head_dim);
}

/* Layer `layer` of prompt `prompt`, with the last `window` of the captured queries. */
static inline capture_layer capture_get(const capture *c, uint32_t prompt, uint32_t layer, uint32_t window) {
    capture_layer out;
    memset(&out, 0, sizeof(out));
    uint32_t n_queries = c->n_queries, n_next = c->n_next;
    if (window > n_queries) {
        fprintf(stderr, "a window of %u tokens asked for, %u queries captured\n", window, n_queries);
        exit(1);
    }
    out.q = capture_tensor(c, prompt, layer, "q", ST_F32, c->n_q_heads, &n_queries);
    out.k = capture_tensor(c, prompt, layer, "k", ST_F16, c->n_kv_heads, &out.n_tokens);
    out.v = capture_tensor(c, prompt, layer, "v", ST_F16, c->n_kv_heads, &out.n_tokens);
    out.q_next = capture_tensor(c, prompt, layer, "q_next", ST_F32, c->n_q_heads, &n_next);
    out.k_next = capture_tensor(c, prompt, layer, "k_next", ST_F16, c->n_kv_heads, &n_next);
    out.v_next = capture_tensor(c, prompt, layer, "v_next", ST_F16, c->n_kv_heads, &n_next);
    /* the last `window` rows of q: nothing is copied, the pointer moves */
    size_t row = (size_t) c->n_q_heads * c->head_dim * sizeof(float);
    size_t skipped = (n_queries - window) * row;
    out.q.data = (char *) out.q.data + skipped;
    out.q.size -= skipped;
    return out;
}

/* The sizes of that layer, as lava.h wants them. */
static inline lava_shape capture_shape(const capture *c, const capture_layer *l, uint32_t layer, uint32_t window) {
    lava_shape shape = lava_shape_init(l->n_tokens, c->n_q_heads, c->n_kv_heads, c->head_dim, c->head_dim, window);
    shape.layer = layer;
    return shape;
}

#endif
