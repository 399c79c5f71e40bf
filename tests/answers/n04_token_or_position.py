"""Answers to the exercises of notebook 04: right ones as students write them, and wrong ones."""

import math

import numpy as np
import torch


def in_place(ids, to):
    ids[:to], ids[to] = ids[1 : to + 1].copy(), ids[0]
    return ids


def through_list(ids, to):
    ids = list(ids)
    ids.insert(to, ids.pop(0))
    return ids


def list_too_early(ids, to):
    ids = list(ids)
    ids.insert(to, ids[0])
    return ids[1:]


def exchanged(ids, to):
    ids[0], ids[to] = ids[to], ids[0]
    return ids


def by_softmax(share, n_copies):
    scores = [math.log(1 - share)] + [math.log(share)] * n_copies
    return torch.softmax(torch.tensor(scores), 0)[1:].sum()


RIGHT = {
    "04.1": [
        lambda ids, to: np.concatenate((ids[1 : to + 1], ids[:1], ids[to + 1 :])),
        lambda ids, to: np.insert(ids[1:], to, ids[0]),
        lambda ids, to: torch.cat([torch.tensor(ids[1:]), torch.tensor(ids[:1])])[
            [*range(to), len(ids) - 1, *range(to, len(ids) - 1)]
        ],
        through_list,
        in_place,
    ],
    "04.2": [
        lambda p, n: n * p / (n * p + 1 - p),
        lambda p, n: 1 - (1 - p) / (1 + (n - 1) * p),
        lambda p, n: 1 / (1 + (1 / p - 1) / n),
        by_softmax,
    ],
    "04.3": [
        lambda b, a: math.log(a / b),
        lambda b, a: np.log(a) - np.log(b),
        lambda b, a: -math.log(b / a),
        lambda b, a: torch.tensor(a / b).log(),
    ],
}

# With a part of what the check says to each.
WRONG = {
    "04.1": [
        (exchanged, "changed places"),
        (list_too_early, "too early"),
        (lambda ids, to: [*ids[1 : to + 2], ids[0], *ids[to + 2 :]], "too late"),
        (lambda ids, to: [*ids[:to], ids[0], *ids[to:]], "twice"),
        (lambda ids, to: [*ids[: to + 1], ids[0], *ids[to + 1 :]], "twice"),
        (lambda ids, to: ids[1:], "is gone"),
        (lambda ids, to: [*ids[1:], ids[0]], "very end"),
        (lambda ids, to: np.roll(ids, to), "turned round"),
        (lambda ids, to: [*ids[to:], *ids[:to]], "turned round"),
        (lambda ids, to: [*ids[1 : to + 1], 0, *ids[to + 1 :]], "id 0"),
        (lambda ids, to: ids, "as it was"),
    ],
    "04.2": [
        (lambda p, n: n * p, "new total"),
        (lambda p, n: min(1, n * p), "new total"),
        (lambda p, n: p, "just share out"),
        (lambda p, n: p / (n * p + 1 - p), "*one* copy"),
        (lambda p, n: p / n, "cut in pieces"),
        (lambda p, n: n * p / (1 + n * p), "not 1"),
        (lambda p, n: (1 - p) / (n * p + 1 - p), "left for the rest"),
        (lambda p, n: 1 - (1 - p) ** n, "independent draws"),
        (lambda p, n: (n + 1) * p / (1 + n * p), "one copy too many"),
    ],
    "04.3": [
        (lambda b, a: a - b, "difference of perplexities"),
        (lambda b, a: a / b, "ratio"),
        (lambda b, a: (a - b) / b, "relative change"),
        (lambda b, a: math.log(b / a), "reversed"),
        (lambda b, a: math.log2(a / b), "bits"),
        (lambda b, a: math.log10(a / b), "base 10"),
        (lambda b, a: math.log(a) / math.log(b), "divided"),
        (lambda b, a: math.log(abs(a - b)), "other way"),
        (lambda b, a: math.exp(a) - math.exp(b), "way back"),
        (lambda b, a: math.exp(a - b), "way back"),
        (lambda b, a: abs(math.log(a / b)), "sign is lost"),
        (lambda b, a: math.log(a), "nll afterwards"),
    ],
}
