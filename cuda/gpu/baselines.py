"""What the stages' times are compared with: the same work in PyTorch."""
import math

import torch


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
    """A call: decoding in PyTorch over rows as they are, each head of each sequence as a separate sequence, its group's queries side by side."""
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
    f"padded{{}}, {name}": lambda *to, backend=backend: attend_padded(*to, backend)
    for backend, name in {"EFFICIENT_ATTENTION": "efficient", "CUDNN_ATTENTION": "cuDNN", "MATH": "math"}.items()
}


def first_line(error):
    return f"{type(error).__name__}: {(str(error).splitlines() or [''])[0][:160]}"
