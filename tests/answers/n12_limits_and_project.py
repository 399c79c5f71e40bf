"""Answers to the exercises of notebook 12: right ones as students write them, and wrong ones."""

import math

import numpy as np
import torch


def ranks(values):
    return np.argsort(np.argsort(values))


def rank_correlation(one, other):
    return np.corrcoef(ranks(one), ranks(other))[0, 1]


def spearman(one, other):
    """Return the textbook's formula for ranks without ties."""
    n, off = len(one), ranks(one) - ranks(other)
    return 1 - 6 * np.sum(off**2) / (n * (n**2 - 1))


def z(right, asked, options):
    chance = 1 / options
    return (right / asked - chance) / math.sqrt(chance * (1 - chance) / asked)


RIGHT = {
    "12.1": [
        z,
        lambda r, n, k: (r - n / k) / np.sqrt(n * (1 / k) * (1 - 1 / k)),
        lambda r, n, k: torch.tensor((r / n - 1 / k) * n**0.5 / (1 / k - 1 / k**2) ** 0.5),
    ],
    "12.2": [
        lambda n_layers, n_recent: n_layers * (n_recent - 1),
        lambda n_layers, n_recent: sum(n_recent - 1 for _ in range(n_layers)),
        lambda n_layers, n_recent: np.int64(n_layers * n_recent - n_layers),
    ],
    "12.3": [
        rank_correlation,
        spearman,
        lambda one, other: np.corrcoef(ranks(-one), ranks(-other))[1, 0],
    ],
}

# With a part of what the check says to each.
WRONG = {
    "12.1": [
        (lambda r, n, k: r / n - 1 / k, "divide it by the standard error"),
        (lambda r, n, k: (r / n - 1 / k) / (1 / k * (1 - 1 / k)) ** 0.5, "one question's spread"),
        (lambda r, n, k: (r / n - 1 / k) / (1 / k * (1 - 1 / k) / n), "variance"),
        (lambda r, n, k: (r / n - 1 / k) / ((1 / k * (1 - 1 / k)) ** 0.5 / n), "not with n"),
        (lambda r, n, k: (r / n - 1 / k) / (r / n * (1 - r / n) / n) ** 0.5, "that of *guessing*"),
        (lambda r, n, k: (r / n - 1 / k) / (1 / k / n) ** 0.5, "factor 1 - c"),
        (lambda r, n, k: z(r, n, k - 1), "the chance is 1 / k"),
        (lambda r, n, k: z(r, n, 2), "not one half"),
        (lambda r, n, k: -z(r, n, k), "sign is reversed"),
        (lambda r, n, k: abs(z(r, n, k)), "keep the sign"),
        (lambda r, n, k: (r - n / k) / (1 / k * (1 - 1 / k) / n) ** 0.5, "shares in both places"),
    ],
    "12.2": [
        (lambda n_layers, n_recent: n_recent - 1, "one layer"),
        (lambda n_layers, n_recent: n_recent, "size of the window"),
        (lambda n_layers, n_recent: n_layers * n_recent, "counts the token itself"),
        (lambda n_layers, n_recent: (n_layers - 1) * (n_recent - 1), "one layer is missing"),
        (lambda n_layers, n_recent: n_layers * (n_recent - 1) + 1, "one too far"),
        (lambda n_layers, n_recent: (n_recent - 1) ** n_layers, "n_recent - 1 back, the next"),
        (lambda n_layers, n_recent: n_recent**n_layers, "add up"),
        (lambda n_layers, n_recent: n_recent - 1 + n_layers, "not one token further"),
        (lambda n_layers, n_recent: n_layers - n_layers * n_recent, "give a distance"),
    ],
    "12.3": [
        (lambda one, other: np.corrcoef(one, other)[0, 1], "take their ranks first"),
        (lambda a, b: np.corrcoef(np.argsort(a), np.argsort(b))[0, 1], "argsort of that order"),
        (lambda one, other: np.corrcoef(ranks(one), other)[0, 1], "only the first"),
        (lambda one, other: np.corrcoef(one, ranks(other))[0, 1], "only the second"),
        (lambda one, other: np.corrcoef(ranks(one), ranks(other)), "whole matrix"),
        (lambda one, other: np.cov(ranks(one), ranks(other))[0, 1], "covariance"),
        (lambda one, other: np.corrcoef(ranks(one), ranks(-other))[0, 1], "same way round"),
        (lambda one, other: abs(rank_correlation(one, other)), "keep the sign"),
        (lambda one, other: rank_correlation(one, other) ** 2, "the square"),
        (lambda one, other: (ranks(one) == ranks(other)).mean(), "share of equal ranks"),
    ],
}
