"""Answers to the exercises of notebook 02: right ones as students write them, and wrong ones."""

import numpy as np
import torch


def softmax(scores):
    weights = np.exp(scores - np.max(scores))
    return weights / weights.sum()


def stable(scores, null_logit):
    top = max(scores.max(), null_logit)
    return np.exp(scores - top) / (np.exp(scores - top).sum() + np.exp(null_logit - top))


def half_shifted(scores, null_logit):
    weights = np.exp(scores - scores.max())
    return weights / (weights.sum() + np.exp(null_logit))


def one_after_the_shift(scores, null_logit):
    weights = np.exp(scores - scores.max())
    return weights / (1 + weights.sum())


def null_on_top(scores, null_logit):
    weights = np.exp(scores) + np.exp(null_logit)
    return weights / weights.sum()


RIGHT = {
    "02.1": [
        lambda share, n_others: np.log(n_others * share / (1 - share)),
        lambda share, n_others: -np.log((1 / share - 1) / n_others),
        lambda share, n_others: torch.logit(torch.tensor(share)) + np.log(n_others),
    ],
    "02.2": [
        stable,
        lambda scores, null_logit: np.exp(scores) / (np.exp(null_logit) + np.exp(scores).sum()),
        lambda scores, null_logit: softmax(np.append(scores, null_logit))[:-1],
        lambda scores, null_logit: torch.tensor([null_logit, *scores]).softmax(-1)[1:],
    ],
    "02.3": [
        lambda untouched, damaged, repaired: 1 - (repaired - untouched) / (damaged - untouched),
        lambda u, d, r: (r - d) / (u - d),
    ],
}

# With a part of what the check says to each.
WRONG = {
    "02.1": [
        (lambda share, n: np.log(share) - np.log(1 - share), "single other key"),
        (lambda share, n: np.log(share / (1 - share) / n), "ln(n_others) is reversed"),
        (lambda share, n: np.log((1 / share - 1) / n), "the sign is reversed"),
        (lambda share, n: n / (1 / share - 1), "its logarithm"),
        (lambda share, n: np.log(share) + np.log(n), "not against one"),
        (lambda share, n: np.log(n * (1 - share) / share), "are swapped"),
        (lambda share, n: np.log(share / (1 - share)) + n, "adds its logarithm"),
        (lambda share, n: np.log(share / (1 - share)) * np.log(n), "logarithms add up"),
        (lambda share, n: np.log((n - 1) * share / (1 - share)), "do not take one off"),
        (lambda share, n: np.log((n + 1) * share / (1 - share)), "no rival of its own"),
        (lambda share, n: np.log2(n * share / (1 - share)), "log2"),
        (lambda share, n: np.log10(n * share / (1 - share)), "log10"),
    ],
    "02.2": [
        (lambda scores, null: softmax(scores), "standard softmax"),
        (lambda scores, null: softmax(scores - null), "standard softmax"),
        (lambda scores, null: np.exp(scores) / (1 + np.exp(scores).sum()), "off by one whatever"),
        (lambda scores, null: np.exp(scores) / (np.exp(scores).sum() + null), "exponential before"),
        (half_shifted, "not off the null logit"),
        (one_after_the_shift, "no longer 1"),
        (lambda scores, null: softmax(np.append(scores, null)), "last share"),
        (lambda scores, null: softmax(np.insert(scores, 0, null)), "first share"),
        (lambda scores, null: torch.sigmoid(torch.tensor(scores) - null), "sigmoid attention"),
        (null_on_top, "below alone"),
        (lambda scores, null: np.exp(scores) / (np.exp(scores).sum() - np.exp(null)), "larger"),
        (lambda scores, null: stable(scores, null).sum(), "one per key"),
        (lambda scores, null: 1 - stable(scores, null).sum(), "goes nowhere"),
    ],
    "02.3": [
        (lambda u, d, r: (r - u) / (d - u), "that is left"),
        (lambda u, d, r: d - r, "divide them"),
        (lambda u, d, r: 1 - r / d, "whole nll"),
        (lambda u, d, r: (d - r) / (r - u), "still missing"),
        (lambda u, d, r: (d - r) / (u - d), "sign is reversed"),
        (lambda u, d, r: u / r, "ratio of two nll"),
        (lambda u, d, r: r / d, "ratio of two nll"),
        (lambda u, d, r: (np.exp(d) - np.exp(r)) / (np.exp(d) - np.exp(u)), "perplexities"),
        (lambda u, d, r: 100 * (d - r) / (d - u), "per cent"),
        (lambda u, d, r: float(np.clip((d - r) / (d - u), 0, 1)), "do not cut it off"),
    ],
}
