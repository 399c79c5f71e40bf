"""Tokens of any text as short, harmless labels for a front end.

Knows nothing about widgets.
"""

from __future__ import annotations

from collections.abc import Sequence

from sinkviz.plots._parts import short

LONGEST = 40  # characters of a label


def labels(tokens: Sequence[str]) -> bytes:
    r"""Return one line of UTF-8 per token: nothing invisible in it, and none of them endless.

    Line breaks and tabs become arrows; other control characters, direction marks and characters of
    no width become dots.

    Example:
        >>> labels([" Once", "a\nb", "\u202e"]).decode().splitlines()
        [' Once', 'a↵b', '·']
    """
    return "\n".join(short(token, LONGEST) for token in tokens).encode("utf-8", "replace")


def prose(token: str) -> str:
    r"""Return a token for a text that flows: line breaks and tabs stay, the rest as in ``labels``.

    Example:
        >>> prose("a\nb\u202e\u200b"), prose("x" * 10_000) == "x" * 39 + "…"
        ('a\nb··', True)
    """
    start = token[: LONGEST + 1]
    shown = "".join(c if c.isprintable() or c in "\n\t" else "·" for c in start)
    return shown if len(token) <= LONGEST else shown[: LONGEST - 1] + "…"
