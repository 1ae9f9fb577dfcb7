"""Every stage against float64."""
import math

import torch

from baselines import TORCH_ATTENDS, first_line, torch_score
from library import DTYPES, NAMES
from stages import CAOTE, DEFAULT, WINDOW, Attend, Compact, Decide, Prefill, Score, Statistics, layer, logits, prefills, ragged, random

U = 2.0**-24


def score_reference(q, k, v, params, sliding_window=0):
    """As the header says, for the options used here."""
    w = q.shape[0]
    prefix = k.shape[0] - w
    live = max(k.shape[0] + 1 - sliding_window, 0) if sliding_window else 0
    attention = torch.softmax(logits(q, k, params, sliding_window), -1)
    attention = (attention**2 if params.attention == 1 else attention).mean(2)
    if params.value_weight == 3:
        attention = output_change(attention, v.double().transpose(0, 1))
    attention = attention[..., :prefix]
    attention[..., :live] = 0
    half = params.pool_kernel // 2
    pooled = torch.nn.functional.max_pool1d(attention, params.pool_kernel, stride=1, padding=half).amax(1)
    norms = v[:prefix].double().abs().sum(-1).T
    norms[:, :live], pooled[:, :live] = 0, 0
    scores = pooled * {0: norms.amax(1, keepdim=True), 2: norms, 3: 1}[params.value_weight]
    scores[:, live:] += params.smoothing * scores[:, live:].mean(1, keepdim=True)
    return scores


def output_change(a, v):
    """a |o - v| / (1 - a): [n_kv_heads, group, n_tokens] of attention, [n_kv_heads, n_tokens, d] of values."""
    return a / (1 - a) * torch.cdist(a @ v, v, compute_mode="donot_use_mm_for_euclid_dist")


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
    """As in tests/score.cpp: sums of d products in f32, twice, and the sums after them."""
    d, n = q.shape[2], k.shape[0]
    size = (q.double().norm(dim=-1).max() * k.double().norm(dim=-1).max() * (params.scale or d**-0.5)).item()
    # Squares double an error. A change of the output has that of 1 - a too, and of o - v: no a is above 1/2 here, no |o - v| below |v| / 4.
    kind = 8 if params.value_weight == 3 else 2 if params.attention == 1 else 1
    return 2 * kind * U * ((4 * math.sqrt(d) + 8) * size + n / 16 + window + dim_v + 200)


def check_scores(lava, checks, generator, dtype, n):
    for d in (64, 80, 96, 128, 256, 72):
        for name, options in {"LAVa": {}, "default": DEFAULT, "lse": {"with_lse": True}, "CAOTE": CAOTE, "window": {"sliding_window": 140, "softcap": 8.0}, "smoothing": {**DEFAULT, "smoothing": 1}}.items():
            if name != "LAVa" and d not in (128, 72):
                continue
            inputs = [layer(lava.gpu, generator, m, 8, 2, d, dtype) for m in (n, n // 3 + 1)]
            run = Score(lava, inputs, **options)
            run()
            lava.finish()
            for (q, k, v), scores in zip(inputs, run.scores):
                want = score_reference(q, k, v, run.params, run.shape.sliding_window)
                checks.near(f"score {NAMES[dtype]} {d} {name}, {k.shape[0]} tokens", scores, want, score_bound(q, k, run.params, WINDOW, d))


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


def kept_reference(scores, n_entries, window):
    """The `n_entries` largest over all heads, ties to the lower head and token, and the windows: (kept_indices, cu_kept)."""
    n_kv, prefix = scores.shape
    order = torch.sort(scores.flatten().cpu(), descending=True, stable=True).indices[:n_entries]
    mask = torch.zeros(n_kv * prefix, dtype=torch.bool)
    mask[order] = True
    mask = torch.cat([mask.view(n_kv, prefix), torch.ones(n_kv, window, dtype=torch.bool)], 1)
    return mask.nonzero()[:, 1].to(torch.int32), torch.cat([torch.zeros(1, dtype=torch.int64), mask.sum(1).cumsum(0)]).to(torch.int32)


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
    checks.tell("one sort: entries of layers", torch.equal(run.entries.cpu(), per_layer), f"{total} of {n_layers * n_kv * prefix} entries")
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
    checks.tell("entries by entropy", int(run.entries.sum()) == total, f"sum to {int(run.entries.sum())}")
    kept, cu = zip(*(kept_reference(scores[l], int(run.entries[l]), WINDOW) for l in range(n_layers)))
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
    for name, way in ((name.format(""), way) for name, way in TORCH_ATTENDS.items()):
        try:
            got = way(queries, caches)()
        except Exception as error:
            print(f"  PyTorch refuses: {name}: {first_line(error)}", flush=True)
            continue
        checks.near(f"PyTorch's attention, {name}", got.flatten(), torch.cat(run.outs).double().flatten(), 0.03, relative=False)


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
