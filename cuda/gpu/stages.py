"""The stages of the method on tensors of torch: made once, called any number of times; Library.finish waits for them."""
import ctypes
import math

import torch

WINDOW = 32
DEFAULT = {"attention": 1, "value_weight": 2}
CAOTE = {"value_weight": 3, "pool_kernel": 1}


def random(gpu, generator, *shape, dtype):
    return torch.randn(*shape, generator=generator, device=gpu.device).to(dtype)


def layer(gpu, generator, n, n_q_heads, n_kv_heads, d, dtype, window=WINDOW):
    q = random(gpu, generator, window, n_q_heads, d, dtype=dtype)
    return q, *(random(gpu, generator, n, n_kv_heads, d, dtype=dtype) for _ in range(2))


def ragged(gpu, generator, counts, d, dtype):
    return (*(random(gpu, generator, sum(counts), d, dtype=dtype) for _ in range(2)), counts)


class Score:
    """One layer of a batch of sequences: queries [window, n_q_heads, d], keys and values [n_tokens, n_kv_heads, d]."""

    def __init__(self, lava, inputs, window=WINDOW, with_lse=False, sliding_window=0, **params):
        self.lava, self.inputs = lava, inputs
        q, k, v = inputs[0]
        longest = max(k.shape[0] for _, k, _ in inputs)
        self.shape = lava.struct(
            "shape", n_tokens=longest, n_q_heads=q.shape[1], n_kv_heads=k.shape[1], head_dim_k=k.shape[2], head_dim_v=v.shape[2], window=window,
            sliding_window=sliding_window,
        )  # fmt: skip
        self.params = lava.struct("score_params", **{"pool_kernel": 7, **params})
        device = lava.gpu.device
        prefixes = [max(k.shape[0] - window, 0) for _, k, _ in inputs]
        self.scores = [torch.full((k.shape[1], n), math.nan, device=device) for (_, k, _), n in zip(inputs, prefixes)]
        self.lse = [log_sum_exp(q, k, self.params, sliding_window).float() for q, k, _ in inputs] if with_lse else None
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


def logits(q, k, params, sliding_window=0):
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
    if sliding_window:
        seen &= key > own - sliding_window
    return x.masked_fill(~seen, -math.inf)


def log_sum_exp(q, k, params, sliding_window=0):
    """[window, n_q_heads]."""
    return torch.logsumexp(logits(q, k, params, sliding_window), -1).permute(2, 0, 1).flatten(1)


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


class Attend:
    """A batch of sequences, each head with its own rows: queries [n_queries, n_q_heads, d], ragged keys and values."""

    def __init__(self, lava, queries, caches):
        self.lava = lava
        device = lava.gpu.device
        self.queries, self.caches = queries, caches
        q = queries[0]
        n_kv = len(caches[0][2])
        dim_k, dim_v = caches[0][0].shape[1], caches[0][1].shape[1]
        self.shape = lava.struct("shape", n_q_heads=q.shape[1], n_kv_heads=n_kv, head_dim_k=dim_k, head_dim_v=dim_v)
        self.params, self.n_queries = lava.struct("attend_params", causal=1), q.shape[0]
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
        size = lava.size("cuda_attend_workspace_size", lava.context, self.shape, self.n_queries, len(items), ctypes.c_uint64(total))
        self.workspace = torch.empty(size, dtype=torch.uint8, device=device)

    def __call__(self):
        self.lava.launch(
            "cuda_attend", self.lava.context, self.shape, self.params, self.n_queries, self.items, len(self.items), self.workspace,
            self.workspace.numel(),
        )  # fmt: skip


class Decide:
    """What layers keep, side by side, without the host: scores [n_kv_heads, prefix] of each layer."""

    def __init__(self, lava, scores, total, window=WINDOW, layers="global", **params):
        self.lava, self.scores, self.total, self.window, self.layers = lava, scores, total, window, layers
        device = lava.gpu.device
        n_kv, prefix = scores[0].shape
        self.n = len(scores)
        self.shape = lava.struct("shape", n_tokens=prefix + window, n_q_heads=n_kv, n_kv_heads=n_kv, head_dim_k=1, head_dim_v=1, window=window)
        self.params = lava.struct("select_params", **params)
        self.entries = torch.zeros(self.n, dtype=torch.int64, device=device)
        self.weights = torch.zeros(self.n, n_kv, dtype=torch.float64, device=device)
        self.sums = torch.zeros(2, self.n, dtype=torch.float64, device=device)
        self.capacities = torch.full((self.n,), n_kv * prefix, dtype=torch.int64, device=device)
        room = min(total, n_kv * prefix) + n_kv * window
        self.kept = torch.full((self.n, room), -1, dtype=torch.int32, device=device)
        self.cu = torch.full((self.n, n_kv + 1), -1, dtype=torch.int32, device=device)
        self.pointers = torch.tensor([x.data_ptr() for x in scores], dtype=torch.int64).to(device)
        item = lava.struct("cuda_global_sequence", n_tokens=prefix + window, total=total, scores=self.pointers.data_ptr(), entries=self.entries.data_ptr(), head_weights=self.weights.data_ptr())
        self.one_sort = lava.array([item])
        self.entropies = lava.array([
            lava.struct("cuda_entropy_sequence", n_tokens=prefix + window, layer=l, scores=x.data_ptr(), entropy=self.sums[0, l].data_ptr(), mass=self.sums[1, l].data_ptr())
            for l, x in enumerate(scores)
        ])  # fmt: skip
        self.shares = lava.array([
            lava.struct("cuda_entries_sequence", n_layers=self.n, total=total, weights=self.sums[0].data_ptr(), capacities=self.capacities.data_ptr(), entries=self.entries.data_ptr())
        ])  # fmt: skip
        self.selections = lava.array([
            lava.struct(
                "cuda_select_sequence", n_tokens=prefix + window, layer=l, scores=x.data_ptr(), n_entries=self.entries[l].data_ptr(),
                head_weights=self.weights[l].data_ptr() if layers == "global" else None, kept_indices=self.kept[l].data_ptr(), cu_kept=self.cu[l].data_ptr(),
            )
            for l, x in enumerate(scores)
        ])  # fmt: skip
        sizes = [
            lava.size("cuda_global_entries_workspace_size", lava.context, self.shape, self.n, 1),
            lava.size("cuda_entropy_workspace_size", lava.context, self.shape, self.n),
            lava.size("cuda_select_workspace_size", lava.context, self.shape, self.n),
        ]
        self.workspaces = [torch.empty(max(size, 1), dtype=torch.uint8, device=device) for size in sizes]

    def share(self):
        if self.layers == "global":
            self.lava.launch("cuda_global_entries", self.lava.context, self.shape, self.n, self.params, self.one_sort, 1, self.workspaces[0], self.workspaces[0].numel())
        else:
            self.lava.launch("cuda_entropy", self.lava.context, self.shape, self.entropies, self.n, self.workspaces[1], self.workspaces[1].numel())
            self.lava.launch("cuda_layer_entries", self.lava.context, self.shares, 1, ctypes.c_void_p(None), ctypes.c_size_t(0))

    def select(self):
        self.lava.launch("cuda_select", self.lava.context, self.shape, self.params, self.selections, self.n, self.workspaces[2], self.workspaces[2].numel())

    def __call__(self):
        self.share()
        self.select()


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
    """Score and push, layer by layer; nothing comes back in between. All layers so far are evicted after this many pushes, or never (0).

    second: a stream for the pushes and evictions, during which the next layer is scored. No eviction touches a cache before its layer is
    scored, so each layer has to have its own cache and scores.
    """

    def __init__(self, lava, layers, total, kind, window=WINDOW, evict_every=1, second=None):
        self.lava, self.n_layers, self.total, self.evict_every, self.second = lava, len(layers), total, evict_every, second
        device = lava.gpu.device
        self.runs = [Score(lava, [s], window, **DEFAULT) for s in layers]
        self.shape = self.runs[0].shape
        self.params, self.how = lava.struct("select_params"), lava.struct("cascade_params", layers=kind, evict_every=evict_every)
        size = lava.size("cuda_cascade_state_size", self.shape, self.n_layers, ctypes.c_uint64(total), self.params, self.how)
        self.state = torch.empty(size, dtype=torch.uint8, device=device)
        self.cascade = lava.struct("cuda_cascade")
        self.start()
        size = lava.size("cuda_cascade_workspace_size", lava.context, self.cascade, 1)
        self.workspace = torch.empty(size, dtype=torch.uint8, device=device)
        self.compact_workspace = torch.empty(lava.size("cuda_compact_workspace_size", lava.context, self.n_layers), dtype=torch.uint8, device=device)

    def start(self):
        lava = self.lava
        lava.call("cuda_cascade_init", lava.context, self.shape, self.n_layers, ctypes.c_uint64(self.total), self.params, self.how, self.state, self.state.numel(), self.cascade, lava.status, ctypes.c_void_p(lava.gpu.stream()))

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
