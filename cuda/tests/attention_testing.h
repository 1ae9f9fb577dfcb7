// What score_test.cpp and attend_test.cpp share: random tensors that the CPU library and the kernels both read, a count of what went wrong.
#pragma once
#include "device.cuh"
#include "kernels_attention.h"
#include "lava.h"

#include <algorithm>
#include <cmath>
#include <cstdarg>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <string>
#include <vector>

inline int n_failures = 0;

__attribute__((format(printf, 2, 3))) inline void expect(bool holds, const char *format, ...) {
    if (holds) return;
    va_list arguments;
    va_start(arguments, format);
    if (n_failures++ < 20) {
        fputs("FAILED: ", stderr);
        vfprintf(stderr, format, arguments);
        fputc('\n', stderr);
    }
    va_end(arguments);
}

struct Random {
    uint64_t state;
    explicit Random(uint64_t seed) : state(seed * 2 + 1) {}
    uint32_t bits() {
        state = state * 6364136223846793005u + 1442695040888963407u;
        return uint32_t(state >> 32);
    }
    uint32_t below(uint32_t n) { return bits() % n; }
    /// In [-1, 1).
    float number() { return float(int32_t(bits())) / 2147483648.0f; }
};

enum class Layout { TOKEN_MAJOR, HEAD_MAJOR, TRANSPOSED, GAPS };

/// A tensor in memory that ends with its last element.
struct Numbers {
    int32_t dtype;
    uint32_t rows, heads, dim;
    int64_t stride_token, stride_head, stride_dim;
    std::vector<uint32_t> row_start;
    std::unique_ptr<uint8_t, void (*)(void *)> memory{nullptr, free};
    size_t bytes;

    Numbers(int32_t dtype, uint32_t rows, uint32_t heads, uint32_t dim, Layout layout, std::vector<uint32_t> starts = {})
        : dtype(dtype), rows(rows), heads(heads), dim(dim), row_start(std::move(starts)) {
        stride_dim = 1;
        switch (layout) {
        case Layout::TOKEN_MAJOR: stride_token = int64_t(heads) * dim, stride_head = dim; break;
        case Layout::HEAD_MAJOR: stride_token = dim, stride_head = int64_t(rows) * dim; break;
        case Layout::TRANSPOSED: stride_token = 1, stride_head = int64_t(rows) * dim, stride_dim = rows; break;
        case Layout::GAPS: stride_dim = 2, stride_head = 2 * dim + 1, stride_token = heads * stride_head + 3; break;
        }
        if (!row_start.empty()) stride_token = dim, stride_head = 0;
        const int64_t last_row = rows == 0 ? 0 : rows - 1, last_head = row_start.empty() ? heads - 1 : 0;
        bytes = size_t(last_row * stride_token + last_head * stride_head + (dim - 1) * stride_dim + 1) * size();
        memory.reset(static_cast<uint8_t *>(aligned_alloc(16, (bytes + 15) / 16 * 16)));
        memset(memory.get(), 0, bytes);
    }
    size_t size() const { return dtype == LAVA_F32 ? 4 : 2; }
    size_t at(uint32_t head, uint64_t row, uint32_t c) const {
        const uint64_t first = row_start.empty() ? 0 : row_start[head];
        return size_t(int64_t(first + row) * stride_token + head * stride_head + c * stride_dim) * size();
    }
    void set(uint32_t head, uint64_t row, uint32_t c, float x) {
        uint8_t *to = memory.get() + at(head, row, c);
        const __half half = __float2half(x);
        const __nv_bfloat16 brain = __float2bfloat16(x);
        if (dtype == LAVA_F32) memcpy(to, &x, 4);
        else if (dtype == LAVA_F16) memcpy(to, &half, 2);
        else memcpy(to, &brain, 2);
    }
    float get(uint32_t head, uint64_t row, uint32_t c) const {
        const uint8_t *from = memory.get() + at(head, row, c);
        float x;
        __half half;
        __nv_bfloat16 brain;
        if (dtype == LAVA_F32) return memcpy(&x, from, 4), x;
        if (dtype == LAVA_F16) return memcpy(&half, from, 2), __half2float(half);
        return memcpy(&brain, from, 2), __bfloat162float(brain);
    }
    /// Rows of every head up to `rows`, or a ragged tensor's all.
    void fill(Random &random, float size) {
        for (uint32_t h = 0; h < (row_start.empty() ? heads : 1); h++)
            for (uint32_t r = 0; r < rows; r++)
                for (uint32_t c = 0; c < dim; c++) {
                    const uint32_t first = row_start.empty() ? 0 : row_start[0];
                    set(h, uint64_t(r) - first, c, size * random.number());
                }
    }
    lava_tensor host() const {
        lava_tensor t = lava_tensor_init(dtype, memory.get(), bytes, stride_token, stride_head, stride_dim);
        t.row_start = row_start.empty() ? nullptr : row_start.data();
        return t;
    }
    lava_device_tensor device() const {
        lava_device_tensor t = {};
        t.data = memory.get();
        t.stride_token = stride_token;
        t.stride_head = stride_head;
        t.stride_dim = stride_dim;
        t.row_start = row_start.empty() ? nullptr : row_start.data();
        t.dtype = dtype;
        return t;
    }
};

/// A workspace that is as large as it says, full of NaN.
struct Workspace {
    std::unique_ptr<uint8_t, void (*)(void *)> memory{nullptr, free};
    explicit Workspace(size_t bytes) {
        memory.reset(static_cast<uint8_t *>(aligned_alloc(16, (bytes + 15) / 16 * 16 + 16)));
        for (size_t i = 0; i < bytes; i++) memory.get()[i] = 0xff;
    }
};

constexpr double HALF_ULP = 1.0 / (1 << 24);

inline bool same_bits(const std::vector<float> &a, const std::vector<float> &b) {
    return a.size() == b.size() && (a.empty() || memcmp(a.data(), b.data(), 4 * a.size()) == 0);
}
