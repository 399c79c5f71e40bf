"""Sizes that experiments ask at, stretches of text, and judgements of one model at a time.

Knows nothing about how anything is measured.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Float

from sinkviz.experiments.running import Row, Setting
from sinkviz.experiments.stretches import longest_input
from sinkviz.models import LM
from sinkviz.policies import Dense, Policy

PAPER = "Xiao et al. 2023, arXiv 2309.17453"
# What counts as no difference and as one: 5 % and 10 % of perplexity, in nats per token.
ALIKE, WORSE = 0.05, 0.1
# Standard errors of guessing within which nobody can tell; and queries that it takes to see it.
GUESSING, FEWEST = 3.0, 10
LONGEST_CACHE = 2048  # half of what Llama 2 was trained on, and the paper's largest in figure 3
QUICK_CACHE = 64
PER_OCTAVE = 4

Verdict = tuple[bool | None, str]


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


def of_each_model(judge: Callable[[pd.DataFrame], Verdict]) -> Callable[[pd.DataFrame], Verdict]:
    """Let a judge see one model at a time; all of them must agree.

    What cannot be decided for one model does not count against the others.
    """

    def judge_all(table: pd.DataFrame) -> Verdict:
        found = {name: judge(rows) for name, rows in table.groupby("model", sort=False)}
        decided = [agrees for agrees, _ in found.values() if agrees is not None]
        words = "; ".join(
            said if len(found) == 1 else f"{name}: {said}" for name, (_, said) in found.items()
        )
        return (all(decided) if decided else None), words

    return judge_all


def spoken(value: Any) -> str:
    """Return a perplexity, a time or a ratio with the digits that matter.

    Example:
        >>> spoken(3.14159), spoken(67.08), spoken(5158.07)
        ('3.14', '67.1', '5,158')
    """
    return f"{value:.2f}" if value < 10 else f"{value:.1f}" if value < 100 else f"{value:,.0f}"


def share_right(rows: pd.DataFrame, *, seen: bool | None = None) -> float:
    """Return the share of queries answered right, in [0, 1]; NaN where there is none.

    Args:
        rows: columns ``queries`` and ``right``, ``seen`` and ``right_seen``.
        seen: only those whose line is (True) or is no longer (False) in the cache.
    """
    right, asked = _counted(rows, seen)
    return right / asked if asked else float("nan")


def beyond_chance(rows: pd.DataFrame, *, seen: bool | None = None) -> float:
    """Return how far the share answered right is from chance, in standard errors of guessing.

    0 where there is no query.
    """
    right, asked = _counted(rows, seen)
    chance = float(rows["chance"].mean())
    if not asked or not 0 < chance < 1:
        return 0.0
    return (right / asked - chance) / (chance * (1 - chance) / asked) ** 0.5


def gone(rows: pd.DataFrame) -> Verdict:
    """Judge whether lines that have left the cache are no longer known, over all distances.

    Agreement is that the share right is within ``GUESSING`` standard errors of guessing. The
    distance that is furthest from it is named too, and not judged: queries of one text share their
    guesses, so that a single distance strays further than its standard error says.

    Args:
        rows: of one task under one policy, as for ``share_right``, with ``distance`` (tokens).
    """
    beyond = rows[rows["queries"] - rows["seen"] >= FEWEST]
    if not len(beyond):
        return None, "too few queries about lines that have left the cache"
    off = {
        (row["distance"], share_right(row.to_frame().T, seen=False)): beyond_chance(
            row.to_frame().T, seen=False
        )
        for _, row in beyond.iterrows()
    }
    (distance, share), worst = max(off.items(), key=lambda item: abs(item[1]))
    said = (
        f"{share_right(rows, seen=True):.0%} right with the line in the cache, "
        f"{share_right(rows, seen=False):.0%} after it was evicted "
        f"({beyond_chance(rows, seen=False):+.1f} standard errors from guessing), chance "
        f"{rows['chance'].mean():.0%}; furthest from it {share:.0%} at {distance:.0f} tokens "
        f"({worst:+.1f})"
    )
    return abs(beyond_chance(rows, seen=False)) <= GUESSING, said


def _counted(rows: pd.DataFrame, seen: bool | None) -> tuple[float, float]:
    every = float(rows["right"].sum()), float(rows["queries"].sum())
    near = float(rows["right_seen"].sum()), float(rows["seen"].sum())
    return every if seen is None else near if seen else (every[0] - near[0], every[1] - near[1])
