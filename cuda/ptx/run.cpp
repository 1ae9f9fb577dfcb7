// Blocks, warps and their turns.
#include "ptx.h"

#include <cstdarg>
#include <cstdio>
#include <cstdlib>
#include <cstring>

namespace ptx {

void fail(const char *format, ...) {
    va_list arguments;
    va_start(arguments, format);
    fflush(stdout);
    fprintf(stderr, "ptx: ");
    vfprintf(stderr, format, arguments);
    fprintf(stderr, "\n");
    va_end(arguments);
    abort();
}

namespace {

struct Random {
    uint64_t state;
    uint32_t below(uint32_t n) {
        state = state * 6364136223846793005u + 1442695040888963407u;
        return uint32_t((state >> 32) * n >> 32);
    }
};

/// Instructions of a warp's turn, at most: few enough that warps overtake each other anywhere, enough that turns cost little.
constexpr uint32_t MOST_OF_A_TURN = 200;
/// Turns without a barrier or a warp's end after which no other warp is expected to come. Too few would fail a test that is right.
constexpr uint64_t PATIENCE = 2000000;
/// What registers and shared memory begin with: no number, no address, neither true nor a zero.
constexpr uint64_t NONSENSE = 0xfff7bad0fff7bad1u;
constexpr uint8_t NONSENSE_BYTE = 0xd7;

/// A side of a branch: the lanes that go on at `pc` until they are at `join`.
struct Side {
    uint32_t pc, join, lanes;
};
struct Thread : Warp {
    unsigned index;
    std::vector<Side> sides;
    bool waits = false;
};

/// Registers of warps that are done: getting the memory again takes longer than most warps do.
std::vector<std::vector<uint64_t>> spare;

} // namespace

struct Block {
    const Launch &launch;
    const Function &kernel;
    Random &random;
    unsigned index[3];
    bool at_once; // asynchronous copies
    std::vector<uint8_t> memory;
    std::vector<std::unique_ptr<Thread>> warps;
    unsigned n_alive = 0, n_waiting = 0;
};

void Warp::fail(const char *what) const {
    const Thread &self = static_cast<const Thread &>(*this);
    ptx::fail("%s, block (%u, %u, %u), warp %u, lanes %08x, line %u: %s\n    %s", function->name.c_str(), block->index[0], block->index[1], block->index[2],
              self.index, self.sides.empty() ? 0 : self.sides.back().lanes, at->line, what, at->text.c_str());
}
uint8_t *Warp::shared(uint64_t address, size_t bytes) const {
    if (address % bytes != 0) fail("not aligned");
    if (address + bytes > block->memory.size()) fail("outside of shared memory");
    return block->memory.data() + address;
}
uint8_t *Warp::global(uint64_t address, size_t bytes) const {
    if (address % bytes != 0) fail("not aligned");
    if (address < 1 << 16) fail("near a null pointer");
    return reinterpret_cast<uint8_t *>(address);
}
void Warp::copy(const Copy &what) {
    uint8_t *const to = shared(what.to, 16);
    memset(to + what.real, 0, 16 - what.real);
    if (what.real) memcpy(to, what.from, what.real);
}
bool copies_at_once(const Warp &warp) { return warp.block->at_once; }
double deviation(uint64_t input) {
    const uint64_t mixed = (input + 0x9e3779b97f4a7c15u) * 0xbf58476d1ce4e5b9u;
    return double(int32_t((mixed ^ mixed >> 29) >> 16)) / 2147483648.0;
}

namespace {

void begin(Warp &w, const Function &f, uint32_t lanes) {
    w.function = &f;
    // No one relies on a register's first contents.
    w.registers.assign(32 * size_t(f.n_slots), NONSENSE);
    w.alive = lanes;
    for (const auto &constant : f.constants) std::fill_n(w.lanes_of(constant.first), 32, constant.second);
}

/// Goes on for at most `steps` instructions, or until the warp waits. False once all lanes have returned.
bool go_on(Thread &w, uint64_t steps);

/// A function that is called: a separate warp meanwhile, in the same block.
void call(Thread &w, const Instruction &i, uint32_t lanes) {
    Thread inner;
    inner.block = w.block, inner.index = w.index, inner.counts = w.counts;
    const Function &f = *i.callee;
    begin(inner, f, lanes);
    inner.sides = {{0, uint32_t(f.code.size()), lanes}};
    for (size_t n = 0; n < f.inputs.size(); n++) memcpy(inner.lanes_of(f.inputs[n]), w.lanes_of(i.from[n]), 256);
    while (go_on(inner, ~0ull))
        if (inner.waits) w.fail("a barrier within a function");
    for (unsigned l = 0; l < 32; l++)
        if (lanes >> l & 1) w.lanes_of(i.to[0])[l] = inner.lanes_of(f.outputs[0])[l];
}

bool go_on(Thread &w, uint64_t steps) {
    const std::vector<Instruction> &code = w.function->code;
    while (steps-- > 0) {
        while (!w.sides.empty() && (w.sides.back().lanes == 0 || w.sides.back().pc == w.sides.back().join)) w.sides.pop_back();
        if (w.sides.empty()) return false;
        Side &side = w.sides.back();
        const Instruction &i = code[side.pc];
        w.at = &i;
        uint32_t lanes = side.lanes;
        if (i.guard != NONE) {
            const uint64_t *const guard = w.lanes_of(i.guard);
            uint32_t is_true = 0;
            for (unsigned l = 0; l < 32; l++) is_true |= uint32_t(guard[l] & 1) << l;
            lanes &= i.guard_is_not ? ~is_true : is_true;
        }
        side.pc++;
        if (w.counts && lanes != 0) {
            w.counts->instructions++, w.counts->lanes += unsigned(__builtin_popcount(lanes));
            if (i.counted) w.counts->*i.counted += 1;
        }
        switch (i.kind) {
        case Kind::PLAIN:
            if (lanes != 0) i.operation(w, i, lanes);
            if (i.yields) return true;
            break;
        case Kind::BRANCH: {
            const uint32_t others = side.lanes & ~lanes;
            if (others == 0) { side.pc = i.target; break; }
            if (lanes == 0) break;
            const Side through = {side.pc, i.join, others}, over = {i.target, i.join, lanes};
            // A side that would only be left again is not kept: loops part at every turn.
            if (side.join == i.join) w.sides.pop_back();
            else side.pc = i.join;
            const bool order = w.block->random.below(2);
            w.sides.push_back(order ? through : over);
            w.sides.push_back(order ? over : through);
            break;
        }
        case Kind::BARRIER:
            if (lanes != w.alive) w.fail("some lanes of the warp are elsewhere");
            return w.waits = true;
        case Kind::RETURN:
            for (unsigned l = 0; l < 32; l++)
                if (lanes >> l & 1 && !w.copies[l].empty()) w.fail("returns with asynchronous copies that nobody has waited for");
            w.alive &= ~lanes;
            for (Side &each : w.sides) each.lanes &= ~lanes;
            break;
        case Kind::CALL:
            if (lanes != 0) call(w, i, lanes);
            break;
        }
    }
    return true;
}

void start(Block &b, uint64_t number, const void *arguments) {
    const Launch &l = b.launch;
    b.index[0] = unsigned(number % l.grid.x), b.index[1] = unsigned(number / l.grid.x % l.grid.y), b.index[2] = unsigned(number / l.grid.x / l.grid.y);
    b.at_once = b.random.below(2);
    b.memory.assign(b.kernel.shared_bytes + l.shared_bytes, NONSENSE_BYTE);
    const unsigned n_threads = l.block.x * l.block.y * l.block.z;
    for (unsigned first = 0; first < n_threads; first += 32) {
        auto w = std::make_unique<Thread>();
        w->block = &b, w->index = first / 32;
        w->counts = l.counts, w->parameters = static_cast<const uint8_t *>(arguments), w->parameter_bytes = b.kernel.parameter_bytes;
        if (!spare.empty()) w->registers = std::move(spare.back()), spare.pop_back();
        const uint32_t lanes = n_threads - first >= 32 ? ALL : (1u << (n_threads - first)) - 1;
        begin(*w, b.kernel, lanes);
        w->sides = {{0, uint32_t(b.kernel.code.size()), lanes}};
        for (const auto &special : b.kernel.specials)
            for (unsigned lane = 0; lane < 32; lane++) {
                const unsigned t = first + lane;
                uint64_t value = 0;
                switch (special.second) {
                case Function::TID: value = t % l.block.x; break;
                case Function::TID + 1: value = t / l.block.x % l.block.y; break;
                case Function::TID + 2: value = t / l.block.x / l.block.y; break;
                case Function::NTID: value = l.block.x; break;
                case Function::NTID + 1: value = l.block.y; break;
                case Function::NTID + 2: value = l.block.z; break;
                case Function::CTAID: case Function::CTAID + 1: case Function::CTAID + 2: value = b.index[special.second - Function::CTAID]; break;
                case Function::NCTAID: value = l.grid.x; break;
                case Function::NCTAID + 1: value = l.grid.y; break;
                case Function::NCTAID + 2: value = l.grid.z; break;
                case Function::LANE: value = lane; break;
                case Function::PARAMETERS: value = uint64_t(arguments); break;
                default: break;
                }
                w->lanes_of(special.first)[lane] = value;
            }
        b.warps.push_back(std::move(w));
    }
    b.n_alive = unsigned(b.warps.size());
}

} // namespace

void launch(const Function &kernel, const Launch &l, const void *arguments, size_t bytes) {
    const unsigned n_threads = l.block.x * l.block.y * l.block.z;
    if (n_threads > kernel.max_threads) fail("%s: %u threads of a block, bounds of %u", kernel.name.c_str(), n_threads, kernel.max_threads);
    if (bytes != kernel.parameter_bytes) fail("%s: %zu bytes of arguments for %u", kernel.name.c_str(), bytes, kernel.parameter_bytes);
    // Arguments that no one may change, as long as they are said to be.
    std::unique_ptr<uint64_t[]> own(new uint64_t[kernel.parameter_bytes / 8 + 1]);
    memcpy(own.get(), arguments, kernel.parameter_bytes);

    const uint64_t n_blocks = uint64_t(l.grid.x) * l.grid.y * l.grid.z;
    const uint64_t resident = l.resident == 0 ? n_blocks : l.resident;
    Random random = {l.seed * 0x9e3779b97f4a7c15u + 1};
    std::vector<std::unique_ptr<Block>> blocks;
    if (l.counts) l.counts->launches++;
    uint64_t next = 0, idle = 0;
    while (next < n_blocks || !blocks.empty()) {
        while (next < n_blocks && blocks.size() < resident) {
            blocks.emplace_back(new Block{l, kernel, random, {}, false, {}, {}});
            start(*blocks.back(), next++, own.get());
        }
        const uint32_t chosen = random.below(uint32_t(blocks.size()));
        Block &b = *blocks[chosen];
        Thread &w = *b.warps[random.below(uint32_t(b.warps.size()))];
        // Blocks that wait for others spin; one that never stops is one that waits for ever.
        if (++idle > PATIENCE) fail("%s: waits for ever, line %u: %s", kernel.name.c_str(), w.at ? w.at->line : 0, w.at ? w.at->text.c_str() : "");
        if (w.waits || w.sides.empty()) continue;
        if (!go_on(w, 1 + random.below(MOST_OF_A_TURN))) b.n_alive--, idle = 0;
        if (w.waits) b.n_waiting++;
        if (b.n_alive == 0) {
            for (auto &each : b.warps) spare.push_back(std::move(each->registers));
            blocks.erase(blocks.begin() + chosen);
        } else if (b.n_waiting == b.warps.size()) {
            for (auto &each : b.warps) each->waits = false;
            b.n_waiting = 0, idle = 0;
        } else if (b.n_waiting == b.n_alive) {
            fail("%s, block (%u, %u, %u): some warps are at a barrier, others have returned", kernel.name.c_str(), b.index[0], b.index[1], b.index[2]);
        }
    }
}

} // namespace ptx
