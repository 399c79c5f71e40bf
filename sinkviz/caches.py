"""A KV cache that keeps sinks and a recent window, at a constant cost per token.

``SinkCache`` is an ordinary transformers ``Cache``. The window is a ring: a new key overwrites the
oldest one in place, where it stays, rotated at its text position. Only the few sink keys are
rotated again at each step, so that they always lie right before the window. That is exact, because
rotary scores depend on distances alone. Knows nothing about text, sampling or scoring.
"""

from __future__ import annotations

import torch
from jaxtyping import Int
from torch import Tensor, nn
from transformers.cache_utils import Cache, CacheLayerMixin

from sinkviz.attention import Band
from sinkviz.families import (
    Family,
    check_sliding_window,
    family_of,
    rotary_frequencies_of,
)
from sinkviz.positions import rotate, rotation_by

# Window keys are rotated back to small positions once they reach this one. A float32 angle is off
# by 2e-4 radians at 4,096 and by 0.25 at 4 million; rotating the ring this rarely costs nothing.
REBASE_AT = 4096


class RingLayer(CacheLayerMixin):
    """One layer of a ``SinkCache``: sinks in the first slots, then the ring of recent tokens."""

    is_sliding = False

    def __init__(self, cache: SinkCache) -> None:
        super().__init__()
        self.cache = cache
        self.seen = 0

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Allocate all slots at once; nothing is allocated later."""
        size, (batch, heads, _, _) = self.cache.cache_size, key_states.shape
        self.dtype, self.device = key_states.dtype, key_states.device
        self.keys = key_states.new_zeros(batch, heads, size, key_states.shape[-1])
        self.values = value_states.new_zeros(batch, heads, size, value_states.shape[-1])
        self.sinks = self.keys[:, :, : self.cache.n_sink].clone()
        self.is_initialized = True

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: object, **kwargs: object
    ) -> tuple[Tensor, Tensor]:
        """Take in new keys and values; return all that the new queries attend over.

        One token at a time, or as long as nothing is evicted, these are views of the slots. A
        block that passes the end of the cache gets the old keys and its own in text order, and
        needs the cache's ``band`` (see there) to see only what the policy allows.
        """
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        n_new, size, n_sink = key_states.shape[2], self.cache.cache_size, self.cache.n_sink
        before, after = self.seen, self.seen + key_states.shape[2]
        self.seen = after
        if before < n_sink:
            kept = min(after, n_sink) - before
            self.sinks[:, :, before : before + kept] = key_states[:, :, :kept]

        if after <= size:
            self.keys[:, :, before:after] = key_states
            self.values[:, :, before:after] = value_states
            return self.keys[:, :, :after], self.values[:, :, :after]

        if n_new == 1:
            slot = self.cache.slot(before)
            self.keys[:, :, slot] = key_states[:, :, 0]
            self.values[:, :, slot] = value_states[:, :, 0]
            if n_sink and self.cache.frequencies is not None:
                turn = self.cache.sink_rotation(after)
                self.keys[:, :, :n_sink] = rotate(
                    self.sinks, *turn, interleaved=self.cache.family.interleaved
                )
            return self.keys, self.values

        return self._update_block(key_states, value_states, before)

    def _update_block(self, key: Tensor, value: Tensor, before: int) -> tuple[Tensor, Tensor]:
        cache, n_new = self.cache, key.shape[2]
        if not cache.banded:
            raise ValueError(
                f"a block of {n_new} tokens passes the end of a cache of {cache.cache_size} "
                f"({before} tokens seen): feed one token at a time, or use sinkviz.stream or "
                "sinkviz.score, which attend over the right band"
            )
        held = cache.slot(cache.key_positions(0, seen=before))
        old_key = self.keys[:, :, held]
        if before > 0:
            kept = min(before, cache.n_sink)
            old_key[:, :, :kept] = self.sinks[:, :, :kept]
        key = torch.cat((old_key, key), dim=2)
        value = torch.cat((self.values[:, :, held], value), dim=2)
        positions = cache.key_positions(n_new, seen=before)
        newest = (positions < cache.n_sink) | (positions >= self.seen - cache.n_recent)
        slots = cache.slot(positions[newest])
        self.keys[:, :, slots] = key[:, :, newest]
        self.values[:, :, slots] = value[:, :, newest]
        return key, value

    def rotate_window(self, delta: int) -> None:
        """Rotate all window keys by ``delta`` tokens, in place."""
        turn = rotation_by(delta, self.cache.frequencies.to(self.keys.device))
        n_sink = self.cache.n_sink
        self.keys[:, :, n_sink:] = rotate(
            self.keys[:, :, n_sink:], *turn, interleaved=self.cache.family.interleaved
        )

    def get_seq_length(self) -> int:
        """Return the position that the next token gets, in the model's (re-based) counting."""
        return self.seen - self.cache.base

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Return how many keys the next ``query_length`` queries meet, and the mask's offset."""
        after, cache = self.seen + query_length, self.cache
        if after <= cache.cache_size or query_length == 1:
            n_key = min(after, cache.cache_size)
        else:
            n_key = len(cache.key_positions(query_length, seen=self.seen))
        return n_key, self.get_seq_length() + query_length - n_key

    def get_max_length(self) -> int:
        """Return the number of slots."""
        return self.cache.cache_size

    def reset(self) -> None:
        """Forget everything; keep the memory."""
        self.seen = 0


class SinkCache(Cache):
    """A KV cache of ``n_sink`` first and ``n_recent`` most recent tokens.

    Use it with ``sinkviz.stream``, or as ``past_key_values`` of the model itself, one token at a
    time. ``n_sink=0`` is window attention.

    A cache longer than the model's training length is allowed: distances within it are then new to
    the model, and it degrades as with full attention.

    Args:
        model: the causal language model that will use the cache.
        n_sink: first tokens that are never evicted.
        n_recent: most recent tokens that are kept, the current one included.

    Raises:
        ValueError: the family is unknown, bakes absolute positions into its keys, or has a sliding
            window of its own that is shorter than the cache.

    Source: Xiao et al. 2023, arXiv 2309.17453, section 3.2.
    """

    def __init__(self, model: nn.Module, n_sink: int = 4, n_recent: int = 1020) -> None:
        if n_sink < 0 or n_recent < 1:
            raise ValueError(
                f"a cache needs n_sink >= 0 and n_recent >= 1, got {n_sink} and {n_recent}"
            )
        family = family_of(model)
        if family.positions == "absolute":
            raise ValueError(
                f"{family.name} adds absolute positions to its tokens: keys cannot move within a "
                "cache, so neither Window nor SinkWindow is defined; use Dense or Recompute"
            )
        check_sliding_window(model, n_sink + n_recent, "a cache")
        self.family: Family = family
        self.frequencies = rotary_frequencies_of(model, family)
        self.n_sink, self.n_recent = n_sink, n_recent
        self.base = 0
        self.banded = False
        self._sink_rotation: tuple[int, tuple[Tensor, Tensor]] | None = None
        super().__init__([RingLayer(self) for _ in range(model.config.num_hidden_layers)])

    @property
    def cache_size(self) -> int:
        """Slots: ``n_sink + n_recent`` tokens."""
        return self.n_sink + self.n_recent

    @property
    def seen(self) -> int:
        """Tokens fed so far, evicted ones included."""
        return self.layers[0].seen

    @property
    def n_bytes(self) -> int:
        """Bytes of all keys and values held."""
        return sum(
            x.numel() * x.element_size()
            for layer in self.layers
            if layer.is_initialized
            for x in (layer.keys, layer.values, layer.sinks)
        )

    def slot(self, position: Int[Tensor, " key"] | int) -> Int[Tensor, " key"] | int:
        """Return the slot in which the token of a text position is kept."""
        ring = self.n_sink + (position - self.n_sink) % self.n_recent
        if isinstance(position, int):
            return position if position < self.n_sink else ring
        return torch.where(position < self.n_sink, position, ring)

    def key_positions(self, n_new: int, *, seen: int | None = None) -> Int[Tensor, " key"]:
        """Return the text positions of the keys that the next ``n_new`` queries meet, in order.

        Args:
            n_new: tokens about to be fed; 0 asks for what is held now, oldest first.
            seen: tokens fed before, where a layer is ahead of the others.
        """
        seen = self.seen if seen is None else seen
        after = seen + n_new
        device = self.layers[0].keys.device if self.layers[0].is_initialized else None
        if after > self.cache_size and n_new == 1:
            slots = torch.arange(self.n_recent, device=device)
            newest = seen - (seen - self.n_sink - slots) % self.n_recent
            return torch.cat((torch.arange(self.n_sink, device=device), newest))
        n_sink = min(self.n_sink, after)
        oldest = max(n_sink, seen - self.n_recent)
        sinks, recent = torch.arange(n_sink), torch.arange(oldest, after)
        return torch.cat((sinks, recent)).to(device)

    def distances(self, position_ids: Int[Tensor, "batch query"]) -> Int[Tensor, "batch query key"]:
        """Return how far each key lies from each query *within the cache*, tokens.

        For models that turn distances into biases (ALiBi, T5). Negative for keys in the future.
        """
        query = position_ids[..., None] + self.base
        key = self.key_positions(position_ids.shape[-1]).to(query.device)
        evicted = (query - self.cache_size + 1).clamp(min=0)
        return query - key - torch.where(key < self.n_sink, evicted, 0)

    def band(self, n_new: int) -> Band:
        """Return the band for the next ``n_new`` queries; pass it on to the model as ``band=``."""
        key = self.key_positions(n_new)
        query = torch.arange(self.seen, self.seen + n_new, device=key.device)[:, None]
        visible = (key <= query) & ((key < self.n_sink) | (key > query - self.n_recent))
        turn = None
        evicts = self.seen + n_new > self.cache_size
        # A single query meets sinks that the cache itself has moved next to the window.
        if self.frequencies is not None and self.n_sink and evicts and n_new > 1:
            # From its (re-based) text position back to its position within the cache.
            delta = query[:, 0].clamp(max=self.cache_size - 1) - (query[:, 0] - self.base)
            turn = rotation_by(delta, self.frequencies.to(key.device))
        return Band(
            visible=visible,
            n_sink=min(self.n_sink, len(key)),
            turn=turn,
            interleaved=self.family.interleaved,
        )

    def sink_rotation(self, after: int) -> tuple[Tensor, Tensor]:
        """Return the rotation that moves the sinks right before the window, once per step."""
        delta = after - self.cache_size - self.base
        if self._sink_rotation is None or self._sink_rotation[0] != delta:
            self._sink_rotation = (delta, rotation_by(delta, self.frequencies))
        return self._sink_rotation[1]

    def next_positions(self, n_new: int) -> Int[Tensor, "1 query"]:
        """Return the position ids of the next tokens, re-basing the window first when due.

        Positions stay below ``REBASE_AT + cache_size + n_new``, however long the stream.
        """
        if self.frequencies is not None and self.seen > self.cache_size:
            if self.seen - self.base > REBASE_AT + self.cache_size:
                base = self.seen - self.cache_size
                for layer in self.layers:
                    layer.rotate_window(self.base - base)
                self.base = base
        start = self.seen - self.base
        return torch.arange(start, start + n_new)[None]

    def reset(self) -> None:
        """Forget everything; keep the memory."""
        super().reset()
        self.base, self._sink_rotation = 0, None

    def __repr__(self) -> str:
        return f"SinkCache(n_sink={self.n_sink}, n_recent={self.n_recent}, seen={self.seen})"
