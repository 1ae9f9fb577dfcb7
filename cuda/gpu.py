#!/usr/bin/env python3
"""The library on a GPU: every stage against float64, then how long each takes, beside PyTorch on the same GPU.

    gpu.py LIBLAVA.SO            checks, then the table
    gpu.py LIBLAVA.SO --check    checks alone
    gpu.py LIBLAVA.SO --fake     checks alone, on memory of the host: libcuda is tests/fake_driver.cpp, by LD_LIBRARY_PATH

Needs PyTorch; nothing else, and no network. The structs are read from the headers, so they are the library's own.
"""
import argparse
import ctypes
import math
import pathlib
import re
import sys

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
                kind, field = re.fullmatch(r"(?:const )?(?:struct )?(\w+ ?\**) ?(\w+)", line).groups()
                known = C_TYPES | structs
                fields.append((field, ctypes.c_void_p if "*" in kind else known[kind.strip()]))
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
        torch.zeros(1, device="cuda")  # makes the device's context the thread's

    def stream(self):
        return torch.cuda.current_stream().cuda_stream

    def wait(self):
        torch.cuda.synchronize()

    def full(self, n, value, dtype):
        return torch.full((n,), value, dtype=dtype, device=self.device)


class Fake(Cuda):
    device = "cpu"

    def __init__(self):
        self.c = ctypes.CDLL("libcuda.so.1")
        context = ctypes.c_void_p()
        for code in (self.c.cuInit(0), self.c.cuDevicePrimaryCtxRetain(ctypes.byref(context), 0), self.c.cuCtxSetCurrent(context)):
            assert code == 0, code

    def stream(self):
        return None

    def wait(self):
        assert self.c.cuStreamSynchronize(None) == 0


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
    attention = torch.softmax(logits(q, k, params), -1)[..., :prefix]
    attention = (attention**2 if params.attention == 1 else attention).mean(2)
    half = params.pool_kernel // 2
    pooled = torch.nn.functional.max_pool1d(attention, params.pool_kernel, stride=1, padding=half).amax(1)
    norms = v[:prefix].double().abs().sum(-1).T
    scores = pooled * (norms if params.value_weight == 2 else norms.amax(1, keepdim=True))
    return scores + params.smoothing * scores.mean(1, keepdim=True)


def random(gpu, generator, *shape, dtype, size=1.0):
    return (torch.randn(*shape, generator=generator) * size).to(dtype).to(gpu.device)


def layer(gpu, generator, n, n_q_heads, n_kv_heads, d, dtype, window=WINDOW):
    q = random(gpu, generator, window, n_q_heads, d, dtype=dtype)
    return q, *(random(gpu, generator, n, n_kv_heads, d, dtype=dtype) for _ in range(2))


class Checks:
    def __init__(self):
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
    kind = 2 if params.attention == 1 else 1
    return 2 * kind * U * ((4 * math.sqrt(d) + 8) * size + n / 16 + window + dim_v + 200)


def check_scores(lava, checks, generator, n):
    default = {"attention": 1, "value_weight": 2, "smoothing": 1}
    for dtype in DTYPES:
        for d in (64, 80, 96, 128, 256, 72):
            for name, options in {"LAVa": {}, "default": default, "lse": {"with_lse": True}, "window": {"sliding_window": 40, "softcap": 8.0}}.items():
                if name != "LAVa" and d not in (128, 72):
                    continue
                inputs = [layer(lava.gpu, generator, m, 8, 2, d, dtype) for m in (n, n // 3 + 1)]
                run = Score(lava, inputs, **options)
                run()
                lava.finish()
                for (q, k, v), scores in zip(inputs, run.scores):
                    want = score_reference(q, k, v, run.params)
                    checks.near(f"score {NAMES[dtype]} {d} {name}, {k.shape[0]} tokens", scores, want, score_bound(q, k, run.params, WINDOW, d))


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


def check_attention(lava, checks, generator, rows):
    for dtype in DTYPES:
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


# ----------------------------------------------------------------------------------------------------------------- times ----


def timed(calls, rounds=10):
    """Seconds of one of the calls, which go round so that none finds its input in the cache. As a graph: Python is not measured."""
    for call in calls:
        call()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for call in calls:
            call()
    best = math.inf
    for _ in range(3):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        graph.replay()
        begin.record()
        for _ in range(rounds):
            graph.replay()
        end.record()
        end.synchronize()
        best = min(best, begin.elapsed_time(end) / 1e3 / rounds / len(calls))
    return best


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


def torch_attend(q, k, v, mask):
    """Decoding over caches padded to the longest head: [batch, heads, rows, d]."""
    return torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=mask, enable_gqa=True)


class Table:
    def __init__(self, bandwidth):
        self.bandwidth = bandwidth
        print(f"\n{'':<44} {'time':>10} {'moved':>9} {'floor':>10} {'ratio':>6} {'PyTorch':>10} {'factor':>7}")

    def row(self, name, seconds, n_bytes, of_torch=None):
        floor = n_bytes / self.bandwidth
        text = f"{name:<44} {seconds * 1e6:>7.1f} us {n_bytes / 1e6:>6.1f} MB {floor * 1e6:>7.1f} us {seconds / floor:>6.2f}"
        if of_torch is not None:
            text += f" {of_torch * 1e6:>7.1f} us {of_torch / seconds:>6.1f}x"
        print(text, flush=True)


def copy_bandwidth():
    """Bytes read and written in a second by a copy of 1 GiB."""
    a = torch.empty(2**28, dtype=torch.float32, device="cuda")
    b = torch.empty_like(a)
    return 2 * a.numel() * 4 / timed([lambda: b.copy_(a)])


def time_scores(lava, table, generator, n, d, dtype):
    sets = [layer(lava.gpu, generator, n, 32, 8, d, dtype) for _ in range(4)]
    n_bytes = sum(x.numel() * x.element_size() for x in sets[0][1:])
    of_torch = timed([lambda s=s: torch_score(*s) for s in sets], 3)
    for name, options in {"": {}, ", lse given": {"with_lse": True}, ", default preset": {"attention": 1, "value_weight": 2, "smoothing": 1}}.items():
        runs = [Score(lava, [s], **options) for s in sets]
        table.row(f"score {NAMES[dtype]} d={d} N={n}{name}", timed(runs), n_bytes, of_torch if options.get("attention") is None else None)
        lava.finish()


def time_attention(lava, table, generator, batch, kept, d, dtype):
    """8 KV heads that share 8 * kept rows unevenly."""
    parts = [torch.randn(8, generator=generator).exp() for _ in range(batch)]
    counts = [[max(1, int(x)) for x in (p / p.sum() * 8 * kept)] for p in parts]
    sets = []
    for _ in range(4):
        caches = [ragged(lava.gpu, generator, c, d, dtype) for c in counts]
        sets.append(([random(lava.gpu, generator, 1, 32, d, dtype=dtype) for _ in counts], caches))
    n_bytes = 2 * sum(map(sum, counts)) * d * torch.finfo(dtype).bits // 8
    longest = max(map(max, counts))
    padded = []
    for queries, caches in sets:
        k, v = (torch.zeros(batch, 8, longest, d, dtype=dtype, device="cuda") for _ in range(2))
        mask = torch.zeros(batch, 8, 1, longest, dtype=torch.bool, device="cuda")
        for b, (keys, values, c) in enumerate(caches):
            first = 0
            for h, n in enumerate(c):
                k[b, h, :n], v[b, h, :n], mask[b, h, :, :n] = keys[first : first + n], values[first : first + n], True
                first += n
        padded.append((torch.stack(queries).transpose(1, 2), k, v, mask.repeat_interleave(4, 1)))
    of_torch = timed([lambda p=p: torch_attend(*p) for p in padded])
    runs = [Attend(lava, *s) for s in sets]
    table.row(f"attend {NAMES[dtype]} d={d} batch {batch}, {kept} of a head", timed(runs), n_bytes, of_torch)
    lava.finish()


def times(lava, generator):
    bandwidth = copy_bandwidth()
    print(f"\n{torch.cuda.get_device_name()}, copy {bandwidth / 1e9:.0f} GB/s; moved: keys and values once; floor: that at the copy's speed")
    table = Table(bandwidth)
    for n, d, dtype in [(32768, 128, torch.bfloat16), (32768, 128, torch.float16), (32768, 64, torch.bfloat16), (32768, 256, torch.bfloat16), (8192, 128, torch.bfloat16), (131072, 128, torch.bfloat16), (32768, 128, torch.float32)]:
        time_scores(lava, table, generator, n, d, dtype)
    for batch, kept, d in [(16, 1024, 128), (1, 1024, 128), (16, 4096, 128), (64, 1024, 128), (16, 1024, 64)]:
        time_attention(lava, table, generator, batch, kept, d, torch.bfloat16)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("library")
    parser.add_argument("--check", action="store_true", help="no times")
    parser.add_argument("--fake", action="store_true", help="no GPU: tests/fake_driver.cpp")
    options = parser.parse_args()
    if not options.fake and not torch.cuda.is_available():
        sys.exit("no GPU that PyTorch can use")
    lava = Library(options.library, Fake() if options.fake else Cuda())
    checks, generator = Checks(), torch.Generator().manual_seed(torch.seed() % 2**32)
    print(f"against float64, seed {generator.initial_seed()}:")
    check_scores(lava, checks, generator, 300 if options.fake else 5000)
    check_attention(lava, checks, generator, 70 if options.fake else 3000)
    if checks.failed:
        sys.exit(f"{checks.failed} checks failed")
    if not options.fake and not options.check:
        times(lava, generator)


if __name__ == "__main__":
    main()
