// CUDA kernels on the host: the same .cu sources, compiled by a C++ compiler against the real CUDA headers for f16 and bf16.
//
// Every CUDA thread is a fiber (ucontext) of the one OS thread. A fiber runs until it waits; which one runs next is drawn
// from a seed, so another seed is another schedule, and the same seed the same one. What waits: __syncthreads, __syncwarp,
// shuffles, votes, tensor-core instructions, and loops on an acquiring load (blocks that wait for each other).
//
// What it finds: results that depend on the schedule; a barrier that not all threads reach, at one line; a lane that reads a
// lane which takes no part; copies used before they were waited for (an asynchronous copy happens when it is waited for, not
// earlier); under ThreadSanitizer every missing barrier, between threads of a block and between blocks; under
// AddressSanitizer every access outside a buffer, shared memory included. A shuffle orders no memory here, as on a GPU.
// What it cannot see: inline PTX, memory orders weaker than they should be, registers, time.
#pragma once
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <type_traits>

#include <vector_types.h>
#include <vector_functions.h>

#undef __global__
#undef __device__
#undef __host__
#undef __constant__
#undef __forceinline__
#undef __launch_bounds__
#undef __grid_constant__
#undef __align__
#define __global__
#define __device__
#define __host__
#define __constant__ static
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __grid_constant__
#define __align__(n) alignas(n)

namespace emu {

struct Dim3 {
    unsigned x = 1, y = 1, z = 1;
};

struct Launch {
    Dim3 grid, block;
    size_t shared_bytes = 0;
    unsigned seed = 0;
    /// Blocks that are there at the same time; 0: all of them, as a cooperative launch promises.
    unsigned resident = 3;
};

/// Runs `kernel` once per thread. Aborts with a message on anything a GPU would hang or be undefined on.
void launch(const Launch &launch, const std::function<void()> &kernel);

/// What a lane brings to a meeting of its warp, and what it gets from it.
struct Payload {
    uint32_t word[12];
};
/// Called once all lanes of `mask` are there, for all of them.
using Meeting = void (*)(uint32_t mask, const Payload *in, Payload *out);

Payload meet(uint32_t mask, const char *what, Meeting meeting, const Payload &mine);
void shuffle(uint32_t mask, const Payload *in, Payload *out);
void vote(uint32_t mask, const Payload *in, Payload *out);
void load_matrix(uint32_t mask, const Payload *in, Payload *out);
void load_matrix_transposed(uint32_t mask, const Payload *in, Payload *out);
void multiply_f16(uint32_t mask, const Payload *in, Payload *out);
void multiply_bf16(uint32_t mask, const Payload *in, Payload *out);

void block_barrier(const char *file, int line);
void warp_barrier(uint32_t mask);
/// Lets others run; for loops that wait for another block.
void spin();

/// The memory of a shared variable of the running block. `key` is its name: an address that no other variable has.
void *shared(const void *key, size_t bytes);
void *dynamic_shared();

/// Copies that have been asked for and not been waited for.
struct Copies {
    struct Copy {
        void *to;
        const void *from;
    };
    static constexpr int MOST = 256;
    Copy queue[MOST];
    int n = 0, ends[64], n_groups = 0;
};
Copies &copies();

const Dim3 &thread_index();
const Dim3 &block_index();
const Dim3 &block_size();
const Dim3 &grid_size();
unsigned lane();
[[noreturn]] void fail(const char *format, ...) __attribute__((format(printf, 1, 2)));

template <class T> Payload pack(T value, uint32_t extra) {
    static_assert(sizeof(T) <= 8, "a shuffle moves 4 or 8 bytes");
    Payload p = {};
    memcpy(p.word, &value, sizeof value);
    p.word[2] = extra;
    return p;
}

template <class T> T shuffled(unsigned mask, T value, unsigned source, const char *what) {
    const Payload p = meet(mask, what, shuffle, pack(value, source));
    T result;
    memcpy(&result, p.word, sizeof result);
    return result;
}

} // namespace emu

#define threadIdx (emu::thread_index())
#define blockIdx (emu::block_index())
#define blockDim (emu::block_size())
#define gridDim (emu::grid_size())

#define LAVA_SHARED(T, name, n)                                                                                            \
    T *const name = static_cast<T *>(emu::shared([]() -> const void * { static const char key = 0; return &key; }(),        \
                                                 sizeof(T) * (n)))
#define LAVA_DYNAMIC_SHARED(name) unsigned char *const name = static_cast<unsigned char *>(emu::dynamic_shared())

#define __syncthreads() emu::block_barrier(__FILE__, __LINE__)
inline void __syncwarp(unsigned mask = 0xffffffffu) { emu::warp_barrier(mask); }

template <class T> T __shfl_sync(unsigned mask, T value, int source, int width = 32) {
    const unsigned lane = emu::lane(), in = width - 1;
    return emu::shuffled(mask, value, (lane & ~in) | (source & in), "__shfl_sync");
}
template <class T> T __shfl_xor_sync(unsigned mask, T value, int with, int width = 32) {
    const unsigned lane = emu::lane(), in = width - 1, other = lane ^ with;
    return emu::shuffled(mask, value, (other & ~in) == (lane & ~in) ? other : lane, "__shfl_xor_sync");
}
template <class T> T __shfl_up_sync(unsigned mask, T value, unsigned by, int width = 32) {
    const unsigned lane = emu::lane(), in = width - 1;
    return emu::shuffled(mask, value, (lane & in) >= by ? lane - by : lane, "__shfl_up_sync");
}
template <class T> T __shfl_down_sync(unsigned mask, T value, unsigned by, int width = 32) {
    const unsigned lane = emu::lane(), in = width - 1;
    return emu::shuffled(mask, value, (lane & in) + by <= in ? lane + by : lane, "__shfl_down_sync");
}
inline unsigned __ballot_sync(unsigned mask, int vote) {
    return emu::meet(mask, "__ballot_sync", emu::vote, emu::pack(uint32_t(vote != 0), 0)).word[0];
}
inline int __any_sync(unsigned mask, int vote) { return __ballot_sync(mask, vote) != 0; }
inline int __all_sync(unsigned mask, int vote) { return __ballot_sync(mask, vote) == mask; }

inline int __popc(unsigned x) { return __builtin_popcount(x); }
inline int __clz(int x) { return x == 0 ? 32 : __builtin_clz(unsigned(x)); }
inline float __uint_as_float(unsigned bits) {
    float x;
    __builtin_memcpy(&x, &bits, 4);
    return x;
}
inline unsigned __float_as_uint(float x) {
    unsigned bits;
    __builtin_memcpy(&bits, &x, 4);
    return bits;
}

// Atomic, but ordering nothing, as on a GPU.
template <class T> T atomicAdd(T *at, T by) {
    static_assert(std::is_integral<T>::value, "sums of floats would depend on the schedule");
    return __atomic_fetch_add(at, by, __ATOMIC_RELAXED);
}
template <class T> T emu_atomic_select(T *at, T value, bool (*replaces)(T, T)) {
    T old = __atomic_load_n(at, __ATOMIC_RELAXED);
    while (replaces(value, old) && !__atomic_compare_exchange_n(at, &old, value, false, __ATOMIC_RELAXED, __ATOMIC_RELAXED)) {
    }
    return old;
}
template <class T> T atomicMin(T *at, T value) {
    return emu_atomic_select<T>(at, value, [](T a, T b) { return a < b; });
}
template <class T> T atomicMax(T *at, T value) {
    return emu_atomic_select<T>(at, value, [](T a, T b) { return a > b; });
}
template <class T> T atomicOr(T *at, T bits) { return __atomic_fetch_or(at, bits, __ATOMIC_RELAXED); }

template <class T> T min(T a, T b) { return b < a ? b : a; }
template <class T> T max(T a, T b) { return a < b ? b : a; }
