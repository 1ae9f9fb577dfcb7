/*
 * A prefill that compresses on the GPU: each layer's scores go into a cascade that lives on the device, and the host
 * waits once, at the end, to learn how much memory is needed. Then every layer's kept rows move into buffers of exactly
 * that size, and the full caches are given back.
 *
 * Needs a library with the feature cuda, and libcuda: cc -I include examples-c/cuda/prefill.c liblava.a -lcuda -lm
 */
#include "../capture.h"

#include <cuda.h>
#include <lava_cuda.h>
#include <lava_methods.h>

enum { WINDOW = 32 };

#define CU(call) check_cuda((call), __FILE__, __LINE__, #call)

static void check_cuda(CUresult result, const char *file, int line, const char *call) {
    const char *name = NULL;
    if (result == CUDA_SUCCESS) return;
    cuGetErrorName(result, &name);
    fprintf(stderr, "%s:%d: %.*s: %s\n", file, line, (int) strcspn(call, "("), call, name == NULL ? "?" : name);
    exit(1);
}

static void *device_memory(size_t size) {
    CUdeviceptr memory = 0;
    CU(cuMemAlloc(&memory, size == 0 ? 1 : size));
    return (void *) memory;
}

static void give_back(void *memory) {
    CU(cuMemFree((CUdeviceptr) memory));
}

/* The same tensor on the device; what prefill has computed there. */
static lava_tensor on_device(const lava_tensor *from) {
    lava_tensor t = *from;
    t.data = device_memory(t.size);
    CU(cuMemcpyHtoD((CUdeviceptr) t.data, from->data, t.size));
    return t;
}

int main(void) {
    const uint32_t prompt = 1;
    lava_error error = lava_error_init();
    capture c = capture_open(CAPTURE_PATH);
    const uint32_t n_layers = c.n_layers, n_heads = c.n_kv_heads;

    CUdevice device;
    CUcontext cuda;
    CUstream stream;
    CU(cuInit(0));
    CU(cuDeviceGet(&device, 0));
    CU(cuDevicePrimaryCtxRetain(&cuda, device));
    CU(cuCtxSetCurrent(cuda));
    CU(cuStreamCreate(&stream, CU_STREAM_NON_BLOCKING));

    /* Once: the kernels, in the context that is current. */
    void *context = allocate(lava_cuda_context_size());
    CHECK(lava_cuda_init(context, lava_cuda_context_size(), &error));

    capture_layer *in = allocate(n_layers * sizeof(*in));
    for (uint32_t l = 0; l < n_layers; l++) in[l] = capture_get(&c, prompt, l, WINDOW);
    lava_shape shape = capture_shape(&c, &in[0], 0, WINDOW);
    uint32_t budget;
    uint64_t total;
    CHECK(lava_budget_from_ratio(&shape, NULL, 0.2, &budget, &error));
    CHECK(lava_total_entries(&shape, 1, n_layers, budget, &total, &error));

    /* The kernels do not have the recommended preset's scores yet; NULL stands for the rest of it here and below. */
    const lava_score_params scoring = lava_score_params_squares();

    /* Once: memory for the longest prompt. */
    lava_cuda_cascade cascade;
    cascade.struct_size = sizeof(cascade);
    size_t score_size, state_size, push_size, compact_size;
    CHECK(lava_cuda_score_workspace_size(context, &shape, &scoring, 1, &score_size, &error));
    CHECK(lava_cuda_cascade_state_size(&shape, n_layers, total, NULL, NULL, &state_size, &error));
    CHECK(lava_cuda_compact_workspace_size(context, 1, &compact_size, &error));
    void *score_workspace = device_memory(score_size), *state = device_memory(state_size);
    void *compact_workspace = device_memory(compact_size);
    float *scores = device_memory((size_t) n_heads * (shape.n_tokens - WINDOW) * sizeof(float));
    uint64_t *status = device_memory(sizeof(uint64_t));

    /* For each prompt: nothing has gone wrong yet, and no layer is in. */
    CU(cuMemsetD8Async((CUdeviceptr) status, 0xff, sizeof(uint64_t), stream));
    CHECK(lava_cuda_cascade_init(context, &shape, n_layers, total, NULL, NULL, state, state_size, &cascade, status,
                                 stream, &error));
    CHECK(lava_cuda_cascade_workspace_size(context, &cascade, 1, &push_size, &error));
    void *push_workspace = device_memory(push_size);

    lava_tensor *k = allocate(n_layers * sizeof(*k)), *v = allocate(n_layers * sizeof(*v));
    lava_tensor *q = allocate(n_layers * sizeof(*q));
    for (uint32_t l = 0; l < n_layers; l++) {
        q[l] = on_device(&in[l].q);
        k[l] = on_device(&in[l].k);
        v[l] = on_device(&in[l].v);
        /* After each layer of prefill: two calls that only launch kernels. */
        lava_cuda_score_sequence sequence = {sizeof(sequence), shape.n_tokens, &q[l], &k[l], &v[l], NULL, scores};
        lava_cuda_push_sequence push = {sizeof(push), 0, &cascade, scores, NULL};
        shape.layer = l;
        CHECK(lava_cuda_score(context, &shape, &scoring, &sequence, 1, score_workspace, score_size, status, stream,
                              &error));
        CHECK(lava_cuda_cascade_push(context, &push, 1, push_workspace, push_size, status, stream, &error));
    }

    /* The only wait: what went wrong, and how many rows each layer keeps. */
    uint64_t word;
    uint32_t *cu = allocate(n_layers * (n_heads + 1) * sizeof(uint32_t));
    lava_cuda_cascade_layer *layers = allocate(n_layers * sizeof(*layers));
    CU(cuMemcpyDtoHAsync(&word, (CUdeviceptr) status, sizeof(word), stream));
    for (uint32_t l = 0; l < n_layers; l++) {
        layers[l].struct_size = sizeof(layers[l]);
        CHECK(lava_cuda_cascade_get(&cascade, l, &layers[l], &error));
        CU(cuMemcpyDtoHAsync(cu + l * (n_heads + 1), (CUdeviceptr) layers[l].cu_kept, (n_heads + 1) * sizeof(uint32_t),
                             stream));
    }
    CU(cuStreamSynchronize(stream));
    CHECK(lava_cuda_result(word, NULL, &error));

    size_t full = 0, left = 0, row = c.head_dim * sizeof(uint16_t);
    printf("layer   rows kept of %6u      by head\n", n_heads * shape.n_tokens);
    for (uint32_t l = 0; l < n_layers; l++) {
        const uint32_t *its = cu + l * (n_heads + 1);
        uint32_t most = 0;
        for (uint32_t h = 0; h < n_heads; h++) most = its[h + 1] - its[h] > most ? its[h + 1] - its[h] : most;
        size_t size = its[n_heads] * row;
        /* Ragged, without gaps: where each head begins is on the device already. */
        lava_tensor k_kept = lava_tensor_ragged(LAVA_F16, device_memory(size), size, layers[l].cu_kept, c.head_dim);
        lava_tensor v_kept = lava_tensor_ragged(LAVA_F16, device_memory(size), size, layers[l].cu_kept, c.head_dim);
        lava_cuda_compact_sequence move = {sizeof(move), shape.n_tokens, most, 0, &k[l], &v[l], &k_kept, &v_kept,
                                           layers[l].kept_indices, layers[l].offset, layers[l].cu_kept, NULL};
        CHECK(lava_cuda_compact(context, &shape, &move, 1, compact_workspace, compact_size, status, stream, &error));
        CU(cuStreamSynchronize(stream));
        full += k[l].size + v[l].size;
        left += 2 * size;
        give_back(k[l].data);
        give_back(v[l].data);
        printf("%5u   %16u           ", l, its[n_heads]);
        for (uint32_t h = 0; h < n_heads; h++) printf(" %u", its[h + 1] - its[h]);
        printf("\n");

        /* The rows are the prompt's. */
        uint64_t offset;
        uint32_t *kept = allocate(its[n_heads] * sizeof(uint32_t));
        char *rows = allocate(size);
        CU(cuMemcpyDtoH(&offset, (CUdeviceptr) layers[l].offset, sizeof(offset)));
        CU(cuMemcpyDtoH(kept, (CUdeviceptr) (layers[l].kept_indices + offset), its[n_heads] * sizeof(uint32_t)));
        CU(cuMemcpyDtoH(rows, (CUdeviceptr) k_kept.data, size));
        for (uint32_t h = 0; h < n_heads; h++)
            for (uint32_t r = its[h]; r < its[h + 1]; r++)
                expect(memcmp(rows + r * row, (char *) in[l].k.data + ((size_t) kept[r] * n_heads + h) * row, row) == 0,
                       "the key is the token's");
        free(rows);
        free(kept);
        give_back(k_kept.data);
        give_back(v_kept.data);
        give_back(q[l].data);
    }
    printf("K and V: %zu bytes now, %zu before; the host waited once for the decision\n", left, full);

    CHECK(lava_cuda_destroy(context, &error));
    give_back(score_workspace);
    give_back(state);
    give_back(push_workspace);
    give_back(compact_workspace);
    give_back(scores);
    give_back(status);
    CU(cuStreamDestroy(stream));
    free(cu);
    free(layers);
    free(k);
    free(v);
    free(q);
    free(in);
    free(context);
    capture_close(&c);
    return 0;
}
