"""The exercises of notebook 13."""

from __future__ import annotations

import math

import numpy as np

from sinkviz.checks.judging import by_example

# 13.1: the longest text whose maps fit


def _longest(n_bytes: int, n_layers: int, n_heads: int) -> int:
    """Return the tokens of the longest text whose whole float32 maps fit into ``n_bytes``."""
    return math.isqrt(n_bytes // (4 * n_layers * n_heads))


_longest_text_of_maps = by_example(
    _longest,
    [
        {"n_bytes": 10_000, "n_layers": 2, "n_heads": 3},
        {"n_bytes": 70_000_000, "n_layers": 4, "n_heads": 6},
        {"n_bytes": 3_000_000_000, "n_layers": 12, "n_heads": 8},
        {"n_bytes": 57_600, "n_layers": 4, "n_heads": 4},
    ],
    [
        (lambda b, n, h: b // (4 * n * h), "those are entries of one head's map; a map is a "
         "square, so take the root"),
        (lambda b, n, h: math.sqrt(b / (4 * n * h)), "a text has a whole number of tokens; round "
         "down"),
        (lambda b, n, h: math.isqrt(b // (n * h)), "a number in float32 takes four bytes"),
        (lambda b, n, h: math.isqrt(b // (2 * n * h)), "a number in float32 takes four bytes, not "
         "two; and the half above the diagonal is stored, too"),
        (lambda b, n, h: math.isqrt(b // (8 * n * h)), "a number in float32 takes four bytes, not "
         "eight"),
        (lambda b, n, h: math.isqrt(b // (4 * h)), "that is one layer; every layer has its maps"),
        (lambda b, n, h: math.isqrt(b // (4 * n)), "that is one head of each layer; every head has "
         "its own map"),
        (lambda b, n, h: math.isqrt(b // 4), "that is one map; each head of each layer has one"),
        (lambda b, n, h: math.isqrt(b // (4 * (n + h))), "layers times heads, not their sum"),
        (lambda b, n, h: math.isqrt(b) // (4 * n * h), "divide first: the root is of the entries "
         "that one map may have"),
        (lambda b, n, h: _longest(b, n, h) + 1, "one token too many: the maps must fit, so round "
         "down"),
        (lambda b, n, h: math.ceil(math.sqrt(b / (4 * n * h))), "one token too many: the maps must "
         "fit, so round down"),
        (lambda b, n, h: round(math.sqrt(b / (4 * n * h))), "rounded to the nearest, which may "
         "not fit; round down"),
    ],
    "a square for each head of each layer, four bytes a number, rounded down.",
)  # fmt: skip


# 13.2: the fewest sinks that do


def _fewest(n_sinks: np.ndarray, nll: np.ndarray, tolerance: float) -> int:
    """Return the smallest number of sinks whose nll is within ``tolerance`` of the lowest."""
    good = np.flatnonzero(nll <= nll.min() + tolerance)
    return int(n_sinks[good[0]])


_N_SINKS = np.array([0, 1, 2, 4, 8])

_fewest_sinks = by_example(
    _fewest,
    [
        {"n_sinks": _N_SINKS, "nll": np.array([2.32, 0.52, 0.479, 0.476, 0.53]),
         "tolerance": 0.01},
        {"n_sinks": _N_SINKS, "nll": np.array([3.4, 2.9, 2.65, 2.5, 2.49]), "tolerance": 0.07},
        {"n_sinks": _N_SINKS, "nll": np.array([0.704, 0.701, 0.725, 0.705, 0.732]),
         "tolerance": 0.02},
        {"n_sinks": _N_SINKS, "nll": np.array([3.0, 2.98, 2.4, 2.38, 2.37]), "tolerance": 0.04},
        {"n_sinks": np.array([0, 2, 3, 6]), "nll": np.array([5.0, 3.2, 2.6, 2.5]),
         "tolerance": 0.0},
    ],
    [
        (lambda n, y, t: n[y.argmin()], "that is the lowest nll; a smaller number of sinks may be "
         "as good, within the tolerance"),
        (lambda n, y, t: np.flatnonzero(y <= y.min() + t)[0], "that is the place in the list; "
         "return the number of sinks that stands there"),
        (lambda n, y, t: y.argmin(), "that is the place in the list of the lowest nll; return a "
         "number of sinks, and mind the tolerance"),
        (lambda n, y, t: n[np.flatnonzero(y <= y.min() + t)[-1]], "that is the largest number of "
         "sinks within the tolerance; take the smallest"),
        (lambda n, y, t: n[np.flatnonzero(y <= y[-1] + t)[0]], "you compare with the most sinks; "
         "more is not always better, so compare with the lowest nll"),
        (lambda n, y, t: n[np.flatnonzero(y <= y.min() * (1 + t))[0]], "the tolerance is in nats, "
         "not a share: add it to the lowest nll"),
        (lambda n, y, t: n[np.flatnonzero(y <= t + y[0])[0]], "you compare with no sink at all; "
         "compare with the lowest nll"),
        (lambda n, y, t: n[np.argmax(y >= y.min() + t)], "the comparison points the other "
         "way: nll is better when it is lower"),
        (lambda n, y, t: n[y.argmax()], "that is the highest nll, the worst; lower is better"),
        (lambda n, y, t: y[np.flatnonzero(y <= y.min() + t)[0]], "that is its nll; return the "
         "number of sinks"),
        (lambda n, y, t: n[y <= y.min() + t], "those are all that are good enough; return the "
         "smallest"),
        (lambda n, y, t: n[-1] if (np.diff(y) < -t).all() else n[np.argmax(np.diff(y) >= -t)],
         "you stop at the first step that brings little; compare each with the lowest nll of all"),
    ],
    "the fewest sinks that are as good as the best, within the tolerance.",
)  # fmt: skip


# 13.3: the window that fits


def _n_recent(n_bytes: int, token_bytes: int, n_sink: int, train_length: int) -> int:
    """Return the longest recent part that memory and training length allow, tokens."""
    return min(n_bytes // token_bytes, train_length) - n_sink


_window_that_fits = by_example(
    _n_recent,
    [
        {"n_bytes": 1_000_000, "token_bytes": 4096, "n_sink": 4, "train_length": 1024},
        {"n_bytes": 9_000_000, "token_bytes": 4096, "n_sink": 3, "train_length": 128},
        {"n_bytes": 700_000, "token_bytes": 1024, "n_sink": 1, "train_length": 512},
        {"n_bytes": 500_300, "token_bytes": 1000, "n_sink": 8, "train_length": 504},
    ],
    [
        (lambda b, k, s, t: b // k - s, "that is what memory allows; a cache longer than the "
         "training length has distances that the model never saw"),
        (lambda b, k, s, t: t - s, "that is what the training length allows; the bytes must "
         "suffice, too"),
        (lambda b, k, s, t: min(b // k, t), "that is the whole cache; the sinks need their place "
         "in it, so take them off"),
        (lambda b, k, s, t: min(b // k, t) + s, "the sign is reversed: the sinks take room from "
         "the window"),
        (lambda b, k, s, t: min(b // k - s, t), "the sinks count in the training length, too: it "
         "limits the whole cache"),
        (lambda b, k, s, t: min(b // k, t - s), "the sinks need memory, too: it limits the whole "
         "cache"),
        (lambda b, k, s, t: max(b // k, t) - s, "both limits must hold, so the smaller one counts"),
        (lambda b, k, s, t: min(b / k, t) - s, "a cache has a whole number of tokens; round down"),
        (lambda b, k, s, t: min(math.ceil(b / k), t) - s, "a token that fits in part does not fit: "
         "round down"),
        (lambda b, k, s, t: min(b // (2 * k), t) - s, "the bytes of a token count its key and its "
         "value already"),
        (lambda b, k, s, t: min(b // k, t) - s - 1, "the current token counts as recent; nothing "
         "else is to be taken off"),
    ],
    "the smaller of two limits, and the sinks within it.",
)  # fmt: skip

EXERCISES = {
    "13.1": _longest_text_of_maps,
    "13.2": _fewest_sinks,
    "13.3": _window_that_fits,
}
