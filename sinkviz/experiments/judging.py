"""How a claim's judge says that a table cannot decide: what it needs was not measured.

Knows nothing about any claim.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import pandas as pd

Verdict = tuple[bool | None, str]


class Absent(Exception):
    """A table lacks what a claim is about; the message says what."""


def decided(judge: Callable[[pd.DataFrame], Verdict]) -> Callable[[pd.DataFrame], Verdict]:
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
