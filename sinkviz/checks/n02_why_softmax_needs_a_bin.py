"""The exercises of notebook 02."""

from __future__ import annotations

import math

import numpy as np
import torch

from sinkviz.checks.judging import by_example

# 02.1: the margin that a key needs


def _margin(share: float, n_others: int) -> float:
    return math.log(share) - math.log1p(-share) + math.log(n_others)


_margin_of_a_winner = by_example(
    _margin,
    [{"share": 0.9, "n_others": 100}, {"share": 0.4, "n_others": 7}],
    [
        (lambda p, n: math.log(p / (1 - p)), "that is the margin over a single other key; all the "
         "others together weigh n_others times as much"),
        (lambda p, n: math.log(p / (1 - p)) - math.log(n), "the sign of ln(n_others) is reversed: "
         "more rivals take more margin"),
        (lambda p, n: -_margin(p, n), "the sign is reversed: the larger the share, the larger the "
         "margin"),
        (lambda p, n: n * p / (1 - p), "that is how many times heavier the key is than one other; "
         "the margin is its logarithm"),
        (lambda p, n: math.log(p * n), "the key is weighed against what the others get, "
         "1 - share, and not against one"),
        (lambda p, n: math.log((1 - p) / p) + math.log(n), "share and rest are swapped: divide "
         "share by 1 - share"),
        (lambda p, n: math.log(p / (1 - p)) + n, "n_others keys weigh n_others times as much; a "
         "factor in weight adds its logarithm to the margin"),
        (lambda p, n: math.log(p / (1 - p)) * math.log(n), "weights multiply, so their logarithms "
         "add up"),
        (lambda p, n: math.log(p / (1 - p)) + math.log(n - 1), "n_others leaves the key itself "
         "out already; do not take one off"),
        (lambda p, n: math.log(p / (1 - p)) + math.log(n + 1), "n_others counts the others alone; "
         "the key itself is no rival of its own"),
        (lambda p, n: _margin(p, n) / math.log(2), "that is log2; nats are natural logarithms"),
        (lambda p, n: _margin(p, n) / math.log(10), "that is log10; nats are natural logarithms"),
    ],
    "the odds of the share, and the logarithm of the number of rivals.",
)  # fmt: skip


# 02.2: softmax with a null key


def _null_softmax(scores: np.ndarray, null_logit: float) -> np.ndarray:
    """Softmax over the keys and the null key, which is then left out."""
    return torch.tensor([*scores, null_logit], dtype=torch.float64).softmax(0)[:-1].numpy()


def _weights(scores: np.ndarray) -> np.ndarray:
    return np.exp(scores - scores.max())


def _unshifted(scores: np.ndarray, null: float) -> np.ndarray:
    return _weights(scores) / (_weights(scores).sum() + np.exp(null))


_softmax_with_a_null_key = by_example(
    _null_softmax,
    [
        {"scores": np.array([1.5, -0.5, 3.0, 0.2]), "null_logit": 1.2},
        {"scores": np.array([-2.0, -1.0, -2.5]), "null_logit": 0.0},
        {"scores": np.array([0.3, 2.0]), "null_logit": -1.5},
    ],
    [
        (lambda s, c: _weights(s) / _weights(s).sum(), "that is the standard softmax: nothing goes "
         "nowhere; the null key belongs into the sum, too"),
        (lambda s, c: np.exp(s) / (1 + np.exp(s).sum()), "that is off by one whatever the null "
         "logit: add exp(null_logit), not 1"),
        (lambda s, c: np.exp(s) / (c + np.exp(s).sum()), "null_logit is a logit like the scores: "
         "take its exponential before you add it"),
        (_unshifted, "you took the largest score off the scores, but not off the null logit"),
        (lambda s, c: _weights(s) / (_weights(s).sum() + 1), "once the largest score is taken off, "
         "the null key weighs exp(null_logit - largest), no longer 1"),
        (lambda s, c: np.append(_null_softmax(s, c), 1 - _null_softmax(s, c).sum()), "the last "
         "share is that of the null key; return those of the keys alone"),
        (lambda s, c: np.append(1 - _null_softmax(s, c).sum(), _null_softmax(s, c)), "the first "
         "share is that of the null key; return those of the keys alone"),
        (lambda s, c: 1 / (1 + np.exp(c - s)), "each key stands alone against the null key: that "
         "is sigmoid attention; put all of them into one sum"),
        (lambda s, c: (np.exp(s) + np.exp(c)) / (np.exp(s) + np.exp(c)).sum(), "the null key "
         "stands on top of the fraction, too; it belongs below alone"),
        (lambda s, c: np.exp(s) / (np.exp(s).sum() - np.exp(c)), "the null key makes the sum "
         "larger; do not take it off"),
        (lambda s, c: _null_softmax(s, c).sum(), "that is the share of all keys together; give one "
         "per key"),
        (lambda s, c: 1 - _null_softmax(s, c).sum(), "that is the share that goes nowhere; give "
         "that of each key"),
    ],
    "the null key takes its part of the sum, and leads nowhere.",
)  # fmt: skip


# 02.3: how much of a damage is repaired


def _repair(untouched: float, damaged: float, repaired: float) -> float:
    return (damaged - repaired) / (damaged - untouched)


_share_repaired = by_example(
    _repair,
    [
        {"untouched": 0.6, "damaged": 3.0, "repaired": 1.0},
        {"untouched": 2.0, "damaged": 2.5, "repaired": 2.7},
    ],
    [
        (lambda u, d, r: (r - u) / (d - u), "that is the part of the damage that is left; what is "
         "undone is the rest"),
        (lambda u, d, r: d - r, "those are the nats that came back; divide them by the nats that "
         "were lost"),
        (lambda u, d, r: (d - r) / d, "divide by the damage, damaged - untouched, and not by the "
         "whole nll"),
        (lambda u, d, r: (d - r) / (r - u), "divide by all that was lost, damaged - untouched, and "
         "not by what is still missing"),
        (lambda u, d, r: (r - d) / (d - u), "the sign is reversed: a repair lowers the nll, and "
         "shall count as above 0"),
        (lambda u, d, r: u / r, "a ratio of two nll does not know how deep the fall was; use "
         "differences"),
        (lambda u, d, r: r / d, "a ratio of two nll does not know how deep the fall was; use "
         "differences"),
        (lambda u, d, r: (math.exp(d) - math.exp(r)) / (math.exp(d) - math.exp(u)), "that compares "
         "perplexities; stay with nats"),
        (lambda u, d, r: 100 * _repair(u, d, r), "that is in per cent; give a part of one"),
        (lambda u, d, r: min(1.0, max(0.0, _repair(u, d, r))), "do not cut it off at 0: a remedy "
         "may do harm, and the number should say so"),
    ],
    "what came back, over what was lost.",
)  # fmt: skip

EXERCISES = {
    "02.1": _margin_of_a_winner,
    "02.2": _softmax_with_a_null_key,
    "02.3": _share_repaired,
}
