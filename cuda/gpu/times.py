"""How long the stages take, next to PyTorch."""
import math
import multiprocessing

import torch

from baselines import TORCH_ATTENDS, first_line, torch_score
from library import DTYPES, NAMES
from stages import CAOTE, DEFAULT, WINDOW, Attend, Compact, Decide, Prefill, Score, Statistics, layer, prefills, ragged, random

# Bytes that a copy reads and writes in a second, from the first section.
copy_speed = multiprocessing.get_context("fork").Value("d", math.nan)


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
    ways = {name.format(f" {padding:.1f}x"): lambda way=way: [way(*s) for s in sets] for name, way in TORCH_ATTENDS.items()}
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
    table.row(f"one sort, {name}", lambda: [run.share for run in runs], n_bytes)
    table.row(f"select, {name}", lambda: [run.select for run in runs], n_bytes)
    table.row(f"one sort and select, {name}", lambda: runs, 2 * n_bytes, of_torch)
    table.row(f"entropy and shares, {name}", lambda: [Decide(lava, list(x), total, layers="entropy").share for x in sets], n_bytes)


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


def time_sections(fake):
    """As check_sections, with a Table. The likeliest to be asked for come first."""
    f32, f16, bf16 = DTYPES
    heads, n, n_layers = ((8, 2), 100, 5) if fake else ((32, 8), 32768, 32)
    scores = [(n, 128, bf16), (n, 128, f16), (n, 64, bf16), (n, 256, bf16), (8192, 128, bf16), (131072, 128, bf16), (n, 128, f32)]
    attention = [(16, 1024, 128), (1, 1024, 128), (16, 4096, 128), (64, 1024, 128), (16, 1024, 64)]
    if fake:
        scores, attention = [(n, 72, f32)], [(2, 20, 72)]
    yield "copy", lambda *to: time_copy(*to, 1 << 20 if fake else 1 << 30)

    def of_scores(n, d, dtype):
        return f"scores {NAMES[dtype]} d={d} N={n}", lambda *to: time_scores(*to, heads, n, d, dtype)

    yield of_scores(*scores[0])
    for ratio in (1 / 32, 0.2):
        yield f"prefill {ratio:.0%}", lambda *to, ratio=ratio: time_prefill(*to, heads, n, n_layers, ratio)
    for case in attention:
        yield "attention of batch {}, {} of a head, d={}".format(*case), lambda *to, case=case: time_attention(*to, heads, *case, bf16)
    for ratio in (1 / 32, 0.2):
        yield f"decisions {ratio:.0%}", lambda *to, ratio=ratio: time_decisions(*to, heads, n, n_layers, ratio)
        yield f"compaction {ratio:.0%}", lambda *to, ratio=ratio: time_compaction(*to, heads, n, ratio)
    for case in scores[1:]:
        yield of_scores(*case)
