#!/usr/bin/env python3
"""Breaks promises of include/lava.h and lava_cuda.h on purpose, one at a time, in a copy of the project, and sees which test goes red.

    ffi-tests/break_promises.py [WORD...]      only those whose promise contains a word
        --list         print them, and do nothing
        --sample N     the first of every N (in check-all: `make break-sample`)

Each row is a promise, the file and the text that keeps it, what stands there instead, and the test that must then fail. A row
whose text is not there any more is an error, also where it is not in the sample: the table below is kept with the code. PROMISES.md
tells the outcome.
"""
import argparse
import pathlib
import shutil
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent
COPY = ROOT / "target/broken"

# Promise, file in src/, what is there, what is put there, test file of ffi-tests; "path" is cuda/tests/path.c over the fake driver.
ROWS = [
    ("misaligned pointers are refused", "ffi/call.rs",
     "ensure((p as usize).is_multiple_of(align_of::<T>()), ErrorKind::Alignment, name)", "Ok(())", "status"),
    ("a larger struct is taken only if its unknown tail is zero", "ffi/call.rs",
     "ensure(tail.iter().all(|&b| b == 0), ErrorKind::StructSize, name)?;", "let _ = tail;", "status"),
    ("a struct smaller than its first version is refused", "ffi/call.rs",
     "(T::FIRST_SIZE..=MAX_STRUCT_SIZE)", "(4..=MAX_STRUCT_SIZE)", "status"),
    ("a report keeps the caller's struct_size", "ffi/call.rs",
     "core::ptr::copy_nonoverlapping(from.add(4), (p as *mut u8).add(4), known - 4);",
     "core::ptr::copy_nonoverlapping(from, p as *mut u8, known);", "status"),
    ("overlapping outputs are refused", "ffi/call.rs",
     "ensure(!(*written && shared), ErrorKind::Overlap, name)?;", "let _ = (written, shared, name);", "status"),
    ("lava_error is written on success too", "ffi/call.rs",
     "unsafe { write_struct(error, report) };",
     "if status != LAVA_OK { unsafe { write_struct(error, report) } };", "status"),
    ("every element lies within size", "view.rs", "extent <= size && extent", "extent <= size + 4 && extent", "status"),
    ("no two elements share memory", "view.rs", "ensure(stride > inner,", "ensure(stride >= inner,", "status"),
    ("heads of a ragged cache do not overlap", "view.rs",
     "ensure(start[h] as usize >= end, ErrorKind::Overlap", "ensure(start[h] as usize + 1 >= end, ErrorKind::Overlap",
     "faults"),
    ("in place moves rows forwards only", "view.rs",
     "same_rows && (same_heads || (one_part && forwards()))", "same_rows", "layouts"),
    ("heads close ranks in one part only", "view.rs", "(one_part && forwards())", "(one_part | true && forwards())", "layouts"),
    ("n_kv_heads * n_tokens is below 2^32", "params.rs",
     "ensure(entries.is_some_and(|n| n <= u32::MAX as u64), ErrorKind::Overflow, c\"n_tokens\")?;",
     "let _ = entries;", "overflow"),
    ("n_q_heads * window is below 2^32", "params.rs",
     "ensure(rows.is_some_and(|n| n <= u32::MAX as u64), ErrorKind::Overflow, c\"window\")", "Ok(drop(rows))", "overflow"),
    ("a workspace's contents are not needed", "workspace.rs", "if !self.keep {", "if false {", "faults"),
    ("workspaces are aligned, or refused", "workspace.rs",
     "ensure((base as usize).is_multiple_of(WORKSPACE_ALIGN), ErrorKind::Alignment, c\"workspace\")?;", "", "status"),
    ("a workspace is as large as its size function says, or refused", "workspace.rs",
     "ensure(end <= self.size, ErrorKind::Workspace", "ensure(end <= self.size + 64, ErrorKind::Workspace", "status"),
    ("the size of billions of heads is told at once", "score/window.rs",
     "for together in divisors(most) {",
     "for together in (1..=most).rev().filter(|n| most.is_multiple_of(*n)) {", "overflow"),
    ("a tensor of billions of heads is refused at once", "view.rs",
     "Rows::Same(n) => *n,\n            _ =>", "_ =>", "overflow"),
    ("scores are finite, or the call is refused", "score.rs",
     "ensure(finite, ErrorKind::NonFinite, c\"scores\")", "Ok(drop(finite))", "status"),
    ("NONFINITE names the head", "score.rs",
     "task.run(&mut buffers, out).map_err(|e| e.at_head(head).at_layer(shape.layer))?;",
     "task.run(&mut buffers, out).map_err(|e| e.at_layer(shape.layer))?;", "status"),
    ("a sliding window counts the query's own key", "score/window.rs",
     "key.saturating_add(swa).saturating_sub(prefix)", "key.saturating_add(swa + 1).saturating_sub(prefix)", "score"),
    ("LAVA_VALUES_ALL takes the window's values too", "score/value.rs",
     "|| params.value_span == ValueSpan::All", "", "score"),
    ("a part writes its own heads only", "ffi/functions.rs",
     "slice_mut(scores.add(heads.start * prefix_len)", "slice_mut(scores.add(0 * heads.start * prefix_len)", "faults"),
    ("the bits are the same for every n_parts", "attend.rs",
     "let tile = Tile { backend, shape,",
     "let tile = Tile { backend: if n_parts > 1 { Backend::scalar() } else { backend }, shape,", "splits"),
    ("ties go to the lower token", "select.rs", "let tie = key == self.key && ties > 0;",
     "let tie = key == self.key && ties > 0 && !key.is_multiple_of(2);", "exact"),
    ("ties go to the lower head", "select.rs",
     "for head in 0..n_heads {\n            let (mut above", "for head in (0..n_heads).rev() {\n            let (mut above", "exact"),
    ("outputs of lava_select are untouched on error", "select.rs",
     "let mut buffers = Buffers::carve(workspace, shape.n_kv_heads)?;\n    check_finite",
     "let mut buffers = Buffers::carve(workspace, shape.n_kv_heads)?;\n    cu_kept[0] = 0;\n    check_finite", "faults"),
    ("everything_kept says whether nothing was evicted", "select.rs",
     "let everything_kept = budget == n_entries as u64;", "let everything_kept = false;", "exact"),
    ("the budget for a share is the smallest", "select.rs",
     "Ok(budget.min(scores.len() as u64))", "Ok((budget + 1).min(scores.len() as u64))", "exact"),
    ("largest remainders, ties to the lower layer", "budget.rs",
     "other > mine || (other == mine && j < i)", "other > mine || (other == mine && j > i)", "exact"),
    ("no layer gets more than its capacity", "budget.rs",
     "} else if excess <= 0 && share(l)", "} else if n == 0 && share(l)", "exact"),
    ("neither cache is touched on error, in any part's heads", "ffi/functions.rs",
     "compact::check_rows(&src, &dst, rows, cu_kept, 0..n_heads)",
     "compact::check_rows(&src, &dst, rows, cu_kept, heads.clone())", "status"),
    ("kept rows ascend and lie inside the cache, or are refused", "compact.rs",
     "ensure(ascending && inside, ErrorKind::Indices", "ensure(ascending || inside, ErrorKind::Indices", "faults"),
    ("rows keep the order of positions, in place", "compact.rs",
     "copy(h, r, kept[r] as usize, run);", "(0..run).rev().for_each(|i| copy(h, r + i, kept[r] as usize + i, 1));", "splits"),
    ("the cascade is unchanged on error", "cascade.rs",
     "let spread = entropy(scores, shape.n_kv_heads, prefix_len).map_err(at)?;",
     "self.header[12] += 1;\n        let spread = entropy(scores, shape.n_kv_heads, prefix_len).map_err(at)?;", "status"),
    ("a cascade ends where all at once ends", "cascade.rs",
     "if n == n_layers { Rounding::Exact } else { Rounding::Up }", "Rounding::Exact", "cascade"),
    ("a state holds no pointers", "cascade.rs",
     "ensure(head[MAGIC] == MAGIC_VALUE, ErrorKind::State, c\"state\")?;",
     "if head[15] == 0 { head[15] = head.as_ptr() as u64 };\n"
     "        ensure(head[MAGIC] == MAGIC_VALUE && head[15] == head.as_ptr() as u64, ErrorKind::State, c\"state\")?;", "faults"),
    ("variance divides by window - 1", "score/window.rs", "/ (w - 1.0)).max(0.0)", "/ w).max(0.0)", "frame"),
    ("the newest query weighs decay", "score/window.rs",
     "let newest = if j == 0 { 1.0 } else { decay };", "let newest = decay;", "frame"),
    ("squares are of the attention, not of the logits", "score/window.rs", "*two = 2.0 * one", "*two = *one", "frame"),
    ("the output is that of all tokens", "score/value.rs",
     "for (i, a) in row.iter().enumerate() {", "for (i, a) in row[..self.shape.prefix_len()].iter().enumerate() {", "frame"),
    ("the value norm per token is the entry's own", "score/value.rs", "first: i, n: 1", "first: 0, n: 1", "frame"),
    ("without a value weight V is not looked at", "score.rs",
     "if params.value_weight != ValueWeight::None {", "if true {", "frame"),
    ("a layer's weight is a factor on its scores", "score.rs", "* params.weight;", "* 1.0;", "frame"),
    ("no head goes below head_min", "select.rs", "floor.max(params.head_min as u64)", "floor", "frame"),
    ("head weights that sum to the budget are counts", "select.rs",
     "b.spare, least, budget, rounding, b.counts);\n        }", "b.spare, |_| 1, budget, rounding, b.counts);\n        }", "frame"),
    ("one sort goes by all layers' scores", "cascade.rs",
     "let total = params.total.min(there);", "let total = params.total.min(there) / 2;", "frame"),
    ("weights are the pushes'", "cascade.rs", "self.weights[layer] = weight;", "self.weights[layer] = 1.0;", "frame"),
    ("a cascade by weights takes no push without", "cascade.rs",
     "return Err(at(Error::new(ErrorKind::Argument, c\"weight\")));", "1.0", "status"),
    ("rows are of the cache as it was last compacted", "cascade.rs",
     "if evicted { row as u32 } else { self.rows[at] }", "row as u32", "cascade"),
    ("row counts are of the cache as it was last compacted", "cascade.rs", "if self.evicts_after(layer) {", "if layer > 0 {", "cascade"),
    ("an older caller's struct does what it did", "ffi/types.rs",
     "lava_score_params: 56, 32", "lava_score_params: 56, 56", "status"),
    ("attention's window goes by true positions", "attend.rs",
     "partition_point(end, |row| positions.of(self.head, row) < oldest)", "oldest as usize", "attend"),
    ("positions beyond 2^32 do not wrap", "attend.rs",
     "None => self.n_base as u64 + (row - kept.len()) as u64,",
     "None => self.n_base.wrapping_add((row - kept.len()) as u32) as u64,", "overflow"),
    ("a query that sees no row gets zeros", "attend.rs",
     "if b.sum[r] > 0.0 { (1.0 / b.sum[r]) as f32 } else { 0.0 }", "(1.0 / b.sum[r]) as f32", "attend"),
    ("log-sum-exp is natural", "attend.rs", "* core::f64::consts::LN_2) as f32", ") as f32", "attend"),
    ("GPU: the workspace is as large as its size function says", "backend/cuda.rs",
     "ensure(workspace_size >= needed, ErrorKind::Workspace, c\"workspace_size\")?;", "", "path"),
    ("GPU: nothing is launched unless every sequence is accepted", "backend/cuda.rs",
     "for i in 0..n {\n            let sequence = sequence(i)?;", "for i in 0..1 {\n            let sequence = sequence(i)?;", "path"),
    ("GPU: a batch of any size arrives whole", "backend/cuda.rs",
     "(to.wrapping_add(first), &|i|", "(to, &|i|", "path"),
    ("GPU: kernels belong to the context they were loaded into", "backend/cuda.rs",
     "ensure(!current.is_null(), ErrorKind::Context, c\"no current context\")?;", "", "path"),
    ("GPU: what was loaded is unloaded where loading fails", "backend/cuda.rs",
     "Err(e) => driver.unload(&context.modules).and(Err(e)),", "Err(e) => Err(e),", "path"),
    ("GPU: a destroyed context is none", "ffi/cuda.rs", "(context as *mut u64).write(0);", "", "path"),
    ("GPU: the status word names the sequence", "ffi/cuda.rs", "(word >> 28)", "(word >> 20)", "path"),
    ("GPU: no sequence is longer than the shape", "ffi/cuda.rs",
     "ensure(shape.n_tokens <= longest.n_tokens, ErrorKind::Shape, c\"n_tokens\")?;", "", "path"),
    ("GPU: outputs that overlap are refused", "ffi/cuda/select.rs",
     ".writes(s.cu_kept, shape.n_kv_heads + 1, c\"cu_kept\")", "", "path"),
    ("GPU: a cascade takes n_layers pushes", "ffi/cuda/cascade.rs",
     "ensure(own.n_pushed < own.n_layers, ErrorKind::State, c\"cascade\")?;", "", "path"),
    ("GPU: a cascade's caller evicts as often as it said", "ffi/cuda/cascade.rs",
     "evict_every: given.evict_every.max(1),", "evict_every: 1,", "path"),
    ("GPU: weights are for a cascade by weights", "ffi/cuda/cascade.rs",
     "ensure(weighted || s.weight.is_null(), ErrorKind::Argument, c\"weight\")?;", "", "path"),
    ("GPU: caches of other kinds in one call", "ffi/cuda/compact.rs",
     "filter(|found| found.kind == kind)", "filter(|_| true)", "path"),
    ("GPU: where a layer lies after a push", "../cuda/plan.c", "now = (a->layer + 1) % 2", "now = a->layer % 2", "path"),
    ("GPU: blocks that wait for each other are there at once", "../cuda/plan.c",
     "at->cooperative = n_blocks > 1;", "at->cooperative = 0;", "path"),
    ("GPU: nothing moves behind a fault", "../cuda/compact.cu", "*fault = *a.status != LAVA_NO_FAULT", "*fault = 0", "path"),
    ("GPU: what is told is the cause, not what comes of it", "../cuda/budgets.cu", "LAVA_NO_HEAD", "0", "path"),
    ("GPU: a fault in scores is told once, by who found it", "../cuda/budgets.cu", "fault.what != FAULT_TOLD && ", "", "path"),
]


def run_tests(test):
    if test == "path":
        command = "make -s target/cuda/path target/cuda/fake/libcuda.so.1 && LD_LIBRARY_PATH=target/cuda/fake target/cuda/path"
        return subprocess.run(command, shell=True, cwd=COPY, capture_output=True, text=True, timeout=900)
    command = ["cargo", "test", "--quiet", "--package", "ffi-tests", "--test", test]
    return subprocess.run(command, cwd=COPY, capture_output=True, text=True, timeout=900)


def arguments():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("words", nargs="*", metavar="WORD", help="only promises that contain one of these")
    parser.add_argument("--list", action="store_true", help="print the promises, and do nothing")
    parser.add_argument("--sample", type=int, default=1, metavar="N", help="only the first of every N")
    return parser.parse_args()


def missing(rows):
    """Rows whose text is not in its file any more."""
    return [row for row in rows if row[2] not in (ROOT / "src" / row[1]).read_text()]


def copy_project(with_kernels):
    COPY.mkdir(parents=True, exist_ok=True)
    for name in ("src", "ffi-tests", "include", "tests", "examples-c", "cuda", "Cargo.toml", "Cargo.lock", "build.rs", "Makefile"):
        old = COPY / name
        if old.is_dir():
            shutil.rmtree(old)
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy2
        copy(ROOT / name, old)
    # What compiles the kernels is brought by `make cuda`.
    toolkit = COPY / "target/cuda-toolkit"
    toolkit.parent.mkdir(exist_ok=True)
    if not toolkit.exists() and with_kernels:
        toolkit.symlink_to(ROOT / "target/cuda-toolkit")


def main():
    given = arguments()
    rows = [row for row in ROWS if not given.words or any(word in row[0] for word in given.words)][::given.sample]
    if not rows:
        sys.exit("no promise contains that")
    if given.list:
        for promise, file, _, _, test in rows:
            print(f"{promise:<66} {file:<18} {test}")
        return 0
    gone = missing(ROWS)
    for promise, file, before, _, _ in gone:
        print(f"{promise}: {file} has no {before!r}", file=sys.stderr)
    if gone:
        return 1
    copy_project(any(row[4] == "path" for row in rows))
    survived = []
    for i, (promise, file, before, after, test) in enumerate(rows):
        print(f"{i + 1:3}/{len(rows)} {promise:<62} {test:<9}", end=" ", flush=True)
        path = COPY / "src" / file
        text = path.read_text()
        path.write_text(text.replace(before, after, 1))
        result = run_tests(test)
        path.write_text(text)
        if "error: could not compile" in result.stderr or ": error: " in result.stderr:
            sys.exit(f"\ndoes not compile:\n{result.stderr}")
        print("red" if result.returncode else "SURVIVED", flush=True)
        if not result.returncode:
            survived.append(promise)
    print(f"{len(rows)} broken, {len(survived)} not noticed")
    return 1 if survived else 0


if __name__ == "__main__":
    sys.exit(main())
