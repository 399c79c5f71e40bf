"""Who sees whom in one pass of a model, read off the mask that the model made itself.

Knows nothing about models: a mask goes in, and scores with nothing left where nobody sees.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

# Lower than any score, and finite.
HIDDEN = -1e30
MOST_ROWS = 128


@dataclass(frozen=True, eq=False)
class Sight:
    """Which keys the queries of a pass see.

    Attributes:
        first: text position of the pass's first query; the keys begin with the text.
        n_keys: keys of the pass; the last is the last query's own.
        mask: of transformers: true where seen, or numbers to add to the scores; None where every
            query sees itself and all before.
        window: tokens that a query sees, itself included, where there is no mask; None for all.
        device: where the numbers are wanted.
    """

    first: int
    n_keys: int
    mask: Tensor | None = None
    window: int | None = None
    device: torch.device | str = "cpu"

    @property
    def adds(self) -> bool:
        """Whether the mask is a bias, and not only hides."""
        return self.mask is not None and self.mask.dtype != torch.bool

    @cached_property
    def _visible(self) -> Bool[Tensor, "query key"] | None:
        """The mask as one truth per pair, for all heads; None where it is causal alone."""
        if self.mask is None:
            if self.window is None or self.window >= self.n_keys:
                return None
            query = torch.arange(self.first, self.n_keys, device=self.device)[:, None]
            key = torch.arange(self.n_keys, device=self.device)
            return (key <= query) & (key > query - self.window)
        if not self.adds:
            return self.mask[0]
        # A bias is no mask: only numbers that no sum of scores makes up for hide a key.
        return self.mask.amax(0) > torch.finfo(self.mask.dtype).min / 2

    @property
    def has_gaps(self) -> bool:
        """Whether a query may miss more keys than those after it."""
        return self._visible is not None

    @cached_property
    def _starts(self) -> list[int] | None:
        """The first key that each query sees."""
        if self._visible is None:
            return None
        return self._visible.to(torch.uint8).argmax(-1).tolist()

    def start(self, row: int, cell: int) -> int:
        """Return the first key that matters from a row on, at the beginning of a cell."""
        first = 0 if self._starts is None else self._starts[row]
        return first - first % cell

    @cached_property
    def _above(self) -> Float[Tensor, "query key"]:
        """``HIDDEN`` above the diagonal, and 0 elsewhere; adding is faster than filling."""
        return torch.full((MOST_ROWS, MOST_ROWS), HIDDEN, device=self.device).triu_(1)

    def hide(
        self, scores: Float[Tensor, "head row key"], heads: slice, row: int, start: int
    ) -> None:
        """Add a bias to scores, and make very low what is not seen, in place.

        Args:
            scores: of a block of at most ``MOST_ROWS`` rows; its last key is its last query's own.
            heads: which heads.
            row: of the pass, the block's first.
            start: text position of the block's first key.
        """
        n_rows, n_keys = scores.shape[1:]
        if self.adds:
            bias = self.mask if len(self.mask) == 1 else self.mask[heads]
            scores += bias[:, row : row + n_rows, start : start + n_keys]
            scores.clamp_(min=HIDDEN)
        elif self._visible is not None:
            scores.masked_fill_(~self._visible[row : row + n_rows, start : start + n_keys], HIDDEN)
        elif n_rows > 1:
            scores[..., n_keys - n_rows :] += self._above[:n_rows, :n_rows]

    def clear(self, weights: Float[Tensor, "head row key"], row: int, start: int) -> None:
        """Make exactly zero what is not seen, in place.

        Args:
            weights: see ``hide``.
            row: likewise.
            start: likewise.
        """
        n_rows, n_keys = weights.shape[1:]
        if self._visible is not None:
            weights *= self._visible[row : row + n_rows, start : start + n_keys]
        elif n_rows > 1:
            weights[..., n_keys - n_rows :].tril_()

    def viewers(self) -> Int[Tensor, " key"]:
        """Return how many queries of the pass see each key."""
        if self.mask is not None:
            return self._visible.sum(0)
        key = torch.arange(self.n_keys, device=self.device)
        stop = (key + (self.window or self.n_keys)).clamp(max=self.n_keys)
        return (stop - key.clamp(min=self.first)).clamp(min=0)

    def per_cell(self, cell: int) -> Int[Tensor, "query cell"]:
        """Return how many keys of each cell of the text each query sees."""
        if self._visible is not None:
            padded = torch.nn.functional.pad(self._visible, (0, -self.n_keys % cell))
            return padded.unflatten(1, (-1, cell)).sum(-1)
        queries = torch.arange(self.first, self.n_keys, device=self.device)[:, None]
        begins = torch.arange(0, self.n_keys, cell, device=self.device)
        return (queries + 1 - begins).clamp(0, cell)
