"""The exercises of notebook 08."""

from __future__ import annotations

import math

import numpy as np
import torch

from sinkviz.checks.judging import by_example
from sinkviz.metrics import perplexity
from sinkviz.policies import SinkWindow

# 08.1: which tokens a sink window keeps


def _keep(n: int, n_sink: int, n_recent: int) -> list[int]:
    return SinkWindow(n_sink, n_recent).keep(n)


def _glued(n: int, n_sink: int, n_recent: int) -> list[int]:
    return [*range(n_sink), *range(n - n_recent, n)]


def _glued_inside(n: int, n_sink: int, n_recent: int) -> list[int]:
    return [*range(min(n, n_sink)), *range(max(0, n - n_recent), n)]


_keep_of_a_sink_window = by_example(
    _keep,
    [
        {"n": 7, "n_sink": 2, "n_recent": 3},
        {"n": 9, "n_sink": 1, "n_recent": 4},
        {"n": 6, "n_sink": 3, "n_recent": 5},
        {"n": 4, "n_sink": 3, "n_recent": 3},
        {"n": 2, "n_sink": 4, "n_recent": 3},
    ],
    [
        (lambda n, s, r: [*range(max(0, n - r), n)], "the sinks are missing: this is window "
         "attention"),
        (lambda n, s, r: [*range(n)], "nothing is evicted: this is dense attention"),
        (lambda n, s, r: [*range(min(s, n))], "the recent tokens are missing"),
        (_glued, "while the text is short, sinks and window overlap: some positions come twice or "
         "do not exist; give each token of range(n) once"),
        (_glued_inside, "while the text is short, sinks and window overlap: some positions come "
         "twice; give each once"),
        (lambda n, s, r: sorted({*_glued(n, s, r)}), "while the text is short, some positions do "
         "not exist yet, or no more; keep those in range(n)"),
        (lambda n, s, r: _keep(n, s, r)[::-1], "right tokens, "
         "wrong order; give the oldest first"),
        (lambda n, s, r: _keep(n, s, r + 1), "one recent token too many: n_recent counts the "
         "current token too"),
        (lambda n, s, r: _keep(n, s, r)[:-1], "the current token is missing: it is number n, at "
         "position n - 1, and sees itself"),
        (lambda n, s, r: _keep(n + 1, s, r), "position n is not written yet: the n-th token is at "
         "position n - 1"),
        (lambda n, s, r: _keep(n, s, max(1, r - s)), "the sinks come on top of the recent tokens, "
         "not out of them: the cache holds n_sink + n_recent"),
        (lambda n, s, r: _keep(n, r, s), "n_sink and n_recent are swapped"),
        (lambda n, s, r: len(_keep(n, s, r)), "that is how many are kept; give their positions"),
    ],
    "the first tokens and the latest ones, each once, the current one included.",
)  # fmt: skip


# 08.2: perplexity after eviction


def _made_up_nll(length: int, seed: int) -> np.ndarray:
    """Return nll per token, nats; NaN for the first, which nothing predicts."""
    nll = np.random.default_rng(seed).gamma(2.0, 0.7, length)
    nll[0] = np.nan
    return nll


_perplexity_after_eviction = by_example(
    lambda nll, start: perplexity(torch.from_numpy(nll[start:])),
    [
        {"nll": _made_up_nll(9, seed=2), "start": 4},
        {"nll": _made_up_nll(30, seed=3), "start": 12},
    ],
    [
        (lambda nll, start: nll[start:].mean(), "that is the mean nll in nats; perplexity is its "
         "exponential"),
        (lambda nll, start: np.exp(nll[start:]).mean(), "mean of exponentials; take the mean "
         "first, then the exponential"),
        (lambda nll, start: np.exp(np.nanmean(nll)), "that is the perplexity of the whole text; "
         "leave out the tokens before start"),
        (lambda nll, start: np.exp(np.nanmean(nll[:start])), "that is the perplexity before "
         "eviction; take the tokens from start on"),
        (lambda nll, start: np.exp(nll[start + 1 :].mean()), "the token at start itself is "
         "missing"),
        (lambda nll, start: 2 ** nll[start:].mean(), "base 2 belongs to bits; our nll is in nats, "
         "base e"),
        (lambda nll, start: np.exp(nll[start:].sum()), "that is the exponential of the sum; divide "
         "by the number of tokens first"),
        (lambda nll, start: np.exp(-nll[start:].mean()), "the sign is reversed: nll is already "
         "*minus* the log probability"),
        (lambda nll, start: np.exp(np.median(nll[start:])), "that is built on the median; "
         "perplexity takes the mean"),
        (lambda nll, start: np.exp(nll[start:]), "that is one number per token; take the mean nll "
         "first"),
    ],
    "exp of the mean nll, over the tokens that count.",
    nan="the first token has no prediction, so no nll",
)  # fmt: skip


# 08.3: the cliff in nats


def _cliff(window: float, sinks: float) -> float:
    return math.log(window) - math.log(sinks)


_cliff_in_nats = by_example(
    _cliff,
    [{"window": 8.0, "sinks": 2.0}, {"window": 30.0, "sinks": 12.0}],
    [
        (lambda w, s: w - s, "that is a difference of perplexities; nats are differences of their "
         "logarithms"),
        (lambda w, s: w / s, "that is how many times larger the perplexity is; its logarithm is "
         "the cliff in nats"),
        (lambda w, s: -_cliff(w, s), "the sign is reversed: the window is the worse one, so the "
         "cliff is above 0"),
        (lambda w, s: _cliff(w, s) / math.log(2), "those are bits (log2); nats are natural "
         "logarithms"),
        (lambda w, s: _cliff(w, s) / math.log(10), "that is log10; nats are natural logarithms"),
        (lambda w, s: math.log(w - s), "logarithm of the difference; take the difference of the "
         "logarithms"),
        (lambda w, s: math.log(w) / math.log(s), "a ratio of logarithms; take their difference"),
        (lambda w, s: math.exp(w) - math.exp(s), "perplexity is already an exponential; go back "
         "with the logarithm"),
    ],
    "a difference of mean nll is the logarithm of a ratio of perplexities.",
)  # fmt: skip

EXERCISES = {
    "08.1": _keep_of_a_sink_window,
    "08.2": _perplexity_after_eviction,
    "08.3": _cliff_in_nats,
}
