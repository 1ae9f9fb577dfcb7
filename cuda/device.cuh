// What every kernel includes: CUDA as nvcc has it, or as the host emulation has it (LAVA_EMU), behind the same names.
//
// All inline PTX is here, each instruction in a function whose other branch is plain C++ or the emulation's.
#pragma once

#ifdef LAVA_EMU
#include "emu.h"
#endif
#include <cstdint>
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#ifndef LAVA_EMU
/// `n` elements of static shared memory.
#define LAVA_SHARED(T, name, n) __shared__ __align__(16) T name[n]
/// The launch's dynamic shared memory, as bytes.
#define LAVA_DYNAMIC_SHARED(name) extern __shared__ __align__(16) unsigned char name[]
#endif

/// 2 to the x. The hardware's: 2 ulp, and 0 below 2^-126 (to keep those would cost three instructions).
__device__ inline float lava_exp2(float x) {
#ifdef LAVA_EMU
    return exp2f(x);
#else
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
#endif
}

/// c += a · b for a 16x16 tile of a and an 8x16 tile of b, as mma.m16n8k16 lays them over a warp's lanes.
__device__ inline void lava_mma_f16(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
#ifdef LAVA_EMU
    emu::multiply_lanes(emu::multiply_f16, c, a, b0, b1);
#else
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
                 : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
#endif
}
__device__ inline void lava_mma_bf16(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
#ifdef LAVA_EMU
    emu::multiply_lanes(emu::multiply_bf16, c, a, b0, b1);
#else
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
                 : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
#endif
}

/// ldmatrix.x4: lane 8 m + r points at row r, 16 aligned bytes, of 8x8 matrix m in shared memory.
__device__ inline void lava_load_matrix(uint32_t (&to)[4], const void *row) {
#ifdef LAVA_EMU
    emu::Payload mine = {};
    memcpy(mine.word, row, 16);
    const emu::Payload got = emu::meet(0xffffffffu, "ldmatrix", emu::load_matrix, mine);
    memcpy(to, got.word, 16);
#else
    const uint32_t at = static_cast<uint32_t>(__cvta_generic_to_shared(row));
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
                 : "r"(at)
                 : "memory");
#endif
}

/// The same, each 8x8 matrix transposed on the way.
__device__ inline void lava_load_matrix_transposed(uint32_t (&to)[4], const void *row) {
#ifdef LAVA_EMU
    emu::Payload mine = {};
    memcpy(mine.word, row, 16);
    const emu::Payload got = emu::meet(0xffffffffu, "ldmatrix.trans", emu::load_matrix_transposed, mine);
    memcpy(to, got.word, 16);
#else
    const uint32_t at = static_cast<uint32_t>(__cvta_generic_to_shared(row));
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
                 : "r"(at)
                 : "memory");
#endif
}

/// 16 bytes of global memory that are read once.
__device__ inline uint4 lava_load_streaming(const uint4 *from) {
#ifdef LAVA_EMU
    return *from;
#else
    return __ldcs(from);
#endif
}

/// Copies 16 aligned bytes from global to shared memory, to be there once they have been waited for.
__device__ inline void lava_copy_async16(void *to, const void *from) {
#ifdef LAVA_EMU
    emu::Copies &copies = emu::copies();
    if (copies.n == emu::Copies::MOST) emu::fail("more than %d copies on their way", emu::Copies::MOST);
    if (reinterpret_cast<uintptr_t>(to) % 16 || reinterpret_cast<uintptr_t>(from) % 16) emu::fail("a copy of 16 bytes is not aligned");
    copies.queue[copies.n++] = {to, from};
#else
    const uint32_t at = static_cast<uint32_t>(__cvta_generic_to_shared(to));
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" : : "r"(at), "l"(from) : "memory");
#endif
}
/// Makes a group of the copies asked for since the last.
__device__ inline void lava_copy_commit() {
#ifdef LAVA_EMU
    emu::Copies &copies = emu::copies();
    if (copies.n_groups == 64) emu::fail("more than 64 groups of copies on their way");
    copies.ends[copies.n_groups++] = copies.n;
#else
    asm volatile("cp.async.commit_group;" : : : "memory");
#endif
}
/// Waits until at most the last `N` groups are still on their way: this thread's copies only.
template <int N> __device__ inline void lava_copy_wait() {
#ifdef LAVA_EMU
    emu::Copies &copies = emu::copies();
    const int done = copies.n_groups > N ? copies.n_groups - N : 0, first = done ? copies.ends[done - 1] : 0;
    for (int i = 0; i < first; i++) {
        uint64_t both[2];
        memcpy(both, copies.queue[i].from, 16);
        memcpy(copies.queue[i].to, both, 16);
    }
    for (int i = first; i < copies.n; i++) copies.queue[i - first] = copies.queue[i];
    for (int g = done; g < copies.n_groups; g++) copies.ends[g - done] = copies.ends[g] - first;
    copies.n -= first;
    copies.n_groups -= done;
#else
    asm volatile("cp.async.wait_group %0;" : : "n"(N) : "memory");
#endif
}
