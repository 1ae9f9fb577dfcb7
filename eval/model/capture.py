"""Measures recall.safetensors on held-out text and writes captures.safetensors: its KV cache on three prompts.

    python capture.py               # tables on stdout, then the captures
    python capture.py --no-tables   # the captures alone
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch

import data
from model import Model, write_safetensors

HERE = Path(__file__).parent
WINDOW, N_NEXT = 64, 16
MANY = {256: 24, 512: 48, 1024: 96, 2048: 192, 4096: 260}  # facts in a prompt with two-character keys
N_QUESTIONS = 16


@torch.no_grad()
def hits(model: Model, seqs: list[data.Sequence]) -> np.ndarray:
    """Whether each target token is the model's first choice, given all that comes before it."""
    out = []
    for s in seqs:
        choice = model(torch.from_numpy(s.tokens[None, :-1]))[0].argmax(-1).numpy()
        out.append((choice == s.tokens[1:])[s.target[1:]])
    return np.concatenate(out)


def tables(model: Model, seed: int) -> None:
    tasks = {
        "recall, 1-character keys": lambda r, n: data.recall(r, n, 1, min(MANY[n], len(data.ONE)), N_QUESTIONS),
        "recall, 2-character keys": lambda r, n: data.recall(r, n, 2, MANY[n], N_QUESTIONS),
        "recall, every fact asked": lambda r, n: data.recall(r, n, 2, MANY[n], MANY[n]),
        "recall, one question": lambda r, n: data.recall(r, n, 2, MANY[n], 1),
        "copying": lambda r, n: data.copying(r, n, int(n * 0.45)),
    }
    print("| tokens | " + " | ".join(tasks) + " |\n|" + "---|" * (len(tasks) + 1))
    for n in MANY:
        row = []
        for i, (name, make) in enumerate(tasks.items()):
            count = (100 if "one" in name else 32) if n <= 2048 else 8
            h = hits(model, [make(data.stream(seed, data.HELD_OUT, n, i, j), n) for j in range(count)])
            row.append(f"{100 * h.mean():.2f}% of {h.size}")
        print(f"| {n} | " + " | ".join(row) + " |", flush=True)
    print()
    heads(model, seed)


@torch.no_grad()
def heads(model: Model, seed: int, n: int = 1024, n_prompts: int = 8) -> None:
    """What each query head looks at from the questions at a recall prompt's end."""
    cfg, rows = model.cfg, []
    for j in range(n_prompts):
        s = data.recall(data.stream(seed, data.HELD_OUT, n, 100, j), n, 1, len(data.ONE), N_QUESTIONS)
        text = data.decode(s.tokens)  # one character per token, without <s>
        record: list = []
        model(torch.from_numpy(s.tokens[None]), record)
        i, ask = torch.arange(n), torch.from_numpy(np.flatnonzero(s.target)) - 1  # each question's `=`
        fact = torch.tensor([text.index(" " + text[a - 2] + "=") + 4 for a in ask.tolist()])  # its fact's value
        at = torch.arange(n - WINDOW, n)
        for q, k, _ in record:
            k = k[0].repeat_interleave(cfg.n_q_heads // cfg.n_kv_heads, dim=1)
            a = torch.einsum("qhd,khd->hqk", q[0, at], k) / cfg.head_dim**0.5
            a = a.masked_fill(i > at[:, None], -torch.inf).softmax(-1)
            distance = (a * (at[:, None] - i).clamp(min=0)).sum(-1).mean(-1)
            entropy = torch.special.entr(a).sum(-1).mean(-1)
            to_fact = a[:, ask - (n - WINDOW), fact].mean(-1)
            rows.append(torch.stack([distance, entropy, a[:, :, 0].mean(-1), to_fact], -1))
    m = torch.stack(rows).unflatten(0, (n_prompts, cfg.n_layers)).mean(0)  # [layer, head, 4]
    print("| layer | query head | KV head | mean distance | entropy, nats | on `<s>` | from a question's `=` on its fact |")
    print("|---|---|---|---|---|---|---|")
    for layer in range(cfg.n_layers):
        for h in range(cfg.n_q_heads):
            d, e, b, f = m[layer, h].tolist()
            print(f"| {layer} | {h} | {h * cfg.n_kv_heads // cfg.n_q_heads} | {d:.1f} | {e:.2f} | {b:.3f} | {f:.3f} |")
    print(flush=True)


def prompts(seed: int) -> list[tuple[str, int, np.ndarray]]:
    """(kind, n_tokens, tokens of prompt and continuation)."""
    rng = [data.stream(seed, data.HELD_OUT, 1000, p) for p in range(3)]
    # 20 questions of 4 tokens, the last answer cut off: the prompt ends with the 16th's `?K=`, so its answer is the
    # first decode step, and three whole questions follow
    at_end = data.recall(rng[0], 1024 + N_NEXT + 1, 1, 36, 20).tokens[:-1]
    # 4 questions of 5 tokens, all after the prompt
    after = data.recall(rng[1], 1024 + 20, 2, 96, 4).tokens[: 1024 + N_NEXT]
    copied = data.copying(rng[2], 1056 + N_NEXT, 480).tokens
    return [("recall, questions at the end", 1024, at_end), ("recall, questions after the prompt", 1024, after),
            ("copying", 1056, copied)]


@torch.no_grad()
def capture(model: Model, seed: int, path: Path) -> None:
    cfg, tensors = model.cfg, {}
    meta = {"n_layers": cfg.n_layers, "n_q_heads": cfg.n_q_heads, "n_kv_heads": cfg.n_kv_heads,
            "head_dim": cfg.head_dim, "rope_theta": cfg.rope_theta, "window": WINDOW, "n_next": N_NEXT}
    for p, (kind, n, tokens) in enumerate(prompts(seed)):
        assert len(tokens) == n + N_NEXT
        meta[f"prompt{p}.kind"] = kind
        tensors[f"prompt{p}.tokens"] = torch.from_numpy(tokens).to(torch.int32)
        tensors[f"prompt{p}.positions"] = torch.arange(n + N_NEXT, dtype=torch.int32)
        record: list = []
        # causal attention: one pass over prompt and continuation is the decode steps with the full cache
        model(torch.from_numpy(tokens[None]), record)
        for layer, (q, k, v) in enumerate(record):
            q, k, v, name = q[0], k[0].half(), v[0].half(), f"prompt{p}.layer{layer}"
            tensors |= {f"{name}.q": q[n - WINDOW : n], f"{name}.k": k[:n], f"{name}.v": v[:n],
                        f"{name}.q_next": q[n:], f"{name}.k_next": k[n:], f"{name}.v_next": v[n:]}
    meta["n_prompts"] = p + 1
    write_safetensors(path, tensors, meta)


def main() -> None:
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("--weights", type=Path, default=HERE / "recall.safetensors")
    ap.add_argument("--out", type=Path, default=HERE / "captures.safetensors")
    ap.add_argument("--seed", type=int, default=1)
    ap.add_argument("--no-tables", action="store_true")
    args = ap.parse_args()
    torch.set_num_threads(2)
    model = Model.load(str(args.weights))
    if not args.no_tables:
        tables(model, args.seed)
    capture(model, args.seed, args.out)


if __name__ == "__main__":
    main()
