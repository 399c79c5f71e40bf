"""Answers to the exercises of notebook 13: right ones as students write them, and wrong ones."""

import math

import numpy as np
import torch


def _counting_up(n_bytes, n_layers, n_heads):
    n = 0
    while 4 * n_layers * n_heads * (n + 1) ** 2 <= n_bytes:
        n += 1
    return n


def _by_loop(n_sinks, nll, tolerance):
    for n_sink, one in zip(n_sinks, nll, strict=True):
        if one - min(nll) <= tolerance:
            return n_sink
    return None


def _first_small_step(n_sinks, nll, tolerance):
    for i in range(len(nll) - 1):
        if nll[i] - nll[i + 1] <= tolerance:
            return n_sinks[i]
    return n_sinks[-1]


RIGHT = {
    "13.1": [
        lambda b, n, h: int(np.sqrt(b / (4 * n * h))),
        lambda b, n, h: math.floor((b / 4 / n / h) ** 0.5),
        lambda b, n, h: torch.tensor(b / (4 * n * h)).double().sqrt().floor(),
        _counting_up,
    ],
    "13.2": [
        lambda n, y, t: n[y <= y.min() + t].min(),
        lambda n, y, t: min(x for x, one in zip(n, y, strict=True) if one <= min(y) + t),
        lambda n, y, t: int(n[np.argmax(y - y.min() <= t)]),
        _by_loop,
    ],
    "13.3": [
        lambda b, k, s, t: min(int(b / k), t) - s,
        lambda b, k, s, t: min(b // k - s, t - s),
        lambda b, k, s, t: np.minimum(np.floor(b / k), t) - s,
    ],
}

# With a part of what the check says to each.
WRONG = {
    "13.1": [
        (lambda b, n, h: b // (4 * n * h), "take the root"),
        (lambda b, n, h: np.sqrt(b / (4 * n * h)), "whole number of tokens"),
        (lambda b, n, h: int(np.sqrt(b / (n * h))), "takes four bytes"),
        (lambda b, n, h: int(np.sqrt(b / (2 * n * h))), "half above the diagonal"),
        (lambda b, n, h: int(np.sqrt(b / (8 * n * h))), "not eight"),
        (lambda b, n, h: int(np.sqrt(b / (4 * h))), "one layer"),
        (lambda b, n, h: int(np.sqrt(b / (4 * n))), "one head of each layer"),
        (lambda b, n, h: int(np.sqrt(b / 4)), "that is one map"),
        (lambda b, n, h: int(np.sqrt(b / (4 * (n + h)))), "not their sum"),
        (lambda b, n, h: int(np.sqrt(b)) // (4 * n * h), "divide first"),
        (lambda b, n, h: math.ceil(np.sqrt(b / (4 * n * h))), "one token too many"),
        (lambda b, n, h: _counting_up(b, n, h) + 1, "one token too many"),
        (lambda b, n, h: round(np.sqrt(b / (4 * n * h))), "round down"),
    ],
    "13.2": [
        (lambda n, y, t: n[np.argmin(y)], "a smaller number of sinks may be as good"),
        (lambda n, y, t: np.argmax(y <= y.min() + t), "the place in the list"),
        (lambda n, y, t: np.argmin(y), "the lowest nll; return a number of sinks"),
        (lambda n, y, t: n[y <= y.min() + t].max(), "take the smallest"),
        (lambda n, y, t: n[y <= y[-1] + t][0], "more is not always better"),
        (lambda n, y, t: n[y <= y.min() * (1 + t)][0], "in nats, not a share"),
        (lambda n, y, t: n[y <= y[0] + t][0], "no sink at all"),
        (lambda n, y, t: n[np.argmax(y - y.min() >= t)], "points the other way"),
        (lambda n, y, t: n[np.argmax(y)], "the worst"),
        (lambda n, y, t: y[y <= y.min() + t][0], "return the number of sinks"),
        (lambda n, y, t: n[y <= y.min() + t], "return the smallest"),
        (_first_small_step, "first step that brings little"),
    ],
    "13.3": [
        (lambda b, k, s, t: b // k - s, "what memory allows"),
        (lambda b, k, s, t: t - s, "what the training length allows"),
        (lambda b, k, s, t: min(b // k, t), "the whole cache; the sinks"),
        (lambda b, k, s, t: s + min(b // k, t), "sign is reversed"),
        (lambda b, k, s, t: min(b // k - s, t), "count in the training length"),
        (lambda b, k, s, t: min(b // k, t - s), "need memory, too"),
        (lambda b, k, s, t: max(b // k, t) - s, "both limits must hold"),
        (lambda b, k, s, t: min(b / k, t) - s, "whole number of tokens"),
        (lambda b, k, s, t: min(-(-b // k), t) - s, "fits in part"),
        (lambda b, k, s, t: min(b // k // 2, t) - s, "key and its value already"),
        (lambda b, k, s, t: min(b // k, t) - s - 1, "current token counts as recent"),
    ],
}
