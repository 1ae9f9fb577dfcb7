"""Writes llama models as GGUF, with a tokenizer of bytes: <unk>, <s>, </s>, then byte b as token b + 3.

    python3 gguf_model.py recall OUT.gguf            # eval/model/recall.safetensors, which answers questions
    python3 gguf_model.py random OUT.gguf --layers 8 --heads 32 --kv-heads 8 --head-dim 128 ...   # for speed and tests

The weights of the recall model are copied as they are (F16; norms F32, as llama.cpp wants them): its rows already have the
order of ggml's RoPE for `llama`. Random weights depend on the seed alone.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "target/llama.cpp/python"))  # fetch.sh fills it

import numpy as np  # noqa: E402
from gguf import GGUFWriter, LlamaFileType, TokenType  # noqa: E402
from safetensors import safe_open  # noqa: E402

N_VOCAB, SPACE = 3 + 256, 3 + ord(" ")
RANDOM = dict(layers=4, heads=8, kv_heads=2, head_dim=64, embd=128, ff=256, ctx=131072)  # default shape


@dataclass
class Shape:
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    embd: int
    ff: int
    ctx: int
    rope_theta: float = 10000.0
    rms_eps: float = 1e-5


def open_writer(path: Path, name: str, s: Shape) -> GGUFWriter:
    w = GGUFWriter(path, "llama")
    w.add_name(name)
    w.add_file_type(LlamaFileType.MOSTLY_F16)
    w.add_vocab_size(N_VOCAB)
    w.add_context_length(s.ctx)
    w.add_embedding_length(s.embd)
    w.add_block_count(s.layers)
    w.add_feed_forward_length(s.ff)
    w.add_head_count(s.heads)
    w.add_head_count_kv(s.kv_heads)
    w.add_key_length(s.head_dim)
    w.add_value_length(s.head_dim)
    w.add_rope_dimension_count(s.head_dim)
    w.add_rope_freq_base(s.rope_theta)
    w.add_layer_norm_rms_eps(s.rms_eps)

    tokens = [b"<unk>", b"<s>", b"</s>", *(b"<0x%02X>" % b for b in range(256))]
    types = [TokenType.UNKNOWN, TokenType.CONTROL, TokenType.CONTROL] + [TokenType.BYTE] * 256
    # This tokenizer turns a space into U+2581 before it looks for tokens: without such a token a space would be three bytes.
    tokens[SPACE], types[SPACE] = "\u2581".encode(), TokenType.NORMAL
    w.add_tokenizer_model("llama")
    w.add_token_list(tokens)
    w.add_token_scores([0.0] * N_VOCAB)
    w.add_token_types(types)
    w.add_unk_token_id(0)
    w.add_bos_token_id(1)
    w.add_eos_token_id(2)
    w.add_add_bos_token(True)
    w.add_add_space_prefix(False)
    return w


def recall_tensors(path: Path):
    """The shape, and (name, array) of every tensor."""
    with safe_open(path, "numpy") as f:
        m = f.metadata()
        shape = Shape(*(int(m[k]) for k in ("n_layers", "n_q_heads", "n_kv_heads", "head_dim", "n_embd", "n_ff", "context_length")),
                      float(m["rope_theta"]), float(m["rms_eps"]))
        return shape, [(name, f.get_tensor(name)) for name in f.keys()]


def random_tensors(s: Shape, seed: int, gain: float):
    """Yields (name, array). Rows have unit length before `gain`, which sharpens attention, scales Q and K."""
    rng = np.random.default_rng(seed)

    def matrix(rows: int, columns: int, scale: float = 1.0):
        return rng.standard_normal((rows, columns), np.float32) * np.float32(scale / columns**0.5)

    yield "token_embd.weight", matrix(N_VOCAB, s.embd, s.embd**0.5)
    for layer in range(s.layers):
        block = f"blk.{layer}."
        yield block + "attn_norm.weight", np.ones(s.embd, np.float32)
        yield block + "attn_q.weight", matrix(s.heads * s.head_dim, s.embd, gain)
        yield block + "attn_k.weight", matrix(s.kv_heads * s.head_dim, s.embd, gain)
        yield block + "attn_v.weight", matrix(s.kv_heads * s.head_dim, s.embd)
        yield block + "attn_output.weight", matrix(s.embd, s.heads * s.head_dim)
        yield block + "ffn_norm.weight", np.ones(s.embd, np.float32)
        yield block + "ffn_gate.weight", matrix(s.ff, s.embd)
        yield block + "ffn_up.weight", matrix(s.ff, s.embd)
        yield block + "ffn_down.weight", matrix(s.embd, s.ff)
    yield "output_norm.weight", np.ones(s.embd, np.float32)
    yield "output.weight", matrix(N_VOCAB, s.embd)


def write(path: Path, name: str, shape: Shape, tensors) -> None:
    """The file appears only when it is complete."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    w = open_writer(part, name, shape)
    for key, array in tensors:
        w.add_tensor(key, array.astype(np.float32 if array.ndim == 1 else np.float16))
    w.write_header_to_file()
    w.write_kv_data_to_file()
    w.write_tensors_to_file()
    w.close()
    part.rename(path)
    print(f"{path}: {shape.layers} layers, {shape.heads} query and {shape.kv_heads} KV heads of {shape.head_dim}, "
          f"{path.stat().st_size / 1e6:.1f} MB")


def main() -> None:
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    kinds = ap.add_subparsers(dest="kind", required=True)
    recall = kinds.add_parser("recall", help="the trained model of eval/model/")
    recall.add_argument("out", type=Path)
    recall.add_argument("--weights", type=Path, default=ROOT / "eval/model/recall.safetensors")
    random = kinds.add_parser("random", help="a model of a chosen shape with random weights",
                              formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    random.add_argument("out", type=Path)
    for name, value in RANDOM.items():
        random.add_argument(f"--{name.replace('_', '-')}", type=type(value), default=value)
    random.add_argument("--gain", type=float, default=1.0, help="factor on Q's and K's weights: larger is sharper attention")
    random.add_argument("--seed", type=int, default=1)
    a = ap.parse_args()
    if a.kind == "recall":
        write(a.out, "lava recall", *recall_tensors(a.weights))
        return
    if a.heads % a.kv_heads or a.head_dim % 2:
        ap.error("--heads must be a multiple of --kv-heads, and --head-dim even")
    shape = Shape(*(getattr(a, name) for name in RANDOM))
    write(a.out, f"random {a.seed}", shape, random_tensors(shape, a.seed, a.gain))


if __name__ == "__main__":
    main()
