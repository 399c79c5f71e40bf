"""The caches that ours is measured against.

``RotateAllCache`` restates the recipe of the older implementations of StreamingLLM, and
``BareCache`` evicts nothing. Knows nothing about clocks and tables.
"""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers.cache_utils import Cache, CacheLayerMixin

from sinkviz.families import layer_kinds
from sinkviz.models import LM, untouched
from sinkviz.positions import rotate, rotation_by


class _Layer(CacheLayerMixin):
    """What both kinds of layer say of themselves."""

    held = 0  # tokens that the next one finds

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Take the first tokens."""
        self.keys, self.values = key_states.clone(), value_states.clone()
        self.dtype, self.device = self.keys.dtype, self.keys.device
        self.is_initialized = True

    def get_seq_length(self) -> int:
        """Return how many tokens the next one finds."""
        return self.held

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Return how many keys the next queries meet; the first is the first of the text."""
        return self.held + query_length, 0

    def get_max_length(self) -> int:
        """Return -1: transformers need not prepare for the end."""
        return -1


class BareLayer(_Layer):
    """As many slots as the first block has tokens; a further token overwrites the last one.

    Nothing is evicted, rotated or masked. A decode step cannot do less.
    """

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Write the last slot; return all."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
            self.held = key_states.shape[2] - 1
        else:
            self.keys[:, :, self.held :] = key_states
            self.values[:, :, self.held :] = value_states
        return self.keys, self.values


class RotateAllLayer(_Layer):
    """Keys wait unrotated; each step drops one, appends one and rotates all, each by a copy.

    The model is called at position 0, so that keys come unrotated, and each key is rotated by its
    distance from the query. The older implementations rotate keys and query by their positions
    within the cache: scores and work are the same. It is a little kinder than they are, in that
    the angles are computed once.
    """

    def __init__(
        self,
        n_sink: int,
        n_recent: int,
        frequencies: Float[Tensor, " pair"] | None,
        interleaved: bool = False,
    ) -> None:
        super().__init__()
        self.n_sink, self.n_recent = n_sink, n_recent
        self.frequencies, self.interleaved = frequencies, interleaved
        self._turn: tuple[Tensor, Tensor] | None = None

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Evict, append, rotate."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        else:
            if self.keys.shape[2] == self.n_sink + self.n_recent:
                self.keys, self.values = self._evicted(self.keys), self._evicted(self.values)
            self.keys = torch.cat((self.keys, key_states), 2)
            self.values = torch.cat((self.values, value_states), 2)
        n = self.keys.shape[2]
        self.held = min(n, self.n_sink + self.n_recent - 1)
        if self.frequencies is None:
            return self.keys, self.values
        if self._turn is None or len(self._turn[0]) != n:
            turn = rotation_by(torch.arange(1 - n, 1), self.frequencies)
            self._turn = tuple(x.to(self.dtype) for x in turn)
        return rotate(self.keys, *self._turn, interleaved=self.interleaved), self.values

    def _evicted(self, x: Tensor) -> Tensor:
        return torch.cat((x[:, :, : self.n_sink], x[:, :, self.n_sink + 1 :]), 2)


def bare_cache(lm: LM) -> Cache:
    """Return a cache that evicts nothing; the first block that is fed gives it its size."""
    return Cache(layers=[BareLayer() for _ in layer_kinds(lm.model, lm.family)])


def rotate_all_cache(lm: LM, n_sink: int, n_recent: int) -> Cache:
    """Return a cache of the older recipe; feed it with ``rotate_all_step``."""
    return Cache(
        layers=[
            RotateAllLayer(n_sink, n_recent, kind.frequencies, lm.family.interleaved)
            for kind in layer_kinds(lm.model, lm.family)
        ]
    )


def rotate_all_step(
    lm: LM, cache: Cache, ids: Int[Tensor, " token"]
) -> Float[Tensor, " vocabulary"]:
    """Feed one token; return the logits of the next. A block only fills the cache."""
    with untouched(lm.model):
        output = lm.model(
            ids[None],
            past_key_values=cache,
            use_cache=True,
            position_ids=torch.zeros(1, len(ids), dtype=torch.long, device=ids.device),
            logits_to_keep=1,
        )
    return output.logits[0, -1]
