#!/usr/bin/env python3
"""The library on a GPU: every stage against float64, then how long each takes, beside PyTorch on the same GPU.

    gpu.py LIBLAVA.SO [--check | --times] [--only WORD]

Each section is a process of its own: neither a fault of the GPU nor a hang costs another section its rows. Sections that failed are named at
the end, and the status is 1 then. --fake: small ones on memory of the host, where libcuda is tests/fake_driver.cpp, by LD_LIBRARY_PATH;
the times are of no meaning there.

Needs PyTorch; nothing else, and no network. The structs are read from the headers, so they are the library's own.
"""
import argparse
import ctypes
import math
import multiprocessing
import os
import pathlib
import re
import sys
import time
import traceback

import torch

ROOT = pathlib.Path(__file__).resolve().parents[1]
DTYPES = {torch.float32: 0, torch.float16: 1, torch.bfloat16: 2}
NAMES = {torch.float32: "f32", torch.float16: "f16", torch.bfloat16: "bf16"}
U = 2.0**-24
WINDOW = 32

# ------------------------------------------------------------------------------------------------------------- the library ----

C_TYPES = {
    "uint8_t": ctypes.c_uint8, "int32_t": ctypes.c_int32, "uint32_t": ctypes.c_uint32, "int64_t": ctypes.c_int64, "uint64_t": ctypes.c_uint64,
    "size_t": ctypes.c_size_t, "float": ctypes.c_float, "double": ctypes.c_double, "lava_status": ctypes.c_int32, "lava_dtype": ctypes.c_int32,
}  # fmt: skip


def read_headers():
    """Structs and constants of lava.h and lava_cuda.h. A struct's first member is its size."""
    structs, constants = {}, {}
    for name in ("lava.h", "lava_cuda.h"):
        text = re.sub(r"/\*.*?\*/", "", (ROOT / "include" / name).read_text(), flags=re.S)
        for key, value in re.findall(r"#define (LAVA_\w+) (\d+)", text):
            constants[key] = int(value)
        for struct, body in re.findall(r"typedef struct (\w+) \{(.*?)\} \1;", text, flags=re.S):
            fields = []
            for line in filter(None, (" ".join(line.split()) for line in body.split(";"))):
                kind, field = re.fullmatch(r"(.*?)(\w+)", line).groups()
                fields.append((field, ctypes.c_void_p if "*" in kind else (C_TYPES | structs)[kind.split()[-1]]))
            structs[struct] = type(struct, (ctypes.Structure,), {"_fields_": fields})
    return structs, constants


class Library:
    """Calls that raise, structs by their names without lava_, device memory by torch."""

    def __init__(self, path, gpu):
        self.c = ctypes.CDLL(str(path))
        self.c.lava_cuda_context_size.restype = ctypes.c_size_t
        self.structs, self.constants = read_headers()
        self.gpu = gpu
        room = ctypes.create_string_buffer(self.c.lava_cuda_context_size() + 64)
        self.context = ctypes.c_void_p((ctypes.addressof(room) + 63) // 64 * 64)
        self.room = room
        self.status = gpu.full(1, -1, torch.int64)
        self.call("cuda_init", self.context, self.c.lava_cuda_context_size())

    def struct(self, name, **values):
        made = self.structs["lava_" + name](**values)
        made.struct_size = ctypes.sizeof(made)
        return made

    def array(self, items):
        return (type(items[0]) * len(items))(*items)

    def call(self, name, *arguments):
        error = self.struct("error")
        converted = [ctypes.byref(a) if isinstance(a, ctypes.Structure) else a for a in arguments]
        converted = [ctypes.c_size_t(a) if isinstance(a, int) else a for a in converted]
        converted = [ctypes.c_void_p(a.data_ptr()) if isinstance(a, torch.Tensor) else a for a in converted]
        if getattr(self.c, "lava_" + name)(*converted, ctypes.byref(error)) != 0:
            text = [ctypes.string_at(p).decode() if p else "" for p in (error.message, error.argument)]
            raise RuntimeError(f"lava_{name}: {text[0]} ({text[1]})")

    def launch(self, name, *arguments):
        """A call that ends with a status word and a stream."""
        self.call(name, *arguments, self.status, ctypes.c_void_p(self.gpu.stream()))

    def size(self, name, *arguments):
        size = ctypes.c_size_t()
        self.call(name, *arguments, ctypes.byref(size))
        return size.value

    def finish(self):
        """Waits, and raises what the kernels found."""
        self.gpu.wait()
        word = self.status.cpu().item() % 2**64
        self.status.fill_(-1)
        self.call("cuda_result", ctypes.c_uint64(word), None)

    def tensor(self, x, starts=None):
        """[rows, heads, dim] of torch; or ragged rows [rows, dim] with each head's first row."""
        strides = x.stride() if starts is None else (x.stride(0), 0, x.stride(1))
        last = sum((n - 1) * s for n, s in zip(x.shape, x.stride()))
        return self.struct(
            "tensor", dtype=DTYPES[x.dtype], data=x.data_ptr(), size=(last + 1) * x.element_size(),
            stride_token=strides[0], stride_head=strides[1], stride_dim=strides[2], row_start=starts.data_ptr() if starts is not None else None,
        )  # fmt: skip


class Cuda:
    device = "cuda"

    def __init__(self):
        torch.cuda.init()
        torch.zeros(1, device=self.device)  # makes the device's context the thread's

    def name(self):
        return torch.cuda.get_device_name()

    def stream(self):
        return torch.cuda.current_stream().cuda_stream

    def second_stream(self):
        """Before the current one where both have work: what goes there is small."""
        return torch.cuda.Stream(priority=-1)

    def wait(self):
        torch.cuda.synchronize()

    def full(self, n, value, dtype):
        return torch.full((n,), value, dtype=dtype, device=self.device)

    def sets(self, n_bytes):
        """So many inputs of so many bytes that none is in the L2 cache any more when its turn comes again."""
        return range(max(4, math.ceil(4 * torch.cuda.get_device_properties().L2_cache_size / n_bytes)))

    def timed(self, calls, rounds=10, restore=lambda: None):
        """Seconds of one of the calls, which go round. As a graph: Python is not measured. restore: what they have changed."""
        for call in calls:
            call()
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            for call in calls:
                call()
        graph.replay()
        best = math.inf
        for _ in range(3):
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            restore()
            begin.record()
            for _ in range(rounds):
                graph.replay()
            end.record()
            end.synchronize()
            best = min(best, begin.elapsed_time(end) / 1e3 / rounds / len(calls))
        return best


class Fake(Cuda):
    device = "cpu"

    def __init__(self):
        self.c = ctypes.CDLL("libcuda.so.1")
        context = ctypes.c_void_p()
        for code in (self.c.cuInit(0), self.c.cuDevicePrimaryCtxRetain(ctypes.byref(context), 0), self.c.cuCtxSetCurrent(context)):
            assert code == 0, code

    def name(self):
        return "no GPU, so no times"

    def stream(self):
        return None

    def second_stream(self):
        return None

    def wait(self):
        assert self.c.cuStreamSynchronize(None) == 0

    def sets(self, n_bytes):
        return range(2)

    def timed(self, calls, rounds=10, restore=lambda: None):
        restore()
        begun = time.perf_counter()
        for call in calls:
            call()
        self.wait()
        return (time.perf_counter() - begun) / len(calls)


# --------------------------------------------------------------------------------------------------------------- the stages ----


class Score:
    """One layer of a batch of sequences: queries [window, n_q_heads, d], keys and values [n_tokens, n_kv_heads, d]."""

    def __init__(self, lava, inputs, window=WINDOW, with_lse=False, **params):
        self.lava, self.inputs = lava, inputs
        q, k, v = inputs[0]
        longest = max(k.shape[0] for _, k, _ in inputs)
        self.shape = lava.struct(
            "shape", n_tokens=longest, n_q_heads=q.shape[1], n_kv_heads=k.shape[1], head_dim_k=k.shape[2], head_dim_v=v.shape[2], window=window
        )
        self.params = lava.struct("score_params", **{"pool_kernel": 7, **params})
        device = lava.gpu.device
        prefixes = [max(k.shape[0] - window, 0) for _, k, _ in inputs]
        self.scores = [torch.full((k.shape[1], n), math.nan, device=device) for (_, k, _), n in zip(inputs, prefixes)]
        self.lse = [log_sum_exp(q, k, self.params).float() for q, k, _ in inputs] if with_lse else None
        self.tensors = [[lava.tensor(x) for x in sequence] for sequence in inputs]
        for tensors, lse in zip(self.tensors, self.lse or []):
            tensors.append(lava.tensor(lse.unsqueeze(-1)))
        items = []
        for tensors, scores, (_, k, _) in zip(self.tensors, self.scores, inputs):
            pointers = [ctypes.addressof(t) for t in tensors] + [None] * (4 - len(tensors))
            items.append(
                lava.struct("cuda_score_sequence", n_tokens=k.shape[0], q=pointers[0], k=pointers[1], v=pointers[2], lse=pointers[3], scores=scores.data_ptr())
            )
        self.items = lava.array(items)
        size = lava.size("cuda_score_workspace_size", lava.context, self.shape, self.params, len(items))
        self.workspace = torch.empty(max(size, 1), dtype=torch.uint8, device=device)

    def __call__(self):
        self.lava.launch(
            "cuda_score", self.lava.context, self.shape, self.params, self.items, len(self.items), self.workspace, self.workspace.numel()
        )


def logits(q, k, params):
    """[n_kv_heads, group, window, n_tokens] in float64, minus infinity where a query does not see."""
    w, n_q, d = q.shape
    n, n_kv, _ = k.shape
    grouped = q.double().view(w, n_kv, n_q // n_kv, d).permute(1, 2, 0, 3)
    x = torch.einsum("hgwd,nhd->hgwn", grouped, k.double()) * (params.scale or d**-0.5)
    if params.softcap:
        x = params.softcap * torch.tanh(x / params.softcap)
    own = torch.arange(n - w, n, device=k.device)[:, None]
    key = torch.arange(n, device=k.device)
    seen = key <= own
    if params.sliding_window:
        seen &= key > own - params.sliding_window
    return x.masked_fill(~seen, -math.inf)


def log_sum_exp(q, k, params):
    """[window, n_q_heads]."""
    return torch.logsumexp(logits(q, k, params), -1).permute(2, 0, 1).flatten(1)


def score_reference(q, k, v, params):
    """As the header says, for the options used here."""
    w = q.shape[0]
    prefix = k.shape[0] - w
    attention = torch.softmax(logits(q, k, params), -1)
    attention = (attention**2 if params.attention == 1 else attention).mean(2)
    if params.value_weight == 3:
        attention = output_change(attention, v.double().transpose(0, 1))
    attention = attention[..., :prefix]
    half = params.pool_kernel // 2
    pooled = torch.nn.functional.max_pool1d(attention, params.pool_kernel, stride=1, padding=half).amax(1)
    norms = v[:prefix].double().abs().sum(-1).T
    scores = pooled * {0: norms.amax(1, keepdim=True), 2: norms, 3: 1}[params.value_weight]
    return scores + params.smoothing * scores.mean(1, keepdim=True)


def output_change(a, v):
    """a |o - v| / (1 - a): [n_kv_heads, group, n_tokens] of attention, [n_kv_heads, n_tokens, d] of values."""
    return a / (1 - a) * torch.cdist(a @ v, v, compute_mode="donot_use_mm_for_euclid_dist")


def random(gpu, generator, *shape, dtype):
    return torch.randn(*shape, generator=generator, device=gpu.device).to(dtype)


def layer(gpu, generator, n, n_q_heads, n_kv_heads, d, dtype, window=WINDOW):
    q = random(gpu, generator, window, n_q_heads, d, dtype=dtype)
    return q, *(random(gpu, generator, n, n_kv_heads, d, dtype=dtype) for _ in range(2))


class Checks:
    def __init__(self, lava):
        self.failed = 0

    def near(self, name, got, want, bound, relative=True):
        error = (got.double() - want).abs()
        error = (error / want.abs().clamp_min(1e-30)) if relative else error
        worst = error.max().item() if error.numel() else 0.0
        self.tell(name, worst <= bound, f"off by {worst:.1e}, bound {bound:.1e}")

    def tell(self, name, ok, text):
        self.failed += not ok
        print(f"  {name:<58} {text}{'' if ok else '   FAILED'}", flush=True)


def score_bound(q, k, params, window, dim_v):
    """As in tests/score.cpp: sums of d products in f32, twice, and the sums behind them."""
    d, n = q.shape[2], k.shape[0]
    size = (q.double().norm(dim=-1).max() * k.double().norm(dim=-1).max() * (params.scale or d**-0.5)).item()
    # Squares double an error. A change of the output has that of 1 - a too, and of o - v: no a is above 1/2 here, no |o - v| below |v| / 4.
    kind = 8 if params.value_weight == 3 else 2 if params.attention == 1 else 1
    return 2 * kind * U * ((4 * math.sqrt(d) + 8) * size + n / 16 + window + dim_v + 200)


DEFAULT = {"attention": 1, "value_weight": 2, "smoothing": 1}
CAOTE = {"value_weight": 3, "pool_kernel": 1}


def check_scores(lava, checks, generator, dtype, n):
    for d in (64, 80, 96, 128, 256, 72):
        for name, options in {"LAVa": {}, "default": DEFAULT, "lse": {"with_lse": True}, "CAOTE": CAOTE, "window": {"sliding_window": 40, "softcap": 8.0}}.items():
            if name != "LAVa" and d not in (128, 72):
                continue
            inputs = [layer(lava.gpu, generator, m, 8, 2, d, dtype) for m in (n, n // 3 + 1)]
            run = Score(lava, inputs, **options)
            run()
            lava.finish()
            for (q, k, v), scores in zip(inputs, run.scores):
                want = score_reference(q, k, v, run.params)
                checks.near(f"score {NAMES[dtype]} {d} {name}, {k.shape[0]} tokens", scores, want, score_bound(q, k, run.params, WINDOW, d))


class Statistics:
    """One layer of a batch of sequences as in Score: entropy and variance of each head, and CAKE's weight of each sequence."""

    def __init__(self, lava, inputs, tau1, tau2, window=WINDOW):
        self.lava, self.tau = lava, (ctypes.c_double(tau1), ctypes.c_double(tau2))
        q, k, _ = inputs[0]
        n_kv, device = k.shape[1], lava.gpu.device
        longest = max(k.shape[0] for _, k, _ in inputs)
        self.shape = lava.struct("shape", n_tokens=longest, n_q_heads=q.shape[1], n_kv_heads=n_kv, head_dim_k=k.shape[2], head_dim_v=1, window=window)
        self.params = lava.struct("score_params", pool_kernel=1)
        self.stats = torch.full((len(inputs), n_kv, 2), math.nan, dtype=torch.float64, device=device)
        self.weights = torch.full((len(inputs),), math.nan, dtype=torch.float64, device=device)
        self.tensors = [[lava.tensor(x) for x in (q, k)] for q, k, _ in inputs]
        items, weighs = [], []
        for (q, k), (_, keys, _), stats, weight in zip(self.tensors, inputs, self.stats, self.weights):
            pointers = {"q": ctypes.addressof(q), "k": ctypes.addressof(k), "stats": stats.data_ptr()}
            items.append(lava.struct("cuda_stats_sequence", n_tokens=keys.shape[0], **pointers))
            weighs.append(lava.struct("cuda_preference_sequence", stats=stats.data_ptr(), weight=weight.data_ptr()))
        self.items, self.weighs = lava.array(items), lava.array(weighs)
        size = lava.size("cuda_attention_stats_workspace_size", lava.context, self.shape, self.params, len(items))
        self.workspace = torch.empty(size, dtype=torch.uint8, device=device)
        self.small = torch.empty(24 * len(items), dtype=torch.uint8, device=device)

    def __call__(self):
        call, n = self.lava.launch, len(self.items)
        call("cuda_attention_stats", self.lava.context, self.shape, self.params, self.items, n, self.workspace, self.workspace.numel())
        call("cuda_preference", self.lava.context, self.shape, *self.tau, self.weighs, n, self.small, self.small.numel())


def check_statistics(lava, checks, generator, n):
    for dtype in DTYPES:
        inputs = [layer(lava.gpu, generator, m, 8, 2, 128, dtype) for m in (n, n // 3 + 1)]
        run = Statistics(lava, inputs, 1.6, 0.7)
        run()
        lava.finish()
        for (q, k, v), stats, weight in zip(inputs, run.stats, run.weights):
            a = torch.softmax(logits(q, k, run.params), -1)[..., : k.shape[0] - WINDOW]
            variance = a.var(2).sum((1, 2))
            # As in tests/score.cpp: relative to a |ln a| + a, and to the terms that a variance is a difference of.
            error = score_bound(q, k, run.params, WINDOW, 1)
            name = f"statistics {NAMES[dtype]}, {k.shape[0]} tokens"
            entropy = torch.special.entr(a).sum((1, 2, 3))
            off = (stats[:, 0] - entropy).abs() / (entropy + a.sum((1, 2, 3)))
            checks.near(f"{name}: entropy", off, torch.zeros_like(off), error, relative=False)
            terms = ((a**2).sum(2) + a.sum(2) ** 2 / WINDOW).sum((1, 2)) / (WINDOW - 1)
            off = (stats[:, 1] - variance).abs() / terms
            checks.near(f"{name}: variance", off, torch.zeros_like(off), 2 * error, relative=False)
            want = stats[:, 0].sum() ** (1 / 1.6) * stats[:, 1].sum() ** (1 / 0.7)
            checks.near(f"{name}: preference", weight, want, 1e-14)


def check_mean(lava, checks, generator, n):
    scores = [torch.rand(4, m, generator=generator, device=lava.gpu.device) for m in (n, n // 3 + 1)]
    shape = lava.struct("shape", n_tokens=n + WINDOW, n_q_heads=4, n_kv_heads=4, head_dim_k=1, head_dim_v=1, window=WINDOW)
    want = [(((x[0].double() + x[1]) + x[2]) + x[3]).div(4).float().expand(4, -1) for x in scores]
    items = lava.array([lava.struct("cuda_mean_sequence", n_tokens=x.shape[1] + WINDOW, scores=x.data_ptr()) for x in scores])
    workspace = torch.empty(16 * len(items), dtype=torch.uint8, device=lava.gpu.device)
    lava.launch("cuda_mean_over_heads", lava.context, shape, items, len(items), workspace, workspace.numel())
    lava.finish()
    checks.tell("mean over heads", all(torch.equal(x, y) for x, y in zip(scores, want)), "the same bits")


class Attend:
    """A batch of sequences, each head with rows of its own: queries [n_new, n_q_heads, d], ragged keys and values."""

    def __init__(self, lava, queries, caches):
        self.lava = lava
        device = lava.gpu.device
        self.queries, self.caches = queries, caches
        q = queries[0]
        n_kv = len(caches[0][2])
        dim_k, dim_v = caches[0][0].shape[1], caches[0][1].shape[1]
        self.shape = lava.struct("shape", n_tokens=q.shape[0], n_q_heads=q.shape[1], n_kv_heads=n_kv, head_dim_k=dim_k, head_dim_v=dim_v, window=1)
        self.params = lava.struct("attend_params", causal=1)
        self.outs = [torch.empty(q.shape[0], q.shape[1], dim_v, device=device) for q in queries]
        self.kept, items, total = [], [], 0
        for q, (k, v, counts), out in zip(queries, caches, self.outs):
            rows = torch.tensor(counts, dtype=torch.int32, device=device)
            starts = (torch.cumsum(rows, 0) - rows).to(torch.int32)
            tensors = [lava.tensor(q), lava.tensor(k, starts), lava.tensor(v, starts), lava.tensor(out)]
            self.kept.append((rows, starts, tensors))
            pointers = [ctypes.addressof(t) for t in tensors]
            items.append(
                lava.struct("cuda_attend_sequence", max_rows=max(counts), total_rows=sum(counts), q=pointers[0], k=pointers[1], v=pointers[2], out=pointers[3], n_rows=rows.data_ptr())
            )
            total += sum(counts)
        self.items = lava.array(items)
        size = lava.size("cuda_attend_workspace_size", lava.context, self.shape, len(items), ctypes.c_uint64(total))
        self.workspace = torch.empty(size, dtype=torch.uint8, device=device)

    def __call__(self):
        self.lava.launch(
            "cuda_attend", self.lava.context, self.shape, self.params, self.items, len(self.items), self.workspace, self.workspace.numel()
        )


def ragged(gpu, generator, counts, d, dtype):
    return (*(random(gpu, generator, sum(counts), d, dtype=dtype) for _ in range(2)), counts)


def check_attention(lava, checks, generator, dtype, rows):
    for d in (64, 80, 96, 128, 256, 72):
        counts = [[rows, rows // 3], [5, rows // 2]]
        caches = [ragged(lava.gpu, generator, c, d, dtype) for c in counts]
        queries = [random(lava.gpu, generator, 2, 8, d, dtype=dtype) for _ in counts]
        run = Attend(lava, queries, caches)
        run()
        lava.finish()
        for i, (q, (k, v, c), out) in enumerate(zip(queries, caches, run.outs)):
            want, first, size = torch.empty_like(out, dtype=torch.float64), 0, 0.0
            for h, n in enumerate(c):
                keys, values = (x[first : first + n].double() for x in (k, v))
                first += n
                heads = slice(4 * h, 4 * h + 4)
                x = torch.einsum("tgd,nd->tgn", q[:, heads].double(), keys) * d**-0.5
                size = max(size, (q.double().norm(dim=-1).max() * keys.norm(dim=-1).max() * d**-0.5).item())
                x[0, :, -1] = -math.inf
                want[:, heads] = torch.einsum("tgn,nd->tgd", torch.softmax(x, -1), values)
            pieces = 0 if dtype == torch.float32 else 2.0**-17
            bound = 2 * (U * (2 * (4 * math.sqrt(d) + 8) * size + max(c) + 40) + pieces) * v.double().abs().max().item()
            checks.near(f"attend {NAMES[dtype]} {d}, rows {c}", out, want, bound, relative=False)


class Decide:
    """Budgets and kept sets of layers side by side, without the host: scores [n_kv_heads, prefix] of each layer."""

    def __init__(self, lava, scores, total, window=WINDOW, layers="global", **params):
        self.lava, self.scores, self.total, self.window, self.layers = lava, scores, total, window, layers
        device = lava.gpu.device
        n_kv, prefix = scores[0].shape
        self.n = len(scores)
        self.shape = lava.struct("shape", n_tokens=prefix + window, n_q_heads=n_kv, n_kv_heads=n_kv, head_dim_k=1, head_dim_v=1, window=window)
        self.params = lava.struct("select_params", **params)
        self.budgets = torch.zeros(self.n, dtype=torch.int64, device=device)
        self.weights = torch.zeros(self.n, n_kv, dtype=torch.float64, device=device)
        self.sums = torch.zeros(2, self.n, dtype=torch.float64, device=device)
        self.capacities = torch.full((self.n,), n_kv * prefix, dtype=torch.int64, device=device)
        room = min(total, n_kv * prefix) + n_kv * window
        self.kept = torch.full((self.n, room), -1, dtype=torch.int32, device=device)
        self.cu = torch.full((self.n, n_kv + 1), -1, dtype=torch.int32, device=device)
        self.pointers = torch.tensor([x.data_ptr() for x in scores], dtype=torch.int64).to(device)
        item = lava.struct("cuda_global_sequence", n_tokens=prefix + window, total=total, scores=self.pointers.data_ptr(), budgets=self.budgets.data_ptr(), head_weights=self.weights.data_ptr())
        self.one_sort = lava.array([item])
        self.entropies = lava.array([
            lava.struct("cuda_entropy_sequence", n_tokens=prefix + window, layer=l, scores=x.data_ptr(), entropy=self.sums[0, l].data_ptr(), mass=self.sums[1, l].data_ptr())
            for l, x in enumerate(scores)
        ])  # fmt: skip
        self.shares = lava.array([
            lava.struct("cuda_budget_sequence", n_layers=self.n, total=total, weights=self.sums[0].data_ptr(), capacities=self.capacities.data_ptr(), budgets=self.budgets.data_ptr())
        ])  # fmt: skip
        self.selections = lava.array([
            lava.struct(
                "cuda_select_sequence", n_tokens=prefix + window, layer=l, scores=x.data_ptr(), budget=self.budgets[l].data_ptr(),
                head_weights=self.weights[l].data_ptr() if layers == "global" else None, kept_indices=self.kept[l].data_ptr(), cu_kept=self.cu[l].data_ptr(),
            )
            for l, x in enumerate(scores)
        ])  # fmt: skip
        sizes = [
            lava.size("cuda_global_budgets_workspace_size", lava.context, self.shape, self.n, 1),
            lava.size("cuda_entropy_workspace_size", lava.context, self.shape, self.n),
            lava.size("cuda_select_workspace_size", lava.context, self.shape, self.n),
        ]
        self.workspaces = [torch.empty(max(size, 1), dtype=torch.uint8, device=device) for size in sizes]

    def budget(self):
        if self.layers == "global":
            self.lava.launch("cuda_global_budgets", self.lava.context, self.shape, self.n, self.params, self.one_sort, 1, self.workspaces[0], self.workspaces[0].numel())
        else:
            self.lava.launch("cuda_entropy", self.lava.context, self.shape, self.entropies, self.n, self.workspaces[1], self.workspaces[1].numel())
            self.lava.launch("cuda_layer_budgets", self.lava.context, self.shares, 1, ctypes.c_void_p(None), ctypes.c_size_t(0))

    def select(self):
        self.lava.launch("cuda_select", self.lava.context, self.shape, self.params, self.selections, self.n, self.workspaces[2], self.workspaces[2].numel())

    def __call__(self):
        self.budget()
        self.select()


def kept_reference(scores, budget, window):
    """The `budget` largest over all heads, ties to the lower head and token, and the windows: (kept_indices, cu_kept)."""
    n_kv, prefix = scores.shape
    order = torch.sort(scores.flatten().cpu(), descending=True, stable=True).indices[:budget]
    mask = torch.zeros(n_kv * prefix, dtype=torch.bool)
    mask[order] = True
    mask = torch.cat([mask.view(n_kv, prefix), torch.ones(n_kv, window, dtype=torch.bool)], 1)
    return mask.nonzero()[:, 1].to(torch.int32), torch.cat([torch.zeros(1, dtype=torch.int64), mask.sum(1).cumsum(0)]).to(torch.int32)


class Compact:
    """Rows of K and V into ragged buffers, of several layers."""

    def __init__(self, lava, caches, kept, cu):
        self.lava = lava
        device = lava.gpu.device
        k, v = caches[0]
        self.shape = lava.struct("shape", n_tokens=k.shape[0], n_q_heads=k.shape[1], n_kv_heads=k.shape[1], head_dim_k=k.shape[2], head_dim_v=v.shape[2], window=1)
        self.keep, items = [kept, cu], []
        self.outs = []
        for (k, v), its, counts in zip(caches, kept, cu):
            out = [torch.zeros(its.numel(), x.shape[2], dtype=x.dtype, device=device) for x in (k, v)]
            tensors = [lava.tensor(k), lava.tensor(v), lava.tensor(out[0], counts), lava.tensor(out[1], counts)]
            pointers = [ctypes.addressof(t) for t in tensors]
            self.keep.append(tensors)
            self.outs.append(out)
            items.append(lava.struct("cuda_compact_sequence", max_rows=k.shape[0], max_kept=int(counts.diff().max()), k_src=pointers[0], v_src=pointers[1], k_dst=pointers[2], v_dst=pointers[3], rows=its.data_ptr(), cu_kept=counts.data_ptr()))
        self.items = lava.array(items)
        self.workspace = torch.empty(lava.size("cuda_compact_workspace_size", lava.context, len(items)), dtype=torch.uint8, device=device)

    def __call__(self):
        self.lava.launch("cuda_compact", self.lava.context, self.shape, self.items, len(self.items), self.workspace, self.workspace.numel())


class Prefill:
    """Score and push, layer by layer; nothing comes back in between. All layers so far are evicted after so many pushes, or never (0).

    second: a stream for the pushes and evictions, beside which the next layer is scored. No eviction touches a cache before its layer is
    scored, so each layer has to have a cache and scores of its own.
    """

    def __init__(self, lava, layers, total, kind, window=WINDOW, evict_every=1, second=None):
        self.lava, self.n_layers, self.total, self.evict_every, self.second = lava, len(layers), total, evict_every, second
        device = lava.gpu.device
        self.runs = [Score(lava, [s], window, attention=1, value_weight=2, smoothing=1) for s in layers]
        self.shape = self.runs[0].shape
        self.params = lava.struct("select_params", layer_budgets=kind, evict_every=evict_every)
        size = lava.size("cuda_cascade_state_size", self.shape, self.n_layers, ctypes.c_uint64(total), self.params)
        self.state = torch.empty(size, dtype=torch.uint8, device=device)
        self.cascade = lava.struct("cuda_cascade")
        self.start()
        size = lava.size("cuda_cascade_workspace_size", lava.context, self.cascade, 1)
        self.workspace = torch.empty(size, dtype=torch.uint8, device=device)
        self.compact_workspace = torch.empty(lava.size("cuda_compact_workspace_size", lava.context, self.n_layers), dtype=torch.uint8, device=device)

    def start(self):
        lava = self.lava
        lava.call("cuda_cascade_init", lava.context, self.shape, self.n_layers, ctypes.c_uint64(self.total), self.params, self.state, self.state.numel(), self.cascade, lava.status, ctypes.c_void_p(lava.gpu.stream()))

    def layer(self, l):
        place = self.lava.struct("cuda_cascade_layer")
        self.lava.call("cuda_cascade_get", self.cascade, l, place)
        return place

    def __call__(self):
        self.start()
        for l, run in enumerate(self.runs):
            run()
            if self.second is None:
                self.push_layer(l)
                continue
            self.second.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(self.second):
                self.push_layer(l)
        if self.second is not None:
            torch.cuda.current_stream().wait_stream(self.second)

    def push_layer(self, l):
        lava = self.lava
        push = lava.array([lava.struct("cuda_push_sequence", cascade=ctypes.addressof(self.cascade), scores=self.runs[l].scores[0].data_ptr())])
        lava.launch("cuda_cascade_push", lava.context, push, 1, self.workspace, self.workspace.numel())
        if self.evict_every and (l + 1 == self.n_layers or (l + 1) % self.evict_every == 0):
            self.evict_layers(l + 1)

    def evict_layers(self, n):
        """Every layer so far, in place, each head's rows to its front."""
        lava, items, keep = self.lava, [], []
        for l in range(n):
            place, tensors = self.layer(l), self.runs[l].tensors[0]
            k, v = (ctypes.addressof(t) for t in tensors[1:3])
            keep.append(place)
            items.append(lava.struct("cuda_compact_sequence", max_rows=self.shape.n_tokens, k_src=k, v_src=v, k_dst=k, v_dst=v, rows=place.rows, cu_kept=place.cu_kept, rows_offset=place.offset))
        lava.launch("cuda_compact", lava.context, self.shape, lava.array(items), n, self.compact_workspace, self.compact_workspace.numel())


def prefills(lava, n_layers):
    """The ways of a prefill: names, and options of Prefill."""
    second = lava.gpu.second_stream()
    for stream, beside in [(None, "")] + ([(second, ", beside scoring")] if second is not None else []):
        for every, name in {0: "deciding", 1: "evicting each time", 4: "evicting every 4", n_layers: "evicting at the end"}.items():
            yield name + beside, {"evict_every": every, "second": stream}


def check_decisions(lava, checks, generator, prefix, n_layers):
    device, n_kv = lava.gpu.device, 4
    # Plateaus and ties, as max-pooling leaves them.
    numbers = [(torch.rand(n_kv, prefix, generator=generator, device=device) * 50).floor() / (1 + l) for l in range(n_layers)]
    scores = [torch.nn.functional.max_pool1d(x, 7, 1, 3) for x in numbers]
    total = n_layers * n_kv * prefix // 5
    run = Decide(lava, scores, total)
    run()
    lava.finish()
    best = torch.sort(torch.stack(scores).flatten().cpu(), descending=True, stable=True).indices[:total]
    per_layer = torch.bincount(best // (n_kv * prefix), minlength=n_layers)
    checks.tell("one sort: layer budgets", torch.equal(run.budgets.cpu(), per_layer), f"{total} of {n_layers * n_kv * prefix} entries")
    same = True
    for l in range(n_layers):
        kept, cu = kept_reference(scores[l], int(per_layer[l]), WINDOW)
        same &= torch.equal(run.cu[l].cpu(), cu) and torch.equal(run.kept[l, : kept.numel()].cpu(), kept)
    checks.tell("one sort: kept sets", same, f"{n_layers} layers of {n_kv} heads")

    run = Decide(lava, scores, total, layers="entropy")
    run()
    lava.finish()
    p = [x.double() / x.double().sum() for x in scores]
    want = torch.stack([-(x * x.clamp_min(1e-300).log()).sum() / math.log(n_kv * prefix) for x in p])
    checks.near("entropies", run.sums[0], want.to(device), 1e-12)
    checks.tell("budgets by entropy", int(run.budgets.sum()) == total, f"sum to {int(run.budgets.sum())}")
    kept, cu = zip(*(kept_reference(scores[l], int(run.budgets[l]), WINDOW) for l in range(n_layers)))
    same = all(torch.equal(run.cu[l].cpu(), cu[l]) and torch.equal(run.kept[l, : kept[l].numel()].cpu(), kept[l]) for l in range(n_layers))
    checks.tell("kept sets by entropy", same, f"{n_layers} layers of {n_kv} heads")


def check_compaction(lava, checks, generator, n, n_layers):
    device, n_kv = lava.gpu.device, 4
    masks = [torch.rand(n_kv, n, generator=generator, device=device) < 0.2 for _ in range(n_layers)]
    kept = [x.nonzero()[:, 1].to(torch.int32) for x in masks]
    cu = [torch.nn.functional.pad(x.sum(1).cumsum(0), (1, 0)).to(torch.int32) for x in masks]
    for dtype in DTYPES:
        caches = [tuple(random(lava.gpu, generator, n, n_kv, d, dtype=dtype) for d in (128, 72)) for _ in range(n_layers)]
        move = Compact(lava, caches, kept, cu)
        move()
        lava.finish()
        same = all(torch.equal(out, x.transpose(0, 1)[mask]) for cache, outs, mask in zip(caches, move.outs, masks) for x, out in zip(cache, outs))
        checks.tell(f"compaction {NAMES[dtype]}", same, f"{sum(x.numel() for x in kept)} rows")


def check_prefills(lava, checks, generator, prefix, n_layers):
    device, n_kv = lava.gpu.device, 4
    total = n_layers * n_kv * prefix // 5
    layers = [layer(lava.gpu, generator, prefix + WINDOW, 8, n_kv, 64, torch.bfloat16) for _ in range(n_layers)]
    for name, options in prefills(lava, n_layers):
        own = [(q, k.clone(), v.clone()) for q, k, v in layers]
        run = Prefill(lava, own, total, 3, **options)
        run()
        lava.finish()
        all_scores = torch.stack([r.scores[0] for r in run.runs])
        best = torch.sort(all_scores.flatten().cpu(), descending=True, stable=True).indices[:total]
        per_layer = torch.bincount(best // (n_kv * prefix), minlength=n_layers)
        same = True
        for l in range(n_layers):
            want, want_cu = kept_reference(all_scores[l], int(per_layer[l]), WINDOW)
            place = run.layer(l)
            read = lambda pointer, n, dtype, at=0: run.state[(pointer - run.state.data_ptr() + at) :][: n * dtype.itemsize].clone().view(dtype)
            offset = int(read(place.offset, 1, torch.int64))
            same &= torch.equal(read(place.cu_kept, n_kv + 1, torch.int32).cpu(), want_cu)
            same &= torch.equal(read(place.kept_indices, want.numel(), torch.int32, 4 * offset).cpu(), want)
            for h in range(n_kv if options["evict_every"] else 0):
                rows = want[want_cu[h] : want_cu[h + 1]].long().to(device)
                same &= all(torch.equal(now[: rows.numel(), h], then[rows, h]) for now, then in zip(own[l][1:], layers[l][1:]))
        checks.tell(f"prefill of {n_layers} layers, {name}", same, f"{total} entries in the end")


# ----------------------------------------------------------------------------------------------------------------- times ----


def torch_score(q, k, v):
    """LAVa's scoring in PyTorch, all heads at once, keys and values never repeated."""
    w, n_q, d = q.shape
    n, n_kv, _ = k.shape
    grouped = q.view(w, n_kv, n_q // n_kv, d).permute(1, 2, 0, 3).reshape(n_kv, -1, d)
    x = torch.matmul(grouped, k.permute(1, 2, 0)).float().view(n_kv, n_q // n_kv, w, n).mul_(d**-0.5)
    x[..., n - w :] += torch.full((w, w), -math.inf, device=k.device).triu(1)
    attention = torch.softmax(x, -1)[..., : n - w].mean(2)
    pooled = torch.nn.functional.max_pool1d(attention, 7, stride=1, padding=3).amax(1)
    return pooled * v[: n - w].abs().sum(-1, dtype=torch.float32).amax(0)[:, None]


def attend_ragged(queries, caches):
    """A call: decoding in PyTorch over rows as they are, each head of each sequence a sequence of its own, its group's queries side by side."""
    from torch.nn.attention.varlen import varlen_attn

    q = torch.cat([q.view(-1, 1, q.shape[2]) for q in queries])
    k, v = (torch.cat([cache[x] for cache in caches]).unsqueeze(1) for x in (0, 1))
    counts = torch.tensor([n for cache in caches for n in cache[2]], device=q.device)
    cu_k = torch.nn.functional.pad(counts.cumsum(0), (1, 0)).to(torch.int32)
    group = q.shape[0] // counts.numel()
    cu_q = torch.arange(counts.numel() + 1, device=q.device, dtype=torch.int32) * group
    longest = int(counts.max())
    return lambda: varlen_attn(q, k, v, cu_q, cu_k, group, longest)


def attend_padded(queries, caches, backend):
    """A call: decoding in PyTorch over caches padded to the longest head, a group's queries side by side: no head is repeated."""
    from torch.nn.attention import SDPBackend, sdpa_kernel

    n_kv, (_, n_q, d), batch = len(caches[0][2]), queries[0].shape, len(caches)
    dtype, device = queries[0].dtype, queries[0].device
    longest = (max(max(counts) for _, _, counts in caches) + 15) // 16 * 16
    q = torch.cat(queries).view(batch, n_kv, n_q // n_kv, d)
    k, v = (torch.zeros(batch, n_kv, longest, d, dtype=dtype, device=device) for _ in range(2))
    mask = torch.full((batch, n_kv, 1, longest), -math.inf, dtype=dtype, device=device)
    for b, (keys, values, counts) in enumerate(caches):
        for h, (own_keys, own_values) in enumerate(zip(keys.split(counts), values.split(counts))):
            n = counts[h]
            k[b, h, :n], v[b, h, :n], mask[b, h, :, :n] = own_keys, own_values, 0
    mask = mask.expand(-1, -1, n_q // n_kv, -1)

    def call():
        with sdpa_kernel(getattr(SDPBackend, backend)):
            return torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=mask)

    return call


TORCH_ATTENDS = {"ragged, varlen_attn": attend_ragged} | {
    f"padded {{}}, {name}": lambda *to, backend=backend: attend_padded(*to, backend)
    for backend, name in {"EFFICIENT_ATTENTION": "efficient", "CUDNN_ATTENTION": "cuDNN", "MATH": "math"}.items()
}


def check_baselines(lava, checks, generator, n):
    """That PyTorch is timed at the same work: within the rounding of its products in bf16."""
    dtype, params = torch.bfloat16, lava.struct("score_params", pool_kernel=7)
    q, k, v = layer(lava.gpu, generator, n, 8, 2, 64, dtype)
    checks.near("PyTorch's scores", torch_score(q, k, v), score_reference(q, k, v, params), 0.1)
    queries = [random(lava.gpu, generator, 1, 8, 64, dtype=dtype) for _ in range(2)]
    caches = [ragged(lava.gpu, generator, counts, 64, dtype) for counts in ([n, n // 3], [5, n // 2])]
    run = Attend(lava, queries, caches)
    run()
    lava.finish()
    for name, way in TORCH_ATTENDS.items():
        try:
            got = way(queries, caches)()
        except Exception as error:
            print(f"  PyTorch refuses: {name}: {first_line(error)}", flush=True)
            continue
        checks.near(f"PyTorch's attention, {name.format('')}", got.flatten(), torch.cat(run.outs).double().flatten(), 0.03, relative=False)


class Table:
    """Rows of times. What raises costs its own row, or PyTorch's cell of it."""

    def __init__(self, lava):
        self.lava, self.failed = lava, 0

    def fastest(self, ways, rounds=10):
        """Of PyTorch's ways, each what makes a list of calls: seconds of the fastest, and its name."""
        best = (math.inf, "")
        for name, make in ways.items():
            try:
                best = min(best, (self.lava.gpu.timed(make(), rounds), name))
            except Exception as error:
                print(f"  PyTorch refuses: {name}: {first_line(error)}", flush=True)
        return best

    def row(self, name, make, n_bytes, of_torch=None, **options):
        """Of what makes a list of calls of the library."""
        try:
            seconds = self.lava.gpu.timed(make(), **options)
            self.lava.finish()
        except Exception as error:
            self.failed += 1
            print(f"{name:<58} FAILED: {first_line(error)}", flush=True)
            return
        floor = n_bytes / copy_speed.value
        text = f"{name:<58} {seconds * 1e6:>8.1f} us {n_bytes / 1e6:>7.1f} MB {floor * 1e6:>8.1f} us {seconds / floor:>6.2f}"
        if of_torch is not None and of_torch[0] < math.inf:
            text += f" {of_torch[0] * 1e6:>9.1f} us {of_torch[0] / seconds:>6.1f}x  {of_torch[1]}"
        print(text, flush=True)


def first_line(error):
    return f"{type(error).__name__}: {(str(error).splitlines() or [''])[0][:160]}"


# Bytes that a copy reads and writes in a second, from the first section of the times.
fork = multiprocessing.get_context("fork")
copy_speed = fork.Value("d", math.nan)


def time_copy(lava, table, generator, n_bytes):
    a = torch.zeros(n_bytes // 4, dtype=torch.float32, device=lava.gpu.device)
    b = torch.empty_like(a)
    copy_speed.value = 2 * n_bytes / lava.gpu.timed([lambda: b.copy_(a)])
    print(f"{lava.gpu.name()}, a copy's bytes read and written: {copy_speed.value / 1e9:.0f} GB/s")
    print("moved: keys and values once (statistics: keys); floor: that at the copy's speed; PyTorch: eager, the fastest of its ways, f32 without TF32")
    print(f"{'':<58} {'time':>11} {'moved':>10} {'floor':>11} {'ratio':>6} {'PyTorch':>12} {'factor':>7}", flush=True)


def time_scores(lava, table, generator, heads, n, d, dtype):
    n_bytes = 2 * n * heads[1] * d * dtype.itemsize
    sets = [layer(lava.gpu, generator, n, *heads, d, dtype) for _ in lava.gpu.sets(n_bytes)]
    of_torch = table.fastest({"eager": lambda: [lambda s=s: torch_score(*s) for s in sets]}, 3)
    name = f"{NAMES[dtype]} d={d} N={n}"
    for option, options in {"": {}, ", lse given": {"with_lse": True}, ", default preset": DEFAULT, ", CAOTE": CAOTE}.items():
        table.row(f"score {name}{option}", lambda: [Score(lava, [s], **options) for s in sets], n_bytes, of_torch if "value_weight" not in options else None)
    table.row(f"statistics {name}", lambda: [Statistics(lava, [s], 1.0, 1.0) for s in sets], n_bytes // 2)


def time_attention(lava, table, generator, heads, batch, kept, d, dtype):
    """KV heads that share `kept` rows of a head unevenly."""
    n_q, n_kv = heads
    parts = [torch.randn(n_kv, generator=generator, device=lava.gpu.device).exp() for _ in range(batch)]
    counts = [[max(1, int(x)) for x in (p / p.sum() * n_kv * kept).tolist()] for p in parts]
    rows = sum(map(sum, counts))
    n_bytes = 2 * rows * d * dtype.itemsize
    sets = []
    for _ in lava.gpu.sets(n_bytes):
        queries = [random(lava.gpu, generator, 1, n_q, d, dtype=dtype) for _ in counts]
        sets.append((queries, [ragged(lava.gpu, generator, c, d, dtype) for c in counts]))
    padding = batch * n_kv * max(map(max, counts)) / rows
    ways = {name.format(f"{padding:.1f}x"): lambda way=way: [way(*s) for s in sets] for name, way in TORCH_ATTENDS.items()}
    name = f"attend {NAMES[dtype]} d={d} batch {batch}, {kept} of a head"
    table.row(name, lambda: [Attend(lava, *s) for s in sets], n_bytes, table.fastest(ways))


def time_decisions(lava, table, generator, heads, n, n_layers, ratio):
    prefix, n_kv = n - WINDOW, heads[1]
    n_bytes = n_layers * n_kv * prefix * 4
    total = int(n_layers * n_kv * prefix * ratio)
    sets = [torch.rand(n_layers, n_kv, prefix, generator=generator, device=lava.gpu.device) for _ in lava.gpu.sets(n_bytes)]
    of_torch = table.fastest({"topk": lambda: [lambda x=x: torch.topk(x.flatten(), total, sorted=False) for x in sets]}, 3)
    runs = [Decide(lava, list(x), total) for x in sets]
    name = f"{n_layers} layers N={n}, {ratio:.0%}"
    table.row(f"one sort, {name}", lambda: [run.budget for run in runs], n_bytes)
    table.row(f"select, {name}", lambda: [run.select for run in runs], n_bytes)
    table.row(f"one sort and select, {name}", lambda: runs, 2 * n_bytes, of_torch)
    table.row(f"entropy and budgets, {name}", lambda: [Decide(lava, list(x), total, layers="entropy").budget for x in sets], n_bytes)


def time_compaction(lava, table, generator, heads, n, ratio):
    n_kv, d, dtype, device = heads[1], 128, torch.bfloat16, lava.gpu.device
    n_bytes = int(2 * 2 * n_kv * n * ratio * d * dtype.itemsize)
    caches, kept, cu, rows = [], [], [], []
    for _ in lava.gpu.sets(n_bytes):
        caches.append([random(lava.gpu, generator, n, n_kv, d, dtype=dtype) for _ in range(2)])
        mask = torch.rand(n_kv, n, generator=generator, device=device) < ratio
        head, token = mask.nonzero(as_tuple=True)
        kept.append(token.to(torch.int32))
        cu.append(torch.nn.functional.pad(mask.sum(1).cumsum(0), (1, 0)).to(torch.int32))
        rows.append((token, head, token * n_kv + head))
    ways = {
        "index": lambda: [lambda c=c, r=r: [x[r[0], r[1]] for x in c] for c, r in zip(caches, rows)],
        "index_select": lambda: [lambda c=c, r=r: [x.flatten(0, 1).index_select(0, r[2]) for x in c] for c, r in zip(caches, rows)],
    }
    moves = lambda: [Compact(lava, [c], [k], [u]) for c, k, u in zip(caches, kept, cu)]
    table.row(f"compact one layer N={n}, {ratio:.0%} (read and write)", moves, n_bytes, table.fastest(ways))


def time_prefill(lava, table, generator, heads, n, n_layers, ratio):
    """Layers of which a quarter are different: random numbers take their memory too. Caches that were evicted are as they were before the next."""
    n_kv, d, dtype = heads[1], 128, torch.bfloat16
    then = [layer(lava.gpu, generator, n, *heads, d, dtype) for _ in range(max(n_layers // 4, 1))]
    of_torch = table.fastest({"scores alone": lambda: [lambda s=s: torch_score(*s) for s in then]}, 3)
    of_torch = (of_torch[0] * n_layers, of_torch[1])
    now = [(q, k.clone(), v.clone()) for q, k, v in (then[l % len(then)] for l in range(n_layers))]

    def restore():
        for l, (_, *cache) in enumerate(now):
            for x, was in zip(cache, then[l % len(then)][1:]):
                x.copy_(was)

    total = int(n_layers * n_kv * (n - WINDOW) * ratio)
    n_bytes = n_layers * 2 * n * n_kv * d * dtype.itemsize
    for name, options in prefills(lava, n_layers):
        restore()
        table.row(f"prefill {n_layers} layers, {ratio:.0%}, {name}", lambda: [Prefill(lava, now, total, 3, **options)], n_bytes, of_torch, rounds=1, restore=restore)


# -------------------------------------------------------------------------------------------------------------- sections ----


def check_sections(fake):
    """Names and what they call, each with a library, Checks, a generator."""
    rows = {True: (300, 70, 6 * 50), False: (5000, 3000, 30000)}[fake]
    for dtype in DTYPES:
        yield f"scores {NAMES[dtype]}", lambda *to, dtype=dtype: check_scores(*to, dtype, rows[0])
    yield "statistics", lambda *to: check_statistics(*to, rows[0])
    yield "mean", lambda *to: check_mean(*to, 700)
    for dtype in DTYPES:
        yield f"attention {NAMES[dtype]}", lambda *to, dtype=dtype: check_attention(*to, dtype, rows[1])
    yield "decisions", lambda *to: check_decisions(*to, rows[2], 6)
    yield "compaction", lambda *to: check_compaction(*to, rows[2], 6)
    yield "prefills", lambda *to: check_prefills(*to, rows[2], 6)
    yield "PyTorch", lambda *to: check_baselines(*to, rows[0])


def time_sections(fake):
    """As check_sections, with a Table. The likeliest to be asked for come first."""
    f32, f16, bf16 = DTYPES
    heads, n, n_layers = ((8, 2), 100, 5) if fake else ((32, 8), 32768, 32)
    scores = [(n, 128, bf16), (n, 128, f16), (n, 64, bf16), (n, 256, bf16), (8192, 128, bf16), (131072, 128, bf16), (n, 128, f32)]
    attention = [(16, 1024, 128), (1, 1024, 128), (16, 4096, 128), (64, 1024, 128), (16, 1024, 64)]
    if fake:
        scores, attention = [(n, 72, f32)], [(2, 20, 72)]
    yield "copy", lambda *to: time_copy(*to, 1 << 20 if fake else 1 << 30)
    yield "scores", lambda *to: time_scores(*to, heads, *scores[0])
    for ratio in (1 / 32, 0.2):
        yield f"prefill {ratio:.0%}", lambda *to, ratio=ratio: time_prefill(*to, heads, n, n_layers, ratio)
    for case in attention:
        yield "attention", lambda *to, case=case: time_attention(*to, heads, *case, bf16)
    for ratio in (1 / 32, 0.2):
        yield f"decisions {ratio:.0%}", lambda *to, ratio=ratio: time_decisions(*to, heads, n, n_layers, ratio)
        yield f"compaction {ratio:.0%}", lambda *to, ratio=ratio: time_compaction(*to, heads, n, ratio)
    for case in scores[1:]:
        yield "scores", lambda *to, case=case: time_scores(*to, heads, *case)


def run_here(section, results, options):
    """In a process of its own."""
    try:
        lava = Library(options.library, Fake() if options.fake else Cuda())
        out = results(lava)
        section(lava, out, torch.Generator(device=lava.gpu.device).manual_seed(options.seed))
    except Exception:
        traceback.print_exc(limit=-2)
        sys.exit(1)
    sys.exit(out.failed > 0)


def run_apart(sections, results, options):
    """Names of the sections that failed."""
    failed = []
    for name, section in sections:
        if options.only not in name and name != "copy":
            continue
        begun = time.monotonic()
        process = fork.Process(target=run_here, args=(section, results, options))
        process.start()
        process.join(options.limit)
        hangs = process.is_alive()
        process.kill()
        # What hangs in the driver may not even die.
        process.join(10)
        how = f"FAILED: over {options.limit:g} s" if hangs else f"FAILED: status {process.exitcode}" if process.exitcode else ""
        if how:
            failed.append(name)
        print(f"-- {name}: {time.monotonic() - begun:.1f} s {how}".rstrip(), flush=True)
    return failed


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("library")
    parser.add_argument("--check", action="store_true", help="no times")
    parser.add_argument("--times", action="store_true", help="no checks")
    parser.add_argument("--only", metavar="WORD", default="", help="only sections whose name has it")
    parser.add_argument("--limit", type=float, default=60, help="seconds that a section may take (60)")
    parser.add_argument("--seed", type=int, default=int.from_bytes(os.urandom(3), "little"), help="of all numbers, to repeat a failure")
    parser.add_argument("--fake", action="store_true", help="no GPU: tests/fake_driver.cpp")
    options = parser.parse_args()
    failed = []
    if not options.times:
        print(f"against float64, --seed {options.seed}:", flush=True)
        failed += run_apart(check_sections(options.fake), Checks, options)
    if not options.check:
        failed += run_apart(time_sections(options.fake), Table, options)
    if failed:
        sys.exit(f"failed: {', '.join(failed)}")


if __name__ == "__main__":
    main()
