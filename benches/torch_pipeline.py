"""LAVa's scoring of one layer in PyTorch, written as well as it can be: prints the seconds of the fastest run.

K and V are never repeated for grouped queries: the queries of a group are rows of one product per KV head. Heads go one by
one, so that the attention matrix of one of them is all that exists. Usage:

    torch_pipeline.py DTYPE N_Q_HEADS N_KV_HEADS HEAD_DIM N_TOKENS THREADS ROUNDS
"""

import sys
import time

import torch

DTYPES = {"f16": torch.float16, "bf16": torch.bfloat16, "f32": torch.float32}
WINDOW = 32
KERNEL = 7


def score(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """q [n_kv_heads, group * w, d], k and v [n_tokens, n_kv_heads, d], mask [w, w] -> [n_kv_heads, prefix]."""
    n_kv_heads, rows, d = q.shape
    prefix = k.shape[0] - WINDOW
    scores = []
    for g in range(n_kv_heads):
        logits = torch.matmul(q[g], k[:, g].T).float().view(rows // WINDOW, WINDOW, -1)
        logits.mul_(d**-0.5)
        logits[..., prefix:] += mask
        attention = torch.softmax(logits, -1)[..., :prefix].mean(1)
        pooled = torch.nn.functional.max_pool1d(attention, KERNEL, stride=1, padding=KERNEL // 2).amax(0)
        scores.append(pooled * v[:prefix, g].abs().sum(-1, dtype=torch.float32).amax())
    return torch.stack(scores)


@torch.inference_mode()
def main() -> None:
    dtype = DTYPES[sys.argv[1]]
    n_q_heads, n_kv_heads, d, n, threads, rounds = map(int, sys.argv[2:])
    torch.set_num_threads(threads)
    torch.manual_seed(1)
    q = torch.randn(n_kv_heads, n_q_heads // n_kv_heads * WINDOW, d).to(dtype)
    k, v = (torch.randn(n, n_kv_heads, d).to(dtype) for _ in range(2))
    mask = torch.full((WINDOW, WINDOW), float("-inf")).triu(1)
    best = float("inf")
    for _ in range(rounds + 1):  # the first warms up
        start = time.perf_counter()
        score(q, k, v, mask)
        best = min(best, time.perf_counter() - start)
    print(best)


if __name__ == "__main__":
    main()
