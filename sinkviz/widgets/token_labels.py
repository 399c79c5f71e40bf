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
