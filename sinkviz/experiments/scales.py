"""Sizes that experiments ask at, and stretches of text.

Knows nothing about how anything is measured.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from jaxtyping import Float

from sinkviz.experiments.running import Row, Setting
from sinkviz.experiments.stretches import longest_input
from sinkviz.models import LM
from sinkviz.policies import Dense, Policy

LONGEST_CACHE = 2048  # half of what Llama 2 was trained on, and the paper's largest in figure 3
QUICK_CACHE = 64
PER_OCTAVE = 4


def usual_cache(setting: Setting, lm: LM) -> int:
    """Return half of what a model was trained on, tokens: the paper's size of cache.

    At most 2,048, and at most 64 in a quick run.

    Source: Xiao et al. 2023, arXiv 2309.17453, figure 3.
    """
    half = (lm.train_length or 2 * LONGEST_CACHE) // 2
    return max(16, min(half, QUICK_CACHE if setting.quick else LONGEST_CACHE))


def readable(lm: LM, policy: Policy, n_tokens: int) -> int:
    """Return how many of ``n_tokens`` a model can read: full attention ends with its positions."""
    limit = longest_input(lm)
    return min(n_tokens, limit) if isinstance(policy, Dense) and limit else n_tokens


def position_edges(cache_size: int, n_tokens: int) -> list[int]:
    """Return where stretches of a text begin, and the end of the last; text positions.

    Stretches grow with the text, four per doubling. One begins right where a cache of
    ``cache_size`` has evicted its first token, so that what follows can be summed exactly.

    Example:
        >>> position_edges(8, 20)
        [1, 2, 3, 4, 5, 6, 7, 8, 9, 11, 12, 14, 17, 20]
    """
    edges = {1, n_tokens}
    step = -3 * PER_OCTAVE
    while (edge := round(cache_size * 2 ** (step / PER_OCTAVE)) + 1) < n_tokens:
        edges.add(edge)
        step += 1
    return sorted(edge for edge in edges if 0 < edge <= n_tokens)


def binned(nll: Float[np.ndarray, " token"], edges: Sequence[int]) -> list[Row]:
    """Return the mean nll of each stretch between two edges.

    Args:
        nll: nats per token of a text.
        edges: text positions; stretches beyond the end of ``nll`` are left out or cut.

    Example:
        >>> binned(np.array([np.nan, 1.0, 3.0, 5.0]), [1, 3, 9])
        [{'first': 1, 'stop': 3, 'nll': 2.0}, {'first': 3, 'stop': 4, 'nll': 5.0}]
    """
    stops = [min(edge, len(nll)) for edge in edges]
    pairs = zip(stops, stops[1:], strict=False)
    return [
        {"first": first, "stop": stop, "nll": float(nll[first:stop].mean(dtype=np.float64))}
        for first, stop in pairs
        if first < stop
    ]


def mean_nll(rows: pd.DataFrame, first: int = 0, stop: int | None = None) -> float:
    """Return the mean nll over the stretches that lie in ``[first, stop)``, nats per token.

    NaN where there is none.
    """
    inside = rows[rows["first"] >= first]
    if stop is not None:
        inside = inside[inside["stop"] <= stop]
    weight = inside["stop"] - inside["first"]
    return float((inside["nll"] * weight).sum() / weight.sum()) if len(inside) else float("nan")
