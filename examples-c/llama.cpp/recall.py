"""What eviction costs in answers: the trained model, in llama.cpp, on held-out recall prompts of model/data.py.

    python3 recall.py prompt OUT.txt      # one prompt with its questions, for `make llama`
    python3 recall.py score               # a table: budgets by settings

Facts ` K=v` stand between filler words; a question is `?K=`. Two settings:

- known: the prompt ends with the questions, without their answers, inside the window: `?K=?L=`. Then they are asked again.
- later: the prompt has no question. All are asked only after compression.

Only answers to questions that were decoded after the compression count, so none comes out of prefill's full attention.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "target/llama.cpp/python"), str(ROOT / "model")]

import data  # noqa: E402

PROGRAM = ROOT / "target/llama.cpp/build/bin/llama-lava"
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


def llama_lava(program: Path, model: Path, p: Prompt, *options: str) -> dict:
    with tempfile.NamedTemporaryFile("w", suffix=".txt") as f:
        f.write(p.text)
        f.flush()
        command = [program, "-m", model, "-p", f.name, "-n", "1", "-t", "1", "--json", *options]
        for q in p.questions:
            command += ["--ask", q]
        r = subprocess.run([str(c) for c in command], capture_output=True, text=True)
    if r.returncode:
        sys.exit(f"{' '.join(map(str, command))}\n{r.stderr}")
    return json.loads(r.stdout)


def share(program: Path, model: Path, prompts: list[Prompt], *options: str) -> float:
    right = total = 0
    for p in prompts:
        turns = llama_lava(program, model, p, *options)["turns"]
        right += sum(t["answer"] == a for t, a in zip(turns, p.answers, strict=True))
        total += len(p.answers)
    return right / total


def score(a: argparse.Namespace) -> None:
    print(f"recall of the trained model: {a.prompts} prompts of {a.tokens} tokens, {a.facts} facts, {a.questions} questions each, "
          f"window {a.window}")
    ways = [("stock", ["--stock"])] + [(f"{100 * r:.0f}%", ["--kv-ratio", str(r), "--window", str(a.window)]) for r in RATIOS]
    print("\n" + f"{'kept':<7}" + "".join(f"{s:>22}" for s in ("questions known", "asked only later")))
    settings = [[prompt(a.tokens, a.facts, a.questions, known, i) for i in range(a.prompts)] for known in (True, False)]
    stock: list[float] = []
    for name, options in ways:
        line = f"{name:<7}"
        for s, prompts in enumerate(settings):
            x = share(a.program, a.model, prompts, *options, *a.options)
            if name == "stock":
                stock.append(x)
            line += f"{100 * x:9.1f}% {100 * x / stock[s]:5.0f}% of it" if name != "stock" else f"{100 * x:9.1f}%            "
        print(line.rstrip(), flush=True)


def main() -> None:
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    kinds = ap.add_subparsers(dest="kind", required=True)
    one = kinds.add_parser("prompt")
    one.add_argument("out", type=Path)
    many = kinds.add_parser("score")
    many.add_argument("--prompts", type=int, default=32)
    many.add_argument("--program", type=Path, default=PROGRAM)
    many.add_argument("--model", type=Path, default=MODEL)
    many.add_argument("--window", type=int, default=32)
    many.add_argument("options", nargs="*", help="more options for llama-lava, behind --")
    for p in (one, many):
        p.add_argument("--tokens", type=int, default=1024)
        p.add_argument("--facts", type=int, default=36)
        p.add_argument("--questions", type=int, default=8)
    a = ap.parse_args()
    if a.kind == "score":
        score(a)
        return
    p = prompt(a.tokens, a.facts, a.questions, True, 0)
    a.out.write_text(p.text)
    print(" ".join(f"--ask {q}" for q in p.questions))


if __name__ == "__main__":
    main()
