// What all kernels share: the caller's tensors, reductions in a fixed order, the status word, and every instruction that C++
// does not have, each in a function with a portable branch for the emulation.
#pragma once
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#ifdef LAVA_EMU
#include "emu/emu.h"
#else
#define LAVA_SHARED(T, name, n) __shared__ T name[n]
#define LAVA_DYNAMIC_SHARED(name) extern __shared__ __align__(16) unsigned char name[]
#endif
#include "plan.h"

#define LAVA_KERNEL(threads) extern "C" __global__ void __launch_bounds__(threads)

namespace lava {

constexpr unsigned ALL = 0xffffffffu;
constexpr float LOG2_E = 1.44269504088896340736f;
constexpr float LN_2 = 0.693147180559945309417f;

__device__ inline unsigned lane() { return threadIdx.x % 32; }
__device__ inline unsigned warp() { return threadIdx.x / 32; }

__device__ inline bool is_finite(float x) { return (__float_as_uint(x) & 0x7f800000u) != 0x7f800000u; }

__device__ inline float widen(float x) { return x; }
__device__ inline float widen(__half x) { return __half2float(x); }
__device__ inline float widen(__nv_bfloat16 x) { return __bfloat162float(x); }
/// First element of a row.
template <class T> __device__ inline T *row_of(const lava_device_tensor &t, uint32_t head, uint64_t row) {
    const int64_t first = t.row_start == nullptr ? 0 : t.row_start[head];
    return static_cast<T *>(t.data) + (first + int64_t(row)) * t.stride_token + int64_t(head) * t.stride_head;
}

__device__ inline void report(uint64_t *status, uint32_t layer, uint32_t sequence, uint32_t head, uint32_t what) {
    atomicMin(reinterpret_cast<unsigned long long *>(status), (unsigned long long) lava_fault(what, layer, sequence, head));
}

/// 2^x: 2 ulp, and 0 below 2^-126 (to keep those would cost three instructions).
__device__ inline float exp2_fast(float x) {
#ifdef __CUDA_ARCH__
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
#else
    return exp2f(x);
#endif
}

__device__ inline float warp_max(float x) {
    for (int by = 16; by > 0; by /= 2) x = fmaxf(x, __shfl_xor_sync(ALL, x, by));
    return x;
}
template <class T> __device__ inline T warp_sum(T x) {
    for (int by = 16; by > 0; by /= 2) x += __shfl_xor_sync(ALL, x, by);
    return x;
}

/// Sum over the block for all of its threads, in one order. `memory`: one entry per warp; may be used again at once.
template <class T> __device__ inline T block_sum(T x, T *memory) {
    x = warp_sum(x);
    if (lane() == 0) memory[warp()] = x;
    __syncthreads();
    T sum = memory[0];
    for (unsigned w = 1; w < blockDim.x / 32; w++) sum += memory[w];
    __syncthreads();
    return sum;
}

/// Sum over the block's threads below this one. `memory`: one entry per warp; after a barrier it may be used again.
template <class T> __device__ inline T sum_before(T x, T *memory) {
    T through = x;
    for (unsigned by = 1; by < 32; by *= 2) {
        const T lower = __shfl_up_sync(ALL, through, by);
        if (lane() >= by) through += lower;
    }
    if (lane() == 31) memory[warp()] = through;
    __syncthreads();
    T sum = through - x;
    for (unsigned w = 0; w < warp(); w++) sum += memory[w];
    return sum;
}

/// 16 bytes of global memory that are read once.
__device__ inline uint4 load_streaming(const uint4 *from) {
#ifdef __CUDA_ARCH__
    return __ldcs(from);
#else
    return *from;
#endif
}
/// Those, as floats.
template <class T> __device__ inline void load_piece(float (&x)[16 / sizeof(T)], const T *from) {
    const uint4 piece = load_streaming(reinterpret_cast<const uint4 *>(from));
    T narrow[16 / sizeof(T)];
    memcpy(static_cast<void *>(narrow), &piece, 16);
#pragma unroll
    for (uint32_t i = 0; i < 16 / sizeof(T); i++) x[i] = widen(narrow[i]);
}

// ---- Asynchronous copies -----------------------------------------------------------------------------------------------

/// Starts a copy of 16 bytes, both sides aligned to 16. Not `real`: zeros come, and `from` is not looked at.
__device__ inline void copy_async(void *to, const void *from, bool real) {
#ifdef __CUDA_ARCH__
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(uint32_t(__cvta_generic_to_shared(to))), "l"(from),
                 "r"(real ? 16 : 0)
                 : "memory");
#elif defined(LAVA_EMU)
    emu::Copies &copies = emu::copies();
    if (reinterpret_cast<uintptr_t>(to) % 16 || reinterpret_cast<uintptr_t>(from) % 16) emu::fail("a copy of 16 bytes is not aligned");
    if (copies.n == emu::Copies::MOST) emu::fail("more asynchronous copies than the emulation holds");
    copies.queue[copies.n++] = {to, real ? from : nullptr};
#endif
}
/// Ends a group of copies.
__device__ inline void copy_commit() {
#ifdef __CUDA_ARCH__
    asm volatile("cp.async.commit_group;" ::: "memory");
#elif defined(LAVA_EMU)
    emu::Copies &copies = emu::copies();
    if (copies.n_groups == 64) emu::fail("more groups of copies than the emulation holds");
    copies.ends[copies.n_groups++] = copies.n;
#endif
}
/// Waits until at most `LEFT` of the calling thread's groups are under way.
template <int LEFT> __device__ inline void copy_wait() {
#ifdef __CUDA_ARCH__
    asm volatile("cp.async.wait_group %0;" ::"n"(LEFT) : "memory");
#elif defined(LAVA_EMU)
    emu::Copies &copies = emu::copies();
    const int over = copies.n_groups - LEFT;
    if (over <= 0) return;
    const int done = copies.ends[over - 1];
    for (int i = 0; i < done; i++)
        for (int word = 0; word < 4; word++)
            static_cast<uint32_t *>(copies.queue[i].to)[word] =
                copies.queue[i].from == nullptr ? 0 : static_cast<const uint32_t *>(copies.queue[i].from)[word];
    for (int i = done; i < copies.n; i++) copies.queue[i - done] = copies.queue[i];
    copies.n -= done;
    for (int i = over; i < copies.n_groups; i++) copies.ends[i - over] = copies.ends[i] - done;
    copies.n_groups = LEFT;
#endif
}

// ---- Tensor cores ------------------------------------------------------------------------------------------------------

#ifdef LAVA_EMU
__device__ inline void emulated_matrices(uint32_t (&to)[4], const void *row, const char *what, emu::Meeting meeting) {
    emu::Payload mine = {};
    for (int i = 0; i < 4; i++) mine.word[i] = static_cast<const uint32_t *>(row)[i];
    const emu::Payload taken = emu::meet(ALL, what, meeting, mine);
    for (int i = 0; i < 4; i++) to[i] = taken.word[i];
}
#endif

/// Four matrices of 8 × 8 16-bit elements from shared memory; lane 8 m + r brings row r of matrix m. Lane l gets elements
/// 2 (l mod 4) and the next of row l / 4 of each.
__device__ inline void load_matrices(uint32_t (&to)[4], const void *row) {
#ifdef __CUDA_ARCH__
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
                 : "r"(uint32_t(__cvta_generic_to_shared(row)))
                 : "memory");
#elif defined(LAVA_EMU)
    emulated_matrices(to, row, "ldmatrix", emu::load_matrix);
#endif
}

/// The same, each matrix transposed on the way.
__device__ inline void load_matrices_transposed(uint32_t (&to)[4], const void *row) {
#ifdef __CUDA_ARCH__
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
                 : "r"(uint32_t(__cvta_generic_to_shared(row)))
                 : "memory");
#elif defined(LAVA_EMU)
    emulated_matrices(to, row, "ldmatrix.trans", emu::load_matrix_transposed);
#endif
}

#ifdef LAVA_EMU
__device__ inline void multiply_emulated(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1, emu::Meeting meeting) {
    emu::Payload mine = {{a[0], a[1], a[2], a[3], b0, b1}};
    for (int i = 0; i < 4; i++) mine.word[6 + i] = __float_as_uint(c[i]);
    const emu::Payload taken = emu::meet(ALL, "mma", meeting, mine);
    for (int i = 0; i < 4; i++) c[i] = __uint_as_float(taken.word[i]);
}
#endif

/// c += a · b: 16 × 16 by 16 × 8, sums in f32.
__device__ inline void multiply(__half, float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
#ifdef __CUDA_ARCH__
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
                 : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
#elif defined(LAVA_EMU)
    multiply_emulated(c, a, b0, b1, emu::multiply_f16);
#endif
}
__device__ inline void multiply(__nv_bfloat16, float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
#ifdef __CUDA_ARCH__
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
                 : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
#elif defined(LAVA_EMU)
    multiply_emulated(c, a, b0, b1, emu::multiply_bf16);
#endif
}

// ---- Blocks that wait for each other -----------------------------------------------------------------------------------

/// Waits until all `n_blocks` blocks that share `counter` are here. What they wrote before is seen after it. The counter starts at
/// 0 and only grows.
__device__ inline void meet_blocks(unsigned *counter, unsigned n_blocks) {
    __syncthreads();
    if (n_blocks > 1 && threadIdx.x == 0) {
#ifdef __CUDA_ARCH__
        unsigned before, now;
        asm volatile("atom.add.release.gpu.u32 %0, [%1], 1;" : "=r"(before) : "l"(counter) : "memory");
        const unsigned goal = (before / n_blocks + 1) * n_blocks;
        // To acquire costs the processor its whole first cache, so it is done once, after the last look.
        do asm volatile("ld.relaxed.gpu.u32 %0, [%1];" : "=r"(now) : "l"(counter) : "memory");
        while (now < goal);
        asm volatile("fence.acq_rel.gpu;" ::: "memory");
#elif defined(LAVA_EMU)
        const unsigned goal = (__atomic_fetch_add(counter, 1u, __ATOMIC_ACQ_REL) / n_blocks + 1) * n_blocks;
        while (__atomic_load_n(counter, __ATOMIC_ACQUIRE) < goal) emu::spin();
#endif
    }
    __syncthreads();
}

} // namespace lava
