"""The exercises of notebook 11."""

from __future__ import annotations

import math

import numpy as np
import torch

from sinkviz.checks.judging import by_example
from sinkviz.policies import Dense, SinkWindow
from sinkviz.positions import alibi_bias

# 11.1: what ALiBi leaves to far keys


def _weights(slope: float, n_tokens: int) -> np.ndarray:
    """Return the attention of the last query by distance, contents being equal."""
    slopes = torch.tensor([slope], dtype=torch.float64)
    bias = alibi_bias(slopes, torch.arange(n_tokens)[None])
    return torch.softmax(bias[0, 0].double(), dim=-1).numpy()


def _share(slope: float, n_tokens: int, reach: int) -> float:
    return float(_weights(slope, n_tokens)[reach:].sum())


_share_beyond = by_example(
    _share,
    [
        {"slope": 1 / 64, "n_tokens": 512, "reach": 64},
        {"slope": 0.25, "n_tokens": 12, "reach": 5},
        {"slope": 0.1, "n_tokens": 20, "reach": 15},
    ],
    [
        (lambda m, n, r: 1 - _share(m, n, r), "that is what near keys get; far ones are those at "
         "distance reach or more"),
        (lambda m, n, r: _share(-m, n, r), "far keys get most, so the sign is reversed, or you "
         "took text positions for distances; these count back from the last token"),
        (lambda m, n, r: _share(m, n, r + 1), "the key at distance reach is missing: it is the "
         "first that is not below reach"),
        (lambda m, n, r: _share(m, n, r - 1), "one key too many: the query itself is at distance "
         "0, so reach keys are nearer than reach"),
        (lambda m, n, r: math.exp(-m * r), "that is the weight of one key, the token's own being "
         "1; add up all far ones, and divide by the sum of all"),
        (lambda m, n, r: math.exp(-m * r) / sum(math.exp(-m * d) for d in range(n)), "that is the "
         "share of a single key, at distance reach; add up all from there on"),
        (lambda m, n, r: sum(math.exp(-m * d) for d in range(r, n)), "the weights do not sum to "
         "one yet: divide by the sum over all keys"),
        (lambda m, n, r: sum(math.exp(-m * d) for d in range(r, n))
         / sum(math.exp(-m * d) for d in range(r)), "divided by what near keys get; divide by the "
         "sum over all keys"),
        (lambda m, n, r: -m * sum(range(r, n)), "that is a sum of biases; attention is their "
         "softmax"),
        (lambda m, n, r: sum(range(r, n)) / sum(range(n)), "a share of the biases themselves; take "
         "the softmax first"),
        (lambda m, n, r: (n - r) / n, "that is the share of the keys, as if the slope were 0"),
        (lambda m, n, r: _share(1 / m, n, r), "divided by the slope; multiply"),
        (lambda m, n, r: 100 * _share(m, n, r), "that is in per cent; give a share"),
        (lambda m, n, r: _weights(m, n)[r:], "those are the far weights one by one; give their "
         "sum"),
    ],
    "a softmax over distances; what lies beyond shrinks by e for every 1 / slope tokens.",
)  # fmt: skip


# 11.2: the scores of a window


def _scores(n_tokens: int, n_sink: int, n_recent: int) -> int:
    policy = SinkWindow(n_sink, n_recent)
    return sum(len(policy.keep(n)) for n in range(1, n_tokens + 1))


_scores_of_a_window = by_example(
    _scores,
    [
        {"n_tokens": 9, "n_sink": 1, "n_recent": 3},
        {"n_tokens": 30, "n_sink": 2, "n_recent": 5},
        {"n_tokens": 4, "n_sink": 2, "n_recent": 4},
    ],
    [
        (lambda n, s, r: sum(len(Dense().keep(i)) for i in range(1, n + 1)), "nothing is left out: "
         "these are the scores of full attention"),
        (lambda n, s, r: n * n, "that is the whole square; a query sees no later key, and the "
         "window ends"),
        (lambda n, s, r: n * (s + r), "the first tokens see fewer keys: there are not yet so many"),
        (lambda n, s, r: n * min(n, s + r), "the first tokens see fewer keys: there are not yet "
         "so many"),
        (lambda n, s, r: sum(min(i, r) for i in range(1, n + 1)), "the sinks are missing: all "
         "queries see them, too"),
        (lambda n, s, r: sum(min(i, s + r) for i in range(n)), "each token sees itself, so the "
         "first has one score, and the last counts, too"),
        (lambda n, s, r: sum(min(i, s + r + 1) for i in range(1, n + 1)), "one key too many: "
         "n_recent counts the current token"),
        (lambda n, s, r: sum(min(i, s) + min(i, r) for i in range(1, n + 1)), "while the text is "
         "short, sinks and window overlap: count each key once"),
        (lambda n, s, r: sum(min(i, r) + s for i in range(1, n + 1)), "while the text is "
         "short, sinks and window overlap: count each key once"),
        (lambda n, s, r: min(n, s + r), "those are the keys that the last query sees; add up all "
         "queries"),
        (lambda n, s, r: s + r, "that is the size of the cache; add up what each query sees"),
        (lambda n, s, r: (s + r) * (s + r + 1) // 2, "you stop where the cache is full; every "
         "later token has its scores, too"),
    ],
    "each query sees what its cache holds: it grows at first, then stays.",
)  # fmt: skip


# 11.3: a cache whose layers differ


def _bytes(
    n_tokens: int, windows: np.ndarray, n_kv_heads: int, head_dim: int, n_bytes: int
) -> float:
    held = sum(min(n_tokens, window) for window in windows)
    keys = torch.empty(n_kv_heads, head_dim, device="meta").numel() * n_bytes
    return float(2 * held * keys)


def _all_alike(tokens: float, windows: np.ndarray, h: int, d: int, b: int) -> float:
    return _bytes(10**9, np.full(len(windows), tokens), h, d, b)


_bytes_of_a_mixed_cache = by_example(
    _bytes,
    [
        {"n_tokens": 100, "windows": np.array([8.0, 8.0, np.inf]), "n_kv_heads": 2,
         "head_dim": 4, "n_bytes": 2},
        {"n_tokens": 50, "windows": np.array([16.0, np.inf, 16.0, np.inf, 64.0]), "n_kv_heads": 3,
         "head_dim": 8, "n_bytes": 4},
        {"n_tokens": 6, "windows": np.array([8.0, np.inf]), "n_kv_heads": 1, "head_dim": 2,
         "n_bytes": 2},
    ],
    [
        (lambda n, w, h, d, b: _bytes(n, w, h, d, b) / 2, "the factor 2 is missing: keys and "
         "values are both kept"),
        (_all_alike, "the windows are missing: a layer with a "
         "window never holds more tokens than that"),
        (lambda n, w, h, d, b: _all_alike(min(n, w.min()), w, h, d, b), "the layers are not "
         "alike: take each with its own window"),
        (lambda n, w, h, d, b: _all_alike(min(n, w.max()), w, h, d, b), "the layers are not "
         "alike: take each with its own window"),
        (lambda n, w, h, d, b: _bytes(10**9, np.where(np.isinf(w), n, w), h, d, b), "a short text "
         "does not fill a window: a layer holds n_tokens at most"),
        (lambda n, w, h, d, b: _bytes(n, w[np.isfinite(w)], h, d, b), "layers without a window are "
         "missing: they hold the whole text"),
        (lambda n, w, h, d, b: _bytes(n, w[np.isinf(w)], h, d, b), "layers with a window are "
         "missing: they hold their window"),
        (lambda n, w, h, d, b: _bytes(n, w, h, d, b) / len(w), "that is the mean over layers; add "
         "them up"),
        (lambda n, w, h, d, b: _bytes(n, w, h, d, 1), "you counted numbers; each takes n_bytes"),
        (lambda n, w, h, d, b: _bytes(n, w, h, d, b) / n, "that is per token; give the bytes of "
         "the whole cache"),
        (lambda n, w, h, d, b: _bytes(n, w, 1, d, b), "the kv heads are missing: each keeps keys "
         "and values of its own"),
        (lambda n, w, h, d, b: _bytes(n, w, h, 1, b), "the dimension of a head is missing: a key "
         "has head_dim numbers"),
        (lambda n, w, h, d, b: [2 * min(n, x) * h * d * b for x in w], "those are the layers one "
         "by one; add them up"),
    ],
    "each layer holds its window or the text, whichever is less.",
)  # fmt: skip

EXERCISES = {
    "11.1": _share_beyond,
    "11.2": _scores_of_a_window,
    "11.3": _bytes_of_a_mixed_cache,
}
