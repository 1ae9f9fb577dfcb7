// How long the stages take on the GPU at hand, beside what reading K and V once takes at its memory's speed. For cuda/gpu.sh; the
// emulation keeps no time.
#include "test.h"
#include "../score.cu"

using namespace test;

int main() {
    const uint32_t n = 32768, n_q_heads = 32, n_kv_heads = 8, d = 128, window = 32, rounds = 50;
    Tensor q(LAVA_BF16, window, n_q_heads, d, TOKEN_MAJOR), k(LAVA_BF16, n, n_kv_heads, d, TOKEN_MAJOR), v(LAVA_BF16, n, n_kv_heads, d, TOKEN_MAJOR);
    Random random(1);
    q.randomise(random, 1), k.randomise(random, 1), v.randomise(random, 1);
    Buffer<float> scores(size_t(n_kv_heads) * (n - window));
    Buffer<uint64_t> status(1, 0xFF);
    lava_cuda_score_args a = {};
    a.n_seqs = 1, a.n_q_heads = n_q_heads, a.n_kv_heads = n_kv_heads, a.head_dim_k = a.head_dim_v = d, a.window = window;
    a.pool_kernel = 7, a.scale = 1 / sqrtf(d), a.max_prefix = n - window;
    a.seq[0] = {q.gpu, k.gpu, v.gpu, {}, scores.data(), n, 0};
    int limit = 0, clock = 0, bus = 0;
    cudaDeviceGetAttribute(&limit, cudaDevAttrMaxSharedMemoryPerBlockOptin, 0);
    cudaDeviceGetAttribute(&clock, cudaDevAttrMemoryClockRate, 0);
    cudaDeviceGetAttribute(&bus, cudaDevAttrGlobalMemoryBusWidth, 0);
    lava_cuda_score_plan(&a, 2, uint32_t(limit));
    unsigned char *workspace = nullptr;
    cudaMalloc(&workspace, lava_cuda_score_workspace(&a));
    a.workspace = workspace, a.status = status.data();
    const uint32_t splits = lava_cuda_score_splits(n), threads = 32 * a.n_warps;
    for (void *kernel : {(void *) lava_score_rows_bf16_128, (void *) lava_score_columns_bf16_128})
        cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, int(a.shared_bytes));
    cudaEvent_t begin, end;
    cudaEventCreate(&begin), cudaEventCreate(&end);
    const double at_once = 1e3 * (k.memory.bytes() + v.memory.bytes()) / (2.0 * clock * 1e3 * bus / 8);
    printf("scoring, one layer, N = %u, %u/%u heads, d = %u, w = %u, bf16; K and V read once at the memory's speed: %.3f ms\n", n, n_q_heads, n_kv_heads, d, window, at_once);
    const auto time = [&](const char *name, auto run) {
        run();
        cudaEventRecord(begin);
        for (uint32_t i = 0; i < rounds; i++) run();
        cudaEventRecord(end);
        cudaEventSynchronize(end);
        float ms = 0;
        cudaEventElapsedTime(&ms, begin, end);
        printf("  %-8s %8.3f ms\n", name, ms / rounds);
    };
    const dim3 grid(splits, n_kv_heads, 1);
    const auto values = [&] { lava_score_values_bf16<<<grid, LAVA_CUDA_VALUE_THREADS>>>(a); };
    const auto rows = [&] { lava_score_rows_bf16_128<<<grid, threads, a.shared_bytes>>>(a); };
    const auto lse = [&] { lava_score_lse<<<dim3(1, n_kv_heads, 1), LAVA_CUDA_LSE_THREADS>>>(a); };
    const auto columns = [&] { lava_score_columns_bf16_128<<<grid, threads, a.shared_bytes>>>(a); };
    const auto pool = [&] { lava_score_pool<<<dim3((a.max_prefix + LAVA_CUDA_POOL_TILE - 1) / LAVA_CUDA_POOL_TILE, n_kv_heads, 1), LAVA_CUDA_POOL_THREADS>>>(a); };
    time("values", values), time("rows", rows), time("lse", lse), time("columns", columns), time("pool", pool);
    time("all", [&] { values(), rows(), lse(), columns(), pool(); });
    const cudaError_t error = cudaDeviceSynchronize();
    printf("%s, status %s\n", cudaGetErrorString(error), status[0] == LAVA_CUDA_STATUS_OK ? "ok" : "NOT OK");
    return error != cudaSuccess || status[0] != LAVA_CUDA_STATUS_OK;
}
