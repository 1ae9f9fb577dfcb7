#!/usr/bin/env python3
"""Breaks promises of include/lava.h and lava_cuda.h on purpose, one at a time, in a copy of the project, and checks that its test fails.

    ffi-tests/break_promises.py [WORD...]      only those whose promise contains a word
        --list         print them, and do nothing
        --sample N     the first of every N (in check-all: `make break-sample`)

Each row is a promise, the file and the text that keeps it, the text that replaces it, and the test that must then fail. A row
whose text is not there any more is an error, even if it is not in the sample: the table below is kept with the code. PROMISES.md
has the outcome.
"""
import argparse
import os
import pathlib
import shutil
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent
COPY = ROOT / "target/broken"

# Promise, file in src/, what is there, what is put there, test file of ffi-tests; "path" is cuda/tests/path.c over the fake driver.
ROWS = [
    ("misaligned pointers are refused", "ffi/versioned.rs",
     "ensure((p as usize).is_multiple_of(align_of::<T>()), ErrorKind::Alignment, name)", "Ok(())", "status"),
    ("a larger struct is taken only if its unknown tail is zero", "ffi/versioned.rs",
     "ensure(tail.iter().all(|&b| b == 0), ErrorKind::StructSize, name)?;", "let _ = tail;", "status"),
    ("a struct smaller than its first version is refused", "ffi/versioned.rs", "(T::FIRST_SIZE..=MAX_STRUCT_SIZE)",
     "(4..=MAX_STRUCT_SIZE)", "status"),
    ("a report keeps the caller's struct_size", "ffi/versioned.rs",
     "core::ptr::copy_nonoverlapping(from.add(4), (p as *mut u8).add(4), known - 4);",
     "core::ptr::copy_nonoverlapping(from, p as *mut u8, known);", "status"),
    ("fields that mean nothing yet must be 0", "ffi/checked.rs",
     "ensure(field == 0, ErrorKind::StructSize, c\"reserved\")", "Ok(drop(field))", "status"),
    ("overlapping outputs are refused", "ffi/call.rs", "ensure(!(*written && shared), ErrorKind::Overlap, name)?;",
     "let _ = (written, shared, name);", "status"),
    ("lava_error is written on success too", "ffi/call.rs", "unsafe { write_struct(error, report) };",
     "if status != LAVA_OK { unsafe { write_struct(error, report) } };", "status"),
    ("errors name the shape's layer", "ffi/call.rs", "body().map_err(|e| e.at_layer(shape.layer))",
     "drop(shape.layer);\n    body()", "status"),
    ("NULL for scoring's params is the recommended preset", "ffi/checked.rs",
     "return Ok((ScoreParams::default(), Backend::detect()));", "return Ok((ScoreParams::lava(), Backend::detect()));",
     "presets"),
    ("NULL for selection's params is the recommended preset", "ffi/checked.rs", "return Ok(SelectParams::default())",
     "return Ok(SelectParams::lava())", "presets"),
    ("NULL for a cascade's params is the recommended preset", "ffi/checked.rs", "return Ok(CascadeParams::default())",
     "return Ok(CascadeParams::lava())", "presets"),
    ("NULL for attention's params is causal", "ffi/checked.rs",
     "AttendParams { causal: true, ..AttendParams::default() }", "AttendParams::default()", "presets"),
    ("kernels that the machine cannot run are refused", "ffi/checked.rs",
     "found.ok_or(Error::new(ErrorKind::Unsupported, c\"backend\"))", "Ok(found.unwrap_or(Backend::scalar()))",
     "score"),
    ("shapes of an array are those of its layers", "ffi/checked.rs", "step: if n_shapes == 1 { 0 } else { size }",
     "step: 0", "layers"),
    ("shapes of an array are of one version", "ffi/checked.rs",
     "ensure(own == size, ErrorKind::StructSize, c\"shapes\").map_err(at)?;", "let _ = own;", "layers"),
    ("every element lies within size", "view.rs", "extent <= size && extent", "extent <= size + 4 && extent", "status"),
    ("no two elements share memory", "view.rs", "ensure(stride > inner,", "ensure(stride >= inner,", "status"),
    ("heads of a ragged cache do not overlap", "view.rs", "ensure(start[h] as usize >= end, ErrorKind::Overlap",
     "ensure(start[h] as usize + 1 >= end, ErrorKind::Overlap", "faults"),
    ("in place moves rows forwards only", "view.rs", "same_rows && (same_heads || (one_part && forwards()))",
     "same_rows", "layouts"),
    ("heads close ranks in one part only", "view.rs", "(one_part && forwards())", "(one_part | true && forwards())",
     "layouts"),
    ("n_kv_heads * n_tokens is below 2^32", "params.rs",
     "check(entries.is_some_and(|n| n <= u32::MAX as u64), ErrorKind::Overflow, c\"n_tokens\")?;", "let _ = entries;",
     "overflow"),
    ("n_q_heads * window is below 2^32", "params.rs",
     "check(rows.is_some_and(|n| n <= u32::MAX as u64), ErrorKind::Overflow, c\"window\")", "Ok(drop(rows))",
     "overflow"),
    ("a ragged layer's last rows are the window's", "params.rs", "ascending && last && first", "ascending && last",
     "ragged"),
    ("dead rows are those that no later query can see", "params.rs", "(self.n_tokens + 1).saturating_sub(keys)",
     "self.n_tokens.saturating_sub(keys)", "layers"),
    ("dead rows take no budget", "params.rs", "self.first_row_at(h, self.first_visible()).min(end)..end", "0..end",
     "layers"),
    ("a ratio is exact in billionths", "params.rs",
     "libm::rint(ratio * RATIO_ONE as f64) as u128 * shape.n_tokens as u128 / RATIO_ONE",
     "(ratio * shape.n_tokens as f64) as u128 * RATIO_ONE / RATIO_ONE", "budget"),
    ("a ratio gives no less than what is always kept", "params.rs", "(asked as usize).max(kept).min(",
     "(asked as usize).max(kept.min(1)).min(", "budget"),
    ("a workspace's contents are not needed", "workspace.rs", "if !self.keep {", "if false {", "faults"),
    ("workspaces are aligned, or refused", "workspace.rs",
     "ensure((base as usize).is_multiple_of(WORKSPACE_ALIGN), ErrorKind::Alignment, c\"workspace\")", "Ok(())",
     "status"),
    ("a workspace is as large as its size function says, or refused", "workspace.rs",
     "ensure(range.end <= self.size, ErrorKind::Workspace", "ensure(range.end <= self.size + 64, ErrorKind::Workspace",
     "status"),
    ("the size of billions of heads is computed at once", "score/plan.rs", "for together in divisors(most) {",
     "for together in (1..=most.min(3 << 29)).rev().filter(|n| most.is_multiple_of(*n)) {", "overflow"),
    ("a tensor of billions of heads is refused at once", "view.rs", "Rows::Same(n) => *n,\n            _ =>", "_ =>",
     "overflow"),
    ("scores are finite, or the call is refused", "score/head.rs", "ensure(finite, ErrorKind::NonFinite, c\"scores\")",
     "Ok(drop(finite))", "status"),
    ("NONFINITE names the head", "score.rs",
     "        };\n        done.map_err(|e| at_layer(e.at_head(head)))?;", "        };\n        done.map_err(at_layer)?;", "status"),
    ("a sliding window counts the query's own key", "score/task.rs",
     "position.saturating_add(keys).saturating_sub(prefix)", "position.saturating_add(keys + 1).saturating_sub(prefix)",
     "score"),
    ("what a query sees goes by positions", "score/task.rs", "let position = self.shape.position(self.head, row);",
     "let position = row + self.shape.n_tokens - self.shape.rows(self.head);", "ragged"),
    ("rows that no query sees are not looked at", "score/task.rs", "shape.first_row_at(head, oldest)..shape.rows(head)",
     "shape.first_row_at(head, oldest.min(0))..shape.rows(head)", "score"),
    ("a log-sum-exp by which attention does not sum to 1 is refused", "score/window.rs",
     "ensure(misses <= LSE_TOLERANCE, ErrorKind::Argument, c\"lse\")?;", "let _ = misses;", "score"),
    ("a log-sum-exp is in the base that is named", "score/window.rs", "*out *= task.params.lse_base.to_two();",
     "*out *= core::f32::consts::LOG2_E;", "score"),
    ("learned sinks are part of each softmax", "score/window.rs",
     "b.exact_weight[j] + sink.map_or(0.0, |sink| libm::exp2(sink as f64 - max));",
     "b.exact_weight[j] + sink.map_or(0.0, |_| 0.0);", "score"),
    ("further queries are joined by maximum", "score.rs", "*s = if x > *s { x } else { *s };", "*s = x;", "ask_again"),
    ("further queries see what one at n_tokens sees", "score/task.rs", "return 0..n,", "return 0..n - 1,", "ask_again"),
    ("queries at positions see what is before them", "score/task.rs", "return before(row)..end", "return 0..end", "ask_again"),
    ("queries at positions see as far back as the window", "score/task.rs", "before(row.saturating_add(keys))",
     "before(row.saturating_add(keys + 1))", "ask_again"),
    ("keys are unlike the mean of unit keys", "score/keys.rs", "*s += x as f64 / length", "*s += x as f64", "keys"),
    ("a key of zeros has the score 0", "score/keys.rs", "if length == 0.0 || unlike < 0.0", "if unlike < 0.0", "keys"),
    ("norms by a form count what is above the diagonal twice", "score/keys.rs", "+ 2.0 * above", "+ above", "keys"),
    ("norms are of values less the centre", "score/keys.rs", "*x -= o", "*x += o", "keys"),
    ("expected attention counts how queries scatter", "score/keys.rs", "0.5 * scale * scale * scatter", "0.5 * scale * scatter", "keys"),
    ("the covariance is turned on both sides", "score/keys.rs",
     "        (0..d).for_each(|column| turn(rope.style, turns, covariance, column, d));\n", "", "keys"),
    ("two stages: a head's first hold no more than they must", "adjust.rs", "n < most && sum < enough;", "n < most;", "ask_again"),
    ("two stages: no more than so many", "adjust.rs", "n < most && sum < enough;", "sum < enough;", "ask_again"),
    ("a clamp raises what is less", "adjust.rs", "if score < least { least }", "if score > least { least }", "ask_again"),
    ("smoothing leaves out what is protected", "adjust.rs", "None => crate::entropy::total(&live[n_protected..]),",
     "None => crate::entropy::total(live),", "ask_again"),
    ("each stretch gives its most novel query", "novelty.rs", "novelty[j] > novelty[m]", "novelty[j] < novelty[m]", "ask_again"),
    ("of equally novel queries the first is picked", "novelty.rs", "novelty[j] > novelty[m]", "novelty[j] >= novelty[m]",
     "ask_again"),
    ("stretches are equal but for one row", "novelty.rs", "(i * n_rows as u64 / n) as usize", "(i * (n_rows as u64 / n)) as usize",
     "ask_again"),
    ("queries are turned to a position", "rope.rs", "x * sin + y * cos", "x * sin - y * cos", "ask_again"),
    ("the 4-norm is a root of fourth powers", "score/window.rs", "            sums = sums.map(fourth_root);\n", "", "ask_again"),
    ("LAVA_POOL_AFTER looks at what comes before an entry alone", "score/pool.rs", "{ (kernel - 1, 0) }", "{ (kernel / 2, kernel / 2) }",
     "ask_again"),
    ("LAVA_VALUE_HEAD_MEAN_L2 is the mean", "score/value.rs", "*sum /= n as f64", "*sum /= 1.0", "ask_again"),
    ("attention sums to 1 at any logit", "score/window.rs", "const LARGEST_SHIFT: f64 = 256.0;",
     "const LARGEST_SHIFT: f64 = 1e30;", "precision"),
    ("the effect of an entry with nearly all attention is right", "score/value.rs", "if i == largest { (&mean, all) }",
     "if i == usize::MAX { (&mean, all) }", "precision"),
    ("LAVA_VALUES_ALL takes the window's values too", "score/value.rs",
     "let with_window = span == ValueSpan::All;", "let with_window = span == ValueSpan::All && shape.window == 0;", "score"),
    ("a part writes its own heads only", "ffi/score.rs", "slice_mut(all.add(first), end - first",
     "slice_mut(all.add(0 * first), end - first", "faults"),
    ("the bits are the same for every n_parts", "attend.rs", "let tile = Tile { backend, shape,",
     "let tile = Tile { backend: if n_parts > 1 { Backend::scalar() } else { backend }, shape,", "splits"),
    ("ties go to the lower token", "select/plan.rs", "let tie = key == self.key && ties > 0;",
     "let tie = key == self.key && ties > 0 && !key.is_multiple_of(2);", "exact"),
    ("ties go to the lower head", "select/plan.rs", "let won = equal.min(ties);",
     "let won = equal.min(ties / (2 - h.min(1) as u64));", "exact"),
    ("outputs of lava_select are untouched on error", "select.rs",
     "let base = entropy::check_finite(shape, scores)? as f64;",
     "cu_kept[0] = 0;\n    let base = entropy::check_finite(shape, scores)? as f64;", "faults"),
    ("negative scores are counted from the smallest", "select.rs", "entropy::check_finite(shape, scores)? as f64;",
     "0.0 * entropy::check_finite(shape, scores)? as f64;", "budget"),
    ("kept_indices are positions, not rows", "select.rs", "*index = shape.position(h, *index as usize) as u32",
     "*index += 0 * h as u32", "ragged"),
    ("everything_kept says whether nothing was evicted", "select.rs", "let everything_kept = n_entries == capacity;",
     "let everything_kept = false;", "exact"),
    ("the entries for a share are the fewest", "select/share.rs", "Ok(n_entries.min(capacity))",
     "Ok((n_entries + 1).min(capacity))", "exact"),
    ("largest remainders, ties to the lower layer", "budget.rs", "other > mine || (other == mine && j < i)",
     "other > mine || (other == mine && j > i)", "exact"),
    ("no layer gets more than it can use", "budget.rs", "} else if excess <= 0 && share > most(i) {",
     "} else if n_open == 0 && share > most(i) {", "exact"),
    ("a guaranteed floor counts what heads have", "budget.rs", "least.max(floor).min(most)",
     "least.max(floor).min(most.max(floor))", "layers"),
    ("neither cache is touched on error, in any part's heads", "ffi/compact.rs",
     "compact::check_rows(&src, &dst, rows, cu_kept, 0..n_heads)",
     "compact::check_rows(&src, &dst, rows, cu_kept, heads.clone())", "status"),
    ("kept rows ascend and lie inside the cache, or are refused", "compact.rs",
     "ensure(ascending && inside, ErrorKind::Indices", "ensure(ascending || inside, ErrorKind::Indices", "faults"),
    ("rows keep the order of positions, in place", "compact.rs", "copy(h, r, kept[r] as usize, run);",
     "(0..run).rev().for_each(|i| copy(h, r + i, kept[r] as usize + i, 1));", "splits"),
    ("the cascade is unchanged on error", "cascade.rs", "let spread = entropy(shape, scores).map_err(at)?;",
     "self.0.header.set_pushed(layer, 7);\n        let spread = entropy(shape, scores).map_err(at)?;", "status"),
    ("a cascade takes the layers that it was started with", "cascade.rs", "ensure(same, ErrorKind::Shape, c\"shape\")",
     "Ok(drop(same))", "status"),
    ("a cascade ends where all at once ends", "cascade.rs",
     "if next == n_layers { Rounding::Exact } else { Rounding::Up }", "Rounding::Exact", "cascade"),
    ("a state that was cut off is refused, also for reading", "cascade/state.rs",
     "r.holds(State::size(&counts)?)?;", "let _ = State::size(&counts)?;", "status"),
    ("variance divides by window - 1", "score/window.rs", "w as f32 * task.params.gamma / (w - 1) as f32",
     "w as f32 * task.params.gamma / w as f32", "frame"),
    ("a tiny variance does not cancel", "score/stats.rs", "map(|d| d * d).sum::<f64>();",
     "map(|d| (d as f32 * (1.0 + 1e-5)) as f64 * d).sum::<f64>();", "precision"),
    ("the newest query weighs decay", "score/window.rs", "let newest = if j == 0 { 1.0 } else { decay };",
     "let newest = decay;", "frame"),
    ("squares are of the attention", "score/window.rs", "(task.kernels.add_squares)(", "(task.kernels.add_exp)(",
     "frame"),
    ("the output is that of all tokens", "score/head.rs", "if output { task.seen.clone() } else { task.live.clone() }",
     "task.live.clone()", "frame"),
    ("the value norm per token is the entry's own", "score/value.rs", "first: first + i, n: 1", "first, n: 1", "frame"),
    ("without a value weight V is not looked at", "score.rs", "if params.value_weight != ValueWeight::None {",
     "if true {", "frame"),
    ("a layer's weight is a factor on its scores", "score/head.rs", "* values * params.weight;", "* values;", "frame"),
    ("no head goes below head_min", "select/plan.rs",
     "head.n_protected().max(params.head_min.min(head.capacity)) as u64", "head.n_protected() as u64", "frame"),
    ("head weights that sum to the entries are counts", "select/plan.rs",
     "budget::water_fill(|h| weights[h], bounds", "budget::water_fill(|h| weights[0 * h], bounds", "frame"),
    ("one sort goes by all layers' scores", "cascade.rs", "options.total.min(there), rounding",
     "options.total.min(there) / 2, rounding", "frame"),
    ("weights are those of the pushes", "cascade.rs", "self.0.work.weights[layer] = weight;",
     "self.0.work.weights[layer] = 1.0 + 0.0 * weight;", "frame"),
    ("a cascade by weights takes no push without a weight", "cascade.rs",
     "return Err(at(Error::new(ErrorKind::Argument, c\"weight\")));", "1.0", "status"),
    ("rows are of the cache as it was last compacted", "cascade.rs", "if evicted { row as u32 } else { held.rows[at] }",
     "row as u32", "cascade"),
    ("row counts are of the cache as it was last compacted", "cascade.rs", "if evicted {\n            let held",
     "if layer > 0 {\n            let held", "cascade"),
    ("ties across ranks go to the lower head of the model", "ranks.rs",
     "(b.spare[h], b.equal[h]) = (low(word), high(word));", "(b.spare[h], b.equal[h]) = (low(word), if h > 0 { high(word) } else { 0 });",
     "ranks"),
    ("a number of one head crosses ranks as its bits", "ranks.rs", "entropy::head_sums(head.scores).map(f64::to_bits)",
     "entropy::head_sums(head.scores).map(|x| (x as f32 as f64).to_bits())", "ranks"),
    ("ranks that ask for different things are refused, on every rank", "ranks.rs", "ensure(same, ErrorKind::Shape, c\"rank\")?;",
     "let _ = same;", "ranks"),
    ("a head's rank is one", "ranks.rs", "low(word[0]) != 1", "low(word[0]) > 9", "status"),
    ("a score of one rank that is not finite is named on every rank", "ranks.rs", "(false, _) => IS_NOT_FINITE,", "(false, _) => 0,",
     "ranks"),
    ("a rank's error ends the decision on every rank", "ranks.rs", "(1..HEADER).find(|&number| header[number] > 0)",
     "(1..HEADER).find(|&number| header[number] > HEADER as u64)", "ranks"),
    ("a rank that is gone is missed", "ranks.rs", "n_ranks == self.header[N_RANKS]", "n_ranks <= self.header[N_RANKS]", "ranks"),
    ("what is wrong with a rank's arguments is in its exchange", "ffi/ranks.rs",
     "ranks::refuse(e.kind, slice_mut(exchange, n, c\"exchange\")?)?;", "", "ranks"),
    ("a state belongs to the rank that it was started with", "ranks.rs",
     "ensure(self.header[OWN_PRINT] == part.own_print(), ErrorKind::State, c\"rank\")", "Ok(drop(part.own_print()))", "status"),
    ("while layers follow, what is kept holds all that will be", "ranks/part.rs",
     "if self.more_layers { Rounding::Up } else { Rounding::Exact }", "Rounding::Exact", "ranks"),
    ("attention's window goes by true positions", "attend.rs",
     "partition_point(end, |row| positions.of(self.head, row) < oldest)", "oldest as usize", "attend"),
    ("positions beyond 2^32 do not wrap", "attend.rs", "None => self.n_base as u64 + (row - kept.len()) as u64,",
     "None => self.n_base.wrapping_add((row - kept.len()) as u32) as u64,", "overflow"),
    ("a query that sees no row gets zeros", "attend.rs", "(if sum > 0.0 { (1.0 / sum) as f32 } else { 0.0 }, ",
     "((1.0 / sum) as f32, ", "attend"),
    ("log-sum-exp is natural", "attend.rs", "LseBase::Natural => core::f64::consts::LN_2,", "LseBase::Natural => 1.0,",
     "attend"),
    ("learned sinks are part of attention's softmax", "attend.rs",
     "sum + sink.map_or(0.0, |sink| libm::exp2(sink - max));", "sum + sink.map_or(0.0, |_| 0.0);", "attend"),
    ("GPU: the workspace is as large as its size function says", "backend/cuda.rs",
     "ensure(workspace_size >= needed, ErrorKind::Workspace, c\"workspace_size\")?;", "", "path"),
    ("GPU: nothing is launched unless every sequence is accepted", "backend/cuda.rs",
     "for i in 0..n {\n            let sequence = sequence(i)?;", "for i in 0..1 {\n            let sequence = sequence(i)?;", "path"),
    ("GPU: a batch of any size arrives whole", "backend/cuda.rs",
     "(to.wrapping_add(first), &|i|", "(to, &|i|", "path"),
    ("GPU: kernels belong to the context they were loaded into", "backend/cuda.rs",
     "ensure(!current.is_null(), ErrorKind::Context, c\"no current context\")?;", "", "path"),
    ("GPU: what was loaded is unloaded if loading fails", "backend/cuda.rs",
     "Err(e) => driver.unload(&context.modules).and(Err(e)),", "Err(e) => Err(e),", "path"),
    ("GPU: a destroyed context is refused", "ffi/cuda/context.rs", "(context as *mut u64).write(0);", "", "path"),
    ("GPU: the status word names the sequence", "ffi/cuda/context.rs", "(word >> 28)", "(word >> 20)", "path"),
    ("GPU: no sequence is longer than the shape", "ffi/cuda.rs",
     "ensure(shape.n_tokens <= longest.n_tokens, ErrorKind::Shape, c\"n_tokens\")?;", "", "path"),
    ("GPU: ragged shapes are refused", "ffi/cuda.rs",
     "supports(given.cu_rows.is_null(), c\"cu_rows\").map_err(|e| e.at_layer(given.layer))?;", "", "path"),
    ("GPU: sliding layers are refused where dead entries are not known", "ffi/cuda.rs",
     "supports(shape.sliding_window.is_none(), c\"sliding_window\")", "Ok(())", "path"),
    ("GPU: sinks that it does not know are refused", "ffi/cuda.rs",
     "supports(given.sink_logits.is_null(), c\"sink_logits\")?;", "", "path"),
    ("GPU: a log-sum-exp is of the base that the caller says", "ffi/cuda/score.rs",
     "params.lse_base.to_two()", "core::f32::consts::LOG2_E", "path"),
    ("GPU: outputs that overlap are refused", "ffi/cuda/select.rs",
     ".writes(s.cu_kept, shape.n_kv_heads + 1, c\"cu_kept\")", "", "path"),
    ("GPU: a cascade takes n_layers pushes", "ffi/cuda/cascade.rs",
     "ensure(own.n_pushed < own.n_layers, ErrorKind::State, c\"cascade\")?;", "", "path"),
    ("GPU: a cascade's caller evicts as often as it said", "ffi/cuda/cascade.rs",
     "evict_every: cascade.evict_every.max(1) as u32,", "evict_every: 1,", "path"),
    ("GPU: weights are for a cascade by weights", "ffi/cuda/cascade.rs",
     "ensure(weighted || s.weight.is_null(), ErrorKind::Argument, c\"weight\")?;", "", "path"),
    ("GPU: caches of different kinds may be in one call", "ffi/cuda/compact.rs",
     "filter(|found| found.kind == kind)", "filter(|_| true)", "path"),
    ("GPU: where a layer is after a push", "../cuda/plan.c", "now = (a->layer + 1) % 2", "now = a->layer % 2", "path"),
    ("GPU: blocks that wait for each other run at the same time", "../cuda/plan.c",
     "at->cooperative = n_blocks > 1;", "at->cooperative = 0;", "path"),
    ("GPU: nothing moves after a fault", "../cuda/compact.cu", "*fault = *a.status != LAVA_NO_FAULT", "*fault = 0", "path"),
    ("GPU: the cause is reported, not its consequences", "../cuda/budgets.cu", "LAVA_NO_HEAD", "0", "path"),
    ("GPU: a fault in scores is reported once, where it was found", "../cuda/budgets.cu", "fault.what != FAULT_TOLD && ", "", "path"),
]


def run_tests(test):
    """Builds a test, then runs it: what the compiler said where it did not build, and whether the test failed."""
    if test == "path":
        build = ["make", "-s", "target/cuda/quick/path", "target/cuda/quick/libcuda.so.1"]
        run, environment = ["target/cuda/quick/path"], os.environ | {"LD_LIBRARY_PATH": "target/cuda/quick"}
    else:
        run, environment = ["cargo", "test", "--quiet", "--package", "ffi-tests", "--test", test], None
        build = [*run, "--no-run"]
    built = subprocess.run(build, cwd=COPY, capture_output=True, text=True)
    if built.returncode:
        return built.stderr, True
    try:
        ran = subprocess.run(run, cwd=COPY, env=environment, capture_output=True, text=True, timeout=900)
    except subprocess.TimeoutExpired:
        return None, True  # a test that does not end is not taken for one that has passed
    return None, ran.returncode != 0


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
    for name in ("src", "ffi-tests", "include", "tests", "examples-c", "cuda", "docs", "eval/model", "Cargo.toml", "Cargo.lock", "build.rs",
                 "Makefile"):
        old = COPY / name
        if old.is_dir():
            shutil.rmtree(old)
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy2
        copy(ROOT / name, old)
    # Headers of CUDA, which `make break-sample` fetches.
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
        not_built, failed = run_tests(test)
        path.write_text(text)
        if not_built is not None:
            sys.exit(f"\ndoes not compile:\n{not_built}")
        print("red" if failed else "SURVIVED", flush=True)
        if not failed:
            survived.append(promise)
    print(f"{len(rows)} broken, {len(survived)} not noticed")
    return 1 if survived else 0


if __name__ == "__main__":
    sys.exit(main())
