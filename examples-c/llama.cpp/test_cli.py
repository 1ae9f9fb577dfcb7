"""What llama-lava and fetch.sh promise on the command line, on the trained model. `make test-llama` runs it after the build."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import unittest
import xml.etree.ElementTree as ET
from pathlib import Path

from recall import MODEL, PROGRAM, ROOT, Prompt, llama_lava, prompt, share

PROMPT = prompt(1024, 36, 8, True, 0)


def run(*options: str, text: str = PROMPT.text, model: Path = MODEL) -> subprocess.CompletedProcess:
    return subprocess.run([PROGRAM, "-m", model, "-f", "-", *options], input=text, capture_output=True, text=True)


def described(*options: str, text: str = PROMPT.text) -> dict:
    r = run("--json", *options, text=text)
    assert r.returncode == 0, r.stderr
    return json.loads(r.stdout)


def without_times(result: dict) -> dict:
    """What must not differ from run to run."""
    result = {k: v for k, v in result.items() if not k.endswith("_ms") and k not in ("rss", "n_threads")}
    result["kept"] = {k: v for k, v in result["kept"].items() if not k.endswith("_ms")}
    return result


class Errors(unittest.TestCase):
    def refused(self, says: str, *options: str, **more) -> None:
        r = run(*options, **more)
        self.assertEqual(r.returncode, 2, r.stderr)
        self.assertEqual(r.stdout, "")
        self.assertIn(says, r.stderr.splitlines()[-1])

    def test_models(self) -> None:
        with tempfile.TemporaryDirectory() as folder:
            self.refused("cannot read the model", "--stock", model=Path(folder) / "none.gguf")
            broken = Path(folder) / "broken.gguf"
            broken.write_bytes(MODEL.read_bytes()[:100_000])
            self.refused("is not a model that this llama.cpp can load", "--stock", model=broken)

    def test_budgets(self) -> None:
        self.refused("how much is to be kept?")
        self.refused("give one of", "--kv-budget", "100", "--kv-ratio", "0.5")
        self.refused("below the window of 32", "--kv-budget", "31")
        self.refused("cannot make a context", "--kv-budget", "35")  # the sinks too
        self.refused("would keep nothing", "--kv-ratio", "0")
        self.refused("from 0 to 1", "--kv-ratio", "1.5")
        self.refused("whole number", "--kv-budget", "12.5")
        self.refused("at least 0", "--kv-budget", "-4")
        self.refused("not 'much'", "--kv-budget", "much")

    def test_others(self) -> None:
        self.refused("prompt is missing or empty", "--stock", text="")
        self.refused("is one of f16, bf16, f32, q8_0, q4_0", "--stock", "-ctk", "q2")
        self.refused("-c 100 is too small", "--stock", "-c", "100")
        self.refused("cannot make a context", "--stock", "-ctk", "q8_0", "-ctv", "q8_0", "-fa", "off")
        self.refused("--stock runs it as it is", "--kv-ratio", "0.5", "-ctk", "q8_0", "--attn", "ragged")
        self.refused("give --kv-map another path", "--kv-ratio", "0.5", "-n", "0", "--kv-map", "/nowhere/kept.svg")

    def test_an_unknown_option_is_named_and_never_taken_apart(self) -> None:
        for name in ("--no-such-option", "-mt", "-kv", "--kv", "--kv-ratio=0.5", "-fitt", "--mirostat", "-b"):
            self.refused(f"unknown option {name};", "--stock", name)
        self.refused("unexpected argument 'text'", "--stock", "text")
        self.refused("-n needs a value", "--stock", "-n")
        self.refused("-f FILE, not both", "--stock", "-p", "text")
        self.refused("give -cnv too", "--stock", "-sys", "be brief")
        self.refused("has no chat template", "--stock", "-cnv", "-st")

    def test_a_patch_that_does_not_apply_is_fatal_and_leaves_the_source(self) -> None:
        patched = ROOT / "target/llama.cpp/src/src/llama-kv-cache.cpp"
        before = patched.read_bytes()
        with tempfile.TemporaryDirectory() as folder:
            (Path(folder) / "src").mkdir()
            (Path(folder) / "src/llama-kv-cache.cpp").write_text("// another version\n")
            r = subprocess.run([ROOT / "examples-c/llama.cpp/fetch.sh"], env=os.environ | {"LLAMA_CPP_DIR": folder},
                               capture_output=True, text=True)
        self.assertNotEqual(r.returncode, 0)
        self.assertIn("does not apply", r.stderr)
        self.assertEqual(patched.read_bytes(), before)

    def test_what_will_be_brought_is_told_first(self) -> None:
        with tempfile.TemporaryDirectory() as folder:  # a project of its own, in which nothing was fetched, and no network
            here = Path(folder) / "examples-c/llama.cpp"
            here.mkdir(parents=True)
            for name in ("fetch.sh", "requirements.txt"):
                shutil.copy(Path(__file__).parent / name, here)
            tools = Path(folder) / "tools"
            tools.mkdir()
            for name, does in {"cmake": "exit 0", "patch": "exit 0", "python3": 'case "$*" in *--version) exit 0;; esac; exit 1'}.items():
                (tools / name).write_text(f"#!/bin/sh\n{does}\n")
                (tools / name).chmod(0o755)
            r = subprocess.run([here / "fetch.sh"], env=os.environ | {"PATH": f"{tools}:{os.environ['PATH']}", "CARGO": "false"},
                               capture_output=True, text=True)
        self.assertNotEqual(r.returncode, 0)
        said = r.stderr.splitlines()
        self.assertIn("will bring what is missing", said[0])
        self.assertIn("gguf", said[1])
        self.assertIn("llama-cpp-sys-2", said[2])


class Output(unittest.TestCase):
    def test_help(self) -> None:
        r = subprocess.run([PROGRAM, "--help"], capture_output=True, text=True)
        self.assertEqual(r.returncode, 0)
        self.assertIn("--kv-budget N", r.stdout)

    def test_the_budget_is_exact(self) -> None:
        for budget in (36, 100, 517):
            kept = described("-n", "0", "--kv-budget", str(budget))["kept"]
            counts = [n for layer in kept["layers"] for n in layer["kept"]]
            self.assertEqual(len(counts), 8)  # 4 layers of 2 KV heads
            self.assertEqual(sum(counts), 8 * budget)
            self.assertGreaterEqual(min(counts), 36)
            self.assertEqual(kept["rows"], 8 * budget)

    def test_a_ratio_works_at_every_length(self) -> None:
        for end in (40, 200, len(PROMPT.text)):
            r = described("-n", "0", "--kv-ratio", "0.2", text=PROMPT.text[:end])
            self.assertEqual(r["kept"]["per_head"], max(36, r["n_prompt"] // 5))

    def test_presets(self) -> None:
        names = run("--help").stdout.split("what is kept: ")[1].split(" (default)")[0].split(", ")
        self.assertEqual(len(names), 12)
        kept = {}
        for preset in names:
            layers = described("-n", "0", "--kv-budget", "100", "--preset", preset)["kept"]["layers"]
            kept[preset] = [layer["kept"] for layer in layers]
            self.assertEqual(sum(map(sum, kept[preset])), 8 * 100, preset)
        for preset in ("snapkv", "streaming", "vatp", "caote", "rest-kv", "sage-kv"):
            self.assertEqual(kept[preset], [[100, 100]] * 4, preset)
        self.assertEqual(len({str(counts) for counts in kept.values()}), 7)
        self.assertEqual(run("-n", "8", "--kv-budget", "100").stdout, run("-n", "8", "--kv-budget", "100", "--preset", "default").stdout)
        self.assertIn("is one of default, squares", run("--kv-ratio", "1", "--preset", "best").stderr)

    def test_streaming_keeps_the_newest(self) -> None:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "kept.svg"
            run("-n", "0", "--kv-budget", "100", "--preset", "streaming", "--kv-map", str(path))
            self.assertIn("preset streaming", path.read_text())

    def test_what_a_preset_has_can_be_set_by_itself(self) -> None:
        def kept(*options: str) -> str:
            return str([layer["kept"] for layer in described("-n", "0", "--kv-budget", "100", *options)["kept"]["layers"]])

        free = ("--alpha", "0.1")  # else the floor hides what the others do
        usual = kept(*free)
        for options in (("--smooth", "9"), ("--pool", "1"), ("--alpha", "0.7"), ("--sink", "50"), ("--layers", "equal")):
            self.assertNotEqual(usual, kept(*free, *options), options)
        self.assertEqual(kept(), kept("--smooth", "0.5", "--pool", "6", "--alpha", "0.2", "--sink", "4", "--layers", "global"))

    def test_kept_all_answers_like_stock(self) -> None:
        ask = [x for q in PROMPT.questions for x in ("--ask", q)]
        stock = described("--stock", "-n", "1", *ask)
        packed = described("--kv-ratio", "1", "-n", "1", *ask)
        self.assertFalse(stock["compressed"])
        self.assertTrue(packed["compressed"])
        self.assertEqual(packed["kept"]["rows"], packed["kept"]["rows_dense"])
        self.assertEqual(stock["turns"], packed["turns"])
        self.assertEqual([t["answer"] for t in stock["turns"]], PROMPT.answers)

    def test_a_budget_of_0_is_stock(self) -> None:
        self.assertEqual(run("--kv-budget", "0", "-n", "8").stdout, run("--stock", "-n", "8").stdout)

    def test_a_prompt_no_longer_than_the_window_stays_dense_and_says_so(self) -> None:
        r = run("--kv-budget", "40", "-n", "4", text="the K=v river")
        self.assertEqual(r.returncode, 0, r.stderr)
        self.assertIn("nothing was compressed", r.stderr)
        self.assertEqual(r.stdout, run("--stock", "-n", "4", text="the K=v river").stdout)

    def test_the_same_again_for_any_threads_and_ubatches(self) -> None:
        options = ("--kv-ratio", "0.2", "-n", "12", "--ignore-eos")
        first = without_times(described(*options, "-t", "1"))
        self.assertEqual(first, without_times(described(*options, "-t", "1")))
        self.assertEqual(first["kept"]["rows"], without_times(described(*options, "-t", "2"))["kept"]["rows"])

    def test_sampling_follows_the_seed(self) -> None:
        def text(seed: int) -> str:
            return run("--kv-ratio", "0.2", "--temp", "2", "-s", str(seed), "-n", "40", "--ignore-eos", "-t", "1").stdout

        self.assertEqual(text(1), text(1))
        self.assertNotEqual(text(1), text(2))

    def test_the_prompt_as_text_and_as_file_as_llama_cpp_has_them(self) -> None:
        def read(*options: str) -> list:
            r = subprocess.run([PROGRAM, "-m", MODEL, "--stock", "-n", "4", "--json", *options], capture_output=True, text=True)
            self.assertEqual(r.returncode, 0, r.stderr)
            result = json.loads(r.stdout)
            return [result["n_prompt"], result["turns"]]

        with tempfile.NamedTemporaryFile("w") as f:
            f.write("the K=v\nriver\n")
            f.flush()
            self.assertEqual(read("-f", f.name), read("-p", "the K=v\\nriver"))
            self.assertEqual(read("-f", f.name), read("-p", "the K=v\\x0ariver"))
            self.assertNotEqual(read("-f", f.name), read("--no-escape", "-p", "the K=v\\nriver"))
            r = subprocess.run([PROGRAM, "-m", MODEL, "--stock", "-n", "0", "-p", f.name], capture_output=True, text=True)
            self.assertIn("-f reads it", r.stderr)

    def test_names_of_llama_cpp(self) -> None:
        r = described("--kv-ratio", "0.5", "-n", "3", "-c", "2000", "-t", "1", "-ub", "128", "-ngl", "0", "-ctk", "f32", "-ctv", "bf16", "-fa", "off",
                      "--temp", "0.1", "--top-k", "1", "--top-p", "0.9", "--min-p", "0.1", "-s", "7", "--n-predict", "3")
        self.assertEqual((r["type_k"], r["type_v"], r["flash_attn"], r["n_threads"]), ("f32", "bf16", "off", 1))
        self.assertGreaterEqual(r["n_ctx"], 2000)
        self.assertRegex(run("--version").stdout, r"^llama-lava \d+\.\d+\.\d+")
        greedy = run("--kv-ratio", "0.5", "-n", "8", "--ignore-eos").stdout
        self.assertEqual(greedy, run("--kv-ratio", "0.5", "-n", "8", "--ignore-eos", "--temp", "2", "--top-k", "1").stdout)

    def test_interactive_takes_lines_until_there_are_none(self) -> None:
        r = subprocess.run([PROGRAM, "-m", MODEL, "-p", PROMPT.text, "--no-escape", "--kv-ratio", "0.5", "-n", "1", "-i"],
                           input="".join(q + "\n" for q in PROMPT.questions[:3]), capture_output=True, text=True)
        self.assertEqual(r.returncode, 0, r.stderr)
        self.assertEqual([line[:1] for line in r.stdout.splitlines()[-3:]], PROMPT.answers[:3])

    def test_generating_to_the_end_of_the_context(self) -> None:
        r = described("--kv-ratio", "0.5", "-n", "-1", "-c", "256", "--ignore-eos", text=PROMPT.text[:100])
        self.assertEqual(r["n_prompt"] + r["n_decode"] + 1, r["n_ctx"])  # the last token is not decoded

    def test_turns_from_files_and_from_the_command_line(self) -> None:
        with tempfile.NamedTemporaryFile("w") as f:
            f.write(PROMPT.questions[0])
            f.flush()
            self.assertEqual(run("--kv-ratio", "0.5", "-n", "1", "--then", f.name).stdout,
                             run("--kv-ratio", "0.5", "-n", "1", "--ask", PROMPT.questions[0]).stdout)

    def test_compressing_again_stays_within_the_budget(self) -> None:
        later = described("--kv-budget", "100", "-n", "4", "--recompress", "--ask", " and then the L=w river" * 4, "--ask", "?L=")
        self.assertEqual(later["n_compress"], 3)

    def test_a_first_text_within_the_window_is_compressed_with_a_later_one(self) -> None:
        later = described("--kv-budget", "100", "-n", "4", "--recompress", "--ask", PROMPT.text[:200], "--ask", "?L=", text="hello")
        self.assertEqual(later["n_compress"], 2)
        self.assertEqual(later["kept"]["per_head"], 100)

    def test_saved_counts_no_room(self) -> None:
        for n in ("0", "4", "300"):
            self.assertEqual(described("--kv-ratio", "1", "-n", n, text=PROMPT.text[:300])["kept"]["saved"], 0)
        self.assertIn(" 0.0% saved", run("--kv-ratio", "1", "-n", "4").stderr)
        half = described("--kv-ratio", "0.5", "-n", "4")["kept"]
        self.assertAlmostEqual(half["saved"], 0.5)

    def test_a_text_beyond_the_trained_context_is_warned_of(self) -> None:
        long = (PROMPT.text * 5)[:4200]
        self.assertIn("trained on 4096", run("--kv-ratio", "0.1", "-n", "0", text=long).stderr)
        self.assertNotIn("trained on", run("--kv-ratio", "0.1", "-n", "0").stderr)

    def test_padding_that_costs_more_than_q8_0_saves_is_told(self) -> None:
        self.assertIn("in F16, which needs no padding", run("--kv-ratio", "0.2", "-n", "4", "-ctk", "q8_0", "-ctv", "q8_0", text=PROMPT.text[:500]).stderr)

    def test_the_prompt_cache_changes_nothing(self) -> None:
        options = ("--kv-ratio", "0.2", "-n", "8", "-t", "1", "-ub", "256", "--ignore-eos")
        plain = without_times(described(*options))
        with tempfile.TemporaryDirectory() as folder:
            cache = ("--prompt-cache", str(Path(folder) / "prompt"))
            written, read = described(*options, *cache), described(*options, *cache)
            self.assertEqual(read.pop("n_loaded"), 768)
            for result in (plain, written):
                self.assertEqual(result.pop("n_loaded"), 0)
            for result in (plain, written, read):  # most bytes at any time: the way there may differ
                result["kept"].pop("kv_bytes_peak")
            self.assertEqual(plain, without_times(written))
            self.assertEqual(plain, without_times(read))
            other = run(*options, *cache, text="x" + PROMPT.text)
            self.assertEqual(other.returncode, 2)
            self.assertIn("another model, cache type or prompt", other.stderr)

    def test_the_picture_shows_every_count(self) -> None:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "kept.svg"
            kept = described("-n", "0", "--kv-ratio", "0.2", "--kv-map", str(path))["kept"]
            texts = [t.text for t in ET.parse(path).getroot().iter("{http://www.w3.org/2000/svg}text")]
        for layer in kept["layers"]:
            for n in layer["kept"]:
                self.assertIn(str(n), texts)

    def test_memory_falls_with_the_budget(self) -> None:
        """The process's own memory: what clearing the cache gives back, for a fifth and for all of a long prompt."""
        p = prompt(4096, 36, 8, True, 0)

        def held(ratio: str) -> int:
            rss = described("-n", "1", "--kv-ratio", ratio, "-ctk", "f32", "-ctv", "f32", text=p.text)["rss"]
            return rss["end"] - rss["cleared"]

        full, fifth = held("1"), held("0.2")
        self.assertGreater(full, 4096 * 8 * 2 * 32 * 4 * 0.95)
        self.assertLess(fifth, 0.3 * full)


class Published(unittest.TestCase):
    """The published model: quantised weights, 30 layers of 9 query and 3 KV heads, a chat template. What it reads is the library's guide."""

    MODEL = ROOT / "target/published/model.gguf"
    TEXT = (ROOT / "include/GUIDE.md").read_text()[:2500]

    def answers(self, *options: str, text: str = TEXT) -> dict:
        r = run("--json", "-t", "2", *options, text=text, model=self.MODEL)
        self.assertEqual(r.returncode, 0, r.stderr)
        return json.loads(r.stdout)

    def test_everything_kept_is_stock(self) -> None:
        # numbers, each of which is sure: elsewhere the rounding of quantised weights may tip a close choice of the next token
        counted = ", ".join(map(str, range(1, 90))) + ","
        stock = self.answers("--stock", "-n", "24", text=counted)["turns"]
        self.assertEqual(stock[0]["answer"], " 90, 91, 92, 93, 94, 95,")
        for options in (("--attn", "ragged"), ("--attn", "padded"), ("-fa", "off"), ("-ctk", "q8_0", "-ctv", "q8_0"), ("-ctk", "q4_0", "-ctv", "q4_0")):
            packed = self.answers("--kv-ratio", "1", "-n", "24", *options, text=counted)
            self.assertEqual(packed["kept"]["saved"], 0)
            self.assertEqual(packed["turns"], stock, options)
        fifth = self.answers("--kv-ratio", "0.2", "-n", "24", text=counted)
        self.assertAlmostEqual(fifth["kept"]["saved"], 0.8, delta=0.01)
        self.assertEqual(fifth["turns"], stock)

    def test_a_fifth_kept(self) -> None:
        r = self.answers("--kv-ratio", "0.2", "-n", "24", "--ignore-eos")
        counts = [n for layer in r["kept"]["layers"] for n in layer["kept"]]
        self.assertEqual(len(counts), 30 * 3)
        self.assertEqual(sum(counts), 90 * (r["n_prompt"] // 5))
        self.assertAlmostEqual(r["kept"]["saved"], 0.8, delta=0.002)
        self.assertEqual(r["n_decode"], 23)
        self.assertGreater(len(r["turns"][0]["answer"]), 24)

    def test_a_conversation(self) -> None:
        r = self.answers("-cnv", "--kv-ratio", "0.5", "-n", "24", "--recompress", "--ask", "What is the capital of Italy?",
                         text="What is the capital of France? Answer with one sentence.")
        self.assertEqual(["Paris" in r["turns"][0]["answer"], "Rome" in r["turns"][1]["answer"]], [True, True])
        self.assertNotIn("<|im_", str(r["turns"]))
        self.assertTrue(r["compressed"])

    def test_what_make_llama_shows_is_a_page(self) -> None:
        r = subprocess.run([sys.executable, Path(__file__).parent / "show.py", "--characters", "1500"], capture_output=True, text=True)
        self.assertEqual(r.returncode, 0, r.stderr)
        self.assertLess(len(r.stdout.splitlines()), 60)
        held = [float(x) for x in re.findall(r"tokens a second, ([0-9.]+) MB", r.stdout)]
        self.assertEqual(len(held), 4)
        for is_, due in zip(held, (1, 1, 0.5, 0.2)):
            self.assertAlmostEqual(is_ / held[0], due, delta=0.02)
        self.assertEqual(r.stdout.count("  sums up: "), 4)

    def test_more_heads_than_the_graph_has_room_for_are_refused(self) -> None:
        r = run("--kv-ratio", "0.2", "--attn", "per-head", text=self.TEXT, model=self.MODEL)
        self.assertEqual(r.returncode, 2, r.stderr)
        self.assertIn("so many heads", r.stderr)


class Recall(unittest.TestCase):
    def test_every_cache_type_and_way_of_attention_answers(self) -> None:
        for kv_type in ("f16", "bf16", "f32", "q8_0", "q4_0"):
            for flash_attn in ("on", "off") if kv_type[0] != "q" else ("on",):
                for attn in ("auto", "padded", "per-head"):
                    with self.subTest(kv_type=kv_type, flash_attn=flash_attn, attn=attn):
                        self.assertEqual(share(PROGRAM, MODEL, [PROMPT], "--kv-ratio", "0.2", "-ctk", kv_type, "-ctv", kv_type,
                                               "-fa", flash_attn, "--attn", attn), 1)

    def test_a_fifth_of_the_cache_answers_like_all_of_it(self) -> None:
        """At least 95% of it, on a small sample; `make bench-llama` has the large one."""
        prompts: list[Prompt] = [prompt(1024, 36, 8, True, i) for i in range(8)]
        stock = share(PROGRAM, MODEL, prompts, "--stock")
        self.assertGreaterEqual(stock, 0.95)
        self.assertGreaterEqual(share(PROGRAM, MODEL, prompts, "--kv-ratio", "0.2"), 0.95 * stock)


if __name__ == "__main__":
    unittest.main(verbosity=1)
