"""What the judges of claims share: a verdict on each model, what cannot be decided, and numbers.

Knows nothing about any claim.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import pandas as pd

PAPER = "Xiao et al. 2023, arXiv 2309.17453"
# What counts as no difference and as one: 5 % and 10 % of perplexity, in nats per token.
ALIKE, WORSE = 0.05, 0.1

Verdict = tuple[bool | None, str]
Judge = Callable[[pd.DataFrame], Verdict]


class Absent(Exception):
    """A table lacks what a claim is about; the message says what."""


def decided(judge: Judge) -> Judge:
    """Let a judge answer None, with the reason, where it raises ``Absent``.

    Example:
        >>> @decided
        ... def judge(table):
        ...     raise Absent("no row tells")
        >>> judge(pd.DataFrame())
        (None, 'no row tells')
    """

    @functools.wraps(judge)
    def answer(table: pd.DataFrame) -> Verdict:
        try:
            return judge(table)
        except Absent as absent:
            return None, str(absent)

    return answer


def of_each_model(judge: Judge) -> Judge:
    """Let a judge see one model at a time; all of them must agree.

    What cannot be decided for one model does not count against the others.
    """

    def judge_all(table: pd.DataFrame) -> Verdict:
        verdicts, words = _one_by_one(judge, table)
        known = [agrees for agrees in verdicts if agrees is not None]
        return (all(known) if known else None), words

    return judge_all


def unanimous(judge: Judge, by: str = "model") -> Judge:
    """Let a judge see one model (or whatever ``by`` names) at a time; undecided where they differ.

    Example:
        >>> better = unanimous(lambda rows: (bool(rows.a.lt(rows.b).all()), "as seen"), by="seed")
        >>> better(pd.DataFrame({"seed": ["seed 0", "seed 1"], "a": [1, 3], "b": [2, 2]}))
        (None, 'seed 0: as seen; seed 1: as seen')
    """

    def judge_all(table: pd.DataFrame) -> Verdict:
        verdicts, words = _one_by_one(judge, table, by)
        return verdicts[0] if len(set(verdicts)) == 1 else None, words

    return judge_all


def _one_by_one(
    judge: Judge, table: pd.DataFrame, by: str = "model"
) -> tuple[list[bool | None], str]:
    """Return the verdict on each model, and all words, with the model's name if there are more."""
    found = {name: judge(rows) for name, rows in table.groupby(by, sort=False)}
    said = [here if len(found) == 1 else f"{name}: {here}" for name, (_, here) in found.items()]
    return [agrees for agrees, _ in found.values()], "; ".join(said)


def spoken(value: Any) -> str:
    """Return a perplexity, a time or a ratio with the digits that matter.

    Example:
        >>> spoken(3.14159), spoken(67.08), spoken(5158.07)
        ('3.14', '67.1', '5,158')
    """
    return f"{value:.2f}" if value < 10 else f"{value:.1f}" if value < 100 else f"{value:,.0f}"


def nats(change: float) -> str:
    """Return a change of nll with its sign and three decimals.

    Example:
        >>> nats(0.1234), nats(-0.0001)
        ('+0.123', '+0.000')
    """
    return f"{round(change, 3) + 0.0:+.3f}"  # + 0.0: a zero has no sign
