"""One layer's keys and values in a ring, written in place.

What stands where is ``sinkviz.rings``. Knows nothing about models, masks of transformers or text.
"""

from __future__ import annotations

from itertools import groupby

import torch
from jaxtyping import Int
from torch import Tensor
from transformers.cache_utils import CacheLayerMixin

from sinkviz.bound import under_way
from sinkviz.positions import halves, rotate, rotation_by
from sinkviz.rings import Pass, Ring

HELD = ("keys", "values", "sinks")


class RingLayer(CacheLayerMixin):
    """One layer's keys and values: sinks in the first slots, then the ring of recent tokens.

    Args:
        ring: the layout, shared with the layers of the same kind.
        is_sliding: the model itself gives this layer a sliding window, and looks for it by this.
    """

    is_croppable = False

    def __init__(self, ring: Ring, is_sliding: bool = False) -> None:
        super().__init__()
        self.ring, self.is_sliding = ring, is_sliding
        self._pending: tuple[Tensor, Tensor] | None = None

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Allocate all slots at once; nothing is allocated later."""
        batch, heads, _, _ = key_states.shape
        self.dtype, self.device = key_states.dtype, key_states.device
        self.keys = key_states.new_zeros(batch, heads, self.ring.size, key_states.shape[-1])
        self.values = value_states.new_zeros(batch, heads, self.ring.size, value_states.shape[-1])
        # As they came: they are rotated anew from here at each step, so rounding does not add up.
        self.sinks = self.keys[:, :, : self.ring.n_sink].clone()
        self.ring.stacks = None
        if self.ring.frequencies is not None:  # where the pairs of the rotated sinks go
            pairs = len(self.ring.frequencies)
            slots = self.keys[:, :, : self.ring.n_sink, : 2 * pairs]
            apart = slots.unflatten(-1, (pairs, 2) if self.ring.interleaved else (2, pairs))
            self.sink_slots = apart if self.ring.interleaved else apart.transpose(-1, -2)
        self.is_initialized = True

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: object, **kwargs: object
    ) -> tuple[Tensor, Tensor]:
        """Take in new keys and values; return all that the new queries attend over.

        Nothing that an earlier token needs is overwritten before ``commit``: a pass that breaks
        off leaves the layer as it was.

        Raises:
            ValueError: no pass is under way, or the tensors belong to another model or batch.
        """
        if self.ring.clock.compiled:
            return self._update_slot(key_states, value_states)
        step = self._check(key_states)
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        if step.layout == "head":
            return self._update_head(key_states, value_states, step.seen)
        if step.brings_sinks:
            self._take_in_sinks(key_states, value_states, step)
        if step.layout == "slots":
            return self._update_slot(key_states, value_states)
        return self._update_band(key_states, value_states, step)

    @property
    def step(self) -> Pass:
        """The pass under way.

        Raises:
            ValueError: there is none.
        """
        return under_way(self.ring.step)

    def _check(self, key: Tensor) -> Pass:
        step = self.step
        held = self.keys if self.is_initialized else key
        wanted = (*held.shape[:2], step.n_new, held.shape[3])
        if key.shape != wanted or key.dtype != held.dtype:
            raise ValueError(
                f"keys of {tuple(key.shape)} in {key.dtype} do not fit this cache, which holds "
                f"{tuple(held.shape)} in {held.dtype} and expects {tuple(wanted)} now; make a new "
                "cache for another model, batch or dtype"
            )
        if key.requires_grad and held.requires_grad and self.is_initialized:
            raise ValueError(
                "this cache is overwritten in place, which gradients do not survive; run the model "
                "under torch.no_grad()"
            )
        return step

    def _update_head(self, key: Tensor, value: Tensor, seen: int) -> tuple[Tensor, Tensor]:
        after = seen + key.shape[2]
        self.keys[:, :, seen:after] = key
        self.values[:, :, seen:after] = value
        if seen < self.ring.n_sink:
            self.sinks[:, :, seen:after] = key[:, :, : self.ring.n_sink - seen]
            self.ring.stacks = None
        return self.keys[:, :, :after], self.values[:, :, :after]

    def _update_slot(self, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        ring, slot = self.ring, self.ring.slot.to(key.device)
        turns = ring.n_sink and ring.frequencies is not None
        if turns and ring.clock.compiled:
            # In one index_copy_: a compiler makes a slice's assignment a copy of all slots.
            slots = torch.cat((torch.arange(ring.n_sink, device=key.device), slot))
            self.keys.index_copy_(
                2, slots, torch.cat((self._rotated(self.sinks, ring.turn), key), 2)
            )
            self.values.index_copy_(2, slot, value)
            return self.keys, self.values
        if len(slot) == 1:
            self.keys.index_copy_(2, slot, key)
            self.values.index_copy_(2, slot, value)
        else:
            row = torch.arange(len(slot), device=slot.device)
            self.keys[row, :, slot] = key[:, :, 0]
            self.values[row, :, slot] = value[:, :, 0]
        if turns and not ring.turned:
            self.sink_slots.copy_(torch.view_as_real(self.pairs() * ring.spin.to(key.device)))
        return self.keys, self.values

    def pairs(self) -> Tensor:
        """Return the pairs of the sinks' keys, as they came, as complex numbers."""
        wide = torch.promote_types(self.dtype, torch.float32)
        n_pairs = len(self.ring.frequencies)
        return torch.complex(*halves(self.sinks.to(wide), n_pairs, self.ring.interleaved))

    def _update_band(self, key: Tensor, value: Tensor, step: Pass) -> tuple[Tensor, Tensor]:
        ring = self.ring
        sinks, sink_values = self.sinks, self.values[:, :, : ring.n_sink]
        if ring.n_sink and not (step.spread and step.turning):
            sinks = sinks[:, :, None].expand(-1, -1, step.copies, -1, -1)
            if ring.frequencies is not None:
                delta = step.delta if step.copies > 1 else step.delta[:1, :1]
                cos, sin = (x[:, None, :, None] for x in rotation_by(delta, ring.frequencies))
                sinks = self._rotated(sinks, (cos, sin))
            sinks, sink_values = sinks.flatten(2, 3), sink_values.repeat(1, 1, step.copies, 1)
        old_keys, old_values = (_gather(x, step.old_slot) for x in (self.keys, self.values))
        kept = (x[:, :, -step.n_kept :] for x in (key, value))
        # A long block would be held whole by a view of its end.
        self._pending = tuple(x.clone() if step.n_kept < step.n_new else x for x in kept)
        return torch.cat((sinks, old_keys, key), 2), torch.cat((sink_values, old_values, value), 2)

    def _rotated(self, keys: Tensor, turn: tuple[Tensor, Tensor]) -> Tensor:
        cos, sin = (x.to(keys.device) for x in turn)
        return rotate(keys, cos, sin, interleaved=self.ring.interleaved)

    def _take_in_sinks(self, key: Tensor, value: Tensor, step: Pass) -> None:
        n_sink = self.ring.n_sink
        source = torch.arange(n_sink) - step.query_position[:, :1]
        here = ((source >= 0) & (source < step.n_new)).to(key.device)[:, None, :, None]
        source = source.clamp(0, step.n_new - 1)
        for held, new in ((self.sinks, key), (self.keys, key), (self.values, value)):
            held[:, :, :n_sink] = torch.where(here, _gather(new, source), held[:, :, :n_sink])
        self.ring.stacks = None

    def commit(self) -> None:
        """Write the end of a band into the ring, now that all layers have passed."""
        if self._pending is None:
            return
        source, overwritten = self.ring.step.kept
        overwritten = overwritten.to(self.keys.device)[:, None, :, None]
        for held, new in zip((self.keys, self.values), self._pending, strict=True):
            held = held[:, :, self.ring.n_sink :]
            held.copy_(torch.where(overwritten, _gather(new, source), held))
        self._pending = None

    def rollback(self) -> None:
        """Forget a pass that broke off."""
        self._pending = None

    def replace_sinks(self, keys: Tensor) -> None:
        """Hold other keys for the sinks from the next pass on, as if they had come so.

        For experiments on what the keys of sinks do; the layer has read all its sinks.

        Args:
            keys: (batch, head, sink, dimension).
        """
        self.sinks.copy_(keys)
        self.ring.stacks = None

    def rotated_by(self, delta: int) -> Tensor | None:
        """Return all keys rotated by ``delta`` tokens, or None where keys are not rotated."""
        if not self.is_initialized or self.ring.frequencies is None:
            return None
        return self._rotated(self.keys, rotation_by(delta, self.ring.frequencies))

    def get_seq_length(self) -> int:
        """Return how many tokens were fed, evicted ones included."""
        return self.ring.size - 1 if self.ring.clock.compiled else self.ring.clock.seen

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Return how many keys the ``query_length`` queries of this pass meet; the mask's offset.

        Raises:
            ValueError: no pass is under way: another model asks.
        """
        ring = self.ring
        if ring.clock.compiled:
            return ring.size, 0
        seen = ring.clock.seen
        earlier = {"head": seen, "slots": ring.size - 1, "band": ring.size}[self.step.layout]
        return earlier + query_length, seen - earlier

    def get_max_length(self) -> int:
        """Return the number of slots."""
        return self.ring.size

    def reset(self) -> None:
        """Forget everything; keep the memory."""
        self._pending = None

    def held(self) -> dict[str, Tensor]:
        """Return what the layer holds, by name."""
        return {name: getattr(self, name) for name in HELD} if self.is_initialized else {}

    def restore(self, held: dict[str, Tensor]) -> None:
        """Hold these, as saved from a layer of the same ring."""
        if held:
            self.lazy_initialization(held["keys"], held["values"])
            for name, x in held.items():
                getattr(self, name).copy_(x)
            self.ring.stacks = None

    def batch_select_indices(self, indices: Int[Tensor, " row"]) -> None:
        """Keep these rows of the batch, in this order; a row may come more than once."""
        self.restore(
            {name: x.index_select(0, indices.to(x.device)) for name, x in self.held().items()}
        )


class SinkStack:
    """The sinks of layers on one device, rotated together: in a step, every operation costs alike.

    Args:
        layers: of one ring.
    """

    def __init__(self, layers: list[RingLayer]) -> None:
        self._pairs = torch.stack([layer.pairs() for layer in layers])
        self._turned = torch.empty_like(self._pairs)
        self._views = torch.view_as_real(self._turned).unbind()
        self._slots = [layer.sink_slots for layer in layers]

    def turn(self, spin: Tensor) -> None:
        """Write the sinks' keys into their slots, rotated."""
        torch.mul(self._pairs, spin.to(self._pairs.device), out=self._turned)
        torch._foreach_copy_(self._slots, self._views)


@torch.no_grad()
def turn_sinks(ring: Ring, layers: list[RingLayer]) -> None:
    """Rotate the sinks of all layers of a ring for a pass over one token, unless they just come.

    A pass that breaks off leaves them rotated: the next one that reads them here does so anew.
    """
    if ring.step.brings_sinks or not all(layer.is_initialized for layer in layers):
        return
    if ring.stacks is None:
        near = groupby(layers, key=lambda layer: layer.device)
        ring.stacks = [SinkStack(list(some)) for _, some in near]
    for stack in ring.stacks:
        stack.turn(ring.spin)
    ring.turned = True


def _gather(x: Tensor, index: Int[Tensor, "row key"]) -> Tensor:
    """Return ``x`` (batch, head, key, dimension) at the given keys; one row of index serves all."""
    index = index.to(x.device)
    if len(index) == 1:
        return x.index_select(2, index[0])
    return x.gather(2, index[:, None, :, None].expand(-1, x.shape[1], -1, x.shape[3]))
