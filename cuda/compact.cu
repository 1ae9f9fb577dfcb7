// Eviction: each head's kept rows move together, in position order. Bits move, so one kernel does for f16 and bf16.
//
// Out of place every piece of every row moves by itself. In place rows only move towards the front, so the n-th row to move goes to
// where a row was that is one of the first n: a block that reads its next tile of rows whole before it writes any of it never
// overwrites what has not been read yet. Columns of a row do not meet, so a block takes 32 bytes of each row and goes through all
// rows by itself, next to the blocks of the other columns.
#include "device.cuh"

namespace lava {

__device__ inline const uint32_t *rows_of(const lava_cuda_compact_item &item) {
    return item.rows + (item.rows_offset == nullptr ? 0 : *item.rows_offset);
}

__device__ inline bool is_at_fault(const lava_cuda_compact_args &a) {
    // Looked at once for all threads: they meet further on.
    LAVA_SHARED(uint32_t, fault, 1);
    if (threadIdx.x == 0) *fault = *a.status != LAVA_NO_FAULT;
    __syncthreads();
    return *fault != 0;
}

/// By one block of each head, or of all.
__device__ inline void write_n_rows(const lava_cuda_compact_item &item, uint32_t first_head, uint32_t end_head) {
    if (item.n_rows == nullptr || blockIdx.x != 0) return;
    for (uint32_t h = first_head + threadIdx.x; h < end_head; h += blockDim.x) item.n_rows[h] = item.cu_kept[h + 1] - item.cu_kept[h];
}

__device__ inline bool both_in_sixteens(const lava_cuda_compact_item &item) {
    return lava_rows_are_aligned(&item.src, item.dim) && lava_rows_are_aligned(&item.dst, item.dim);
}

/// How a block's threads are spread over rows of `pieces` pieces: side by side, then row after row. Some may have nothing to do.
struct Lanes {
    uint32_t across, rows, row, piece;
    __device__ explicit Lanes(uint32_t pieces)
        : across(min(pieces, blockDim.x)), rows(blockDim.x / across), row(threadIdx.x / across), piece(threadIdx.x % across) {}
    __device__ bool idle() const { return row >= rows; }
};

/// Rows on their way at a time, of one thread: memory is far away, and a row's number has to come before the row.
constexpr uint32_t AT_ONCE = 4;

/// Rows that are whole pieces of 16 bytes.
template <class T> __device__ void move_rows(const lava_cuda_compact_item &item, uint32_t head) {
    constexpr uint32_t PER = 16 / sizeof(T);
    const uint32_t first = item.cu_kept[head], n_rows = item.cu_kept[head + 1] - first, dim = item.dim;
    const uint32_t *const rows = rows_of(item) + first;
    const T *const from = row_of<const T>(item.src, head, 0);
    T *const to = row_of<T>(item.dst, head, 0);
    const int64_t from_apart = item.src.stride_token, to_apart = item.dst.stride_token;
    const Lanes lanes(dim / PER);
    if (lanes.idle()) return;
    const uint32_t apart = gridDim.x * lanes.rows;
    for (uint32_t c = lanes.piece * PER; c < dim; c += lanes.across * PER)
        for (uint32_t r = blockIdx.x * lanes.rows + lanes.row; r < n_rows; r += AT_ONCE * apart) {
            const uint32_t left = n_rows - r;
            uint32_t source[AT_ONCE];
            uint4 held[AT_ONCE];
            // Without a condition: only then does the compiler load all of these at once.
#pragma unroll
            for (uint32_t i = 0; i < AT_ONCE; i++) source[i] = rows[r + min(i * apart, left - 1)];
#pragma unroll
            for (uint32_t i = 0; i < AT_ONCE; i++)
                if (i * apart < left) held[i] = load_streaming(reinterpret_cast<const uint4 *>(from + source[i] * from_apart + c));
#pragma unroll
            for (uint32_t i = 0; i < AT_ONCE; i++)
                if (i * apart < left) *reinterpret_cast<uint4 *>(to + int64_t(r + i * apart) * to_apart + c) = held[i];
            if (left <= AT_ONCE * apart) break; // the next one might not fit into 32 bits
        }
}

/// Any rows, element by element.
template <class T> __device__ void move_elements(const lava_cuda_compact_item &item, uint32_t head) {
    const uint32_t *const rows = rows_of(item) + item.cu_kept[head];
    const uint64_t n_rows = item.cu_kept[head + 1] - item.cu_kept[head];
    // What is near in the destination goes at the same time.
    const bool by_rows = item.dst.stride_dim <= item.dst.stride_token;
    for (uint64_t at = uint64_t(blockIdx.x) * blockDim.x + threadIdx.x; at < n_rows * item.dim; at += uint64_t(gridDim.x) * blockDim.x) {
        const uint64_t r = by_rows ? at / item.dim : at % n_rows, c = by_rows ? at % item.dim : at / n_rows;
        const T *const from = row_of<const T>(item.src, head, rows[r]) + int64_t(c) * item.src.stride_dim;
        row_of<T>(item.dst, head, r)[int64_t(c) * item.dst.stride_dim] = *from;
    }
}

template <class T> __device__ void compact(const lava_cuda_compact_args &a) {
    if (is_at_fault(a)) return;
    const lava_cuda_compact_item &item = LAVA_ITEM(a, blockIdx.z);
    write_n_rows(item, blockIdx.y, blockIdx.y + 1);
    if (both_in_sixteens(item)) move_rows<T>(item, blockIdx.y);
    else move_elements<T>(item, blockIdx.y);
}

template <class T, class Piece>
__device__ void move_within(const lava_cuda_compact_item &item, uint32_t first_head, uint32_t end_head) {
    constexpr uint32_t PER = sizeof(Piece) / sizeof(T), SLICE = 32 / sizeof(T);
    const uint32_t begin = blockIdx.x * SLICE, end = min(begin + SLICE, item.dim);
    if (begin >= end) return;
    const Lanes lanes((end - begin) / PER);
    const uint32_t c = begin + lanes.piece * PER;
    const uint32_t *const rows = rows_of(item), *const cu = item.cu_kept;
    const uint32_t last = cu[end_head];
    const int64_t from_apart = item.src.stride_token, to_apart = item.dst.stride_token;
    // The head of the thread's next row, which ascends, the end of it, and where its rows are.
    uint32_t head = first_head - 1, end_of_head = cu[first_head];
    const T *from = nullptr;
    T *to = nullptr;
    for (uint64_t tile = end_of_head; tile < last; tile += AT_ONCE * lanes.rows) {
        uint32_t source[AT_ONCE];
        Piece held[AT_ONCE];
        T *into[AT_ONCE];
#pragma unroll
        for (uint32_t i = 0; i < AT_ONCE; i++) {
            const uint64_t row = tile + i * lanes.rows + lanes.row;
            source[i] = !lanes.idle() && row < last ? rows[row] : 0;
        }
#pragma unroll
        for (uint32_t i = 0; i < AT_ONCE; i++) {
            const uint64_t row = tile + i * lanes.rows + lanes.row;
            into[i] = nullptr;
            if (lanes.idle() || row >= last) continue;
            while (row >= end_of_head) {
                head++;
                from = row_of<const T>(item.src, head, 0) + int64_t(c) * item.src.stride_dim;
                to = row_of<T>(item.dst, head, 0) + int64_t(c) * item.dst.stride_dim - int64_t(end_of_head) * to_apart;
                end_of_head = cu[head + 1];
            }
            held[i] = *reinterpret_cast<const Piece *>(from + source[i] * from_apart);
            into[i] = to + int64_t(row) * to_apart;
        }
        __syncthreads(); // the tile is read
#pragma unroll
        for (uint32_t i = 0; i < AT_ONCE; i++)
            if (into[i] != nullptr) *reinterpret_cast<Piece *>(into[i]) = held[i];
    }
}

template <class T> __device__ void compact_within(const lava_cuda_compact_args &a) {
    if (is_at_fault(a)) return;
    const lava_cuda_compact_item &item = LAVA_ITEM(a, blockIdx.z);
    const uint32_t first = a.per_head ? blockIdx.y : 0, end = a.per_head ? first + 1 : a.n_kv_heads;
    write_n_rows(item, first, end);
    if (both_in_sixteens(item)) move_within<T, uint4>(item, first, end);
    else move_within<T, T>(item, first, end);
}

} // namespace lava

#define LAVA_COMPACT(bits, T)                                                                                             \
    extern "C" __global__ void __launch_bounds__(LAVA_CUDA_COMPACT_THREADS, LAVA_CUDA_COMPACT_BLOCKS)                     \
        lava_compact_##bits(const __grid_constant__ lava_cuda_compact_args a) {                                           \
        lava::compact<T>(a);                                                                                              \
    }                                                                                                                     \
    extern "C" __global__ void __launch_bounds__(LAVA_CUDA_COMPACT_THREADS, 3) /* left alone it spills */                 \
        lava_compact_within_##bits(const __grid_constant__ lava_cuda_compact_args a) {                                    \
        lava::compact_within<T>(a);                                                                                       \
    }
LAVA_COMPACT(16, uint16_t)
LAVA_COMPACT(32, uint32_t)
