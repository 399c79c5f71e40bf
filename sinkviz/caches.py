"""A KV cache that keeps sinks and a recent window, at a constant cost per token.

``SinkCache`` is an ordinary transformers ``Cache``. The window is a ring: a new key overwrites the
oldest one in place, where it stays, rotated at its text position. Only the few sink keys are
rotated again at each step, so that they always lie right before the window. That is exact, because
rotary scores depend on distances alone. Knows nothing about text, sampling or scoring.
"""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor, nn

from sinkviz.binding import additive, bind, uninterrupted
from sinkviz.bound import BoundCache
from sinkviz.clock import Clock
from sinkviz.families import (
    check_movable_keys,
    check_sliding_window,
    layer_kinds,
    position_limit,
)
from sinkviz.ring_layers import RingLayer, turn_sinks
from sinkviz.rings import rings_of
from sinkviz.trial import family_of

# Window keys are rotated back to small positions once they have come so far, or once around the
# ring if that is further. A float32 angle is off by 1e-5 radians at 256, by 2e-4 at 4,096 and by
# 0.25 at 4 million; rotating the ring once per turn costs one more key per token.
REBASE_AT = 256
# Without an attention function of ours, each query of a block needs a rotated copy of the sinks.
COPIED_BLOCK = 64


class SinkCache(BoundCache):
    """A KV cache of ``n_sink`` first and ``n_recent`` most recent tokens.

    Pass it to the model it was made for, as ``past_key_values``: to ``model.generate``, to the
    model itself, or leave that to ``sinkviz.stream``. Blocks of tokens, turns of a conversation,
    padding on the left and beams are as exact as one token at a time. ``n_sink=0`` is window
    attention. The cache sets the positions and the mask of every pass itself.

    Layers that slide by their own design keep their own window, next to layers that see all; where
    all layers slide, the cache must not be longer than their window.

    A cache longer than the model's training length is allowed: distances within it are then new to
    the model, and it degrades as with full attention.

    Args:
        model: the causal language model that will use the cache.
        n_sink: first tokens that are never evicted.
        n_recent: most recent tokens that are kept, the current one included.
        positions: ``cache`` counts positions within the cache (the sinks move along, as in the
            paper); ``text`` leaves the sinks where they stand in the text, ever further away.

    Raises:
        ValueError: the sizes or the convention make no sense, the family cannot be told or bakes
            absolute positions into its keys, its own sliding window is shorter than the cache, or
            its positions end before the cache does.

    Source: Xiao et al. 2023, arXiv 2309.17453, section 3.2.
    """

    def __init__(
        self,
        model: nn.Module,
        n_sink: int = 4,
        n_recent: int = 1020,
        *,
        positions: str = "cache",
    ) -> None:
        if n_sink < 0 or n_recent < 1:
            raise ValueError(
                f"a cache needs n_sink >= 0 and n_recent >= 1, got {n_sink} and {n_recent}"
            )
        if positions not in ("cache", "text"):
            raise ValueError(f"positions must be 'cache' or 'text', got {positions!r}")
        family = family_of(model)
        check_movable_keys(model, family)
        check_sliding_window(model, n_sink + n_recent, "a cache")
        self.family, self.n_sink, self.n_recent, self.positions = (
            family, n_sink, n_recent, positions,
        )  # fmt: skip
        self.clock = Clock()
        kinds = layer_kinds(model, family)
        self.rings, which = rings_of(
            kinds,
            self.clock,
            n_sink,
            n_recent,
            interleaved=family.interleaved,
            moves=positions == "cache",
        )
        self._kinds = [kind.name for kind in kinds]
        layers = [
            RingLayer(self.rings[own], kind.window is not None)
            for own, kind in zip(which, kinds, strict=True)
        ]
        self._limit = position_limit(model, family)
        if self._limit is not None and self.longest >= self._limit:
            raise ValueError(
                f"{family.name} tells {self._limit} positions apart (its table ends there, or its "
                f"rotary frequencies change), the cache has {self.longest}; use at most "
                f"{self._limit - 1} tokens"
            )
        self._device, self._dtype = model.device, model.dtype
        self._config = model.config
        super().__init__(layers)
        bind(self, model, family)

    @property
    def cache_size(self) -> int:
        """Slots: ``n_sink + n_recent`` tokens."""
        return self.n_sink + self.n_recent

    @property
    def longest(self) -> int:
        """Slots of the largest ring, a layer's own sliding window included."""
        return max(ring.size for ring in self.rings)

    @property
    def seen(self) -> int:
        """Tokens fed so far, evicted ones and padding included."""
        return self.clock.seen

    @property
    def is_full(self) -> bool:
        """Whether every slot is taken, so that the next token moves nothing but tensors."""
        return self.clock.padding is None and self.clock.seen >= self.longest

    def bands(self, n_new: int) -> bool:
        """Return whether a pass over ``n_new`` tokens needs a band in some layer."""
        return any(ring.layout(n_new) == "band" for ring in self.rings)

    @property
    def turning(self) -> bool:
        """Whether passes run ``banded_attention``, see ``sinkviz.forward``."""
        return self.clock.turning

    def parts(self, n_new: int, turning: bool = False) -> list[int]:
        """Return the sizes of the passes in which to feed so many tokens.

        Args:
            n_new: how many.
            turning: in passes of ``banded_attention``, which need no copies of the sinks.
        """
        most, free = n_new, 0
        if self._limit is not None:
            most = self._limit - self.longest
        if not turning and self.n_sink and any(ring.copies for ring in self.rings):
            if self.clock.padding is None:  # nothing is evicted yet: no copies
                free = min(n_new, most, max(0, self.cache_size - self.seen))
            most = min(most, COPIED_BLOCK)
        rest = range(free, n_new, most)
        return [free] * (free > 0) + [min(most, n_new - start) for start in rest]

    # A pass -------------------------------------------------------------------------------------

    def begin(self, batch: int, n_new: int, attention_mask: Tensor | None) -> dict[str, Any]:
        """Prepare a pass; return position ids and mask, or the bands of ``banded_attention``.

        Raises:
            ValueError: the padding is not on the left, the mask is not two-dimensional, the
                attention implementation takes no mask where one is needed, or the block has more
                positions than the model.
        """
        if self.rings[0].step is not None:
            self._rollback()
        clock = self.clock
        self._padding_before = clock.padding
        if attention_mask is not None:
            if attention_mask.ndim != 2:
                raise ValueError(
                    f"attention_mask must be (batch, token), got {attention_mask.ndim} axes; the "
                    "cache makes its own mask from the padding"
                )
            clock.padding = clock.padding_after(attention_mask, n_new)
        self._rebase(n_new)
        for ring in self.rings:
            ring.begin(n_new, self._device)
            ring.turned = False
            if ring.spins and not clock.compiled:
                turn_sinks(ring, [layer for layer in self.layers if layer.ring is ring])
        start = clock.seen - clock.base
        position = torch.arange(start, start + n_new, device=self._device).expand(batch, -1)
        changes: dict[str, Any] = {"position_ids": position, "attention_mask": None}
        if self.family.alibi:
            # Only its length counts; the hooks of the attention modules bring the real mask.
            n_key = self.get_mask_sizes(n_new, 0)[0]
            ones = torch.ones(batch, n_key, dtype=torch.long, device=self._device)
            changes["attention_mask"] = ones
            if self.family.positions == "bias":
                del changes["position_ids"]
        elif clock.turning:
            bands = {id(ring): ring.step.band.to(self._device) for ring in self.rings}
            changes["bands"] = {
                index: bands[id(layer.ring)] for index, layer in enumerate(self.layers)
            }
        elif clock.padding is not None or self.bands(n_new):
            changes["attention_mask"] = self._masks()
        return changes

    def _masks(self) -> Tensor | dict[str, Tensor]:
        implementation = self._config._attn_implementation
        if implementation.startswith(("flash", "flex", "paged")):
            raise ValueError(
                f"{implementation} takes no mask of ours, which padding and blocks that pass the "
                "end of the cache need; use attn_implementation='sdpa', or feed one unpadded token "
                "at a time"
            )
        made = [additive(ring.step.visible, self._dtype).to(self._device) for ring in self.rings]
        if len(made) == 1:
            return made[0]
        by_ring = {id(ring): mask for ring, mask in zip(self.rings, made, strict=True)}
        return {
            kind: by_ring[id(layer.ring)]
            for kind, layer in zip(self._kinds, self.layers, strict=True)
        }

    def _rebase(self, n_new: int) -> None:
        """Move the positions that the model counts back to small ones, if they are due.

        They stay below ``max(REBASE_AT, longest) + longest + n_new``, and below the model's limit.
        """
        clock = self.clock
        if all(ring.frequencies is None for ring in self.rings):
            clock.base = clock.seen
            return
        start = clock.seen - clock.base
        over = self._limit is not None and start + n_new > self._limit
        if not over and start <= max(REBASE_AT, self.longest) + self.longest:
            return
        first = clock.seen - (0 if clock.padding is None else int(clock.padding.max()))
        base = clock.seen - self.longest
        if base > clock.base and first >= self.n_sink:
            turned = [layer.rotated_by(clock.base - base) for layer in self.layers]
            with uninterrupted():
                for layer, keys in zip(self.layers, turned, strict=True):
                    if keys is not None:
                        layer.keys.copy_(keys)
                clock.base = base
        if self._limit is not None and clock.seen - clock.base + n_new > self._limit:
            raise ValueError(
                f"{self.family.name} tells {self._limit} positions apart, a block of {n_new} "
                f"tokens after {clock.seen - clock.base} has more; feed at most "
                f"{self._limit - self.longest} at a time (sinkviz.stream does)"
            )

    def commit(self) -> None:
        """Count the tokens of the pass."""
        n_new = self.rings[0].step.n_new
        if any(ring.step.layout == "band" for ring in self.rings):
            with uninterrupted():
                for layer in self.layers:
                    layer.commit()
                self._count(n_new)
        else:  # what was written lies where nothing was; only the count makes it valid
            self._count(n_new)

    def _count(self, n_new: int) -> None:
        self.clock.seen += n_new
        for ring in self.rings:
            ring.step = None

    def _rollback(self) -> None:
        for layer in self.layers:
            layer.rollback()
        for ring in self.rings:
            ring.step = None
        self.clock.padding = self._padding_before

    def layout_of(self, layer: int) -> tuple[Tensor, Tensor]:
        """Return distance and visibility of this pass, (row, query, key) each."""
        step = self.layers[layer].ring.step
        return step.distance, step.visible

    def query_position(self, layer: int) -> Int[Tensor, "row query"]:
        """Return the text positions of this pass's tokens; negative for padding."""
        return self.layers[layer].ring.step.query_position

    def key_position(self, layer: int) -> Int[Tensor, "row 1 key"]:
        """Return the text positions of the keys of this pass; negative where there is none."""
        return self.layers[layer].ring.step.returned_position[:, None]

    def distances(self, position_ids: Int[Tensor, "batch query"]) -> Int[Tensor, "row query key"]:
        """Return how far each key of this pass lies from each query *within the cache*, tokens.

        For the classroom models that turn distances into biases. Negative for keys in the future.
        """
        return self.rings[0].step.distance.to(position_ids.device)

    # Between passes -----------------------------------------------------------------------------

    def batch_select_indices(self, indices: Int[Tensor, " row"]) -> None:
        """Keep these rows of the batch, in this order; a row may come more than once."""
        super().batch_select_indices(indices)
        if self.clock.padding is not None:
            self.clock.padding = self.clock.padding[indices.cpu()]

    def state(self) -> tuple[dict[str, Tensor], dict[str, int]]:
        """Return all that it takes to go on: tensors by name, and the clock."""
        padding = {} if self.clock.padding is None else {"padding": self.clock.padding}
        return self.held() | padding, {"seen": self.clock.seen, "base": self.clock.base}

    def restore(self, tensors: dict[str, Tensor], clock: dict[str, int]) -> None:
        """Go on where ``state`` was taken, with a cache of the same sizes."""
        self.reset()
        for layer, held in zip(self.layers, self.by_layer(tensors), strict=True):
            layer.restore(held)
        self.clock.padding = tensors.get("padding")
        self.clock.seen, self.clock.base = clock["seen"], clock["base"]

    def anew(self, model: nn.Module) -> SinkCache:
        """Return an empty cache of the same sizes."""
        return SinkCache(model, self.n_sink, self.n_recent, positions=self.positions)

    def reset(self) -> None:
        """Forget everything; keep the memory."""
        for layer in self.layers:
            layer.reset()
        for ring in self.rings:
            ring.step = None
        self.clock.seen, self.clock.base, self.clock.padding = 0, 0, None

    def __repr__(self) -> str:
        return f"SinkCache(n_sink={self.n_sink}, n_recent={self.n_recent}, seen={self.seen})"
