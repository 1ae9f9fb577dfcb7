"""What eviction costs in answers: the trained model, in llama.cpp, on held-out recall prompts of eval/model/data.py.

    python3 recall.py show      # one prompt, with the whole cache and with a fifth of it, as `make llama` shows it
    python3 recall.py score     # a table: budgets by settings

Facts ` K=v` stand between filler words; a question is `?K=`. Two settings:

- known: the prompt ends with the questions, without their answers, inside the window: `?K=?L=`. Then they are asked again.
- later: the prompt has no question. All are asked only after compression.

Only answers to questions that were decoded after the compression count, so none comes out of prefill's full attention.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "target/llama.cpp/python"), str(ROOT / "eval/model")]

import data  # noqa: E402

PROGRAM = Path(os.environ.get("LLAMA_LAVA", ROOT / "target/llama.cpp/build/bin/llama-lava")).absolute()
MODEL = ROOT / "target/llama.cpp/recall.gguf"
RATIOS = (1.0, 0.5, 0.2, 0.1, 0.05)


@dataclass
class Prompt:
    text: str
    questions: list[str]
    answers: list[str]


def prompt(n_tokens: int, n_facts: int, n_questions: int, known: bool, index: int, seed: int = 1) -> Prompt:
    """n_tokens counts <s> and the questions that stand in the prompt. The facts are the same in both settings."""
    tail = 3 * n_questions  # `?K=` each
    rng = data.stream(seed, data.HELD_OUT, 2000, n_tokens, n_facts, n_questions, index)
    s = data.recall(rng, n_tokens - tail + 4 * n_questions, 1, n_facts, n_questions)
    text = data.decode(s.tokens)
    facts, asked = text[: -4 * n_questions], text[-4 * n_questions :]
    questions = [asked[4 * i : 4 * i + 3] for i in range(n_questions)]
    answers = [asked[4 * i + 3] for i in range(n_questions)]
    return Prompt(facts + "".join(questions) if known else facts, questions, answers)


def command(program: Path, model: Path, text: Path, p: Prompt, *options: str) -> list[str]:
    asked = [word for q in p.questions for word in ("--ask", q)]
    return [str(program), "-m", str(model), "-f", str(text), "-n", "1", *options, *asked]


def llama_lava(program: Path, model: Path, p: Prompt, *options: str) -> dict:
    with tempfile.NamedTemporaryFile("w", suffix=".txt") as f:
        f.write(p.text)
        f.flush()
        # one thread: a model this small is only slowed down by more
        r = subprocess.run(command(program, model, Path(f.name), p, "-t", "1", "--json", *options), capture_output=True, text=True)
    if r.returncode:
        sys.exit(f"{' '.join(r.args)}\n{r.stderr}")
    return json.loads(r.stdout)


def share(program: Path, model: Path, prompts: list[Prompt], *options: str) -> float:
    right = total = 0
    for p in prompts:
        turns = llama_lava(program, model, p, *options)["turns"]
        right += sum(t["answer"] == a for t, a in zip(turns, p.answers, strict=True))
        total += len(p.answers)
    return right / total


def score(say: Callable[[str], None] = print, n_prompts: int = 32, n_tokens: int = 1024, n_facts: int = 36, n_questions: int = 8,
          window: int = 32, options: Sequence[str] = (), program: Path = PROGRAM) -> dict[str, list[float]]:
    """Prints the table; the shares by row, the two settings in turn."""
    say(f"recall of the trained model: {n_prompts} prompts of {n_tokens} tokens with {n_facts} facts and {n_questions} questions, "
        f"window {window}")
    say(f"{'kept':<6}  {'questions known':>15}  {'of stock':>8}  {'asked only later':>16}  {'of stock':>8}")
    say("-" * 61)
    settings = [[prompt(n_tokens, n_facts, n_questions, known, i) for i in range(n_prompts)] for known in (True, False)]
    results: dict[str, list[float]] = {}
    for name, way in [("stock", ["--stock"])] + [(f"{100 * r:.0f}%", ["--kv-ratio", str(r), "--window", str(window)]) for r in RATIOS if r * n_tokens >= window]:
        results[name] = [share(program, MODEL, prompts, *way, *options) for prompts in settings]
        known, later = (f"{100 * x:>{width}.1f}%  {100 * x / of:>7.1f}%"
                        for x, of, width in zip(results[name], results["stock"], (14, 15)))
        say(f"{name:<6}  {known}  {later}")
    return results


def show(a: argparse.Namespace) -> None:
    p = prompt(a.tokens, a.facts, a.questions, True, 0)
    text, picture = MODEL.parent / "prompt.txt", MODEL.parent / "kept.svg"
    text.write_text(p.text)
    print(f"\n{text.relative_to(ROOT)}: {a.facts} facts among {a.tokens} tokens, and {a.questions} questions:\n  {p.text[:64]}... ...{p.text[-64:]}")
    for options in (["--stock"], ["--kv-ratio", "0.2", "--kv-map", str(picture.relative_to(ROOT))]):
        words = command(PROGRAM.relative_to(ROOT), MODEL.relative_to(ROOT), text.relative_to(ROOT), p, *options)
        print(f"\n$ {shlex.join(words)}", flush=True)
        r = subprocess.run(words, cwd=ROOT, stdout=subprocess.PIPE, text=True)
        if r.returncode:
            sys.exit(r.returncode)
        answers = "".join(q + answer for q, answer in zip(p.questions, p.answers))
        right = sum(x == y for x, y in zip(r.stdout[3::4], p.answers))
        print(f"answered: {r.stdout.strip()}\nthe facts: {answers}\n{right} of {len(p.answers)} right")
    print(f"\nwhich tokens each layer and head kept: {picture.relative_to(ROOT)}")


def main() -> None:
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    kinds = ap.add_subparsers(dest="kind", required=True)
    one, many = kinds.add_parser("show"), kinds.add_parser("score")
    many.add_argument("--prompts", type=int, default=32)
    many.add_argument("--window", type=int, default=32)
    many.add_argument("options", nargs="*", help="more options for llama-lava, after --")
    for p in (one, many):
        p.add_argument("--tokens", type=int, default=1024)
        p.add_argument("--facts", type=int, default=36)
        p.add_argument("--questions", type=int, default=8)
    a = ap.parse_args()
    if a.kind == "show":
        show(a)
    else:
        score(print, a.prompts, a.tokens, a.facts, a.questions, a.window, a.options)


if __name__ == "__main__":
    main()
