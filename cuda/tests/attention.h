// What score.cpp and attend.cpp share: tensors of any strides that the CPU library and the kernels both read, and numbers read back.
#pragma once
#include "test.h"
#include "../plan_attention.h"

#include <algorithm>
#include <cstdarg>

namespace test {

__attribute__((format(printf, 2, 3))) inline void expect(bool holds, const char *format, ...) {
    if (holds) return;
    va_list arguments;
    va_start(arguments, format);
    if (failures++ < 20) {
        fputs("FAILED: ", stderr);
        vfprintf(stderr, format, arguments);
        fputc('\n', stderr);
    }
    va_end(arguments);
}

/// A tensor in memory that ends with its last element.
struct Numbers {
    int32_t dtype;
    uint32_t rows, heads, dim;
    int64_t stride_token, stride_head, stride_dim;
    Buffer<uint32_t> row_start; // empty: all heads in a block
    std::unique_ptr<Buffer<uint8_t>> memory;
    size_t bytes;

    Numbers(int32_t dtype, uint32_t rows, uint32_t heads, uint32_t dim, Layout layout, const std::vector<uint32_t> &starts = {})
        : dtype(dtype), rows(rows), heads(heads), dim(dim), row_start(starts.size()) {
        std::copy(starts.begin(), starts.end(), row_start.data());
        stride_dim = 1;
        switch (layout) {
        case TOKEN_MAJOR: stride_token = int64_t(heads) * dim, stride_head = dim; break;
        case HEAD_MAJOR: stride_token = dim, stride_head = int64_t(rows) * dim; break;
        case TRANSPOSED: stride_token = 1, stride_head = int64_t(rows) * dim, stride_dim = rows; break;
        case GAPS: stride_dim = 2, stride_head = 2 * dim + 1, stride_token = heads * stride_head + 3; break;
        }
        if (is_ragged()) stride_token = dim, stride_head = 0;
        const int64_t last_row = rows == 0 ? 0 : rows - 1, last_head = !is_ragged() ? heads - 1 : 0;
        bytes = size_t(last_row * stride_token + last_head * stride_head + (dim - 1) * stride_dim + 1) * size();
        memory.reset(new Buffer<uint8_t>(bytes, 0));
    }
    bool is_ragged() const { return row_start.size() != 0; }
    size_t size() const { return dtype == LAVA_F32 ? 4 : 2; }
    size_t at(uint32_t head, uint64_t row, uint32_t c) const {
        const uint64_t first = !is_ragged() ? 0 : row_start[head];
        return size_t(int64_t(first + row) * stride_token + head * stride_head + c * stride_dim) * size();
    }
    void set(uint32_t head, uint64_t row, uint32_t c, float x) {
        uint8_t *to = memory->data() + at(head, row, c);
        const __half half = __float2half(x);
        const __nv_bfloat16 brain = __float2bfloat16(x);
        if (dtype == LAVA_F32) memcpy(to, &x, 4);
        else if (dtype == LAVA_F16) memcpy(to, &half, 2);
        else memcpy(to, &brain, 2);
    }
    float get(uint32_t head, uint64_t row, uint32_t c) const {
        const uint8_t *from = memory->data() + at(head, row, c);
        float x;
        __half half;
        __nv_bfloat16 brain;
        if (dtype == LAVA_F32) return memcpy(&x, from, 4), x;
        if (dtype == LAVA_F16) return memcpy(&half, from, 2), __half2float(half);
        return memcpy(&brain, from, 2), __bfloat162float(brain);
    }
    /// Rows of every head up to `rows`, or a ragged tensor's all.
    void fill(Random &random, float size) {
        for (uint32_t h = 0; h < (!is_ragged() ? heads : 1); h++)
            for (uint32_t r = 0; r < rows; r++)
                for (uint32_t c = 0; c < dim; c++) {
                    const uint32_t first = !is_ragged() ? 0 : row_start[0];
                    set(h, uint64_t(r) - first, c, size * random.uniform());
                }
    }
    lava_tensor host() const {
        lava_tensor t = lava_tensor_init(dtype, memory->data(), bytes, stride_token, stride_head, stride_dim);
        t.row_start = is_ragged() ? row_start.data() : nullptr;
        return t;
    }
    lava_device_tensor device() const {
        lava_device_tensor t = {};
        t.data = memory->data();
        t.stride_token = stride_token;
        t.stride_head = stride_head;
        t.stride_dim = stride_dim;
        t.row_start = is_ragged() ? row_start.data() : nullptr;
        t.dtype = dtype;
        return t;
    }
};

constexpr double HALF_ULP = 1.0 / (1 << 24);

inline bool same_bits(const std::vector<float> &a, const std::vector<float> &b) {
    return a.size() == b.size() && (a.empty() || memcmp(a.data(), b.data(), 4 * a.size()) == 0);
}

} // namespace test
