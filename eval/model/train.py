"""Trains the recall model and writes recall.safetensors (and a checkpoint to resume from).

    python train.py                      # from scratch, about an hour on two CPU cores
    python train.py --resume state.pt    # go on where a checkpoint stopped
"""

from __future__ import annotations

import argparse
import math
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from tqdm import tqdm

import data
from model import Model

# (sequence length, optimizer steps). Recall is found at short lengths, where a question has few candidates, and
# stretched from there. The last stage takes lengths in turn: after a stage of long sequences alone, where most facts
# are far away, recall over short ones had fallen to 93%.
CURRICULUM = [(32, 500), (64, 400), (128, 700), (256, 1200), (512, 800), (1024, 500), (2048, 200)]
LAST = (2048, 256, 1024, 512), 480
TOKENS_PER_STEP = 4096
# A cosine that levels off: after each step up in length, the heads have to learn to keep their attention sharp over
# twice as many tokens, which takes a few hundred steps at this rate.
LR, LR_END, LR_FLOOR, HORIZON = 2e-3, 1e-4, 3.5e-4, 4700
WARMUP, COOLDOWN = 50, 100
OTHER_WEIGHT = 0.05  # words, keys, separators: enough for fluent text, too little to drown the answers


def length_at(step: int) -> int:
    for length, steps in CURRICULUM:
        if step < steps:
            return length
        step -= steps
    return LAST[0][step % len(LAST[0])]


def learning_rate(step: int, total: int) -> float:
    cosine = LR_END + (LR - LR_END) * 0.5 * (1 + math.cos(math.pi * min(step / HORIZON, 1.0)))
    return max(LR_FLOOR, cosine) * min(1.0, (step + 1) / WARMUP, (total - step) / COOLDOWN)


def losses(model: Model, tokens: np.ndarray, target: np.ndarray, is_recall: np.ndarray):
    """The loss, and loss and accuracy on recall answers and on copied tokens."""
    t = torch.from_numpy(tokens)
    logits = model(t[:, :-1])
    ce = F.cross_entropy(logits.flatten(0, 1), t[:, 1:].flatten(), reduction="none")
    hit = (logits.argmax(-1) == t[:, 1:]).flatten().float()
    answer = torch.from_numpy(target[:, 1:] & is_recall[:, None]).flatten()
    copied = torch.from_numpy(target[:, 1:] & ~is_recall[:, None]).flatten()
    other = torch.from_numpy(~target[:, 1:] & is_recall[:, None]).flatten()
    loss = ce[answer].mean() + ce[copied].mean() + OTHER_WEIGHT * ce[other].mean()
    return loss, [ce[answer].mean(), hit[answer].mean(), ce[copied].mean(), hit[copied].mean()]


def main() -> None:
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("--seed", type=int, default=1)
    ap.add_argument("--out", type=Path, default=Path(__file__).parent / "recall.safetensors")
    ap.add_argument("--state", type=Path, default=Path("state.pt"), help="checkpoint, rewritten every 100 steps")
    ap.add_argument("--resume", type=Path)
    ap.add_argument("--threads", type=int, default=2)
    ap.add_argument("--stop", type=int, help="stop after this step (for trying things out)")
    args = ap.parse_args()

    torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)
    model = Model()
    matrices = [p for p in model.parameters() if p.ndim == 2]
    norms = [p for p in model.parameters() if p.ndim == 1]
    opt = torch.optim.AdamW([{"params": matrices, "weight_decay": 0.01}, {"params": norms, "weight_decay": 0.0}],
                            lr=LR, betas=(0.9, 0.98))
    total, first, before = sum(n for _, n in [*CURRICULUM, LAST]), 0, 0.0
    if args.resume:
        state = torch.load(args.resume)
        model.load_state_dict(state["model"])
        opt.load_state_dict(state["opt"])
        first, before = state["step"], state["seconds"]
    print(f"seed {args.seed}, torch {torch.__version__}, {args.threads} threads, "
          f"{sum(p.numel() for p in model.parameters())} parameters, {total} steps, curriculum {[*CURRICULUM, LAST]}", flush=True)

    start, seen = time.time(), []
    for step in tqdm(range(first, total), initial=first, total=total, disable=None, mininterval=5):
        length = length_at(step)
        rng = data.stream(args.seed, data.TRAIN, step)
        loss, parts = losses(model, *data.batch(rng, length, TOKENS_PER_STEP))
        for group in opt.param_groups:
            group["lr"] = learning_rate(step, total)
        opt.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        opt.step()
        seen.append([loss.item(), *(p.item() for p in parts)])
        done, seconds = step + 1, before + time.time() - start
        if done % 50 == 0:
            m = np.mean(seen, axis=0)
            tqdm.write(f"step {done:5d}  length {length:4d}  lr {opt.param_groups[0]['lr']:.2e}  loss {m[0]:.4f}  "
                       f"recall {m[1]:.4f} acc {m[2]:.4f}  copying {m[3]:.4f} acc {m[4]:.4f}  {seconds:6.0f} s")
            seen = []
        if done % 100 == 0 or done == total:
            model.save(str(args.out), seed=args.seed, steps=done)
            torch.save({"model": model.state_dict(), "opt": opt.state_dict(), "step": done, "seconds": seconds}, args.state)
        if args.stop and done >= args.stop:
            break


if __name__ == "__main__":
    main()
