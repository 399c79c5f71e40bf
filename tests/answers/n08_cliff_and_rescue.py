"""Answers to the exercises of notebook 08: right ones as students write them, and wrong ones."""

import numpy as np
import torch

from sinkviz.policies import SinkWindow

RIGHT = {
    "08.1": [
        lambda n, s, r: sorted({*range(min(n, s)), *range(max(0, n - r), n)}),
        lambda n, s, r: np.array([i for i in range(n) if i < s or n - i <= r]),
        lambda n, s, r: tuple(SinkWindow(s, r).keep(n)),
        lambda n, s, r: {i for i in range(n) if i < s or n - i <= r},
        lambda n, s, r: torch.tensor(SinkWindow(s, r).keep(n)),
    ],
    "08.2": [
        lambda nll, start: float(np.exp(np.sum(nll[start:]) / (len(nll) - start))),
        lambda nll, start: torch.from_numpy(nll)[start:].mean().exp(),
    ],
    "08.3": [lambda window, sinks: np.log(window / sinks)],
}

# With a part of what the check says to each.
WRONG = {
    "08.1": [
        (lambda n, s, r: list(range(n))[-r:], "sinks are missing"),
        (lambda n, s, r: list(range(n)), "nothing is evicted"),
        (lambda n, s, r: list(range(n))[:s], "recent tokens are missing"),
        (lambda n, s, r: list(range(s)) + list(range(n - r, n)), "twice or do not exist"),
        (lambda n, s, r: list(range(n))[:s] + list(range(n))[-r:], "come twice"),
        (lambda n, s, r: sorted(set(range(s)) | set(range(n - r, n))), "do not exist"),
        (lambda n, s, r: [i for i in range(n) if i < s or i >= n - r - 1], "one recent token too"),
        (lambda n, s, r: [i for i in range(n - 1) if i < s or i >= n - r], "current token is miss"),
        (lambda n, s, r: [i for i in range(n + 1) if i < s or i > n - r], "position n is not"),
        (lambda n, s, r: [i for i in range(n) if i < s or i >= n - max(1, r - s)], "on top of"),
        (lambda n, s, r: [i for i in range(n) if i < r or i >= n - s], "swapped"),
        (lambda n, s, r: [i for i in range(n)[::-1] if i < s or i >= n - r], "oldest first"),
        (lambda n, s, r: min(n, s + r), "how many"),
    ],
    "08.2": [
        (lambda nll, start: np.nanmean(nll[start:]), "its exponential"),
        (lambda nll, start: np.exp(nll[start:]).mean(), "mean of exponentials"),
        (lambda nll, start: np.exp(np.nanmean(nll)), "whole text"),
        (lambda nll, start: np.exp(nll.mean()), "NaN: the first token has no prediction"),
        (lambda nll, start: np.exp(nll[1:start].mean()), "before eviction"),
        (lambda nll, start: np.exp(nll[start + 1 :].mean()), "token at start itself"),
        (lambda nll, start: 2 ** np.mean(nll[start:]), "base 2"),
        (lambda nll, start: np.exp(nll[start:].sum()), "exponential of the sum"),
        (lambda nll, start: np.exp(-nll[start:].mean()), "sign is reversed"),
        (lambda nll, start: np.exp(np.median(nll[start:])), "median"),
        (lambda nll, start: np.exp(nll[start:]), "one number per token"),
    ],
    "08.3": [
        (lambda window, sinks: window - sinks, "difference of perplexities"),
        (lambda window, sinks: window / sinks, "how many times"),
        (lambda window, sinks: np.log(sinks / window), "sign is reversed"),
        (lambda window, sinks: np.log2(window / sinks), "bits"),
        (lambda window, sinks: np.log10(window / sinks), "log10"),
        (lambda window, sinks: np.log(window - sinks), "logarithm of the difference"),
        (lambda window, sinks: np.log(window) / np.log(sinks), "ratio of logarithms"),
        (lambda window, sinks: np.exp(window) - np.exp(sinks), "already an exponential"),
    ],
}
