"""Answers to the exercises of notebook 11: right ones as students write them, and wrong ones."""

import numpy as np
import torch


def _weights(slope, n_tokens):
    raised = np.exp(-slope * np.arange(n_tokens))
    return raised / raised.sum()


def _loop(slope, n_tokens, reach):
    far = total = 0.0
    for distance in range(n_tokens):
        weight = np.exp(-slope * distance)
        total += weight
        if distance >= reach:
            far += weight
    return far / total


def _geometric(slope, n_tokens, reach):
    ratio = np.exp(-slope)
    return (ratio**reach - ratio**n_tokens) / (1 - ratio**n_tokens)


def _counted(n_tokens, n_sink, n_recent):
    return sum(
        key < n_sink or query - key < n_recent
        for query in range(n_tokens)
        for key in range(query + 1)
    )


def _held(n_tokens, windows):
    return np.minimum(n_tokens, windows).sum()


def _cache(n_tokens, windows, n_kv_heads, head_dim, n_bytes):
    total = 0
    for window in windows:
        total += 2 * min(n_tokens, window) * n_kv_heads * head_dim * n_bytes
    return total


RIGHT = {
    "11.1": [
        _loop,
        _geometric,
        lambda slope, n, reach: torch.softmax(-slope * torch.arange(n), 0)[reach:].sum(),
        lambda slope, n, reach: 1 - _weights(slope, n)[:reach].sum(),
    ],
    "11.2": [
        _counted,
        lambda n, n_sink, n_recent: sum(min(i + 1, n_sink + n_recent) for i in range(n)),
        lambda n, n_sink, n_recent: np.minimum(np.arange(1, n + 1), n_sink + n_recent).sum(),
    ],
    "11.3": [
        _cache,
        lambda n, windows, heads, dim, size: 2 * _held(n, windows) * heads * dim * size,
    ],
}

# With a part of what the check says to each.
WRONG = {
    "11.1": [
        (lambda slope, n, reach: _weights(slope, n)[:reach].sum(), "near keys get"),
        (lambda slope, n, reach: _weights(-slope, n)[reach:].sum(), "sign is reversed"),
        (lambda slope, n, reach: _weights(slope, n)[reach + 1 :].sum(), "reach is missing"),
        (lambda slope, n, reach: _weights(slope, n)[reach - 1 :].sum(), "one key too many"),
        (lambda slope, n, reach: np.exp(-slope * reach), "weight of one key"),
        (lambda slope, n, reach: _weights(slope, n)[reach], "share of a single key"),
        (lambda slope, n, reach: np.exp(-slope * np.arange(reach, n)).sum(), "sum to one"),
        (
            lambda slope, n, reach: _loop(slope, n, reach) / (1 - _loop(slope, n, reach)),
            "divided by what near",
        ),
        (lambda slope, n, reach: (-slope * np.arange(reach, n)).sum(), "sum of biases"),
        (
            lambda slope, n, reach: np.arange(reach, n).sum() / np.arange(n).sum(),
            "biases themselves",
        ),
        (lambda slope, n, reach: 1 - reach / n, "slope were 0"),
        (lambda slope, n, reach: _weights(slope, n)[: n - reach].sum(), "took text positions"),
        (lambda slope, n, reach: _weights(1 / slope, n)[reach:].sum(), "divided by the slope"),
        (lambda slope, n, reach: 100 * _loop(slope, n, reach), "per cent"),
        (lambda slope, n, reach: _weights(slope, n)[reach:], "one by one"),
    ],
    "11.2": [
        (lambda n, n_sink, n_recent: n * (n + 1) / 2, "full attention"),
        (lambda n, n_sink, n_recent: n**2, "whole square"),
        (lambda n, n_sink, n_recent: n * (n_sink + n_recent), "not yet so many"),
        (lambda n, n_sink, n_recent: min(n_sink + n_recent, n) * n, "not yet so many"),
        (lambda n, n_sink, n_recent: _counted(n, 0, n_recent), "sinks are missing"),
        (
            lambda n, n_sink, n_recent: sum(min(i, n_sink + n_recent) for i in range(n)),
            "sees itself",
        ),
        (lambda n, n_sink, n_recent: _counted(n, n_sink, n_recent + 1), "one key too many"),
        (
            lambda n, n_sink, n_recent: _counted(n, 0, n_sink) + _counted(n, 0, n_recent),
            "overlap",
        ),
        (lambda n, n_sink, n_recent: _counted(n, 0, n_recent) + n * n_sink, "overlap"),
        (lambda n, n_sink, n_recent: min(n, n_sink + n_recent), "last query sees"),
        (lambda n, n_sink, n_recent: n_sink + n_recent, "size of the cache"),
        (
            lambda n, n_sink, n_recent: sum(range(n_sink + n_recent + 1)),
            "where the cache is full",
        ),
    ],
    "11.3": [
        (lambda n, w, h, d, b: _held(n, w) * h * d * b, "factor 2"),
        (lambda n, w, h, d, b: 2 * n * len(w) * h * d * b, "windows are missing"),
        (lambda n, w, h, d, b: 2 * min(n, min(w)) * len(w) * h * d * b, "not alike"),
        (
            lambda n, w, h, d, b: 2 * np.where(np.isinf(w), n, w).sum() * h * d * b,
            "does not fill",
        ),
        (
            lambda n, w, h, d, b: _cache(n, [x for x in w if x < np.inf], h, d, b),
            "without a window are missing",
        ),
        (
            lambda n, w, h, d, b: _cache(n, [x for x in w if x == np.inf], h, d, b),
            "with a window are missing",
        ),
        (lambda n, w, h, d, b: 2 * np.minimum(n, w).mean() * h * d * b, "mean over layers"),
        (lambda n, w, h, d, b: 2 * _held(n, w) * h * d, "each takes n_bytes"),
        (lambda n, w, h, d, b: _cache(n, w, h, d, b) / n, "per token"),
        (lambda n, w, h, d, b: 2 * _held(n, w) * d * b, "kv heads are missing"),
        (lambda n, w, h, d, b: 2 * _held(n, w) * h * b, "dimension of a head"),
        (lambda n, w, h, d, b: 2 * np.minimum(n, w) * h * d * b, "one by one"),
    ],
}
