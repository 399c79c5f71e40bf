"""Answers to the exercises of notebook 01: right ones as students write them, and wrong ones."""

import numpy as np
import torch


def softmax(scores, axis=-1):
    weights = np.exp(scores)
    return weights / weights.sum(axis, keepdims=True)


def attention_in_numpy(query, key):
    scores = query @ key.T / np.sqrt(query.shape[1])
    scores[np.triu_indices(len(scores), 1)] = -np.inf
    return softmax(scores)


def attention_in_torch(query, key):
    query, key = torch.tensor(query), torch.tensor(key)
    scores = query @ key.T / query.shape[-1] ** 0.5
    future = torch.ones(len(query), len(key)).triu(1).bool()
    return scores.masked_fill(future, float("-inf")).softmax(dim=-1)


def attention_in_loops(query, key):
    rows = []
    for i, q in enumerate(query):
        weights = [np.exp(q @ k / len(q) ** 0.5) for k in key[: i + 1]]
        rows.append([w / sum(weights) for w in weights] + [0.0] * (len(key) - i - 1))
    return rows


def received_in_loops(attention):
    n = len(attention)
    return [sum(attention[i][k] for i in range(k, n)) / (n - k) for k in range(n)]


RIGHT = {
    "01.1": [
        attention_in_numpy,
        attention_in_torch,
        attention_in_loops,
        lambda q, k: softmax(
            q @ k.T / np.sqrt(k.shape[-1]) + np.triu(np.full((len(q),) * 2, -1e9), 1)
        ),
    ],
    "01.2": [
        lambda a: a.diagonal(-1)[1:].mean(),
        lambda a: sum(a[i][i - 1] for i in range(2, len(a))) / (len(a) - 2),
        lambda a: torch.tensor(a).diagonal(-1)[1:].mean(),
    ],
    "01.3": [
        received_in_loops,
        lambda a: a.sum(axis=0) / np.arange(len(a), 0, -1),
        lambda a: a.sum(0) / np.tri(len(a)).sum(0),
    ],
}


def scores(q, k):
    return q @ k.T / np.sqrt(q.shape[1])


def future_hidden(x):
    return np.where(np.tril(np.ones_like(x)) == 1, x, -np.inf)


# With a part of what the check says to each.
WRONG = {
    "01.1": [
        (lambda q, k: softmax(future_hidden(q @ k.T)), "not scaled"),
        (lambda q, k: softmax(future_hidden(q @ k.T / q.shape[1])), "the dimension itself"),
        (lambda q, k: softmax(future_hidden(q @ k.T / len(q) ** 0.5)), "number of tokens"),
        (lambda q, k: softmax(scores(q, k)), "future is not masked"),
        (lambda q, k: softmax(np.tril(scores(q, k))), "masked score of 0"),
        (lambda q, k: np.tril(softmax(scores(q, k))), "masked after the softmax"),
        (lambda q, k: softmax(future_hidden(scores(q, k)), axis=0), "over the queries"),
        (lambda q, k: softmax(future_hidden(scores(k, q))), "swapped"),
        (lambda q, k: np.tril(np.exp(scores(q, k))), "exponentials of the scores"),
        (lambda q, k: softmax(future_hidden(scores(q, k)), axis=None), "sum of everything"),
        (lambda q, k: np.tril(scores(q, k)), "the softmax is missing"),
        (scores, "mask and softmax are missing"),
        (lambda q, k: attention_in_numpy(q, k)[-1], "last row"),
    ],
    "01.2": [
        (lambda a: np.diag(a, -1).mean(), "row 1 is counted"),
        (lambda a: np.diag(a).mean(), "looking at itself"),
        (lambda a: np.diag(a)[2:].mean(), "looking at itself"),
        (lambda a: np.diag(a, 1).mean(), "which nobody sees"),
        (lambda a: np.diag(a, -2).mean(), "two tokens back"),
        (lambda a: np.diag(a, -1)[1:].sum() / len(a), "divided by all tokens; only"),
        (lambda a: np.diag(a, -1).sum() / len(a), "divided by all tokens, and row 1"),
        (lambda a: np.diag(a, -1)[1:].sum(), "take the mean"),
        (lambda a: np.diag(a, -1)[1:].max(), "largest share"),
        (lambda a: np.diag(a, -1)[1:], "one number per token"),
        (lambda a: a[-1, -2], "last query alone"),
        (lambda a: a[2:, :-1].mean(), "whole block"),
        (
            lambda a: np.mean([a[i, i - 1] / (1 - a[i, 0]) for i in range(2, len(a))]),
            "what the sink leaves",
        ),
    ],
    "01.3": [
        (lambda a: a.mean(0), "divided by all queries"),
        (lambda a: a.sum(0), "sum of each column"),
        (lambda a: a.sum(0) / (1 + np.arange(len(a))), "in reverse"),
        (lambda a: a.sum(0) / [*range(len(a) - 1, 0, -1), 1], "one query too few"),
        (
            lambda a: (np.tril(a, -1)).sum(0) / [*range(len(a) - 1, 0, -1), 1],
            "a token at itself is left out",
        ),
        (lambda a: a.sum(1), "sum of each *row*"),
        (lambda a: a.mean(1), "mean of each *row*"),
        (lambda a: a[:, 0].mean(), "first key alone"),
        (lambda a: a.max(0), "largest share"),
        (lambda a: a.sum(0) / a.sum(), "divided by all queries"),
        (lambda a: np.diag(a), "diagonal"),
        (lambda a: a[-1], "last query alone"),
    ],
}
