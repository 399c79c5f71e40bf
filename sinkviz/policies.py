"""Cache policies: which tokens a query may still see.

A policy is a frozen dataclass with one method, ``keep(n)``. Masks, caches, figures and widgets
are all derived from it or tested against it. Knows nothing about models.

Sizes count tokens, the current one included: with ``cache_size = 64`` a query sees itself and 63
others. (streaming-llm's query sees ``cache_size`` cached keys *plus* itself, so its
``start_size=4, recent_size=60`` is ``SinkWindow(4, 61)`` here.)
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool
from torch import Tensor


def _at_least(name: str, value: int, least: int, advice: str) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise ValueError(
            f"{name} must be a whole number of at least {least}, got {value!r}; {advice}"
        )


@dataclass(frozen=True)
class Dense:
    """Full attention: every token stays. Memory grows with the text, without end."""

    n_sink = 0
    n_recent = None
    cache_size = None
    recompute = False

    def keep(self, n: int) -> list[int]:
        """Return the text positions that the n-th token (1-based) may attend to.

        Example:
            >>> Dense().keep(3)
            [0, 1, 2]
        """
        return list(range(n))

    def __str__(self) -> str:
        return "Dense"


@dataclass(frozen=True)
class SinkWindow:
    """StreamingLLM: the first ``n_sink`` tokens and the most recent ``n_recent`` stay.

    Positions are those within the cache: the sinks move along, always right before the window.

    Source: Xiao et al. 2023, arXiv 2309.17453, section 3.2.
    """

    n_sink: int = 4
    n_recent: int = 60
    recompute = False

    def __post_init__(self) -> None:
        _at_least("n_sink", self.n_sink, 0, "0 is window attention")
        _at_least("n_recent", self.n_recent, 1, "the current token itself counts as recent")

    @property
    def cache_size(self) -> int:
        """Tokens held: ``n_sink + n_recent``, the current one included."""
        return self.n_sink + self.n_recent

    def keep(self, n: int) -> list[int]:
        """Return the text positions that the n-th token (1-based) may attend to.

        Example:
            >>> SinkWindow(n_sink=1, n_recent=2).keep(5)
            [0, 3, 4]
        """
        return [i for i in range(n) if i < self.n_sink or i >= n - self.n_recent]

    def __str__(self) -> str:
        return f"{self.n_sink}+{self.n_recent}"


@dataclass(frozen=True)
class Window:
    """Window attention: only the most recent ``n_recent`` tokens stay. Collapses without sinks."""

    n_recent: int = 64
    n_sink = 0
    recompute = False

    def __post_init__(self) -> None:
        _at_least("n_recent", self.n_recent, 1, "the current token itself counts as recent")

    @property
    def cache_size(self) -> int:
        """Tokens held, the current one included."""
        return self.n_recent

    def keep(self, n: int) -> list[int]:
        """Return the text positions that the n-th token (1-based) may attend to.

        Example:
            >>> Window(n_recent=2).keep(5)
            [3, 4]
        """
        return list(range(max(0, n - self.n_recent), n))

    def __str__(self) -> str:
        return f"0+{self.n_recent}"


@dataclass(frozen=True)
class Recompute:
    """Sliding window with re-computation: the window is run afresh for each token. Right but slow.

    Each token is predicted from a text of its own, ``cache_size`` tokens long: the first
    ``n_begin`` tokens of the whole text (the ``<|begin|>`` that a tokenizer puts in front of every
    text) and the most recent others, all at positions 0, 1, 2 ...

    With ``n_begin=0`` windows begin in the middle of the text, which is the paper's baseline for
    models that are trained without a fixed first token.

    Source: Xiao et al. 2023, arXiv 2309.17453, figure 1 (c).
    """

    cache_size: int = 64
    n_begin: int = 1
    recompute = True

    def __post_init__(self) -> None:
        _at_least("n_begin", self.n_begin, 0, "0 runs windows without a first token")
        _at_least("cache_size", self.cache_size, self.n_begin + 1, "n_begin and the current token")

    @property
    def n_sink(self) -> int:
        """Tokens of the beginning put in front of each window."""
        return self.n_begin

    @property
    def n_recent(self) -> int:
        """Most recent tokens of each window, the current one included."""
        return self.cache_size - self.n_begin

    def keep(self, n: int) -> list[int]:
        """Return the text positions that the n-th token (1-based) may attend to.

        Example:
            >>> Recompute(cache_size=3, n_begin=1).keep(5)
            [0, 3, 4]
        """
        return SinkWindow(self.n_sink, self.n_recent).keep(n)

    def __str__(self) -> str:
        size = self.cache_size if self.n_begin == 1 else f"{self.n_begin}+{self.n_recent}"
        return f"recompute {size}"


Policy = Dense | Window | SinkWindow | Recompute


def visibility(policy: Policy, length: int) -> Bool[Tensor, "query key"]:
    """Return which query of a text sees which key under a policy.

    Args:
        policy: the policy.
        length: tokens of the text.

    Returns:
        True where the query (row) may attend to the key (column).

    Example:
        >>> visibility(SinkWindow(n_sink=1, n_recent=1), 3).int()
        tensor([[1, 0, 0],
                [1, 1, 0],
                [1, 0, 1]], dtype=torch.int32)
    """
    seen = torch.zeros(length, length, dtype=torch.bool)
    for query in range(length):
        seen[query, policy.keep(query + 1)] = True
    return seen


def parse_policy(text: str) -> Policy:
    """Return the policy that a short text names.

    Args:
        text: ``dense``; ``window:64``; ``4+60`` (sinks + recent; ``0+64`` is window attention);
            or ``recompute:64`` (``recompute:0+64`` without the begin token).

    Raises:
        ValueError: the text names no policy.

    Example:
        >>> parse_policy("4+60")
        SinkWindow(n_sink=4, n_recent=60)
        >>> parse_policy("0+64")
        Window(n_recent=64)
    """
    name, _, size = text.strip().lower().partition(":")
    try:
        if name == "dense" and not size:
            return Dense()
        if name == "window":
            return Window(int(size))
        if name == "recompute":
            begin, plus, recent = size.partition("+")
            if plus:
                return Recompute(int(begin) + int(recent), n_begin=int(begin))
            return Recompute(int(size))
        n_sink, n_recent = (int(part) for part in text.split("+"))
    except ValueError as error:
        if "at least" in str(error):
            raise
        raise ValueError(
            f"no policy {text!r}; known are dense, window:N, recompute:N and SINKS+RECENT (4+60)"
        ) from None
    return SinkWindow(n_sink, n_recent) if n_sink else Window(n_recent)
