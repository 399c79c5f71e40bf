"""The exercises of notebook 01."""

from __future__ import annotations

import numpy as np
import torch
from torch.nn.functional import scaled_dot_product_attention

from sinkviz.checks.judging import by_example
from sinkviz.metrics import received_attention

# 01.1: attention from queries and keys


def _attention(query: np.ndarray, key: np.ndarray) -> np.ndarray:
    """Return causal attention, (query, key).

    With the identity as values, what torch's own attention gives back are the weights.
    """
    query, key = torch.from_numpy(query), torch.from_numpy(key)
    values = torch.eye(len(key), dtype=key.dtype)
    return scaled_dot_product_attention(query, key, values, is_causal=True).numpy()


def _softmax(scores: np.ndarray, axis: int = -1) -> np.ndarray:
    return torch.from_numpy(scores).softmax(axis).numpy()


def _scores(query: np.ndarray, key: np.ndarray, divisor: float | None = None) -> np.ndarray:
    return query @ key.T / (np.sqrt(query.shape[1]) if divisor is None else divisor)


def _masked(scores: np.ndarray) -> np.ndarray:
    return np.where(np.tri(len(scores)) > 0, scores, -np.inf)


def _made_up(tokens: int, dimensions: int, seed: int) -> dict[str, np.ndarray]:
    """Return a query and a key per token, far enough from even attention."""
    draw = np.random.default_rng(seed)
    return {name: draw.normal(0, 1.5, (tokens, dimensions)) for name in ("query", "key")}


_attention_by_hand = by_example(
    _attention,
    [_made_up(3, 4, seed=0), _made_up(5, 3, seed=1)],
    [
        (lambda q, k: _softmax(_masked(_scores(q, k, 1))), "the scores are not scaled: divide by "
         "the square root of the dimension"),
        (lambda q, k: _softmax(_masked(_scores(q, k, q.shape[1]))), "divided by the dimension "
         "itself; take its square root"),
        (lambda q, k: _softmax(_masked(_scores(q, k, np.sqrt(len(q))))), "divided by the root of "
         "the number of tokens; the dimension is the length of one query"),
        (lambda q, k: _softmax(_scores(q, k)), "the future is not masked: a token sees itself and "
         "those before it"),
        (lambda q, k: _softmax(np.tril(_scores(q, k))), "a masked score of 0 still takes part: "
         "exp(0) is 1; make it minus infinity, or leave it out of the sum"),
        (lambda q, k: np.tril(_softmax(_scores(q, k))), "masked after the softmax: the rows no "
         "longer sum to one; mask the scores"),
        (lambda q, k: _softmax(_masked(_scores(q, k)), 0), "the softmax runs over the queries; "
         "each *row* must sum to one"),
        (lambda q, k: _softmax(_masked(_scores(k, q))), "queries and keys are swapped: rows belong "
         "to queries"),
        (lambda q, k: np.tril(np.exp(_scores(q, k))), "these are exponentials of the scores; "
         "divide each row by its sum"),
        (lambda q, k: np.exp(_masked(_scores(q, k))) / np.exp(_masked(_scores(q, k))).sum(),
         "divided by the sum of everything; each row has its own sum"),
        (lambda q, k: np.tril(_scores(q, k)), "these are the scores; the softmax is missing"),
        (_scores, "these are the scores; mask and softmax are missing"),
        (lambda q, k: _attention(q, k)[-1], "that is the last row; give one row for each query"),
    ],
    "scores, mask, softmax: each row shares out exactly one.",
)  # fmt: skip


# 01.2: how much a head looks one token back


def _made_up_map(tokens: int, seed: int) -> np.ndarray:
    return _attention(**_made_up(tokens, 4, seed))


def _previous(attention: np.ndarray) -> float:
    return float(np.mean([attention[i, i - 1] for i in range(2, len(attention))]))


def _previous_of_the_rest(attention: np.ndarray) -> float:
    rest = attention[2:] / (1 - attention[2:, :1])
    return float(np.diagonal(rest, 1).mean())


_previous_token = by_example(
    _previous,
    [
        {"attention": _made_up_map(4, seed=2)},
        {"attention": _made_up_map(6, seed=3)},
    ],
    [
        (lambda a: np.diagonal(a, -1).mean(), "row 1 is counted: its previous token is the first "
         "one, so this is part of the sink; begin with row 2"),
        (lambda a: np.diagonal(a).mean(), "that is the diagonal, each token looking at itself; "
         "the previous token stands one column to the left"),
        (lambda a: np.diagonal(a)[2:].mean(), "that is the diagonal, each token looking at "
         "itself; the previous token stands one column to the left"),
        (lambda a: np.diagonal(a, 1).mean(), "that is the *next* token, which nobody sees"),
        (lambda a: np.diagonal(a, -2).mean(), "that is two tokens back"),
        (lambda a: np.diagonal(a, -1)[1:].sum() / len(a), "divided by all tokens; only those from "
         "row 2 on are counted, two fewer"),
        (lambda a: np.diagonal(a, -1).sum() / len(a), "divided by all tokens, and row 1 is "
         "counted, whose previous token is the sink; take the mean from row 2 on"),
        (lambda a: np.diagonal(a, -1)[1:].sum(), "that is the sum; take the mean"),
        (lambda a: np.diagonal(a, -1)[1:].max(), "that is the largest share; take the mean"),
        (lambda a: np.diagonal(a, -1)[1:], "that is one number per token; take their mean"),
        (lambda a: a[-1, -2], "that is the last query alone; take the mean over queries"),
        (lambda a: a[2:, :-1].mean(), "that is the mean of a whole block; take one cell from each "
         "row"),
        (_previous_of_the_rest, "that is the share of what the sink leaves; here all attention "
         "counts"),
    ],
    "one cell left of the diagonal, from the third token on.",
)  # fmt: skip


# 01.3: what each key receives


def _received(attention: np.ndarray) -> np.ndarray:
    return received_attention(torch.from_numpy(attention)).numpy()


def _received_from_others(attention: np.ndarray) -> np.ndarray:
    others = np.arange(len(attention))[::-1]
    return (attention.sum(0) - np.diagonal(attention)) / np.maximum(others, 1)


_received_by_each_key = by_example(
    _received,
    [
        {"attention": _made_up_map(4, seed=4)},
        {"attention": _made_up_map(6, seed=5)},
    ],
    [
        (lambda a: a.mean(0), "divided by all queries, but key k is seen only from query k on: "
         "len(attention) - k of them"),
        (lambda a: a.sum(0), "that is the sum of each column; divide by how many queries see it"),
        (lambda a: a.sum(0) / np.arange(1, len(a) + 1), "the divisors are in reverse: all queries "
         "see the first key, and one sees the last"),
        (lambda a: a.sum(0) / np.maximum(np.arange(len(a))[::-1], 1), "one query too few in the "
         "divisor: a token sees itself, too"),
        (_received_from_others, "the look of a token at itself is left out; it counts"),
        (lambda a: a.sum(1), "that is the sum of each *row*, what a query gives: always one; a key "
         "is a column"),
        (lambda a: a.mean(1), "that is the mean of each *row*; a key is a column"),
        (lambda a: a[:, 0].mean(), "that is the first key alone; give one number per key"),
        (lambda a: a.max(0), "that is the largest share in each column; take the mean"),
        (lambda a: np.diagonal(a), "that is the diagonal, each token looking at itself"),
        (lambda a: a[-1], "that is the last query alone; take the mean over all that see the key"),
    ],
    "a column's sum, by the number of queries that see the key.",
)  # fmt: skip

EXERCISES = {
    "01.1": _attention_by_hand,
    "01.2": _previous_token,
    "01.3": _received_by_each_key,
}
