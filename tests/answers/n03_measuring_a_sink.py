"""Answers to the exercises of notebook 03: right ones as students write them, and wrong ones."""

import math

import numpy as np
import torch


def entropy(w):
    return -(w * np.log(w)).sum()


RIGHT = {
    "03.1": [
        lambda r, e: np.mean(r[:, :, 0] > e),
        lambda r, e: (torch.tensor(r)[..., 0] > e).float().mean(),
        lambda r, e: sum(h[0] > e for layer in r for h in layer) / (r.shape[0] * r.shape[1]),
    ],
    "03.2": [
        lambda n: sum(1 / (q + 1) for q in range(n)) / n,
        lambda n: (np.tri(n) / np.arange(1, n + 1)[:, None])[:, 0].mean(),
    ],
    "03.3": [
        lambda w: math.exp(-sum(p * math.log(p) for p in w)),
        lambda w: 2 ** -(w * np.log2(w)).sum(),
        lambda w: torch.distributions.Categorical(torch.tensor(w)).entropy().exp(),
        lambda w: np.prod(w**-w),
    ],
}

# With a part of what the check says to each.
WRONG = {
    "03.1": [
        (lambda r, e: np.sum(r[..., 0] > e), "how many heads"),
        (lambda r, e: 100 * np.mean(r[..., 0] > e), "per cent"),
        (lambda r, e: r[..., 0].mean(), "mean that the first token receives"),
        (lambda r, e: np.mean(r[..., 0] > 0.3), "whatever is given"),
        (lambda r, e: np.mean(r[..., 0] <= e), "*below* epsilon"),
        (lambda r, e: np.mean(r > e), "every key"),
        (lambda r, e: np.mean(r.max(-1) > e), "*any* key"),
        (lambda r, e: np.mean(r[..., -1] > e), "last key"),
        (lambda r, e: np.mean(r[0] > e), "first *layer*"),
        (lambda r, e: np.mean(r[:, 0] > e), "first *head*"),
        (lambda r, e: int(r[..., 0].mean() > e), "mean over heads is compared"),
        (lambda r, e: (r[..., 0] > e).mean(axis=1), "one rate per layer"),
        (lambda r, e: r[..., 0] > e, "yes or no"),
    ],
    "03.2": [
        (lambda n: 1 / n, "*last* query"),
        (lambda n: n / (n * (n + 1) / 2), "mean number of keys"),
        (lambda n: sum(1 / (q + 1) for q in range(n)), "sum over queries"),
        (lambda n: np.mean([1 / (q + 1) for q in range(1, n)]), "first query is missing"),
        (lambda n: np.mean([1 / (q + 2) for q in range(n)]), "one key too many"),
        (lambda n: np.mean([1 / q for q in range(1, n)]), "last query is missing"),
        (lambda n: [1 / (q + 1) for q in range(n)], "one share per query"),
        (lambda n: math.log(n) / n, "exact mean"),
        (lambda n: 1 / 2, "two tokens"),
    ],
    "03.3": [
        (entropy, "that is the entropy, in nats"),
        (lambda w: -(w * np.log2(w)).sum(), "entropy in bits"),
        (lambda w: 2 ** entropy(w), "base 2"),
        (lambda w: np.exp(-(w * np.log2(w)).sum()), "do not go together"),
        (lambda w: np.exp((w * np.log(w)).sum()), "sign is reversed: entropy"),
        (lambda w: (w * np.log(w)).sum(), "exponential is missing"),
        (lambda w: np.exp(-(w * np.log(w)).mean()), "mean was taken"),
        (lambda w: np.exp(-np.log(w).mean()), "weighted alike"),
        (lambda w: 1 / np.sum(w * w), "sum of squares"),
        (lambda w: 1 / max(w), "largest share alone"),
        (len, "how many keys there are"),
        (lambda w: np.exp(-w * np.log(w)).sum(), "exponentials of each part"),
    ],
}
