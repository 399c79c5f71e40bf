"""The exercises of notebook 12."""

from __future__ import annotations

import math

import numpy as np

from sinkviz.checks.judging import by_example

# 12.1: standard errors from guessing


def _above(right: int, asked: int, options: int) -> float:
    return right / asked - 1 / options


def _spread(options: int) -> float:
    return math.sqrt(1 / options * (1 - 1 / options))


def _beyond(right: int, asked: int, options: int) -> float:
    return _above(right, asked, options) / (_spread(options) / math.sqrt(asked))


def _by_own_share(right: int, asked: int, options: int) -> float:
    share = right / asked
    return _above(right, asked, options) / math.sqrt(share * (1 - share) / asked)


_standard_errors_from_guessing = by_example(
    _beyond,
    [
        {"right": 30, "asked": 100, "options": 5},
        {"right": 3, "asked": 40, "options": 8},
        {"right": 9, "asked": 20, "options": 4},
    ],
    [
        (_above, "that is how far the share is above chance; divide it by the standard error"),
        (lambda r, n, k: _above(r, n, k) / _spread(k), "that is in units of one question's spread; "
         "the mean of n questions spreads less, by the square root of n"),
        (lambda r, n, k: _above(r, n, k) / (_spread(k) ** 2 / n), "that is divided by the "
         "variance; take its square root"),
        (lambda r, n, k: _above(r, n, k) / (_spread(k) / n), "the standard error falls with the "
         "square root of n, not with n"),
        (_by_own_share, "the error is that of *guessing*: put the chance c under the root, not the "
         "share that was right"),
        (lambda r, n, k: _above(r, n, k) / math.sqrt(1 / k / n), "the factor 1 - c is missing "
         "under the root"),
        (lambda r, n, k: _beyond(r, n, k - 1), "with k candidates the chance is 1 / k: the right "
         "one is among them"),
        (lambda r, n, k: _beyond(r, n, 2), "chance is 1 / options here, not one half"),
        (lambda r, n, k: -_beyond(r, n, k), "the sign is reversed: better than guessing is above "
         "0"),
        (lambda r, n, k: abs(_beyond(r, n, k)), "keep the sign: worse than guessing is below 0"),
        (lambda r, n, k: (r - n / k) / (_spread(k) / math.sqrt(n)), "a number of answers is "
         "divided by the error of a share; take shares in both places"),
    ],
    "the distance from chance, in units of what guessing strays by.",
)  # fmt: skip


# 12.2: how far layers hand a token on


def _reach(n_layers: int, n_recent: int) -> int:
    return n_layers * (n_recent - 1)


_reach_through_layers = by_example(
    _reach,
    [
        {"n_layers": 2, "n_recent": 4},
        {"n_layers": 5, "n_recent": 7},
        {"n_layers": 3, "n_recent": 10},
        {"n_layers": 1, "n_recent": 6},
    ],
    [
        (lambda layers, recent: recent - 1, "that is the reach of one layer; each further layer "
         "starts from where the last one ended"),
        (lambda layers, recent: recent, "that is the size of the window; how far does one layer "
         "look back, and how far do several?"),
        (lambda layers, recent: layers * recent, "n_recent counts the token itself, so that a "
         "layer looks n_recent - 1 back"),
        (lambda layers, recent: (layers - 1) * (recent - 1), "one layer is missing: the first "
         "looks back too"),
        (lambda layers, recent: layers * (recent - 1) + 1, "one too far: asked is the token that "
         "is *read* when the logits change, not the one they predict"),
        (lambda layers, recent: (recent - 1) ** layers, "steps back add up, they do not multiply "
         "with each other: the first layer's token is n_recent - 1 back, the next as many more"),
        (lambda layers, recent: recent**layers, "steps back add up, they do not multiply with "
         "each other"),
        (lambda layers, recent: layers + recent - 1, "each layer looks n_recent - 1 back, not one "
         "token further"),
        (lambda layers, recent: -_reach(layers, recent), "the sign is reversed: give a distance"),
    ],
    "each layer hands a trace on by n_recent - 1 tokens, and no further.",
)  # fmt: skip


# 12.3: do two rankings agree?


def _ranked(values: np.ndarray) -> np.ndarray:
    return (values[:, None] > values).sum(1)  # how many are smaller


def _rank_correlation(one: np.ndarray, other: np.ndarray) -> float:
    return float(np.corrcoef(_ranked(one), _ranked(other))[0, 1])


def _made_up(length: int, seed: int, slope: float) -> dict[str, np.ndarray]:
    draw = np.random.default_rng(seed)
    one = draw.gamma(1.0, 1.0, length)
    return {"one": one, "other": np.exp(draw.normal(0, 1, length) + slope * one)}


_do_rankings_agree = by_example(
    _rank_correlation,
    [_made_up(7, 3, slope=-1), _made_up(12, 8, slope=1), _made_up(9, 5, slope=-2)],
    [
        (lambda a, b: np.corrcoef(a, b)[0, 1], "that is the correlation of the values; one huge "
         "value decides it; take their ranks first"),
        (lambda a, b: np.corrcoef(np.argsort(a), np.argsort(b))[0, 1], "argsort gives the order, "
         "who comes first; ranks are the argsort of that order"),
        (lambda a, b: np.corrcoef(_ranked(a), b)[0, 1], "only the first is ranked; rank both"),
        (lambda a, b: np.corrcoef(a, _ranked(b))[0, 1], "only the second is ranked; rank both"),
        (lambda a, b: np.corrcoef(_ranked(a), _ranked(b)), "that is the whole matrix; the number "
         "stands off its diagonal"),
        (lambda a, b: np.cov(_ranked(a), _ranked(b))[0, 1], "that is the covariance of the ranks; "
         "a correlation divides it by both spreads"),
        (lambda a, b: -_rank_correlation(a, b), "the sign is reversed: are both ranked the same "
         "way round?"),
        (lambda a, b: abs(_rank_correlation(a, b)), "keep the sign: opposite rankings are at -1"),
        (lambda a, b: _rank_correlation(a, b) ** 2, "that is the square; take the correlation"),
        (lambda a, b: np.mean(_ranked(a) == _ranked(b)), "that is the share of equal ranks; a "
         "correlation also counts near ones"),
    ],
    "the correlation of ranks: who is before whom, however far.",
)  # fmt: skip

EXERCISES = {
    "12.1": _standard_errors_from_guessing,
    "12.2": _reach_through_layers,
    "12.3": _do_rankings_agree,
}
