"""Cache policies: which tokens a query may still see.

A policy is a frozen dataclass with one method, ``keep(n)``. Masks, caches, figures and widgets
are all derived from it or tested against it. What a policy must say is ``Policy`` in
``sinkviz.registry``, where a user adds their own. Knows nothing about models.

Sizes count tokens, the current one included: with ``cache_size = 64`` a query sees itself and 63
others. (streaming-llm's query sees ``cache_size`` cached keys *plus* itself, so its
``start_size=4, recent_size=60`` is ``SinkWindow(4, 61)`` here; H2O's and TOVA's authors count as
it does.)

Where a policy leaves gaps in the text, keys either close ranks (positions within the *cache*) or
stay where they stood (positions in the *text*):

==============  ======================  ==========================================================
policy          written                 positions
==============  ======================  ==========================================================
``Dense``       ``dense``               text; nothing leaves, so those within the cache are the same
``Window``      ``window:64 0+64``      cache; no gaps, so those in the text give the same distances
``SinkWindow``  ``4+60``                cache
``SinkWindow``  ``4+60@text``           text
``Recompute``   ``recompute:64``        cache; each window is a text of its own
``H2O``         ``h2o:32+32``           cache
``TOVA``        ``tova:64``             cache
your own        ``name:sizes``          cache
==============  ======================  ==========================================================
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from sinkviz.registry import (
    Policy,
    check_registered,
    first_eviction,
    parse_policy,
    read_sizes,
    register_policy,
)

__all__ = ["H2O", "TOVA", "Dense", "Policy", "Recompute", "SinkWindow", "Window"]
__all__ += ["check_registered", "first_eviction", "parse_policy", "register_policy", "visibility"]


def _at_least(name: str, value: int, least: int, advice: str) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise ValueError(
            f"{name} must be a whole number of at least {least}, got {value!r}; {advice}"
        )


@register_policy("dense")
@dataclass(frozen=True)
class Dense:
    """Full attention: every token stays. Memory grows with the text, without end."""

    cache_size = None
    positions = "text"

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

    Attributes:
        n_sink: first tokens that are never evicted.
        n_recent: most recent tokens kept, the current one included.
        positions: ``cache``: positions within the cache, as in the paper; the sinks move along,
            always right before the window. ``text``: positions in the text; the sinks fall ever
            further behind, beyond any distance that the model was trained on.

    Source: Xiao et al. 2023, arXiv 2309.17453, section 3.2.
    """

    n_sink: int = 4
    n_recent: int = 60
    positions: str = "cache"

    def __post_init__(self) -> None:
        _at_least("n_sink", self.n_sink, 0, "0 is window attention")
        if self.positions not in ("cache", "text"):
            raise ValueError(f"positions must be 'cache' or 'text', got {self.positions!r}")
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

    def __repr__(self) -> str:
        at = ", positions='text'" * (self.positions == "text")
        return f"SinkWindow(n_sink={self.n_sink}, n_recent={self.n_recent}{at})"

    def __str__(self) -> str:
        # 0+64 alone is what a Window is called.
        at = "" if self.n_sink and self.positions == "cache" else f"@{self.positions}"
        return f"{self.n_sink}+{self.n_recent}{at}"

    @classmethod
    def from_text(cls, text: str) -> SinkWindow | Window:
        """Return the policy written as ``4+60``, ``4+60@text`` or ``0+64``, a ``Window``."""
        sizes, at, positions = text.partition("@")
        n_sink, n_recent = read_sizes(sizes.strip(), 2, 2)
        if at:
            return cls(n_sink, n_recent, positions)
        return cls(n_sink, n_recent) if n_sink else Window(n_recent)


@dataclass(frozen=True)
class Window:
    """Window attention: only the most recent ``n_recent`` tokens stay. Collapses without sinks."""

    n_recent: int = 64

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


# Not above the classes: what a Window is written as, 0+64, is read by SinkWindow.
register_policy("sink", SinkWindow)
register_policy("window", Window)


@register_policy("recompute")
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

    @classmethod
    def from_text(cls, text: str) -> Recompute:
        """Return the policy of a size, ``64``, or of ``0+64``: begin tokens and recent ones."""
        sizes = read_sizes(text, 1, 2)
        return cls(sum(sizes), *sizes[:-1])


@register_policy("h2o")
@dataclass(frozen=True)
class H2O:
    """Heavy hitters: the most recent tokens stay, and of the others those that got most attention.

    Each kv head adds up the attention that its tokens receive, and evicts the least of those that
    are not recent. Old tokens have met more queries, so that the first ones tend to stay.

    Attributes:
        n_heavy: heavy hitters kept.
        n_recent: most recent tokens kept, the current one included.

    Source: Zhang et al. 2023, arXiv 2306.14048, algorithm 1.
    """

    n_heavy: int = 32
    n_recent: int = 32
    by_attention = True

    def __post_init__(self) -> None:
        _at_least("n_heavy", self.n_heavy, 0, "0 is window attention")
        _at_least("n_recent", self.n_recent, 1, "the current token itself counts as recent")

    @property
    def cache_size(self) -> int:
        """Tokens held: ``n_heavy + n_recent``, the current one included."""
        return self.n_heavy + self.n_recent

    def drop(
        self, received: Float[Tensor, "batch head key"], latest: Float[Tensor, "batch head key"]
    ) -> Int[Tensor, "batch head"]:
        """Return which of the tokens of a full cache makes room for the next one.

        Args:
            received: attention that each token held has received so far, summed over queries, and
                over the query heads of a kv head; in text order.
            latest: the same of the newest query alone.

        Example:
            >>> received = torch.tensor([[[3.0, 0.2, 0.5, 0.1]]])
            >>> H2O(n_heavy=2, n_recent=2).drop(received, received)
            tensor([[1]])
        """
        # The next token is recent itself, and comes in addition.
        n_old = received.shape[-1] - (self.n_recent - 1)
        return received[..., :n_old].argmin(-1)


@register_policy("tova")
@dataclass(frozen=True)
class TOVA:
    """Token omission via attention: what the newest query attends to least is evicted.

    All heads of a layer evict the same token, that with the least attention in the mean over them.
    Nothing is protected, not even the newest token itself.

    Attributes:
        cache_size: tokens held, the current one included.

    Source: Oren et al. 2024, arXiv 2401.06104, where the policy has this name.
    """

    cache_size: int = 64
    by_attention = True

    def __post_init__(self) -> None:
        _at_least("cache_size", self.cache_size, 2, "the current token and another one")

    def drop(
        self, received: Float[Tensor, "batch head key"], latest: Float[Tensor, "batch head key"]
    ) -> Int[Tensor, "batch head"]:
        """Return which of the tokens of a full cache makes room for the next one; see ``H2O``.

        Example:
            >>> latest = torch.tensor([[[0.1, 0.3, 0.6], [0.5, 0.2, 0.3]]])
            >>> TOVA(3).drop(latest, latest)
            tensor([[1, 1]])
        """
        return latest.mean(1, keepdim=True).argmin(-1).expand(latest.shape[:2])


def visibility(policy: Policy, length: int) -> Bool[Tensor, "query key"]:
    """Return which query of a text sees which key under a policy.

    Args:
        policy: the policy; not one by attention, which sees what the text makes it see.
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
