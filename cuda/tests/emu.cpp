// The emulation itself: it runs what a GPU runs, in an order that a seed draws, and it stops on what a GPU would hang on or leave
// undefined, saying where.
#include "last_words.h"
#include "test.h"

using namespace test;

static Buffer<uint32_t> out(4096);

/// Reverses a block's threads through shared memory, sums a warp, votes.
static void good() {
    LAVA_SHARED(uint32_t, fixed, 64);
    LAVA_DYNAMIC_SHARED(memory);
    uint32_t *const other = reinterpret_cast<uint32_t *>(memory);
    fixed[threadIdx.x] = threadIdx.x;
    __syncthreads();
    other[threadIdx.x] = fixed[63 - threadIdx.x] + 100 * blockIdx.x;
    __syncthreads();
    const uint32_t sum = lava::warp_sum(1u), before = __shfl_up_sync(lava::ALL, threadIdx.x % 32, 1), votes = __ballot_sync(lava::ALL, threadIdx.x % 2);
    const bool ok = sum == 32 && before == (threadIdx.x % 32 == 0 ? 0 : threadIdx.x % 32 - 1) && votes == 0xaaaaaaaau;
    out[blockIdx.x * 64 + threadIdx.x] = ok ? other[threadIdx.x] : 0;
}

static void order() { out[atomicAdd(&out[4095], 1u)] = threadIdx.x; }
static void copies() {
    LAVA_DYNAMIC_SHARED(memory);
    uint32_t *const to = reinterpret_cast<uint32_t *>(memory) + 4 * threadIdx.x;
    to[0] = 7;
    lava::copy_async(to, out.data() + 4 * threadIdx.x, true);
    lava::copy_commit();
    const uint32_t early = to[0];
    lava::copy_wait<0>();
    CHECK(early == 7 && to[0] == 4 * threadIdx.x, "a copy came early, or not at all");
}

static void divergent() {
    if (threadIdx.x < 32) __syncthreads();
    else __syncthreads();
}
static void not_all() {
    if (threadIdx.x < 40) __syncthreads();
    else __syncwarp();
}
static void inactive() { if (threadIdx.x < 16) out[0] = __shfl_sync(0xffffu, threadIdx.x, 20); }
static void left_out() { if (threadIdx.x % 32 != 3) __syncwarp(0xffffffffu); }
static void unlike() { if (threadIdx.x % 32 < 16) lava::warp_sum(1); else __syncwarp(); }
static void waits_for_nobody() { lava::meet_blocks(&out[0], 3); }
static void not_waited_for() {
    LAVA_DYNAMIC_SHARED(memory);
    lava::copy_async(memory, out.data(), true);
}

static void run(void (*kernel)(), unsigned seed, uint32_t blocks = 4) {
    emu::Launch what;
    what.grid = {blocks, 1, 1}, what.block = {64, 1, 1}, what.shared_bytes = 1024, what.seed = seed;
    emu::launch(what, kernel);
}

/// A faulty kernel must end with this message, and say where.
static void expect(const char *name, void (*kernel)(), const char *message) {
    const std::string text = last_words([&] {
        for (size_t i = 0; i < out.size(); i++) out[i] = 0;
        run(kernel, 1);
    });
    CHECK(text.find(message) != std::string::npos, "%s says: %s", name, text.c_str());
    CHECK(text.find("block (") != std::string::npos && text.find("thread ") != std::string::npos, "%s does not say where: %s", name, text.c_str());
}

int main() {
    // First: ThreadSanitizer does not follow a fork once there are threads, and a launch makes some.
    expect("divergent", divergent, "other threads of its block at that of");
    expect("not_all", not_all, "thread 40 waits in __syncwarp");
    expect("inactive", inactive, "which takes no part");
    expect("left_out", left_out, "__syncwarp");
    expect("unlike", unlike, "while other lanes are in");
    expect("waits_for_nobody", waits_for_nobody, "deadlock");
    expect("not_waited_for", not_waited_for, "without waiting for its asynchronous copies");
    for (unsigned seed = 0; seed < 5; seed++) {
        run(good, seed, 8);
        for (uint32_t i = 0; i < 512; i++) CHECK(out[i] == 63 - i % 64 + 100 * (i / 64), "[%u] %u", i, out[i]);
    }
    std::vector<uint32_t> orders[3];
    for (unsigned seed = 0; seed < 3; seed++) {
        out[4095] = 0;
        run(order, seed / 2, 1);
        orders[seed].assign(out.data(), out.data() + 64);
    }
    CHECK(orders[0] == orders[1], "the same seed is another schedule");
    CHECK(orders[0] != orders[2], "another seed is the same schedule");
    for (uint32_t i = 0; i < 256; i++) out[i] = i;
    run(copies, 1, 1);
    return finish("emu", 15);
}
