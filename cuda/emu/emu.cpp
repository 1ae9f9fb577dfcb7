// The scheduler of emu.h. Compiled without instrumentation: to ThreadSanitizer this file is the hardware. It still sees
// malloc, free, memcpy and memset, as done by whichever fiber runs. So fibers allocate nothing, memory is filled by loops, and
// freed when a launch is over.
#include "emu.h"

#include <cstdarg>
#include <memory>
#include <ucontext.h>
#include <vector>

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#ifdef EMU_TSAN
#include <sanitizer/tsan_interface.h>
#endif
#ifdef EMU_ASAN
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif
// The sanitizers object to long jumps.
#if defined(EMU_TSAN) || defined(EMU_ASAN)
#define EMU_WATCHED
#else
#include <setjmp.h>
#endif

namespace emu {
namespace {

constexpr size_t STACK_BYTES = 256 << 10;
constexpr size_t STATIC_BYTES = 48 << 10;  // what a kernel may declare
constexpr size_t GAP = 64;                 // between two shared variables, forbidden to AddressSanitizer

struct Block;

/// What a fiber is doing when it does not run.
enum class Wait { NONE, BLOCK, WARP, SPIN, DONE };

/// A stack, and what ThreadSanitizer knows of who runs on it.
struct Fiber {
    char *stack;
    void *tsan;
};

/// A place in a fiber, from which it can continue.
struct Place {
    ucontext_t context;
#ifndef EMU_WATCHED
    jmp_buf point;
    bool is_point = false;
#endif
};

/// Continues at `to`; returns when something continues at `from`.
void change(Place &from, Place &to) {
#ifdef EMU_WATCHED
    swapcontext(&from.context, &to.context);
#else
    // swapcontext asks the kernel for the signal mask, each time: that would be most of what the emulation does. A jump does not, but
    // only leads to a place that was reached before.
    from.is_point = true;
    if (_setjmp(from.point) != 0) return;
    if (to.is_point) _longjmp(to.point, 1);
    setcontext(&to.context);
#endif
}

struct Thread {
    Place place;
    Fiber fiber;
    Block *block = nullptr;
    unsigned linear = 0;
    Dim3 index;
    Wait wait = Wait::NONE;
    const char *at = "";  // what it waits for, for messages
    int line = 0;
    Payload taken;
    Copies copies;
    void *fake_stack = nullptr;
};

struct OpenMeeting {
    uint32_t mask = 0, arrived = 0; // mask 0: none
    const char *what;
    Meeting meeting;
    Payload in[32];
};

struct Warp {
    uint32_t alive = 0;
    OpenMeeting open[32]; // of disjoint lanes
    char token = 0;
};

struct Free {
    void operator()(void *memory) const { free(memory); }
};

struct Block {
    Dim3 index;
    std::vector<std::unique_ptr<Thread>> threads;
    std::vector<Warp> warps;
    unsigned alive = 0, arrived = 0;
    const char *file = "";
    int line = 0;
    char token = 0;
    std::unique_ptr<char, Free> dynamic, fixed;
    struct {
        const void *key;
        char *memory;
    } variables[64];
    size_t n_variables = 0, fixed_used = 0, fixed_bytes = 0;
};

struct Grid {
    Launch launch;
    const std::function<void()> *kernel = nullptr;
    std::vector<std::unique_ptr<Block>> blocks, finished;
    std::vector<Thread *> runnable, spinning;
    Thread *current = nullptr;
    Place scheduler;
    void *scheduler_fake_stack = nullptr;
    const void *scheduler_stack = nullptr;
    size_t scheduler_stack_bytes = 0;
    void *scheduler_tsan = nullptr;
    uint64_t random = 0;
    unsigned alive = 0;
    bool progress = false;
    char begin_token = 0, end_token = 0;
};

Grid *grid = nullptr;
/// Fibers that are not in use: making one takes longest, above all for ThreadSanitizer.
struct Fibers : std::vector<Fiber> {
    ~Fibers() {
        for (const Fiber &fiber : *this) free(fiber.stack);
    }
} fibers;

void release(void *token) {
#ifdef EMU_TSAN
    __tsan_release(token);
#else
    (void) token;
#endif
}

void acquire(void *token) {
#ifdef EMU_TSAN
    __tsan_acquire(token);
#else
    (void) token;
#endif
}

unsigned draw(unsigned n) {
    grid->random = grid->random * 6364136223846793005u + 1442695040888963407u;
    return unsigned((grid->random >> 33) % n);
}

void run(Thread *thread) {
    grid->current = thread;
#ifdef EMU_TSAN
    __tsan_switch_to_fiber(thread->fiber.tsan, __tsan_switch_to_fiber_no_sync);
#endif
#ifdef EMU_ASAN
    __sanitizer_start_switch_fiber(&grid->scheduler_fake_stack, thread->fiber.stack, STACK_BYTES);
#endif
    change(grid->scheduler, thread->place);
#ifdef EMU_ASAN
    __sanitizer_finish_switch_fiber(grid->scheduler_fake_stack, nullptr, nullptr);
#endif
    grid->current = nullptr;
}

/// Back to the scheduler; returns when the fiber is run again, unless it is done.
void leave(Wait wait) {
    Thread *thread = grid->current;
    thread->wait = wait;
#ifdef EMU_TSAN
    __tsan_switch_to_fiber(grid->scheduler_tsan, __tsan_switch_to_fiber_no_sync);
#endif
#ifdef EMU_ASAN
    __sanitizer_start_switch_fiber(wait == Wait::DONE ? nullptr : &thread->fake_stack, grid->scheduler_stack,
                                   grid->scheduler_stack_bytes);
#endif
    change(thread->place, grid->scheduler);
#ifdef EMU_ASAN
    __sanitizer_finish_switch_fiber(thread->fake_stack, nullptr, nullptr);
#endif
}

void wake(Thread *thread) {
    thread->wait = Wait::NONE;
    grid->runnable.push_back(thread);
}

/// Lets a block's threads through its barrier if all that are left have come.
void try_open(Block &block) {
    if (block.arrived == 0 || block.arrived < block.alive) return;
    block.arrived = 0;
    for (auto &thread : block.threads)
        if (thread->wait == Wait::BLOCK) wake(thread.get());
}

void enter() {
    Thread *thread = grid->current;
#ifdef EMU_ASAN
    __sanitizer_finish_switch_fiber(nullptr, &grid->scheduler_stack, &grid->scheduler_stack_bytes);
#endif
    acquire(&grid->begin_token);
    (*grid->kernel)();
    release(&grid->end_token);
    Block &block = *thread->block;
    Warp &warp = block.warps[thread->linear / 32];
    warp.alive &= ~(1u << thread->linear % 32);
    for (const OpenMeeting &meeting : warp.open)
        if (meeting.mask >> thread->linear % 32 & 1) fail("has returned, but other lanes wait for it in %s", meeting.what);
    if (thread->copies.n != 0) fail("has returned without waiting for its asynchronous copies");
    block.alive--;
    grid->alive--;
    try_open(block);
    leave(Wait::DONE);
    abort(); // not run again
}

/// What memory holds before it is written.
char *unwritten(size_t bytes) {
    char *memory = static_cast<char *>(aligned_alloc(128, (bytes + 127) / 128 * 128));
    for (size_t i = 0; i < bytes; i++) memory[i] = char(0xCD);
    return memory;
}

void forbid(char *from, size_t bytes, bool forbidden) {
#ifdef EMU_ASAN
    if (forbidden) __asan_poison_memory_region(from, bytes);
    else __asan_unpoison_memory_region(from, bytes);
#else
    (void) from, (void) bytes, (void) forbidden;
#endif
}

Fiber new_fiber() {
    Fiber fiber = {static_cast<char *>(aligned_alloc(4096, STACK_BYTES)), nullptr};
#ifdef EMU_TSAN
    fiber.tsan = __tsan_create_fiber(0);
#endif
    return fiber;
}

void start(Block &block) {
    const Launch &launch = grid->launch;
    const unsigned n = launch.block.x * launch.block.y * launch.block.z;
    block.alive = n;
    block.warps.resize((n + 31) / 32);
    // Room for all, so that a fiber that wakes others allocates nothing.
    grid->runnable.reserve(grid->alive + 2 * n);
    grid->spinning.reserve(grid->alive + 2 * n);
    block.dynamic.reset(unwritten(launch.shared_bytes + GAP));
    forbid(block.dynamic.get() + launch.shared_bytes, GAP, true);
    block.fixed_bytes = STATIC_BYTES + 32 * GAP;
    block.fixed.reset(unwritten(block.fixed_bytes));
    forbid(block.fixed.get(), block.fixed_bytes, true);
    for (unsigned i = 0; i < n; i++) {
        block.threads.emplace_back(new Thread);
        Thread *thread = block.threads.back().get();
        thread->block = &block;
        thread->linear = i;
        thread->index = {i % launch.block.x, i / launch.block.x % launch.block.y, i / (launch.block.x * launch.block.y)};
        if (fibers.empty()) fibers.push_back(new_fiber());
        // Any: a block's thread and the one that had its fiber before seem to run one after the other.
        std::swap(fibers[draw(unsigned(fibers.size()))], fibers.back());
        thread->fiber = fibers.back();
        fibers.pop_back();
        ucontext_t &begin = thread->place.context;
        getcontext(&begin);
        begin.uc_stack.ss_sp = thread->fiber.stack;
        begin.uc_stack.ss_size = STACK_BYTES;
        begin.uc_link = nullptr;
        makecontext(&begin, enter, 0);
        block.warps[i / 32].alive |= 1u << i % 32;
        grid->runnable.push_back(thread);
    }
    grid->alive += n;
    release(&grid->begin_token);
}

void finish(std::unique_ptr<Block> block) {
    for (auto &thread : block->threads) fibers.push_back(thread->fiber);
    forbid(block->dynamic.get(), grid->launch.shared_bytes + GAP, false);
    forbid(block->fixed.get(), block->fixed_bytes, false);
#ifdef EMU_TSAN
    grid->finished.push_back(std::move(block));
#endif
}

[[noreturn]] void deadlock() {
    fprintf(stderr, "emu: deadlock: every thread waits\n");
    // The first thread of each block that waits in a place.
    for (auto &block : grid->blocks) {
        const Thread *shown[16];
        int n = 0;
        for (auto &thread : block->threads) {
            bool is_new = thread->wait != Wait::DONE && n < 16;
            for (int i = 0; i < n; i++) is_new &= shown[i]->at != thread->at || shown[i]->line != thread->line;
            if (!is_new) continue;
            shown[n++] = thread.get();
            fprintf(stderr, "emu: block (%u, %u, %u) thread %u waits in %s", block->index.x, block->index.y, block->index.z, thread->linear, thread->at);
            if (thread->line != 0) fprintf(stderr, ":%d", thread->line);
            fprintf(stderr, "\n");
        }
    }
    abort();
}

void schedule() {
    while (grid->alive != 0) {
        if (grid->runnable.empty()) {
            // Those that wait for another block look again, as long as anything has changed since they last looked.
            if (!grid->progress || grid->spinning.empty()) deadlock();
            grid->progress = false;
            grid->runnable.swap(grid->spinning);
        }
        const unsigned i = draw(unsigned(grid->runnable.size()));
        Thread *thread = grid->runnable[i];
        grid->runnable[i] = grid->runnable.back();
        grid->runnable.pop_back();
        const bool looks_again = thread->wait == Wait::SPIN;
        run(thread);
        if (thread->wait == Wait::SPIN) {
            grid->spinning.push_back(thread);
            grid->progress |= !looks_again;
        } else {
            grid->progress = true;
        }
        if (thread->wait == Wait::DONE && thread->block->alive == 0) return;
    }
}

} // namespace

void fail(const char *format, ...) {
    va_list arguments;
    va_start(arguments, format);
    if (grid != nullptr && grid->current != nullptr) {
        const Thread &thread = *grid->current;
        fprintf(stderr, "emu: block (%u, %u, %u) thread %u: ", thread.block->index.x, thread.block->index.y,
                thread.block->index.z, thread.linear);
    } else {
        fprintf(stderr, "emu: ");
    }
    vfprintf(stderr, format, arguments);
    fprintf(stderr, "\n");
    va_end(arguments);
    abort();
}

void launch(const Launch &what, const std::function<void()> &kernel) {
    const unsigned n_threads = what.block.x * what.block.y * what.block.z;
    if (n_threads == 0 || n_threads > 1024) fail("%u threads in a block; a GPU takes 1 to 1024", n_threads);
    if (what.shared_bytes > 227 << 10) fail("%zu bytes of shared memory; the largest GPUs give 232448", what.shared_bytes);
    if (what.grid.y > 65535 || what.grid.z > 65535) fail("a grid's y and z go up to 65535");
    Grid own;
    own.launch = what;
    own.kernel = &kernel;
    own.random = what.seed * 2654435761u + 1;
    grid = &own;
#ifdef EMU_TSAN
    own.scheduler_tsan = __tsan_get_current_fiber();
#endif
    std::vector<Dim3> waiting;
    for (unsigned z = 0; z < what.grid.z; z++)
        for (unsigned y = 0; y < what.grid.y; y++)
            for (unsigned x = 0; x < what.grid.x; x++) waiting.push_back({x, y, z});
    const size_t resident = what.resident == 0 ? waiting.size() : what.resident;
    while (!waiting.empty() || !own.blocks.empty()) {
        while (!waiting.empty() && own.blocks.size() < resident) {
            const unsigned i = draw(unsigned(waiting.size()));
            own.blocks.emplace_back(new Block);
            own.blocks.back()->index = waiting[i];
            waiting[i] = waiting.back();
            waiting.pop_back();
            start(*own.blocks.back());
        }
        schedule();
        for (size_t i = own.blocks.size(); i-- > 0;)
            if (own.blocks[i]->alive == 0) {
                finish(std::move(own.blocks[i]));
                own.blocks.erase(own.blocks.begin() + long(i));
            }
    }
    acquire(&own.end_token);
    grid = nullptr;
}

Payload meet(uint32_t mask, const char *what, Meeting meeting, const Payload &mine) {
    Thread *thread = grid->current;
    Warp &warp = thread->block->warps[thread->linear / 32];
    const uint32_t bit = 1u << thread->linear % 32;
    if ((mask & bit) == 0) fail("%s with mask %08x, which leaves out the calling lane", what, mask);
    if ((mask & warp.alive) != mask) fail("%s with mask %08x waits for lanes that have returned (left: %08x)", what, mask, warp.alive);
    OpenMeeting *found = nullptr, *unused = nullptr;
    for (OpenMeeting &open : warp.open) {
        if (open.mask == 0) unused = &open;
        else if (open.mask == mask && open.meeting == meeting) found = &open;
        else if (open.mask & mask)
            fail("%s with mask %08x while other lanes are in %s with mask %08x", what, mask, open.what, open.mask);
    }
    if (found == nullptr) {
        found = unused;
        found->mask = mask, found->arrived = 0, found->what = what, found->meeting = meeting;
    }
    found->in[thread->linear % 32] = mine;
    found->arrived |= bit;
    if (found->arrived != mask) {
        thread->at = what;
        thread->line = 0;
        leave(Wait::WARP);
        return thread->taken;
    }
    Payload out[32];
    meeting(mask, found->in, out);
    for (unsigned lane = 0; lane < 32; lane++)
        if (mask >> lane & 1) {
            Thread *other = thread->block->threads[thread->linear / 32 * 32 + lane].get();
            other->taken = out[lane];
            if (other != thread) wake(other);
        }
    found->mask = 0;
    // The last to arrive does not always continue first.
    wake(thread);
    leave(Wait::NONE);
    return thread->taken;
}

void shuffle(uint32_t mask, const Payload *in, Payload *out) {
    for (unsigned lane = 0; lane < 32; lane++) {
        if (!(mask >> lane & 1)) continue;
        const uint32_t source = in[lane].word[2];
        if (source > 31 || !(mask >> source & 1)) fail("a shuffle: lane %u reads lane %u, which takes no part (mask %08x)", lane, source, mask);
        out[lane] = in[source];
    }
}

void vote(uint32_t mask, const Payload *in, Payload *out) {
    uint32_t votes = 0;
    for (unsigned lane = 0; lane < 32; lane++) votes |= (mask >> lane & 1 & in[lane].word[0]) << lane;
    for (unsigned lane = 0; lane < 32; lane++) out[lane].word[0] = votes;
}

// PTX ISA, ldmatrix.x4: lane 8 m + r brings row r of matrix m, eight 16-bit elements; lane l takes elements 2 (l mod 4) and
// the next of row l / 4 of each matrix.
void load_matrix(uint32_t mask, const Payload *in, Payload *out) {
    if (mask != 0xffffffffu) fail("ldmatrix needs the whole warp");
    for (unsigned lane = 0; lane < 32; lane++)
        for (unsigned m = 0; m < 4; m++) out[lane].word[m] = in[8 * m + lane / 4].word[lane % 4];
}

// PTX ISA, ldmatrix.x4.trans: lane l takes elements l / 4 of rows 2 (l mod 4) and the next of each matrix.
void load_matrix_transposed(uint32_t mask, const Payload *in, Payload *out) {
    if (mask != 0xffffffffu) fail("ldmatrix needs the whole warp");
    for (unsigned lane = 0; lane < 32; lane++)
        for (unsigned m = 0; m < 4; m++) {
            const auto element = [&](unsigned row) { return in[8 * m + row].word[lane / 8] >> 16 * (lane / 4 % 2) & 0xffff; };
            const unsigned row = 2 * (lane % 4);
            out[lane].word[m] = element(row) | element(row + 1) << 16;
        }
}

// PTX ISA, mma.m16n8k16 for 16-bit elements. With row = lane / 4 and pair = 2 (lane mod 4):
// a0 (row, pair), a1 (row + 8, pair), a2 (row, pair + 8), a3 (row + 8, pair + 8); b0 (pair, row), b1 (pair + 8, row) as (k, n);
// c0, c1 (row, pair and the next), c2, c3 the same of row + 8. Payload: a in 0..4, b in 4..6, c in 6..10.
template <class Widen> static void multiply(const Payload *in, Payload *out, Widen widen) {
    float a[16][16], b[16][8];
    for (unsigned lane = 0; lane < 32; lane++) {
        const unsigned row = lane / 4, pair = 2 * (lane % 4);
        for (unsigned half = 0; half < 2; half++) {
            const auto element = [&](unsigned word) { return widen(uint16_t(in[lane].word[word] >> 16 * half)); };
            a[row][pair + half] = element(0);
            a[row + 8][pair + half] = element(1);
            a[row][pair + 8 + half] = element(2);
            a[row + 8][pair + 8 + half] = element(3);
            b[pair + half][row] = element(4);
            b[pair + 8 + half][row] = element(5);
        }
    }
    for (unsigned lane = 0; lane < 32; lane++)
        for (unsigned i = 0; i < 4; i++) {
            const unsigned row = lane / 4 + i / 2 * 8, column = 2 * (lane % 4) + i % 2;
            float sum;
            __builtin_memcpy(&sum, &in[lane].word[6 + i], 4);
            for (unsigned k = 0; k < 16; k++) sum += a[row][k] * b[k][column];
            __builtin_memcpy(&out[lane].word[i], &sum, 4);
        }
}

void multiply_f16(uint32_t mask, const Payload *in, Payload *out) {
    if (mask != 0xffffffffu) fail("mma needs the whole warp");
    multiply(in, out, [](uint16_t bits) { return __half2float(__half(__half_raw{bits})); });
}

void multiply_bf16(uint32_t mask, const Payload *in, Payload *out) {
    if (mask != 0xffffffffu) fail("mma needs the whole warp");
    multiply(in, out, [](uint16_t bits) { return __uint_as_float(uint32_t(bits) << 16); });
}

void block_barrier(const char *file, int line) {
    Thread *thread = grid->current;
    Block &block = *thread->block;
    if (block.arrived != 0 && (line != block.line || strcmp(file, block.file) != 0))
        fail("is at the __syncthreads of %s:%d, other threads of its block at that of %s:%d", file, line, block.file, block.line);
    block.file = file;
    block.line = line;
    block.arrived++;
    release(&block.token);
    thread->at = file;
    thread->line = line;
    thread->wait = Wait::BLOCK;
    try_open(block);
    leave(thread->wait);
    acquire(&block.token);
}

void warp_barrier(uint32_t mask) {
    Thread *thread = grid->current;
    char *token = &thread->block->warps[thread->linear / 32].token;
    release(token);
    meet(mask, "__syncwarp", vote, Payload{});
    acquire(token);
}

void spin() {
    grid->current->at = "a loop on another block's word";
    grid->current->line = 0;
    leave(Wait::SPIN);
}

void *shared(const void *key, size_t bytes) {
    Block &block = *grid->current->block;
    for (size_t i = 0; i < block.n_variables; i++)
        if (block.variables[i].key == key) return block.variables[i].memory;
    if (block.n_variables == 64 || block.fixed_used + bytes > STATIC_BYTES) fail("more than %zu bytes or 64 variables of static shared memory", STATIC_BYTES);
    char *memory = block.fixed.get() + block.fixed_used;
    forbid(memory, bytes, false);
    block.fixed_used += (bytes + GAP + GAP - 1) / GAP * GAP;
    block.variables[block.n_variables++] = {key, memory};
    return memory;
}

void *dynamic_shared() { return grid->current->block->dynamic.get(); }
Copies &copies() { return grid->current->copies; }
const Dim3 &thread_index() { return grid->current->index; }
const Dim3 &block_index() { return grid->current->block->index; }
const Dim3 &block_size() { return grid->launch.block; }
const Dim3 &grid_size() { return grid->launch.grid; }
unsigned lane() { return grid->current->linear % 32; }

} // namespace emu
