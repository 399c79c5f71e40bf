"""Change how a text begins: functions on token ids. Nothing is changed in place.

What stands first becomes the sink, whatever it is: with these one can watch it. ``lm.encode(text)``
gives the ids, the tokenizer's own first token included; ids that are no whole numbers are refused.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Int
from torch import Tensor

from sinkviz.models import whole_ids

Ids = Tensor | Sequence[int]


def _check(n: int, least: int, most: int, what: str) -> None:
    if not least <= n <= most:
        raise ValueError(f"{what} must be in {least}..{most} for this text, got {n}")


def prepend(ids: Ids, tokens: Ids) -> Int[Tensor, " edited"]:
    """Put tokens in front of a text.

    Args:
        ids: the text.
        tokens: what comes first now.

    Raises:
        ValueError: an id is no whole number.

    Example:
        >>> prepend([5, 6, 7], [0, 0])
        tensor([0, 0, 5, 6, 7])
    """
    ids = whole_ids(ids)
    return torch.cat((whole_ids(tokens).to(ids.device), ids))


def remove_first(ids: Ids, n: int = 1) -> Int[Tensor, " edited"]:
    """Leave out the first tokens of a text.

    Args:
        ids: the text.
        n: how many; at least one token is left.

    Raises:
        ValueError: nothing would be left.

    Example:
        >>> remove_first([5, 6, 7])
        tensor([6, 7])
    """
    ids = whole_ids(ids)
    _check(n, 0, len(ids) - 1, "n, the tokens to remove,")
    return ids[n:].clone()


def replace_first(ids: Ids, tokens: Ids) -> Int[Tensor, " edited"]:
    """Put tokens in the place of as many first tokens of a text.

    Args:
        ids: the text.
        tokens: what stands there now.

    Raises:
        ValueError: there are more tokens than the text has.

    Example:
        >>> replace_first([5, 6, 7], [9])
        tensor([9, 6, 7])
    """
    ids = whole_ids(ids)
    tokens = whole_ids(tokens).to(ids.device)
    _check(len(tokens), 0, len(ids), "the number of tokens that replace others")
    return torch.cat((tokens, ids[len(tokens) :]))


def move_first(ids: Ids, to: int, n: int = 1) -> Int[Tensor, " edited"]:
    """Move the first tokens of a text; those between move up.

    Args:
        ids: the text.
        to: text position that the first of them gets.
        n: how many.

    Raises:
        ValueError: there is no such place in the text.

    Example:
        >>> move_first([5, 6, 7], to=1)
        tensor([6, 5, 7])
    """
    ids = whole_ids(ids)
    _check(n, 0, len(ids), "n, the tokens to move,")
    _check(to, 0, len(ids) - n, "to, their new position,")
    return torch.cat((ids[n : n + to], ids[:n], ids[n + to :]))


def repeat_first(ids: Ids, times: int = 2, n: int = 1) -> Int[Tensor, " edited"]:
    """Let a text begin with copies of its first tokens.

    Args:
        ids: the text.
        times: how often they stand there afterwards; 2 duplicates them.
        n: how many tokens.

    Raises:
        ValueError: ``n`` or ``times`` is out of range.

    Example:
        >>> repeat_first([5, 6, 7], times=3)
        tensor([5, 5, 5, 6, 7])
    """
    ids = whole_ids(ids)
    _check(n, 1, len(ids), "n, the tokens to repeat,")
    if times < 1:
        raise ValueError(f"times must be at least 1 (2 duplicates the tokens), got {times}")
    return torch.cat((ids[:n].repeat(times), ids[n:]))
