"""What `make llama` shows: a published model reads a long text, sums it up and answers a question, from all of its cache and from less.

    python3 show.py [--text FILE] [--characters N] [--question TEXT]

The text is the library's guide, as much of it as leaves room for the answers. The prompt is prefilled once (and once for stock, which lays
out its cache in another way); every row compresses it anew.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import textwrap
from pathlib import Path

from recall import PROGRAM, ROOT

MODEL = ROOT / "target/published/model.gguf"
N_NEW, UBATCH = 80, 512
RATIOS = (1.0, 0.5, 0.2)


def run(prompt: Path, question: str, *options: str) -> dict:
    command = [PROGRAM, "-m", MODEL, "-f", prompt, "-cnv", "--ask", question, "-ub", UBATCH, "-n", N_NEW, "--json", *options]
    # threads that spin while they wait would slow down whatever else the machine does
    r = subprocess.run([str(c) for c in command], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=os.environ | {"OMP_WAIT_POLICY": "passive"})
    if r.returncode:
        sys.exit(r.stderr)
    return json.loads(r.stdout)


def told(name: str, r: dict, kv_bytes: float) -> None:
    print(f"{name}: {1e3 / r['decode_ms']:.1f} tokens a second, {kv_bytes / 1e6:.1f} MB of K and V")
    for what, turn in zip(("sums up", "answers"), r["turns"], strict=True):
        print(textwrap.fill(" ".join(turn["answer"].split()), 118, initial_indent=f"  {what}: ", subsequent_indent="    "))
    print(flush=True)


def main() -> None:
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("--text", type=Path, default=ROOT / "include/GUIDE.md")
    ap.add_argument("--characters", type=int, default=16_000)
    ap.add_argument("--question", default="What is the guide about?")
    a = ap.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        prompt, cache = Path(folder) / "prompt.txt", Path(folder) / "prefill"
        prompt.write_text("Sum up this text in two sentences:\n\n" + a.text.read_text()[: a.characters])
        print(f"SmolLM2-135M-Instruct sums up the first {a.characters:,} characters of {a.text.resolve().relative_to(ROOT)}, and is asked: {a.question}\n"
              "It is a very small model: look at how its answers change with what is kept. This takes some minutes.\n", flush=True)
        stock = min((run(prompt, a.question, "--stock", "-fa", fa) for fa in ("off", "on")), key=lambda r: r["decode_ms"])
        for ratio in RATIOS:
            r = run(prompt, a.question, "--kv-ratio", str(ratio), "--prompt-cache", str(cache))
            if ratio == 1:  # the bytes of all tokens, which stock's cache holds too
                flash = "with" if stock["flash_attn"] == "on" else "without"
                told(f"llama.cpp as it is, {flash} flash attention, the faster here", stock, r["kept"]["kv_bytes_used"])
            told(f"{100 * ratio:.0f}% kept of {r['n_prompt']:,} tokens", r, r["kept"]["kv_bytes_used"])


if __name__ == "__main__":
    main()
