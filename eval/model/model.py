"""The transformer of `recall.safetensors`: llama's architecture, small, in plain torch.

Module names are llama.cpp's GGUF tensor names, so the state dict is the file's tensor list.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, fields

import torch
import torch.nn.functional as F
from safetensors import safe_open
from torch import Tensor, nn


@dataclass(frozen=True)
class Config:
    n_layers: int = 4
    n_q_heads: int = 8
    n_kv_heads: int = 2
    head_dim: int = 32
    n_embd: int = 128
    n_ff: int = 384
    rope_theta: float = 10000.0
    rms_eps: float = 1e-5
    vocab_size: int = 259
    context_length: int = 4096


def write_safetensors(path, tensors: dict[str, Tensor], metadata: dict[str, object]) -> None:
    """The same bytes for the same content; the library's own writer shuffles the metadata from run to run."""
    types = {torch.float32: "F32", torch.float16: "F16", torch.int32: "I32"}
    header: dict = {"__metadata__": {k: str(metadata[k]) for k in sorted(metadata)}}
    names = sorted(tensors, key=lambda k: (-tensors[k].element_size(), k))  # wide types first keeps all aligned
    offset = 0
    for name in names:
        t = tensors[name]
        end = offset + t.numel() * t.element_size()
        header[name] = {"dtype": types[t.dtype], "shape": list(t.shape), "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as f:
        f.write(len(text).to_bytes(8, "little") + text)
        for name in names:
            f.write(tensors[name].contiguous().numpy().tobytes())


def rope_table(cfg: Config, positions: Tensor) -> Tensor:
    """Unit complex numbers [n, head_dim / 2]: the rotation of each adjacent pair (2i, 2i+1)."""
    freq = cfg.rope_theta ** (-torch.arange(0, cfg.head_dim, 2, dtype=torch.float64) / cfg.head_dim)
    angle = positions.to(torch.float64)[:, None] * freq
    return torch.polar(torch.ones_like(angle), angle).to(torch.complex64)


def rope(x: Tensor, table: Tensor) -> Tensor:
    """x: [batch, n, heads, head_dim]."""
    pairs = torch.view_as_complex(x.reshape(*x.shape[:-1], -1, 2))
    return torch.view_as_real(pairs * table[:, None]).flatten(-2)


class Block(nn.Module):
    def __init__(self, cfg: Config):
        super().__init__()
        self.cfg = cfg
        q_width, kv_width = cfg.n_q_heads * cfg.head_dim, cfg.n_kv_heads * cfg.head_dim
        self.attn_norm = nn.RMSNorm(cfg.n_embd, cfg.rms_eps)
        self.attn_q = nn.Linear(cfg.n_embd, q_width, bias=False)
        self.attn_k = nn.Linear(cfg.n_embd, kv_width, bias=False)
        self.attn_v = nn.Linear(cfg.n_embd, kv_width, bias=False)
        self.attn_output = nn.Linear(q_width, cfg.n_embd, bias=False)
        self.ffn_norm = nn.RMSNorm(cfg.n_embd, cfg.rms_eps)
        self.ffn_gate = nn.Linear(cfg.n_embd, cfg.n_ff, bias=False)
        self.ffn_up = nn.Linear(cfg.n_embd, cfg.n_ff, bias=False)
        self.ffn_down = nn.Linear(cfg.n_ff, cfg.n_embd, bias=False)

    def qkv(self, x: Tensor, table: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Each [batch, n, heads, head_dim]; q and k after RoPE, as a cache holds them."""
        h = self.attn_norm(x)
        q, k, v = (p(h).unflatten(-1, (-1, self.cfg.head_dim)) for p in (self.attn_q, self.attn_k, self.attn_v))
        return rope(q, table), rope(k, table), v

    def forward(self, x: Tensor, table: Tensor, record: list | None = None) -> Tensor:
        q, k, v = self.qkv(x, table)
        if record is not None:
            record.append((q, k, v))
        group = self.cfg.n_q_heads // self.cfg.n_kv_heads  # query head h reads KV head h // group
        k, v = (t.repeat_interleave(group, dim=2) for t in (k, v))
        out = F.scaled_dot_product_attention(*(t.transpose(1, 2) for t in (q, k, v)), is_causal=True)
        return self.after_attention(x, out)

    def after_attention(self, x: Tensor, out: Tensor) -> Tensor:
        """out: [batch, heads, n, head_dim], what attention read for the inputs x."""
        x = x + self.attn_output(out.transpose(1, 2).flatten(2))
        h = self.ffn_norm(x)
        return x + self.ffn_down(F.silu(self.ffn_gate(h)) * self.ffn_up(h))


class Model(nn.Module):
    def __init__(self, cfg: Config = Config()):
        super().__init__()
        self.cfg = cfg
        self.token_embd = nn.Embedding(cfg.vocab_size, cfg.n_embd)
        self.blk = nn.ModuleList(Block(cfg) for _ in range(cfg.n_layers))
        self.output_norm = nn.RMSNorm(cfg.n_embd, cfg.rms_eps)
        self.output = nn.Linear(cfg.n_embd, cfg.vocab_size, bias=False)
        for name, p in self.named_parameters():
            if p.ndim == 2:
                # the two matrices that write to the residual stream start smaller, as GPT-2's do
                writes = name.endswith(("attn_output.weight", "ffn_down.weight"))
                nn.init.normal_(p, std=0.04 / ((2 * cfg.n_layers) ** 0.5 if writes else 1.0))
        self.register_buffer("table", rope_table(cfg, torch.arange(cfg.context_length)), persistent=False)

    def forward(self, tokens: Tensor, record: list | None = None) -> Tensor:
        """tokens [batch, n] -> logits [batch, n, vocab]; `record` gets one (q, k, v) per layer."""
        x = self.token_embd(tokens)
        for block in self.blk:
            x = block(x, self.table[: tokens.shape[1]], record)
        return self.output(self.output_norm(x))

    def save(self, path: str, **metadata: object) -> None:
        """Weights as F16, hyperparameters as strings in the header."""
        write_safetensors(path, {k: v.half() for k, v in self.state_dict().items()}, asdict(self.cfg) | metadata)

    @classmethod
    def load(cls, path: str) -> Model:
        """The F16 weights, computed with in f32."""
        with safe_open(path, "pt") as f:
            meta = f.metadata()
            types = {"int": int, "float": float}
            model = cls(Config(**{x.name: types[x.type](meta[x.name]) for x in fields(Config)}))
            model.load_state_dict({k: f.get_tensor(k).float() for k in f.keys()})
        return model.eval()
