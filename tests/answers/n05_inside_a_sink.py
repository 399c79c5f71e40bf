"""Answers to the exercises of notebook 05: right ones as students write them, and wrong ones."""

import math

import numpy as np
import torch


def by_rows(added):
    return added / added.sum(axis=1, keepdims=True)


def in_loops(attention, value_norm):
    result = []
    for row in attention:
        added = [share * length for share, length in zip(row, value_norm, strict=True)]
        result.append([one / sum(added) for one in added])
    return result


RIGHT = {
    "05.1": [
        in_loops,
        lambda attention, value_norm: by_rows(attention @ np.diag(value_norm)),
        lambda attention, value_norm: attention * value_norm / (attention @ value_norm)[:, None],
    ],
    "05.2": [
        lambda score, query_norm, key_norm, head_size: (
            score / (query_norm * key_norm / head_size**0.5)
        ),
        lambda s, q, k, d: torch.tensor(s) * math.sqrt(d) / q / k,
    ],
}

# With a part of what the check says to each.
WRONG = {
    "05.1": [
        (lambda a, v: a, "attention alone"),
        (lambda a, v: a * v, "do not sum to one yet"),
        (lambda a, v: by_rows(a * v[:, np.newaxis]), "falls out again"),
        (lambda a, v: np.diag(v) @ a, "each row is multiplied"),
        (lambda a, v: a * v / np.sum(a * v), "the whole map"),
        (lambda a, v: a * v / (a * v).sum(axis=0), "columns sum to one"),
        (lambda a, v: a * v / (a * v).sum(axis=1), "keepdims=True"),
        (lambda a, v: by_rows(a / v), "divided by the lengths"),
        (lambda a, v: by_rows(a * v**2), "squared"),
        (lambda a, v: a * (v / v.sum()), "sum of all lengths"),
        (lambda a, v: by_rows(a * v)[:, 0], "first key's share"),
        (lambda a, v: by_rows(a * v).mean(axis=0), "mean over queries"),
    ],
    "05.2": [
        (lambda s, q, k, d: s / q / k, "square root of head_size is missing"),
        (lambda s, q, k, d: s / (q * k * d**0.5), "multiply it back"),
        (lambda s, q, k, d: s * d / q / k, "takes its square root"),
        (lambda s, q, k, d: s * d**0.5 / k, "length of the query"),
        (lambda s, q, k, d: s * d**0.5 / q, "length of the key"),
        (lambda s, q, k, d: s * d**0.5, "dot product"),
        (lambda s, q, k, d: s * d**0.5 / (q + k), "do not add up"),
        (lambda s, q, k, d: s * d**0.5 / (q**2 * k**2), "divides by each once"),
        (lambda s, q, k, d: s * d**0.5 * q * k, "do not multiply"),
        (lambda s, q, k, d: np.arccos(s * d**0.5 / (q * k)), "angle"),
        (lambda s, q, k, d: np.abs(s * d**0.5 / (q * k)), "sign is lost"),
    ],
}
