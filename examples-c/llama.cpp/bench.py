"""Measures llama.cpp with lava: decoding, memory and compression at several lengths and budgets, and recall.

    python3 bench.py [--record FILE] [--parts published,speed,peak,kinds,recall] [--lengths 4096,8192,32768] [--rounds 3]

--record appends, so that a record may be made in pieces; what is compared is measured in one piece.

Speed and memory come from models with random weights whose attention dominates (8 layers; 2 at 32k, where prefill is long), each
row from processes of its own, the rows of a length taken in turns. The prompt is prefilled once per length: the other
rows load it (--prompt-cache), compute its last ubatch, compress, decode. Times of decoding: the best round's median.
Stock is the faster of its two, with flash attention and without, which on a CPU is often the faster by far. The part `published` is the
same on SmolLM2-135M-Instruct and this project's own text, at 4k and 8k tokens, without the memory.
Memory is the kernel's account of the process: what clearing the cache gives back; for stock, what making the context takes.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import recall
from recall import PROGRAM, ROOT

HOME = ROOT / "target/llama.cpp/bench"
PUBLISHED = ROOT / "target/published/model.gguf"
RATIOS = (1.0, 0.5, 0.2, 0.1, 0.05)
HEADS, KV_HEADS, HEAD_DIM, THREADS, N_NEW, UBATCH = 32, 8, 128, 2, 33, 512


class Record:
    """Prints, and keeps what it printed."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def __call__(self, line: str = "") -> None:
        print(line, flush=True)
        self.lines.append(line)


def layers(n_tokens: int) -> int:
    return 8 if n_tokens <= 8192 else 2


def model(n_layers: int) -> Path:
    path = HOME / f"random-{n_layers}.gguf"
    if not path.exists():
        shape = dict(layers=n_layers, heads=HEADS, kv_heads=KV_HEADS, head_dim=HEAD_DIM, embd=256, ff=256)
        options = [word for key, value in shape.items() for word in (f"--{key.replace('_', '-')}", str(value))]
        subprocess.run([sys.executable, ROOT / "examples-c/llama.cpp/gguf_model.py", "random", path, *options], check=True)
    return path


def text(n_tokens: int) -> Path:
    """<s> is one of them."""
    path = HOME / f"prompt-{n_tokens}.txt"
    path.write_text(recall.prompt(n_tokens, 36, 8, True, 0).text)
    return path


def run(n_tokens: int, *options: str, n_new: int = N_NEW) -> dict:
    command = [PROGRAM, "-m", model(layers(n_tokens)), "-f", text(n_tokens), "-n", n_new, "-t", THREADS, "--ignore-eos", "--json"]
    return program(*command, *options)


def program(*command: object) -> dict:
    # threads that spin while they wait take the time of whatever else runs
    r = subprocess.run([str(c) for c in command], capture_output=True, text=True, env=os.environ | {"OMP_WAIT_POLICY": "passive"})
    if r.returncode:
        sys.exit(r.stderr)
    return json.loads(r.stdout)


def published(say: Record, rounds: int, characters: list[int]) -> None:
    """The texts are cut by characters; how many tokens that is stands in the table. The prompt is prefilled twice: stock without flash
    attention lays its values out in another way, and cannot read the other's prefill."""
    whole = "\n\n".join((ROOT / f).read_text() for f in ("include/GUIDE.md", "docs/method.md", "docs/evaluation.md"))
    ways = {"stock, flash": ("on", "--stock"), "stock, without": ("off", "--stock")}
    ways |= {"packed" if x == 1 else f"{100 * x:.0f}%": ("on", "--kv-ratio", str(x)) for x in (1.0, 0.5, 0.2, 0.1)}
    say(f"SmolLM2-135M-Instruct, Q4_1, 9 query and 3 KV heads of 64, 30 layers; F16 cache; {THREADS} threads; load of the machine at the start: "
        f"{os.getloadavg()[0]:.1f} on {os.cpu_count()} cores")
    say(f"{'tokens':>6}  {'cache':<14}  {'ms/token':>8}  {'tokens/s':>8}  {'vs faster stock':>15}  {'vs packed':>9}  {'K+V':>8}  {'compress':>9}")
    say("-" * 93)
    for n in characters:
        prompt = HOME / f"published-{n}.txt"
        prompt.write_text(whole[:n])
        caches = {fa: HOME / f"prefill-published-{fa}" for fa in ("on", "off")}
        for cache in caches.values():
            cache.unlink(missing_ok=True)
        took: dict[str, list[dict]] = {name: [] for name in ways}
        for i in range(rounds):
            for name, (fa, *options) in ways.items():
                print(f"\r{n} characters: round {i + 1} of {rounds}, {name}      ", end="", file=sys.stderr, flush=True)
                took[name].append(program(PROGRAM, "-m", PUBLISHED, "-f", prompt, "-n", N_NEW, "-t", THREADS, "-fa", fa, "--ignore-eos", "--json",
                                          "--prompt-cache", caches[fa], *options))
        print("\r" + " " * 60 + "\r", end="", file=sys.stderr, flush=True)
        for cache in caches.values():
            cache.unlink()
        ms = {name: min(r["decode_ms"] for r in rs) for name, rs in took.items()}
        stock = min(ms["stock, flash"], ms["stock, without"])
        kept = {name: rs[-1].get("kept") for name, rs in took.items()}
        for name, rs in took.items():
            k = kept[name] or kept["packed"]  # stock's rows are as many as all
            compress = f"{min(r['kept']['compress_ms'] for r in rs):6.0f} ms" if kept[name] else ""
            say(f"{rs[-1]['n_prompt']:6}  {name:<14}  {ms[name]:8.2f}  {1e3 / ms[name]:8.1f}  {stock / ms[name]:14.2f}x  {ms['packed'] / ms[name]:8.2f}x  "
                f"{k['kv_bytes_used'] / 1e6:5.1f} MB  {compress:>9}")
        say()


def row_bytes(n_tokens: int) -> int:
    """K and V of one token in all layers and heads, F16."""
    return layers(n_tokens) * KV_HEADS * HEAD_DIM * 2 * 2


def given_back(r: dict) -> int:
    return r["rss"]["end"] - r["rss"]["cleared"]


def resident(r: dict, stock: dict) -> int:
    """Clearing also frees the list of cells, 100 bytes a token, as stock's does, which keeps its buffers."""
    return given_back(r) - given_back(stock) if r["compressed"] else r["rss"]["context"] - r["rss"]["model"]


def speed(say: Record, lengths: list[int], rounds: int) -> dict:
    """The decode ms of every length and row, and the share of compression."""
    say(f"{'tokens':>6}  {'layers':>6}  {'cache':<9}  {'ms/token':>8}  {'tokens/s':>8}  {'vs stock':>8}  {'vs packed':>9}  "
        f"{'KV resident':>11}  {'arithmetic':>10}  {'over':>6}  {'compress':>9}  {'of prefill':>10}")
    say("-" * 122)
    results = {}
    for n in lengths:
        cache = HOME / f"prefill-{n}"
        cache.unlink(missing_ok=True)
        prefill = run(n, "--stock", "--prompt-cache", str(cache), n_new=0)["prefill_ms"]
        # the faster of stock's two: without flash attention it cannot read the other's prefill
        plain = HOME / f"prefill-{n}-plain"
        plain.unlink(missing_ok=True)
        run(n, "--stock", "-fa", "off", "--prompt-cache", str(plain), n_new=0)
        both = {fa: run(n, "--stock", "-fa", fa, "--prompt-cache", str(at))["decode_ms"] for fa, at in (("on", cache), ("off", plain))}
        faster = min(both, key=lambda fa: both[fa])
        ways = {"stock": ["--stock", "-fa", faster]} | {"packed" if x == 1 else f"{100 * x:.0f}%": ["--kv-ratio", str(x)] for x in RATIOS}
        took: dict[str, list[dict]] = {name: [] for name in ways}
        for i in range(rounds):
            for name, options in ways.items():
                print(f"\r{n} tokens: round {i + 1} of {rounds}, {name}   ", end="", file=sys.stderr, flush=True)
                took[name].append(run(n, "--prompt-cache", str(plain if "off" in options else cache), *options))
        print("\r" + " " * 40 + "\r", end="", file=sys.stderr, flush=True)
        cache.unlink(missing_ok=True)
        plain.unlink(missing_ok=True)
        ms = {name: min(r["decode_ms"] for r in rs) for name, rs in took.items()}
        for name, rs in took.items():
            r = rs[-1]
            rows = r["kept"]["per_head"] + N_NEW - 1 if r["compressed"] else r["n_ctx"]
            due, is_ = rows * row_bytes(n), min(resident(r, s) for r, s in zip(rs, took["stock"]))
            compress = min(r["kept"]["compress_ms"] for r in rs) if r["compressed"] else 0
            tail = f"  {compress:6.0f} ms  {100 * compress / prefill:9.2f}%" if compress else ""
            say(f"{n:6}  {layers(n):6}  {name:<9}  {ms[name]:8.2f}  {1e3 / ms[name]:8.1f}  {ms['stock'] / ms[name]:7.2f}x  {ms['packed'] / ms[name]:8.2f}x  "
                f"{is_ / 1e6:8.1f} MB  {due / 1e6:7.1f} MB  {100 * (is_ / due - 1):+5.1f}%{tail}")
            results[n, name] = dict(ms=ms[name], over=is_ / due - 1, compress=compress / prefill)
        say(f"{'':16}stock: with flash attention {both['on']:.2f} ms/token, without {both['off']:.2f}")
        say(f"{'':16}prefill: {prefill / 1e3:.1f} s, {1e3 * n / prefill:.0f} tokens/s")
        say()
    return results


def peak(say: Record, n: int = 4096) -> dict:
    say(f"peak memory of prefilling {n} tokens, over the loaded model; K+V: the most bytes of the cache in use at any time")
    say(f"{'prompt computed as':<20}  {'cache':<6}  {'process':>10}  {'K+V':>9}")
    say("-" * 51)
    results = {}
    for ubatch in (n, UBATCH):
        for name, options in {"stock": ["--stock"], "10%": ["--kv-ratio", "0.1"]}.items():
            r = run(n, "-ub", str(ubatch), *options, n_new=0)
            process = r["rss"]["prefill_peak"] - r["rss"]["model"]
            kv = r["kept"]["kv_bytes_peak"] if r["compressed"] else n * row_bytes(n)
            results[ubatch, name] = process
            way = "one ubatch" if ubatch == n else f"ubatches of {ubatch}"
            say(f"{way:<20}  {name:<6}  {process / 1e6:7.1f} MB  {kv / 1e6:6.1f} MB")
    say()
    return results


def kinds(say: Record, n: int = 4096) -> None:
    say(f"decoding at {n} tokens, 10% kept, by cache type and way of attention")
    say(f"{'type':<6}  {'attention':<9}  {'ms/token':>8}  {'stock ms':>8}  {'KV':>8}")
    say("-" * 48)
    for kv_type, ways in {"f16": ("ragged", "padded"), "f32": ("ragged",), "q8_0": ("padded",)}.items():
        cache = HOME / f"prefill-{n}-{kv_type}"
        cache.unlink(missing_ok=True)
        common = ("-ctk", kv_type, "-ctv", kv_type, "--prompt-cache", str(cache))
        run(n, "--stock", *common, n_new=0)
        stock = run(n, "--stock", *common)["decode_ms"]
        for attn in ways:
            r = run(n, *common, "--kv-ratio", "0.1", "--attn", attn)
            say(f"{kv_type:<6}  {attn:<9}  {r['decode_ms']:8.2f}  {stock:8.2f}  {r['kept']['kv_bytes'] / 1e6:5.1f} MB")
        cache.unlink(missing_ok=True)
    say()


def targets(say: Record, s: dict, p: dict, answers: dict) -> None:
    def line(what: str, target: str, value: str) -> None:
        say(f"{what:<70}  {target:>8}  {value:>8}")

    if (8192, "10%") in s:
        ms = {name: s[8192, name]["ms"] for name in ("stock", "packed", "10%")}
        line("decode, 8k, 10% kept, against packed keep-all", ">= 2.5x", f"{ms['packed'] / ms['10%']:.2f}x")
        line("decode, 8k, 10% kept, against stock", ">= 4x", f"{ms['stock'] / ms['10%']:.2f}x")
    compressed = {key: x for key, x in s.items() if key[1] != "stock"}
    if compressed:
        line("resident KV against the arithmetic, the worst row", "<= 5%", f"{100 * max(abs(x['over']) for x in compressed.values()):.1f}%")
        line("compression, of prefill, the worst row", "< 2%", f"{100 * max(x['compress'] for x in compressed.values()):.2f}%")
    if p:
        line("peak of a prompt in one ubatch, 10% kept, against stock's", "< 1x", f"{p[4096, '10%'] / p[4096, 'stock']:.2f}x")
    if answers:
        line("recall, questions known, 20% kept, of stock's", ">= 95%", f"{100 * answers['20%'][0] / answers['stock'][0]:.1f}%")


def cpu() -> str:
    lines = [x for x in Path("/proc/cpuinfo").read_text().splitlines() if x.startswith("model name")]
    return f"{lines[0].split(':')[1].strip() if lines else 'unknown CPU'}, {os.cpu_count()} cores"


def main() -> None:
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("--record", type=Path)
    ap.add_argument("--lengths", default="4096,8192,32768")
    ap.add_argument("--rounds", type=int, default=3)
    ap.add_argument("--parts", default="published,speed,peak,kinds,recall")
    ap.add_argument("--characters", default="14000,27500", help="of the published part's texts: about 4k and 8k tokens")
    a = ap.parse_args()
    parts = a.parts.split(",")
    HOME.mkdir(parents=True, exist_ok=True)
    say = Record()
    say(f"{time.strftime('%Y-%m-%d')}; {cpu()}, {THREADS} threads; llama-cpp-sys-2 0.1.161; F16 cache, flash attention but for stock where it is slower")
    say()
    if "published" in parts:
        published(say, a.rounds, [int(n) for n in a.characters.split(",")])
    if parts != ["published"]:
        say(f"random weights, {HEADS} query and {KV_HEADS} KV heads of {HEAD_DIM}, width 256; window 32, ubatches of {UBATCH}")
        say()
    s = speed(say, [int(n) for n in a.lengths.split(",")], a.rounds) if "speed" in parts else {}
    p = peak(say) if "peak" in parts else {}
    if "kinds" in parts:
        kinds(say)
    answers = {}
    if "recall" in parts:
        answers = recall.score(say)
        say()
        recall.score(say, n_questions=16, window=64)
        say()
    targets(say, s, p, answers)
    if a.record:
        a.record.parent.mkdir(parents=True, exist_ok=True)
        with open(a.record, "a") as f:
            f.write("\n".join(say.lines) + "\n\n")


if __name__ == "__main__":
    main()
