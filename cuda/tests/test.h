// What the kernels' tests share: memory, random numbers, the CPU library's tensors, launches. The same programs are built against
// the emulation (LAVA_EMU) and by nvcc for a GPU.
#pragma once
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <string>
#include <vector>

#include "../../include/lava_methods.h"
#include "../device.cuh"
#ifdef LAVA_PTX
#include "../ptx/ptx.h"

#include <dlfcn.h>
#endif

namespace test {

inline int failures = 0;

#define CHECK(condition, ...)                                                                                              \
    do {                                                                                                                   \
        if (!(condition)) {                                                                                                \
            if (test::failures++ < 20) {                                                                                   \
                fprintf(stderr, "%s:%d: %s: ", __FILE__, __LINE__, #condition);                                            \
                fprintf(stderr, __VA_ARGS__);                                                                              \
                fprintf(stderr, "\n");                                                                                     \
            }                                                                                                              \
        }                                                                                                                  \
    } while (0)

inline int finish(const char *name, long n) {
    printf("%-10s %6ld cases  %s\n", name, n, failures == 0 ? "ok" : "FAILED");
    return failures == 0 ? 0 : 1;
}

/// Schedules that each case is run in: LAVA_SEEDS, or 2. A GPU has its own.
inline unsigned n_seeds() {
#ifdef LAVA_EMU
    const char *set = getenv("LAVA_SEEDS");
    return set ? unsigned(atoi(set)) : 2;
#else
    return 1;
#endif
}

/// LAVA_QUICK: leaves out what other cases run too, for sanitizers.
inline bool is_quick() { return getenv("LAVA_QUICK") != nullptr; }
/// LAVA_SAMPLE=n: of the cases of one check only the first and every n-th after it, for a sanitizer that takes many minutes over all.
class Sample {
    unsigned n = 0;

public:
    bool leaves_out() {
        const char *set = getenv("LAVA_SAMPLE");
        return set != nullptr && n++ % unsigned(atoi(set)) != 0;
    }
};
#define SAMPLE do { static test::Sample sample; if (sample.leaves_out()) return; } while (0)
inline bool is_skipped(lava_dtype dtype) { return dtype == LAVA_F16 && is_quick(); }

struct Random {
    uint64_t state;
    explicit Random(uint64_t seed) : state(seed * 2654435761u + 12345) {}
    uint32_t next() {
        state = state * 6364136223846793005u + 1442695040888963407u;
        return uint32_t(state >> 32);
    }
    uint32_t below(uint32_t n) { return uint32_t(uint64_t(next()) * n >> 32); }
    /// In [-1, 1).
    float uniform() { return float(int32_t(next())) * (1.0f / 2147483648.0f); }
    /// Near enough to a normal distribution.
    float normal() { return (uniform() + uniform() + uniform() + uniform()) * 0.87f; }
};

#ifndef LAVA_EMU
/// What went wrong, and where.
inline bool is_error(cudaError_t error, const char *call) {
    if (error != cudaSuccess) fprintf(stderr, "%s: %s\n", call, cudaGetErrorString(error));
    return error != cudaSuccess;
}
/// Whether both sides' memory is the host's: where there is no managed memory, or with LAVA_PINNED.
inline bool is_pinned() {
    static const bool pinned = [] {
        void *managed = nullptr;
        if (getenv("LAVA_PINNED")) return true;
        if (is_error(cudaMallocManaged(&managed, 1), "cudaMallocManaged; cudaMallocHost instead")) return true;
        return is_error(cudaFree(managed), "cudaFree");
    }();
    return pinned;
}
#endif

/// Memory that the kernels see: exactly as long as it is said to be, so that a sanitizer notices accesses after it.
template <class T> class Buffer {
public:
    explicit Buffer(size_t n, int fill = 0xA5) : n(n) {
        void *all = nullptr;
        const size_t least = std::max<size_t>(bytes(), 1);
#ifdef LAVA_EMU
        const bool failed = posix_memalign(&all, 16, least) != 0;
#else
        const bool failed = is_error(is_pinned() ? cudaMallocHost(&all, least) : cudaMallocManaged(&all, least), "memory of both sides");
#endif
        if (failed) exit(1);
        memory = static_cast<T *>(memset(all, fill, bytes()));
    }
    ~Buffer() {
#ifdef LAVA_EMU
        free(memory);
#else
        is_pinned() ? cudaFreeHost(memory) : cudaFree(memory);
#endif
    }
    Buffer(const Buffer &) = delete;
    Buffer &operator=(const Buffer &) = delete;
    T *data() const { return memory; }
    T &operator[](size_t i) const { return memory[i]; }
    size_t size() const { return n; }
    size_t bytes() const { return n * sizeof(T); }

private:
    T *memory = nullptr;
    size_t n;
};

inline size_t size_of(lava_dtype dtype) { return dtype == LAVA_F32 ? 4 : 2; }
inline const char *name_of(lava_dtype dtype) { return dtype == LAVA_F32 ? "f32" : dtype == LAVA_F16 ? "f16" : "bf16"; }

enum Layout { TOKEN_MAJOR, HEAD_MAJOR, TRANSPOSED, GAPS };

/// A tensor of random numbers, as both sides see it.
struct Tensor {
    Buffer<unsigned char> memory;
    lava_dtype dtype;
    lava_tensor cpu;
    lava_device_tensor gpu;

    static size_t room(uint32_t rows, uint32_t heads, uint32_t dim, Layout layout) {
        return size_t(rows) * heads * dim + (layout == GAPS ? size_t(rows) * 3 + 1 : 0);
    }
    Tensor(lava_dtype dtype, uint32_t rows, uint32_t heads, uint32_t dim, Layout layout)
        : memory(room(rows, heads, dim, layout) * size_of(dtype)), dtype(dtype) {
        void *data = memory.data();
        const size_t size = memory.bytes();
        switch (layout) {
        case TOKEN_MAJOR: cpu = lava_tensor_token_major(dtype, data, size, heads, dim); break;
        case HEAD_MAJOR: cpu = lava_tensor_head_major(dtype, data, size, rows, dim); break;
        case TRANSPOSED: cpu = lava_tensor_transposed(dtype, data, size, rows, dim); break;
        // Rows whose distance is not a multiple of 16 bytes.
        case GAPS: cpu = lava_tensor_init(dtype, data, size, int64_t(heads) * dim + 3, dim, 1); break;
        }
        gpu = {data, cpu.stride_token, cpu.stride_head, cpu.stride_dim, nullptr, dtype, 0};
    }
    void set(size_t i, float x) {
        if (dtype == LAVA_F32) memcpy(memory.data() + 4 * i, &x, 4);
        if (dtype == LAVA_F16) { const __half h = __float2half(x); memcpy(memory.data() + 2 * i, &h, 2); }
        if (dtype == LAVA_BF16) { const __nv_bfloat16 h = __float2bfloat16(x); memcpy(memory.data() + 2 * i, &h, 2); }
    }
    void randomise(Random &random, float size) {
        for (size_t i = 0; i < memory.bytes() / size_of(dtype); i++) set(i, size * random.normal());
    }
};

#ifdef LAVA_PTX
/// What nvcc has made of a kernel: from the .ptx files in the folder LAVA_PTX.
inline const ptx::Function &compiled(const void *kernel) {
    static const ptx::Module all = ptx::read_folder(getenv("LAVA_PTX"));
    Dl_info symbol = {};
    dladdr(kernel, &symbol);
    const auto found = all.find(symbol.dli_sname ? symbol.dli_sname : "");
    if (found == all.end()) ptx::fail("no PTX of %s", symbol.dli_sname);
    return *found->second;
}
#endif

/// One launch, over when this returns. `resident`: blocks at a time under emulation, 0 for all (a cooperative launch).
template <class Args>
void launch(void (*kernel)(const Args), uint32_t x, uint32_t y, uint32_t z, uint32_t threads, size_t shared, unsigned seed,
            const Args &args, unsigned resident = 3) {
    if (x == 0 || y == 0 || z == 0) return;
#ifdef LAVA_PTX
    const ptx::Launch what = {{x, y, z}, {threads, 1, 1}, shared, seed, resident};
    ptx::launch(compiled(reinterpret_cast<const void *>(kernel)), what, &args, sizeof args);
#elif defined(LAVA_EMU)
    emu::Launch what;
    what.grid = {x, y, z};
    what.block = {threads, 1, 1};
    what.shared_bytes = shared;
    what.seed = seed;
    what.resident = resident;
    emu::launch(what, [&] { kernel(args); });
#else
    (void) seed;
    void *parameters[] = {const_cast<Args *>(&args)};
    const void *const function = reinterpret_cast<const void *>(kernel);
    const dim3 grid(x, y, z);
    cudaError_t error = cudaSuccess;
    if (shared > 48 << 10) error = cudaFuncSetAttribute(function, cudaFuncAttributeMaxDynamicSharedMemorySize, int(shared));
    if (error == cudaSuccess)
        error = resident == 0 ? cudaLaunchCooperativeKernel(function, grid, dim3(threads), parameters, shared, nullptr)
                              : cudaLaunchKernel(function, grid, dim3(threads), parameters, shared, nullptr);
    const bool ran = error == cudaSuccess;
    if (ran) error = cudaDeviceSynchronize();
    if (error == cudaSuccess) return;
    failures++;
    const char *name = "a kernel";
    cudaFuncGetName(&name, function);
    fprintf(stderr, "%s of %u x %u x %u blocks of %u, %zu bytes: %s\n", name, x, y, z, threads, shared, cudaGetErrorString(error));
    // A refused launch has harmed nothing; after a failed one nothing runs any more.
    if (ran) exit(1);
    cudaGetLastError();
#endif
}

} // namespace test
