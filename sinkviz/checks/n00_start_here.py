"""The exercise of notebook 00."""

from __future__ import annotations

import numpy as np
import torch

from sinkviz.checks.judging import by_example
from sinkviz.metrics import received_attention

# 00.1: the attention that the first token receives


def _made_up_map(length: int, seed: int) -> np.ndarray:
    """Return a causal attention map, (query, key).

    Rows sum to less than one, as with an off-by-one softmax: otherwise the first row is always
    (1, 0, 0 ...), and several mistakes give the same number.
    """
    weights = np.tril(np.random.default_rng(seed).uniform(0.1, 1, (length, length)))
    weights /= weights.sum(-1, keepdims=True)
    weights[0] *= 0.2
    return 0.9 * weights


def _first_received(attention: np.ndarray) -> float:
    return float(received_attention(torch.from_numpy(attention))[0])


_first_token = by_example(
    _first_received,
    [{"attention": _made_up_map(3, seed=0)}, {"attention": _made_up_map(5, seed=1)}],
    [
        (lambda a: a[0].mean(), "that is the first row, what the first *query* gives; a key is a "
         "column"),
        (lambda a: a[0, 0], "that is one cell, the first token looking at itself; take the whole "
         "column"),
        (lambda a: a[:, 0], "that is the whole column; take its mean over the queries"),
        (lambda a: a[:, 0].sum(), "that is the sum of the column; divide by the number of queries"),
        (lambda a: a[:, 0].max(), "that is the largest share; take the mean"),
        (lambda a: a[:, -1].mean(), "that is the last key, which only one query sees; the first "
         "key is column 0"),
        (lambda a: a[1:, 0].mean(), "the first query is missing; received attention counts every "
         "query that sees the key"),
        (lambda a: a.mean(), "that is the mean of the whole map; take only column 0"),
        (lambda a: np.diag(a).mean(), "that is the diagonal, each token looking at itself"),
    ],
    "rows are queries, columns are keys, and a sink is a column.",
)  # fmt: skip

EXERCISES = {"00.1": _first_token}
