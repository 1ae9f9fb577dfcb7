// What nvcc has made of the kernels, run without a GPU: an interpreter of PTX. The emulation (emu/) runs the kernels' source; this runs
// the compiler's output, inline PTX and all.
//
// A warp goes through the code in step. Where its lanes part, one side goes first and both meet where the flow of control must come
// together (the branch's immediate post-dominator), as in hardware. Which warp is next is drawn from a seed.
//
// What it ends on, with the line of PTX: an address that is not aligned or outside of shared memory; a barrier, shuffle, vote or
// matrix instruction that some of the lanes it needs do not reach together; blocks that wait for ever; an instruction that it does not
// know. Registers and shared memory begin as nonsense. Asynchronous copies happen when they are waited for or at once, as the seed
// has it. Instructions that are inexact on a GPU are so here too, by as much as allowed: see operations.cpp.
// What it cannot see: what ptxas makes of the PTX, memory orders weaker than they should be, races that no schedule shows, time.
#pragma once
#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <vector>

namespace ptx {

struct Warp;
struct Instruction;
/// Carries one instruction out for the lanes of `lanes`.
using Operation = void (*)(Warp &warp, const Instruction &what, uint32_t lanes);

/// A register: of each lane 64 bits. Constants, addresses of variables and special registers are registers too.
using Slot = uint32_t;
constexpr Slot NONE = ~0u;
constexpr uint32_t ALL = ~0u;

/// What a kernel asks of the hardware, over all its launches.
struct Counts {
    uint64_t launches = 0, instructions = 0, lanes = 0; // by warps, and by their lanes
    uint64_t tensor = 0, special = 0, wide = 0;         // of those: matrix products, ex2 and the like, f64
    struct {
        uint64_t asked = 0, moved = 0; // bytes: of all lanes, and of the 32-byte sectors that these are in
    } read, write;
    uint64_t passes = 0, least = 0; // over shared memory: with bank conflicts, and without any
};

enum class Kind { PLAIN, BRANCH, BARRIER, RETURN, CALL };

struct Instruction {
    Kind kind = Kind::PLAIN;
    Operation operation = nullptr;
    Slot guard = NONE;         // carried out where this is true,
    bool guard_is_not = false; // or is not
    std::vector<Slot> to, from;
    int64_t offset = 0;             // of an address, from[0] or to memory
    uint32_t target = 0, join = 0;  // of a branch: where to, and where both sides meet again
    uint32_t width = 1, flags = 0;  // elements of a vector; an operation's own
    uint64_t Counts::*counted = nullptr; // what it is counted as, in addition to an instruction
    bool yields = false; // a look at what another block writes: whoever waits so lets others run
    struct Function *callee = nullptr;
    uint32_t line = 0;
    std::string text;
};

/// A kernel, or a function that one calls.
struct Function {
    std::string name;
    std::vector<Instruction> code;
    uint32_t n_slots = 0;
    std::vector<std::pair<Slot, uint64_t>> constants;
    enum { TID, NTID = 3, CTAID = 6, NCTAID = 9, LANE = 12, PARAMETERS }; // x, y and z after each other
    std::vector<std::pair<Slot, int>> specials;
    std::vector<Slot> inputs, outputs;              // of a function
    uint32_t parameter_bytes = 0, shared_bytes = 0, max_threads = 1024;
};

using Module = std::map<std::string, std::unique_ptr<Function>>;

/// Reads a module's text. Ends the program on what it does not know.
Module read(const std::string &text, const std::string &name);
/// The same of all .ptx files of a folder.
Module read_folder(const std::string &path);
/// Sets where the sides of each branch meet again.
void find_joins(Function &function);
/// The operation of an opcode such as add, s32 (its parts), and what it needs from the instruction; null if there is none.
Operation operation_of(const std::vector<std::string> &opcode, Instruction &instruction);

struct Size {
    unsigned x = 1, y = 1, z = 1;
};
struct Launch {
    Size grid, block;
    size_t shared_bytes = 0; // dynamic
    unsigned seed = 0;
    unsigned resident = 3; // blocks at a time; 0: all
    Counts *counts = nullptr;
};
/// Runs a kernel whose one parameter is the `bytes` at `arguments`.
void launch(const Function &kernel, const Launch &launch, const void *arguments, size_t bytes);

[[noreturn]] void fail(const char *format, ...) __attribute__((format(printf, 1, 2)));

/// A warp that runs, for the operations.
struct Block;
struct Warp {
    Block *block;
    const Function *function;
    std::vector<uint64_t> registers; // [n_slots, 32]
    uint32_t alive = 0;              // lanes that have not returned
    uint32_t carry = 0;              // of add.cc and the like, a bit for each lane
    uint64_t *lanes_of(Slot slot) { return registers.data() + 32 * size_t(slot); }
    const Instruction *at = nullptr;
    Counts *counts = nullptr;
    const uint8_t *parameters = nullptr; // which are in separate memory
    uint32_t parameter_bytes = 0;
    [[noreturn]] void fail(const char *what) const;
    /// Shared memory at `address`, or an end with a message.
    uint8_t *shared(uint64_t address, size_t bytes) const;
    /// Any other.
    uint8_t *global(uint64_t address, size_t bytes) const;

    struct Copy {
        uint64_t to;
        const uint8_t *from;
        uint32_t real; // bytes of `from`; zeros after them
        bool is_done;
    };
    std::vector<Copy> copies[32]; // of each lane, not yet waited for
    std::vector<size_t> groups[32];
    void copy(const Copy &what);
};
/// Whether the warp's block does asynchronous copies at once.
bool copies_at_once(const Warp &warp);
/// How far an inexact instruction's result may be off, for its input: in [-1, 1], the same whenever it is asked.
double deviation(uint64_t input);

} // namespace ptx
