// Every instruction that C++ does not have, against what PTX says that it does: on a GPU the instruction, under emulation its stand-in.
// So both branches of each wrapper of device.cuh are held to one definition.
#include "test.h"

using namespace test;

constexpr uint32_t ROW = 24; // elements from a row in shared memory to the next
constexpr uint32_t ABSENT = 5; // a row that is copied from nowhere

struct Args {
    const uint16_t *a, *b; // [16, 16], [8, 16]: rows of the left side, columns of the right one
    const float *c;        // [16, 8]
    float *products;       // [16, 8]
    uint32_t *matrices;    // [2, 32, 4]: as they are, transposed
    const float *x;        // [32]
    float *powers;         // [32]
    uint32_t is_bf16;
};

LAVA_KERNEL(32) wrappers(const __grid_constant__ Args args) {
    using namespace lava;
    LAVA_SHARED(uint4, memory, 24 * ROW / 8);
    uint16_t *const rows = reinterpret_cast<uint16_t *>(memory); // a, then b
    // Two pieces of each row: twelve groups of four lanes.
    for (uint32_t i = lane(); i < 48; i += 32) {
        const uint32_t row = i / 2, piece = i % 2 * 8;
        const uint16_t *const from = (row < 16 ? args.a + row * 16 : args.b + (row - 16) * 16) + piece;
        copy_async(rows + row * ROW + piece, row == ABSENT ? nullptr : from, row != ABSENT);
    }
    copy_commit();
    copy_wait<0>();
    __syncwarp();
    uint32_t a[4], b[4];
    load_matrices(a, rows + lane() % 16 * ROW + lane() / 16 * 8);
    load_matrices(b, rows + (16 + lane() % 8) * ROW + lane() / 8 % 2 * 8);
    float c[4];
    for (uint32_t i = 0; i < 4; i++) c[i] = args.c[(lane() / 4 + i / 2 * 8) * 8 + lane() % 4 * 2 + i % 2];
    if (args.is_bf16) multiply(__nv_bfloat16(), c, a, b[0], b[1]);
    else multiply(__half(), c, a, b[0], b[1]);
    for (uint32_t i = 0; i < 4; i++) args.products[(lane() / 4 + i / 2 * 8) * 8 + lane() % 4 * 2 + i % 2] = c[i];
    uint32_t transposed[4];
    load_matrices_transposed(transposed, rows + lane() % 16 * ROW + lane() / 16 * 8);
    for (uint32_t i = 0; i < 4; i++) args.matrices[lane() * 4 + i] = a[i], args.matrices[(32 + lane()) * 4 + i] = transposed[i];
    args.powers[lane()] = exp2_fast(args.x[lane()]);
}

static float value(uint16_t bits, bool is_bf16) {
    if (is_bf16) return __bfloat162float(__nv_bfloat16(__nv_bfloat16_raw{bits}));
    return __half2float(__half(__half_raw{bits}));
}

int main() {
    long n = 0;
    for (uint32_t seed = 0; seed < 20; seed++, n++) {
        Random random(seed);
        Buffer<uint16_t> a(256), b(128);
        Buffer<float> c(128), products(128), x(32), powers(32);
        Buffer<uint32_t> matrices(256);
        const bool is_bf16 = seed % 2;
        const auto fill = [&](Buffer<uint16_t> &to) {
            for (size_t i = 0; i < to.size(); i++) {
                const __half h = __float2half(random.normal());
                const __nv_bfloat16 w = __float2bfloat16(random.normal());
                memcpy(&to[i], is_bf16 ? static_cast<const void *>(&w) : &h, 2);
            }
        };
        fill(a), fill(b);
        for (size_t i = 0; i < 128; i++) c[i] = random.normal();
        for (size_t i = 0; i < 32; i++) x[i] = 40 * random.normal();
        x[0] = -INFINITY, x[1] = 0, x[2] = -126, x[3] = -150, x[4] = 127;
        launch(wrappers, 1, 1, 1, 32, 0, seed, Args{a.data(), b.data(), c.data(), products.data(), matrices.data(), x.data(), powers.data(), is_bf16});
        for (uint32_t i = 0; i < 16; i++) a[ABSENT * 16 + i] = 0;
        for (uint32_t r = 0; r < 16; r++)
            for (uint32_t k = 0; k < 8; k++) {
                double sum = c[r * 8 + k], size = fabs(sum);
                for (uint32_t i = 0; i < 16; i++) {
                    const double product = double(value(a[r * 16 + i], is_bf16)) * value(b[k * 16 + i], is_bf16);
                    sum += product, size += fabs(product);
                }
                // Tensor cores cut off instead of rounding: an ulp of the largest partial sum for each of 17 terms.
                CHECK(fabs(products[r * 8 + k] - sum) <= 17 * size / (1 << 23), "(%u, %u): %g, not %g", r, k, products[r * 8 + k], sum);
            }
        for (uint32_t l = 0; l < 32; l++)
            for (uint32_t m = 0; m < 4; m++) {
                // Matrix m: rows 8 (m mod 2) and on, columns 8 (m / 2) and on.
                const auto element = [&](uint32_t row, uint32_t column) { return uint32_t(a[(m % 2 * 8 + row) * 16 + m / 2 * 8 + column]); };
                const uint32_t i = l / 4, j = l % 4 * 2;
                CHECK(matrices[l * 4 + m] == (element(i, j) | element(i, j + 1) << 16), "lane %u, matrix %u", l, m);
                CHECK(matrices[(32 + l) * 4 + m] == (element(j, i) | element(j + 1, i) << 16), "lane %u, matrix %u transposed", l, m);
            }
        for (uint32_t i = 0; i < 32; i++) {
            const double want = x[i] < -126 ? 0 : exp2(double(x[i]));
            CHECK(fabs(powers[i] - want) <= want / (1 << 21) + (x[i] < -126 ? ldexp(1, -126) : 0), "2^%g: %g", x[i], powers[i]);
        }
    }
    return finish("wrappers", n);
}
