"""The exercises of notebook 05."""

from __future__ import annotations

import math

import numpy as np
import torch

from sinkviz.checks.judging import by_example
from sinkviz.metrics import value_weighted_attention

# 05.1: attention, weighed by value


def _made_up_map(length: int, seed: int) -> np.ndarray:
    """Return a causal map (query, key) whose rows sum to one and whose first key is a sink."""
    scores = np.random.default_rng(seed).normal(0, 1, (length, length))
    scores[:, 0] += 2
    weights = np.tril(np.exp(scores))
    return weights / weights.sum(-1, keepdims=True)


def _weighted(attention: np.ndarray, value_norm: np.ndarray) -> np.ndarray:
    # Values of one coordinate have the lengths that are given.
    given = (torch.from_numpy(attention)[None], torch.from_numpy(value_norm)[None, :, None])
    added = value_weighted_attention(*given)[0]
    return (added / added.sum(-1, keepdim=True)).numpy()


def _by_rows(added: np.ndarray) -> np.ndarray:
    return added / added.sum(-1, keepdims=True)


_weighed_by_value = by_example(
    _weighted,
    [
        {"attention": _made_up_map(4, seed=1), "value_norm": np.array([0.2, 1.5, 0.8, 2.0])},
        {"attention": _made_up_map(3, seed=2), "value_norm": np.array([0.5, 3.0, 1.0])},
    ],
    [
        (lambda a, v: a, "that is the attention alone; multiply it by the lengths of the values, "
         "key by key (a factor for a whole row falls out again)"),
        (lambda a, v: a * v, "the rows do not sum to one yet: divide each by its sum"),
        (lambda a, v: a * v[:, None], "each row is multiplied by its query's value; values belong "
         "to keys, the columns, and rows shall sum to one"),
        (lambda a, v: a * v / (a * v).sum(), "the whole map sums to one; scale each row by itself"),
        (lambda a, v: a * v / (a * v).sum(0), "the columns sum to one; scale the rows, the last "
         "axis"),
        (lambda a, v: a * v / (a * v).sum(-1), "the sums of the rows are laid along the columns; "
         "keep the axis with keepdims=True"),
        (lambda a, v: _by_rows(a / v), "divided by the lengths; a long value adds more, so "
         "multiply"),
        (lambda a, v: _by_rows(a * v**2), "the lengths are squared; take them as they are"),
        (lambda a, v: a * v / v.sum(), "scaled by the sum of all lengths; scale each row by its "
         "own sum"),
        (lambda a, v: _by_rows(a * v)[:, 0], "that is the first key's share alone; give all keys"),
        (lambda a, v: _by_rows(a * v).mean(0), "that is the mean over queries; give a row for each "
         "query"),
    ],
    "what a key adds is its share of attention times the length of its value.",
)  # fmt: skip


# 05.2: the cosine behind a score


def _cosine(score: float, query_norm: float, key_norm: float, head_size: int) -> float:
    return score * math.sqrt(head_size) / (query_norm * key_norm)


_cosine_behind_a_score = by_example(
    _cosine,
    [
        {"score": 3.0, "query_norm": 6.0, "key_norm": 4.0, "head_size": 32},
        {"score": -1.2, "query_norm": 5.0, "key_norm": 2.5, "head_size": 64},
    ],
    [
        (lambda s, q, k, d: s / (q * k), "the square root of head_size is missing: scores are "
         "divided by it, so multiply it back"),
        (lambda s, q, k, d: s / math.sqrt(d) / (q * k), "scores are divided by the square root of "
         "head_size already; multiply it back"),
        (lambda s, q, k, d: s * d / (q * k), "that is head_size; it takes its square root"),
        (lambda s, q, k, d: s * math.sqrt(d) / k, "the length of the query is missing"),
        (lambda s, q, k, d: s * math.sqrt(d) / q, "the length of the key is missing"),
        (lambda s, q, k, d: s * math.sqrt(d), "that is the dot product; divide it by both lengths"),
        (lambda s, q, k, d: s * math.sqrt(d) / (q + k), "the lengths multiply, they do not add up"),
        (lambda s, q, k, d: s * math.sqrt(d) / (q * k) ** 2, "the lengths are squared; a cosine "
         "divides by each once"),
        (lambda s, q, k, d: s * math.sqrt(d) * q * k, "divide by the lengths, do not multiply"),
        (lambda s, q, k, d: math.acos(_cosine(s, q, k, d)), "that is the angle; give its cosine"),
        (lambda s, q, k, d: abs(_cosine(s, q, k, d)), "the sign is lost: a key may point away"),
    ],
    "a score without the lengths is the direction.",
)  # fmt: skip

EXERCISES = {"05.1": _weighed_by_value, "05.2": _cosine_behind_a_score}
