"""The exercises of notebook 07."""

from __future__ import annotations

import numpy as np
import torch

from sinkviz.checks.judging import by_example
from sinkviz.policies import H2O

# 07.1: bytes of a cache


def _bytes(n: int, layers: int, heads: int, kv_heads: int, head_dim: int, each: int) -> int:
    return 2 * n * layers * kv_heads * head_dim * each


_cache_bytes = by_example(
    _bytes,
    [
        {
            "n_tokens": 100,
            "n_layers": 3,
            "n_heads": 8,
            "n_kv_heads": 2,
            "head_dim": 16,
            "n_bytes": 4,
        },
        {
            "n_tokens": 7,
            "n_layers": 5,
            "n_heads": 6,
            "n_kv_heads": 6,
            "head_dim": 32,
            "n_bytes": 2,
        },
    ],
    [
        (lambda n, lay, h, kv, d, b: n * lay * kv * d * b, "a factor of 2 is missing: a key *and* "
         "a value per token"),
        (lambda n, lay, h, kv, d, b: 2 * n * lay * h * d * b, "those are the query heads; queries "
         "are not kept, so count the kv heads"),
        (lambda n, lay, h, kv, d, b: 3 * n * lay * kv * d * b, "queries are not kept: two vectors "
         "per token, not three"),
        (lambda n, lay, h, kv, d, b: 2 * n * kv * d * b, "that is one layer; each layer keeps its "
         "own"),
        (lambda n, lay, h, kv, d, b: 2 * n * lay * d * b, "that is one kv head per layer; multiply "
         "by n_kv_heads"),
        (lambda n, lay, h, kv, d, b: 2 * n * lay * kv * d, "that is how many numbers; each takes "
         "n_bytes bytes"),
        (lambda n, lay, h, kv, d, b: 8 * _bytes(n, lay, h, kv, d, b), "those are bits; n_bytes is "
         "in bytes already"),
        (lambda n, lay, h, kv, d, b: 2 * lay * kv * d * b, "that is what one token takes; multiply "
         "by n_tokens"),
        (lambda n, lay, h, kv, d, b: n * _bytes(n, lay, h, kv, d, b), "that grows with the square "
         "of the text, as a map does; a cache grows in step with it"),
        (lambda n, lay, h, kv, d, b: 2 * n * lay * kv * b, "head_dim is missing: a key is a "
         "vector, not a number"),
    ],
    "two vectors per token, layer and kv head.",
)  # fmt: skip


# 07.2: a policy with landmarks


def _keep(n: int, n_sink: int, n_recent: int, every: int) -> list[int]:
    return [i for i in range(n) if i < n_sink or i >= n - n_recent or i % every == 0]


def _glued(n: int, n_sink: int, n_recent: int, every: int) -> list[int]:
    return [*range(min(n, n_sink)), *range(0, n, every), *range(max(0, n - n_recent), n)]


_keep_with_landmarks = by_example(
    _keep,
    [
        {"n": 14, "n_sink": 2, "n_recent": 3, "every": 4},
        {"n": 16, "n_sink": 3, "n_recent": 2, "every": 5},
        {"n": 11, "n_sink": 2, "n_recent": 4, "every": 3},
        {"n": 3, "n_sink": 2, "n_recent": 5, "every": 4},
    ],
    [
        (lambda n, s, r, e: [i for i in range(n) if i < s or i >= n - r], "the landmarks are "
         "missing: this is StreamingLLM"),
        (lambda n, s, r, e: [i for i in range(n) if i >= n - r or i % e == 0], "the sinks are "
         "missing, apart from token 0, which is a landmark too"),
        (lambda n, s, r, e: [i for i in range(n) if i < s or i % e == 0], "the recent tokens are "
         "missing"),
        (lambda n, s, r, e: [i for i in range(n) if i < s or i >= n - r or (n - 1 - i) % e == 0],
         "landmarks counted back from the newest token move with it: a token that has left would "
         "have to come back, and what is evicted is gone; count from the start of the text"),
        (lambda n, s, r, e: [i for i in range(n) if i < s or i >= n - r or (n - i) % e == 0],
         "landmarks counted back from the end of the text move with it: a token that has left "
         "would have to come back; count from the start of the text"),
        (lambda n, s, r, e: [i for i in range(n) if i < s or i >= n - r or (i + 1) % e == 0],
         "the landmarks are one place too early: positions count from 0, so 0, every, 2 * every"),
        (lambda n, s, r, e: [i for i in range(n) if i < s or i >= n - r or (i - s) % e == 0],
         "the landmarks count from the start of the text, not from the end of the sinks"),
        (lambda n, s, r, e: [i for i in range(n) if i < s or i >= n - r or i % e],
         "the test is turned round: landmarks are the multiples of every"),
        (_glued, "some positions come twice or out of order; walk through range(n) once"),
        (lambda n, s, r, e: _keep(n, s, r + 1, e), "one recent token too many: n_recent counts the "
         "current token too"),
        (lambda n, s, r, e: _keep(n, s, r, e)[:-1], "the current token is missing: it is number n, "
         "at position n - 1, and sees itself"),
        (lambda n, s, r, e: _keep(n, s, r, e)[::-1], "right tokens, wrong order; give the oldest "
         "first"),
        (lambda n, s, r, e: len(_keep(n, s, r, e)), "that is how many are kept; give their "
         "positions"),
    ],
    "sinks, landmarks and recent tokens, each once; and what has left stays away.",
)  # fmt: skip


# 07.3: whom a heavy-hitter policy evicts


def _drop(received: np.ndarray, n_recent: int) -> int:
    tensor = torch.from_numpy(received)[None, None]
    return int(H2O(len(received) - n_recent, n_recent).drop(tensor, tensor))


_drop_of_heavy_hitters = by_example(
    _drop,
    [
        {"received": np.array([0.3, 2.0, 0.9, 1.5, 0.2, 1.0]), "n_recent": 3},
        {"received": np.array([5.0, 1.1, 2.0, 0.4, 0.1, 0.9]), "n_recent": 3},
        {"received": np.array([6.0, 2.0, 0.9, 1.4, 0.8, 0.3, 0.7]), "n_recent": 4},
        {"received": np.array([4.0, 1.0, 0.5, 0.6, 0.2, 0.1]), "n_recent": 2},
    ],
    [
        (lambda x, r: x.argmin(), "the recent tokens are not protected; choose among the others"),
        (lambda x, r: x[:-r].argmin(), "one recent token too many is protected: the next token is "
         "recent too and not here yet, so that n_recent - 1 of these are"),
        (lambda x, r: x[: len(x) - r + 1].argmax(), "that is the heaviest hitter, which stays; the "
         "least leaves"),
        (lambda x, r: x.argmax(), "that is the heaviest hitter, which stays; the least leaves"),
        (lambda x, r: x[: len(x) - r + 1].min(), "that is how much attention it received; give its "
         "place in the cache"),
        (lambda x, r: x[1 : len(x) - r + 1].argmin() + 1, "nothing protects the first token but "
         "the attention that it gets; leave it among the candidates"),
        (lambda x, r: x[1 : len(x) - r + 1].argmin(), "a slice that begins at 1 shifts all places; "
         "and nothing protects the first token"),
        (lambda x, r: x[r - 1 :].argmin(), "the oldest tokens come first: those protected are the "
         "last ones"),
        (lambda x, r: x[len(x) - r + 1 :].argmin(), "that is one of the recent tokens, which are "
         "protected"),
        (lambda x, r: 0, "that is the oldest, as a window evicts; go by the attention received"),
        (lambda x, r: np.delete(x, _drop(x, r)), "that is what stays; give the place of the one "
         "that leaves"),
    ],
    "the least attended among the old.",
)  # fmt: skip

EXERCISES = {
    "07.1": _cache_bytes,
    "07.2": _keep_with_landmarks,
    "07.3": _drop_of_heavy_hitters,
}
