// Where the two sides of a branch come together again: its block's immediate post-dominator.
#include "ptx.h"

#include <algorithm>

namespace ptx {

void find_joins(Function &function) {
    const std::vector<Instruction> &code = function.code;
    const uint32_t n = uint32_t(code.size());
    // Blocks of instructions; the last one is the end of the function.
    std::vector<char> begins(n + 1, 0);
    begins[0] = begins[n] = 1;
    for (uint32_t i = 0; i < n; i++) {
        if (code[i].kind == Kind::BRANCH) begins[code[i].target] = begins[i + 1] = 1;
        if (code[i].kind == Kind::RETURN) begins[i + 1] = 1;
    }
    std::vector<uint32_t> first, block_of(n + 1);
    for (uint32_t i = 0; i <= n; i++) {
        if (begins[i]) first.push_back(i);
        block_of[i] = uint32_t(first.size()) - 1;
    }
    const uint32_t n_blocks = uint32_t(first.size()), end = n_blocks - 1;
    std::vector<std::vector<uint32_t>> next(n_blocks), before(n_blocks);
    for (uint32_t b = 0; b < end; b++) {
        const Instruction &last = code[first[b + 1] - 1];
        const bool leaves = last.kind == Kind::BRANCH || last.kind == Kind::RETURN;
        if (last.kind == Kind::BRANCH) next[b].push_back(block_of[last.target]);
        if (last.kind == Kind::RETURN) next[b].push_back(end);
        if (!leaves || last.guard != NONE) next[b].push_back(b + 1);
        for (uint32_t to : next[b]) before[to].push_back(b);
    }
    // Cooper, Harvey and Kennedy, "A Simple, Fast Dominance Algorithm", on the reversed graph.
    std::vector<uint32_t> order, rank(n_blocks, NONE);
    std::vector<std::pair<uint32_t, uint32_t>> stack = {{end, 0}};
    std::vector<char> seen(n_blocks, 0);
    seen[end] = 1;
    while (!stack.empty()) {
        const uint32_t b = stack.back().first;
        if (stack.back().second < before[b].size()) {
            const uint32_t to = before[b][stack.back().second++];
            if (!seen[to]) seen[to] = 1, stack.push_back({to, 0});
        } else {
            rank[b] = uint32_t(order.size());
            order.push_back(b);
            stack.pop_back();
        }
    }
    std::vector<uint32_t> join(n_blocks, NONE);
    join[end] = end;
    const auto common = [&](uint32_t a, uint32_t b) {
        while (a != b) {
            while (rank[a] < rank[b]) a = join[a];
            while (rank[b] < rank[a]) b = join[b];
        }
        return a;
    };
    for (bool changed = true; changed;) {
        changed = false;
        for (size_t i = order.size() - 1; i-- > 0;) {
            const uint32_t b = order[i];
            uint32_t found = NONE;
            for (uint32_t to : next[b])
                if (join[to] != NONE) found = found == NONE ? to : common(found, to);
            if (found != join[b]) join[b] = found, changed = true;
        }
    }
    for (uint32_t b = 0; b < end; b++) {
        Instruction &last = function.code[first[b + 1] - 1];
        if (last.kind != Kind::BRANCH) continue;
        if (join[b] == NONE) fail("%s: the branch of line %u never ends", function.name.c_str(), last.line);
        last.join = first[join[b]];
    }
}

} // namespace ptx
