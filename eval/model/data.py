"""The two tasks, as printable ASCII text in a byte vocabulary.

Recall:  `<s> the K=v river L=w ... ?L=w?K=v`
    facts ` K=v` in shuffled order with filler words between them, then questions `?K=v` in another order.
    A key stands in the text once as a fact and at most once as a question, values are drawn independently of
    everything else, and the filler has no keys: the fact is the only place an answer can come from.
    Keys have one character (`K`, `7`) or two (`K7`).
Copying: `<s>` and a random segment, repeated to the end.
"""

from __future__ import annotations

import string
from dataclasses import dataclass

import numpy as np

BOS = 1
ONE = list(string.ascii_uppercase + string.digits)
KEYS = {1: ONE, 2: [a + b for a in string.ascii_uppercase for b in string.digits]}
VALUES = string.ascii_lowercase
WORDS = (
    "the of and to in is was for on as with at by from it an be this that are or his her had not but which have one "
    "were all their there been has when who will more no if out so said what up its about than into them can only "
    "other new some could time these two may then do first any my now such like our over man me even most made after"
).split()
PRINTABLE = np.arange(32, 127) + 3
LETTERS = np.array([ord(c) + 3 for c in string.ascii_lowercase + " "])

TRAIN, HELD_OUT = 0, 1  # separate seed streams


def stream(seed: int, split: int, *key: int) -> np.random.Generator:
    return np.random.default_rng([seed, split, *key])


def encode(text: str) -> list[int]:
    """Byte b is token b + 3; 0, 1, 2 are <unk>, <s>, </s>."""
    return [b + 3 for b in text.encode()]


def decode(tokens) -> str:
    return bytes(int(t) - 3 for t in tokens if t >= 3).decode(errors="replace")


@dataclass
class Sequence:
    tokens: np.ndarray  # int64 [n]
    target: np.ndarray  # bool [n]: tokens that follow from what comes before them


def recall(rng: np.random.Generator, length: int, key_len: int, n_facts: int, n_questions: int) -> Sequence:
    keys = [KEYS[key_len][i] for i in rng.choice(len(KEYS[key_len]), n_facts, replace=False)]
    values = [VALUES[i] for i in rng.integers(len(VALUES), size=n_facts)]
    pieces = [f" {k}={v}" for k, v in zip(keys, values)]
    room = length - 1 - (n_facts + n_questions) * (key_len + 3)
    assert room >= 0 and n_questions <= n_facts
    while room > 0:
        word = (" " + WORDS[rng.integers(len(WORDS))])[:room]
        pieces.append(word)
        room -= len(word)
    body = "".join(pieces[i] for i in rng.permutation(len(pieces)))
    asked = rng.permutation(n_facts)[:n_questions]
    tokens = np.array([BOS, *encode(body + "".join(f"?{keys[i]}={values[i]}" for i in asked))])
    target = np.zeros(length, bool)
    target[length - 1 - (key_len + 3) * np.arange(n_questions)] = True
    return Sequence(tokens, target)


def random_recall(rng: np.random.Generator, length: int) -> Sequence:
    """A training sequence: few or many facts, a few questions or one for every fact."""
    key_len = 1 if length <= 64 else int(rng.integers(1, 3))
    size = key_len + 3
    share = 0.5 if length <= 64 or rng.random() < 0.6 else rng.uniform(0.05, 0.5)
    n_questions = min(int((length - 1) * share) // size, len(KEYS[key_len]))
    most = min((length - 1) // size - n_questions, len(KEYS[key_len]))
    if length > 64 and rng.random() < 0.5:  # thin the questions' share out with filler
        n_questions = int(rng.integers(max(1, n_questions // 4), n_questions + 1))
    return recall(rng, length, key_len, int(rng.integers(n_questions, most + 1)), n_questions)


def copying(rng: np.random.Generator, length: int, period: int | None = None) -> Sequence:
    period = period or int(rng.integers(length // 4, length // 2 + 1))
    alphabet = PRINTABLE if rng.random() < 0.7 else LETTERS
    tokens = np.concatenate([[BOS], np.resize(rng.choice(alphabet, period), length - 1)])
    # the first few tokens of the second copy cannot be told from new text yet
    return Sequence(tokens, np.arange(length) > period + min(4, period // 4))


def batch(rng: np.random.Generator, length: int, n_tokens: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Half recall, half copying: tokens [b, n], target [b, n], is_recall [b]."""
    half = max(1, n_tokens // length // 2)
    seqs = [random_recall(rng, length) for _ in range(half)] + [copying(rng, length) for _ in range(half)]
    return np.stack([s.tokens for s in seqs]), np.stack([s.target for s in seqs]), np.arange(2 * half) < half
