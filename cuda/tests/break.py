#!/usr/bin/env python3
"""What the kernels' tests are worth: breaks the kernels on purpose, one place at a time, in a copy, and expects a test to fail.

    cuda/tests/break.py [FILE|BUILD...]     only the lines of these files and builds; `make cuda-break` brings what it needs first
        --list         print them, and do nothing
        --sample N     the first of every N (in check-all: `make break-sample`)

Each line names a file, what is replaced (its first occurrence after an optional anchor), by what, the test (with the part of it that
is enough), and how the test is built: plain, under ThreadSanitizer, or over what nvcc makes of the kernels (ptx). A line whose text is
not there any more is an error, also where it is not in the sample.
"""
import argparse
import os
import pathlib
import shutil
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parents[2]
WORK = ROOT / "target/cuda/break"
KIT = ROOT / "target/cuda-toolkit/nvidia/cu13"
SYNC = "__syncthreads();"

BREAKS = [
    # file, anchor, old, new, test, build
    ("score.cuh", "", "uint64_t(first_key) + KEYS <= uint64_t(prefix()) + 1", "uint64_t(first_key) + KEYS <= uint64_t(prefix()) + 2", "score", "plain"),
    ("score.cuh", "", "prefix() + j + 1", "prefix() + j", "score", "plain"),
    ("score.cuh", "", "min(up_to, args.sliding_window)", "min(up_to, args.sliding_window + 1)", "score", "plain"),
    ("score.cu", "", "rows[m][half].merge_lanes(2);", "", "score", "plain"),
    ("score.cu", "", "SLACK = 8;", "SLACK = 300;", "score", "plain"),
    ("score.cu", "", "rises |= fmaf", "rises = fmaf", "score", "plain"),
    ("score.cu", "", "column.sum = carry[0];", "", "score", "plain"),
    ("score.cu", "", "if (__any_sync(ALL, rest != 0)) {", "if (false) {", "score", "plain"),
    ("score.cu", "", "x[i] -= rest[row_tile * ROWS + upper + i];", "", "score", "plain"),
    ("score.cu", "", "LARGEST_LSE = 256", "LARGEST_LSE = 1e30f", "score", "plain"),
    ("values.cuh", "", "most = fmaxf(most, norms[i]);", "if (i < 3) most = fmaxf(most, norms[i]);", "score", "plain"),
    ("values.cuh", "", "upper.x & MAGNITUDES", "upper.x", "score", "plain"),
    ("values.cuh", "", "sums[i / 2][i % 2 * 2]", "sums[i / 2][0]", "score", "plain"),
    ("values.cuh", "", "sum < FLT_MAX ? sum : INFINITY", "min(sum, FLT_MAX)", "score", "plain"),
    ("values.cuh", "", "c < range.args.head_dim_v && token", "token", "score", "ptx"),
    ("score.cu", "", "if (range.args.has_lse) look_for_faults(lse[0][0], x);", "", "score", "plain"),
    ("score.cu", "", "range.args.scale < 0 ? 0x80008000u : 0", "0", "score", "plain"),
    ("score.cu", "", "copy_wait<STAGES - 2>();", "copy_wait<STAGES - 1>();", "score", "plain"),
    ("score.cu", "copy_wait<STAGES - 2>();", SYNC, "", "score", "tsan"),
    ("score.cu", "stream_keys<T, D>(range, shared, columns);", SYNC, "", "score", "tsan"),
    ("score.cu", "", "step % 2 * kinds() + kind", "0 * kinds() + kind", "score", "tsan"),
    ("score.cu", "", "__syncthreads(); // the last ones are no longer read", "", "score", "tsan"),
    ("score.cuh", "uint32_t n_columns()", "n_tokens() : prefix()", "prefix() : prefix()", "score", "plain"),
    ("output.cu", "", "parts[h] = fmaf(weights[i * TOGETHER + h], x, parts[h])", "parts[h] = fmaf(weights[i * TOGETHER], x, parts[h])", "score", "plain"),
    ("output.cu", "", "s < shares; s++) sum", "s + 1 < shares; s++) sum", "score", "plain"),
    ("output.cu", "", "first_dim + threadIdx.x % width", "threadIdx.x % width", "score", "plain"),
    ("output.cu", "", "range < ranges; range++", "range < 1; range++", "score", "plain"),
    ("output.cu", "", "first + token != largest[h]", "true", "score CAOTE", "plain"),
    ("output.cu", "", "if (i != token) rest", "rest", "score CAOTE", "plain"),
    ("output.cu", "", "if (is_more) most = its.largest[h], token = its.token[h];", "if (is_more) most = its.largest[h];", "score CAOTE", "plain"),
    ("output.cu", "", "|| token == largest) continue;", ") continue;", "score CAOTE", "plain"),
    ("output.cu", "__device__ inline void change_largest", "mean[c] - element", "0 - element", "score CAOTE", "plain"),
    ("output.cu", "__device__ inline void values", "__syncthreads(); // the last tokens are no longer read", "", "score CAOTE", "tsan"),
    ("output.cu", "", "fmaf(o - x[i][e], o - x[i][e], squares[i][h])", "fmaf(o, o, squares[i][h])", "score", "plain"),
    ("output.cu", "", "(all - attention / range.args.window)", "all", "score CAOTE", "plain"),
    ("output.cu", "", "range.columns(first_head + own)[token]", "range.columns(own)[token]", "score", "plain"),
    ("output.cu", "", "faulty |= !(norms[i] < INFINITY);", "faulty |= token < range.prefix() && !(norms[i] < INFINITY);", "score", "plain"),
    ("output.cu", "", "__syncthreads(); // the last weights are no longer read", "", "score CAOTE", "tsan"),
    ("output.cu", "range.args.window : 0;", SYNC, "", "score CAOTE", "tsan"),
    ("output.cu", "", "__syncthreads(); // the last head's sums are no longer read", "", "score CAOTE", "tsan"),
    ("output.cu", "sums[threadIdx.x] = totals[h];", SYNC, "", "score CAOTE", "tsan"),
    ("output.cu", "", "__syncthreads(); // the last outputs are no longer read", "", "score CAOTE", "tsan"),
    ("output.cu", "outputs[i] = all[", SYNC, "", "score CAOTE", "tsan"),
    ("pool.cu", "", "(prefix - live)", "(prefix - live + 1)", "score", "plain"),
    ("pool.cu", "", "if (i < live || i >= prefix) score = 0;", "if (i < live || i > prefix) score = 0;", "score", "plain"),
    ("pool.cu", "", "if (i < live || i >= prefix) score = 0;", "if (i >= prefix) score = 0;", "score", "plain"),
    ("pool.cu", "", "uint64_t(radius) + live", "radius", "score", "plain"),
    ("values.cuh", "", "token >= live && token < counted", "token < counted", "score", "plain"),
    ("values.cuh", "", "faulty |= token >= live && ", "faulty |= ", "score", "plain"),
    ("stats.cu", "", "head.first_live() + threadIdx.x", "threadIdx.x", "score", "plain"),
    ("score.cuh", "uint32_t first_live()", "n_tokens() + 1 - min", "n_tokens() - min", "score", "plain"),
    ("score.cu", "", "* args.lse_to_base_2", "* LOG2_E", "score", "plain"),
    ("attend.cu", "", "* args.lse_from_base_2", "* LN_2", "attend", "plain"),
    ("plan_attention.h", "", "&used, heads * rows);", "&used, heads * rows - 20);", "score", "plain"),
    ("score.cu", "", "one[2 * apart] + off", "one[2 * apart]", "score", "plain"),
    ("score.cu", "", "a > 0 ? -a * power : a", "-a * power", "score", "plain"),
    ("score.cu", "", "apart * apart * (rows * more / all)", "0", "score", "plain"),
    ("score.cu", "", "lse[m][1] < INFINITY ? x[m][n][i + 2] - first : 0", "x[m][n][i + 2] - first", "score", "plain"),
    ("score.cu", "", "lane() % 4);\n", "lane());\n", "score", "plain"),
    ("score.cu", "", "if (range.args.has_lse && lse[0][0] != lse[0][0]) range.fault(LAVA_FAULT_Q_OR_K);", "", "score", "plain"),
    ("score.cu", "", ">= LARGEST_LSE || lava_score_spreads(&args)", ">= LARGEST_LSE", "score statistics", "plain"),
    ("score.cu", "", "column.entropy = carry[3];", "", "score", "plain"),
    ("stats.cu", "", "pow(variance, 1 / args.tau2)", "pow(variance, 1 / args.tau1)", "score", "plain"),
    ("stats.cu", "", "weight < INFINITY", "weight <= INFINITY", "score", "plain"),
    ("mean.cu", "", "if (!(fabsf(score) < INFINITY))", "if (false)", "shares", "plain"),
    ("mean.cu", "", "item.scores[h * prefix + i] = mean;", "if (h) item.scores[h * prefix + i] = mean;", "shares", "plain"),
    ("entropy.cuh", "values[i] = s;", SYNC, "", "shares", "tsan"),
    ("entropy.cuh", "", "p < pieces; p++", "p < min(pieces, 2u); p++", "shares", "plain"),
    ("entropy.cuh", "", "1.0 / 15.0", "1.0 / 14.0", "shares", "plain"),
    ("budget.cuh", "", "remainder[j] == remainder[i] && j < i", "remainder[j] == remainder[i] && j > i", "shares", "plain"),
    ("budget.cuh", "", "u128(high) << 64 | low", "low", "shares", "plain"),
    ("budget.cuh", "", "m.share[i] == OPEN && weights[i] > largest", "weights[i] > largest", "shares", "plain"),
    ("plan.h", "uint32_t lava_cuda_tiles", "len / LAVA_CUDA_SELECT_TILE + (len % LAVA_CUDA_SELECT_TILE != 0)", "(len + LAVA_CUDA_SELECT_TILE - 1) / LAVA_CUDA_SELECT_TILE", "select", "plain"),
    ("budget.cuh", "", "remainder >= divisor", "remainder > divisor", "shares", "plain"),
    ("device.cuh", "inline void meet_blocks", "if (n_blocks > 1 && threadIdx.x == 0) {", "if (false) {", "select", "plain"),
    ("choose.cuh", "", "atomicAdd(&c.histogram[highest >> shift & mask], 0u - c.taken_ties[h]);", ";", "select", "plain"),
    ("choose.cuh", "", "const uint32_t won = min(equal, ties - min(ties, lower));", "const uint32_t won = equal;", "select", "plain"),
    ("choose.cuh", "", "if (lane() == 0) kept_of[warp()] = __popc(keeps);\n            __syncthreads();", "if (lane() == 0) kept_of[warp()] = __popc(keeps);", "select", "tsan"),
    ("cascade.cu", "", "n == a.n_layers ? Rounding::EXACT : Rounding::UP, memory", "Rounding::EXACT, memory", "select", "plain"),
    ("compact.cu", "", "__syncthreads(); // the tile is read", "", "compact", "tsan"),
    ("compact.cu", "", "while (row >= end_of_head) {", "if (row >= end_of_head) {", "compact", "plain"),
    ("attend.cu", "", "min(sequence.n_rows[head], sequence.max_rows)", "sequence.n_rows[head]", "attend", "plain"),
    ("attend.cu", "", "kept_indices[offset + first + row]", "kept_indices[first + row]", "attend", "plain"),
    ("attend.cu", "", "n_items = min(cache.n_items(), room)", "n_items = cache.n_items()", "attend", "plain"),
    ("attend.cu", "", "row >= seen[half].y", "row > seen[half].y", "attend", "plain"),
    ("attend.cu", "", "position(middle) + args.sliding_window <= own", "position(middle) + args.sliding_window < own", "attend", "plain"),
    ("attend.cu", "", "rests[half + 2 * n] = pack<T>(rest<T>(a), rest<T>(b));", "rests[half + 2 * n] = 0;", "attend", "plain"),
    ("attend.cu", "", "sums[n][2 * half + 1] *= shrink;", "", "attend", "plain"),
    ("attend.cu", "", "constexpr float HEADROOM = 11;", "constexpr float HEADROOM = -8;", "attend", "plain"),
    ("attend.cu", "", "counted += all;", "counted += all - 1;", "attend", "plain"),
    ("attend.cu", "copy_wait<STAGES - 2>();", "__syncwarp();", "", "attend", "tsan"),
    ("attend.cu", "", "weights[i], sums[k]", "weights[i / 2], sums[k]", "attend", "plain"),
    # what only the compiled kernels show
    ("device.cuh", "inline float exp2_fast", '"f"(x)', '"f"(-x)', "wrappers", "ptx"),
    ("device.cuh", "inline void copy_async", "real ? 16 : 0", "16", "wrappers", "ptx"),
    ("device.cuh", "inline void load_matrices(", '"=r"(to[0]), "=r"(to[1])', '"=r"(to[1]), "=r"(to[0])', "wrappers", "ptx"),
    ("device.cuh", "inline void load_matrices_transposed(", ".trans", "", "wrappers", "ptx"),
    ("device.cuh", "inline void multiply(__half", "{%8, %9}", "{%9, %8}", "score", "ptx"),
    ("device.cuh", "inline void multiply(__nv_bfloat16", "bf16.bf16", "f16.f16", "attend", "ptx"),
    ("device.cuh", "inline void copy_wait", "wait_group %0", "wait_group 63", "attend", "ptx"),
    ("device.cuh", "atom.add.release", "while (now < goal);", "while (false);", "select", "ptx"),
    ("entropy.cu", "", "// nvcc: -fmad=false", "", "shares", "ptx"),
    ("select.cu", "", "// nvcc: -fmad=false", "", "select", "ptx"),
    ("plan_attention.h", "", "&used, heads * rows);", "&used, heads * rows - 20);", "score", "ptx"),
    # head_min, head weights, one sort, and the cascade's other ways of sharing
    ("choose.cuh", "uint64_t floor_of", "max(guaranteed, uint64_t(params.head_min))", "guaranteed", "global", "plain"),
    ("choose.cuh", "", "max(control[2], min(params.head_min, prefix_len))", "control[2]", "global", "plain"),
    ("choose.cuh", "", "ties -= min(ties, all);", "", "global", "plain"),
    ("choose.cuh", "", "min(equal, ties - min(ties, lower))", "min(equal, ties)", "global", "plain"),
    ("choose.cuh", "", "equals[threadIdx.x] = equal;\n        __syncthreads();", "equals[threadIdx.x] = equal;", "global", "plain"),
    ("global.cu", "", "report(a.status, fault.head / a.n_kv_heads", "report(a.status, 0", "global", "plain"),
    ("global.cu", "", "fault.what == 0 ? 0 : LAVA_NO_ENTRIES", "0", "global", "plain"),
    ("global.cu", "", "item.head_weights[h] = c.counts[h]", "item.head_weights[h] = 1", "global", "plain"),
    ("select.cu", "", "if (*item.n_entries == LAVA_NO_ENTRIES) return;", "", "select", "plain"),
    ("choose.cuh", "", "return double(__uint_as_float(control[5]));", "return 0;", "select", "plain"),
    ("choose.cuh", "", "return {LAVA_FAULT_WEIGHTS, head};", "return {0, 0};", "select", "plain"),
    ("choose.cuh", "const auto least", "return at_most(minimum, h);", "return 0;", "select", "plain"),
    ("cascade.cu", "", "s.minimums[layer] / heads", "0", "select", "plain"),
    ("cascade.cu", "struct Team", "first = n == 1 ? 0 : layer", "first = layer", "select", "plain"),
    ("cascade.cu", "struct Team", "step = earlier / each", "step = layer", "select", "plain"),
    ("cascade.cu", "struct Team", "blockIdx.x % each", "0", "select", "plain"),
    ("cascade.cu", "", "team.n_blocks = gridDim.x;", "team.n_blocks = 1;", "select", "plain"),
    ("choose.cuh", "", "own.first_tile = first - before", "own.first_tile = 0", "select", "plain"),
    ("choose.cuh", "void for_tiles", "(tile + 1) *", "(tile + 2) *", "select", "plain"),
    ("cascade.cu", "", "blockIdx.z * args.workspace_each", "0", "select", "plain"),
    ("cascade.cu", "", "layer, blockIdx.z, head, what", "layer, 0, head, what", "select", "plain"),
    ("cascade.cu", "", "head >= a.n_kv_heads || first", "first", "select", "plain"),
    ("cascade.cu", "", "fault.what == FAULT_TOLD ? uint32_t(LAVA_FAULT_WEIGHTS) : fault.what", "fault.what", "select", "plain"),
    ("cascade.cu", "", "*a.weight : 1.0", "1.0 : 1.0", "select", "plain"),
    ("cascade.cu", "", "*a.weight : 1.0", "*a.weight : s.entropies[a.layer]", "select", "plain"),
    ("cascade.cu", "", "c.params.head_weights += uint64_t(layer) * a.n_kv_heads;", ";", "select", "plain"),
    ("cascade.cu", "", "c.head.first = first, ", "c.head.first = 0, ", "select", "plain"),
    ("cascade.cu", "", "evicted ? row : s.old_rows[head.positions + row - s.old_positions]", "row", "select", "plain"),
    ("cascade.cu", "", "is_new || a.layer % a.evict_every == 0", "true", "select", "plain"),
    ("cascade.cu", "", "evicted && h <= heads", "h <= heads", "select", "plain"),
    ("cascade.cu", "const uint64_t each", "max(block_sum(n, sums), uint64_t(min(a.params.head_min, a.prefix_len)))", "block_sum(n, sums)", "select", "plain"),
]


def build(source, test, build):
    """The program, and what it needs in its environment."""
    sanitizer = {"tsan": "thread", "ptx": "address"}.get(build)
    flags = [f"-fsanitize={sanitizer}"] if sanitizer else []
    common = ["g++", "-std=c++17", "-g", "-w", "-ffp-contract=off", "-isystem", KIT / "include"]
    emu = source / "emu.o"
    own = {"tsan": ["-DEMU_TSAN"], "ptx": ["-DEMU_ASAN"]}.get(build, [])
    subprocess.run([*common, *own, "-O1", "-fno-builtin", "-fno-tree-loop-distribute-patterns", "-c", source / "emu/emu.cpp", "-o", emu], check=True)
    program = source / "program"
    over = ["-DLAVA_PTX", "-rdynamic", *source.glob("ptx/*.cpp")] if build == "ptx" else []
    subprocess.run([*common, *flags, "-O1", "-DLAVA_EMU", "-I", source, source / f"tests/{test}.cpp", *over, emu,
                    ROOT / "target/capi/capi/liblava.a", "-lm", "-lpthread", "-ldl", "-o", program], check=True)
    if build != "ptx":
        return program, {}
    for kernels in [*source.glob("*.cu"), source / "tests/wrappers.cpp"]:
        options = [line.removeprefix("// nvcc: ") for line in kernels.read_text().splitlines() if line.startswith("// nvcc: ")]
        subprocess.run([KIT / "bin/nvcc", "-std=c++17", "-O3", *options, "-arch=compute_80", "-ptx", "-x", "cu", kernels, "-o",
                        source / f"{kernels.stem}.ptx"], check=True)
    return program, {"LAVA_PTX": str(source)}


def build_and_run(source, test, kind):
    test, *arguments = test.split()
    program, own = build(source, test, kind)
    environment = os.environ | own | {"LAVA_SEEDS": "1" if kind == "tsan" else "2", "LAVA_QUICK": "1", "TSAN_OPTIONS": "halt_on_error=1"}
    try:
        result = subprocess.run([program, *arguments], capture_output=True, text=True, env=environment, timeout=900)
    except subprocess.TimeoutExpired:
        return None  # too slow to tell
    if result.returncode == 0:
        return None
    lines = result.stderr.splitlines()
    for sign in ("SUMMARY", "emu: ", "ptx: ", ".cpp:", "FAILED"):
        for line in lines:
            if sign in line:
                return line.replace(str(source), "cuda")[:110]
    return f"exit status {result.returncode}"


def arguments():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("only", nargs="*", metavar="FILE|BUILD", help="only lines of these files and builds")
    parser.add_argument("--list", action="store_true", help="print the lines, and do nothing")
    parser.add_argument("--sample", type=int, default=1, metavar="N", help="only the first of every N")
    return parser.parse_args()


def place(text, anchor, old):
    """Where a line's text begins, or -1."""
    after = text.find(anchor)
    return text.find(old, after) if after >= 0 else -1


def main():
    given = arguments()
    chosen = [b for b in BREAKS if not given.only or b[0] in given.only or b[5] in given.only][::given.sample]
    if not chosen:
        sys.exit("there is no such line")
    if given.list:
        for name, _, old, new, test, build in chosen:
            print(f"{name:<16} {build:<5} {test:<12} {old!r} -> {new!r}")
        return
    gone = [b for b in BREAKS if place((ROOT / "cuda" / b[0]).read_text(), b[1], b[2]) < 0]
    for name, _, old, *_ in gone:
        print(f"{name}: {old!r} is not there any more", file=sys.stderr)
    if gone:
        sys.exit(1)
    unseen = 0
    for i, (name, anchor, old, new, test, build) in enumerate(chosen):
        source = WORK / "cuda"
        shutil.rmtree(WORK, ignore_errors=True)
        shutil.copytree(ROOT / "cuda", source)
        shutil.copytree(ROOT / "include", WORK / "include")
        text = (source / name).read_text()
        at = place(text, anchor, old)
        (source / name).write_text(text[:at] + new + text[at + len(old):])
        line = text.count("\n", 0, at) + 1
        said = build_and_run(source, test, build)
        unseen += said is None
        print(f"{i + 1:2}/{len(chosen)}  {name}:{line:<4} {build:<5}  {said or 'NOT SEEN'}", flush=True)
    print(f"{len(chosen) - unseen} of {len(chosen)} seen")
    sys.exit(unseen != 0)


if __name__ == "__main__":
    main()
