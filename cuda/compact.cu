// Eviction: each head's kept rows move together, in position order. Bits move, so one kernel does for f16 and bf16.
//
// Out of place every piece of every row goes by itself. In place rows only move towards the front, so the n-th row to move goes to
// where a row was that is one of the first n: a block that reads its next tile of rows whole before it writes any of it never
// overwrites what is still to be read. Columns of a row do not meet, so a block takes 32 bytes of each row and goes through all
// rows by itself, beside the blocks of the other columns.
#include "device.cuh"

namespace lava {

__device__ inline const uint32_t *rows_of(const lava_cuda_compact_item &item) {
    return item.rows + (item.rows_offset == nullptr ? 0 : *item.rows_offset);
}

__device__ inline bool both_in_sixteens(const lava_cuda_compact_item &item) {
    return lava_rows_are_aligned(&item.src, item.dim) && lava_rows_are_aligned(&item.dst, item.dim);
}

template <class T, class Piece>
__device__ void move_pieces(const lava_cuda_compact_item &item, uint32_t head) {
    constexpr uint32_t PER = sizeof(Piece) / sizeof(T);
    const uint32_t *const rows = rows_of(item) + item.cu_kept[head];
    const uint64_t n_rows = item.cu_kept[head + 1] - item.cu_kept[head], pieces = item.dim / PER;
    // What is near in the destination goes at the same time.
    const bool by_rows = item.dst.stride_dim <= item.dst.stride_token;
    for (uint64_t at = uint64_t(blockIdx.x) * blockDim.x + threadIdx.x; at < n_rows * pieces; at += uint64_t(gridDim.x) * blockDim.x) {
        const uint64_t r = by_rows ? at / pieces : at % n_rows, c = (by_rows ? at % pieces : at / n_rows) * PER;
        const T *const from = row_of<const T>(item.src, head, rows[r]) + int64_t(c) * item.src.stride_dim;
        T *const to = row_of<T>(item.dst, head, r) + int64_t(c) * item.dst.stride_dim;
        *reinterpret_cast<Piece *>(to) = *reinterpret_cast<const Piece *>(from);
    }
}

template <class T> __device__ void compact(const lava_cuda_compact_args &a) {
    const lava_cuda_compact_item &item = LAVA_ITEM(a, blockIdx.z);
    if (both_in_sixteens(item)) move_pieces<T, uint4>(item, blockIdx.y);
    else move_pieces<T, T>(item, blockIdx.y);
}

template <class T, class Piece>
__device__ void move_within(const lava_cuda_compact_item &item, uint32_t first_head, uint32_t end_head) {
    constexpr uint32_t PER = sizeof(Piece) / sizeof(T), SLICE = 32 / sizeof(T), AT_ONCE = 4;
    const uint32_t begin = blockIdx.x * SLICE, end = min(begin + SLICE, item.dim);
    if (begin >= end) return;
    const uint32_t pieces = (end - begin) / PER;
    const uint32_t *const rows = rows_of(item), *const cu = item.cu_kept;
    const uint64_t first = uint64_t(cu[first_head]) * pieces, last = uint64_t(cu[end_head]) * pieces;
    uint32_t head = first_head; // of the thread's next row; rows ascend
    for (uint64_t tile = first; tile < last; tile += AT_ONCE * blockDim.x) {
        Piece held[AT_ONCE];
        T *to[AT_ONCE];
#pragma unroll
        for (uint32_t i = 0; i < AT_ONCE; i++) {
            const uint64_t at = tile + i * blockDim.x + threadIdx.x;
            to[i] = nullptr;
            if (at >= last) continue;
            const uint32_t row = uint32_t(at / pieces), c = begin + uint32_t(at % pieces) * PER;
            while (row >= cu[head + 1]) head++;
            held[i] = *reinterpret_cast<const Piece *>(row_of<const T>(item.src, head, rows[row]) + int64_t(c) * item.src.stride_dim);
            to[i] = row_of<T>(item.dst, head, row - cu[head]) + int64_t(c) * item.dst.stride_dim;
        }
        __syncthreads(); // the tile is read
#pragma unroll
        for (uint32_t i = 0; i < AT_ONCE; i++)
            if (to[i] != nullptr) *reinterpret_cast<Piece *>(to[i]) = held[i];
    }
}

template <class T> __device__ void compact_within(const lava_cuda_compact_args &a) {
    const lava_cuda_compact_item &item = LAVA_ITEM(a, blockIdx.z);
    const uint32_t first = a.per_head ? blockIdx.y : 0, end = a.per_head ? first + 1 : a.n_kv_heads;
    if (both_in_sixteens(item)) move_within<T, uint4>(item, first, end);
    else move_within<T, T>(item, first, end);
}

} // namespace lava

#define LAVA_COMPACT(bits, T)                                                                                             \
    LAVA_KERNEL(LAVA_CUDA_COMPACT_THREADS) lava_compact_##bits(const __grid_constant__ lava_cuda_compact_args a) {        \
        lava::compact<T>(a);                                                                                              \
    }                                                                                                                     \
    LAVA_KERNEL(LAVA_CUDA_COMPACT_THREADS) lava_compact_within_##bits(const __grid_constant__ lava_cuda_compact_args a) { \
        lava::compact_within<T>(a);                                                                                       \
    }
LAVA_COMPACT(16, uint16_t)
LAVA_COMPACT(32, uint32_t)
