"""Where the tokens of a stream lie in memory: sinks in the first slots, then a ring.

A ``Ring`` is the geometry that all layers of one kind share, a ``Pass`` is what one pass over the
model makes of it, and a ``RingLayer`` holds one layer's keys and values. Knows nothing about
models, masks of transformers or text.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from transformers.cache_utils import CacheLayerMixin

from sinkviz.attention import Band
from sinkviz.positions import halves, rotate, rotation_by


@dataclass
class Clock:
    """How far a stream, or a batch of them, has come; one for all rings of a cache.

    Attributes:
        seen: tokens fed so far, padding included.
        base: text position that the model calls 0; moved on from time to time.
        padding: padding tokens in front of each stream of the batch, or None without any.
        turning: passes run ``banded_attention``, which turns queries to the sinks itself.
        compiled: passes run in a compiled graph, which must not see a number change.
    """

    seen: int = 0
    base: int = 0
    padding: Int[Tensor, " row"] | None = None
    turning: bool = False
    compiled: bool = False


@dataclass
class Ring:
    """How the layers of one kind lay out their slots.

    Attributes:
        clock: shared by all rings of a cache.
        n_sink: first tokens that are never evicted.
        n_recent: most recent tokens kept, the current one included.
        frequencies: rotary frequencies, radians per token; None where keys are not rotated.
        interleaved: how rotary coordinates are paired.
        moves: sinks move along, right before the window (positions within the cache); otherwise
            they stay at their text positions.
        copies: layers of this or a like ring rotate their keys, and one mask serves both.
        step: the pass under way, or None between passes.
        slot: where its token goes, per row, if it feeds one to a full ring.
        turn: cosine and sine of the rotation of the sinks' keys then.
        spin: the same as complex numbers.
    """

    clock: Clock
    n_sink: int
    n_recent: int
    frequencies: Float[Tensor, " pair"] | None = None
    interleaved: bool = False
    moves: bool = True
    copies: bool = False
    step: Pass | None = None
    slot: Int[Tensor, " row"] | None = None
    turn: tuple[Tensor, Tensor] | None = None
    spin: Tensor | None = None

    @property
    def size(self) -> int:
        """Slots."""
        return self.n_sink + self.n_recent

    def layout(self, n_new: int) -> str:
        """Return how keys are laid out for ``n_new`` queries.

        ``head``: nothing is evicted, slots are in text order. ``slots``: one query over all slots.
        ``band``: the sinks, then the last tokens in text order, the new ones last.
        """
        if self.clock.padding is None and self.clock.seen + n_new <= self.size:
            return "head"
        return "slots" if n_new == 1 else "band"

    def begin(self, n_new: int, device: torch.device) -> None:
        """Prepare a pass over ``n_new`` tokens."""
        self.step = step = Pass(self, n_new)
        if step.layout != "slots":
            return
        clock = self.clock
        if clock.padding is None:  # plain numbers: this is every step of an endless stream
            slot = self.n_sink + (clock.seen - self.n_sink) % self.n_recent
            delta = (clock.seen + 1 - self.size if self.moves else 0) - clock.base
            self.slot = torch.tensor([slot], device=device)
        else:
            self.slot, delta = step.slot.to(device), step.delta[..., None]
        if self.n_sink and self.frequencies is not None:
            self.turn = rotation_by(delta, self.frequencies)
            self.spin = torch.complex(*self.turn)


class Pass:
    """One pass of new tokens through a ring: who stands where, and who sees whom.

    Args:
        ring: the ring, as it is before the pass.
        n_new: tokens of the pass.
    """

    def __init__(self, ring: Ring, n_new: int) -> None:
        self.ring, self.n_new = ring, n_new
        self.seen, self.base = ring.clock.seen, ring.clock.base
        self.padding, self.turning = ring.clock.padding, ring.clock.turning
        self.layout = ring.layout(n_new)

    @cached_property
    def query_position(self) -> Int[Tensor, "row query"]:
        """Text positions of the new tokens; negative for padding."""
        column = torch.arange(self.seen, self.seen + self.n_new)[None]
        return column if self.padding is None else column - self.padding[:, None]

    @cached_property
    def brings_sinks(self) -> bool:
        """Whether one of the new tokens is a sink."""
        return bool(self.ring.n_sink and (self.query_position[:, 0] < self.ring.n_sink).any())

    @cached_property
    def old_position(self) -> Int[Tensor, "row key"]:
        """Text positions of the earlier tokens in a band, whether they are there or not."""
        held = self.seen if self.padding is not None else max(0, self.seen - self.ring.n_sink)
        n_old = min(self.ring.n_recent - 1, held)
        return self.query_position[:, :1] + torch.arange(-n_old, 0)

    @cached_property
    def key_position(self) -> Int[Tensor, "row key"]:
        """Text positions of the keys that this pass returns; negative where there is none.

        Of the copies of the sinks (``copies``) this counts the first alone.
        """
        n_sink, n_recent = self.ring.n_sink, self.ring.n_recent
        last = self.query_position[:, -1:]
        if self.layout == "head":
            return torch.arange(self.seen + self.n_new)[None]
        if self.layout == "slots":
            recent = last - (last - n_sink - torch.arange(n_recent)) % n_recent
        else:
            recent = torch.cat((self.old_position, self.query_position), -1)
        sink = torch.arange(n_sink).expand(len(last), -1)
        recent = recent.masked_fill(recent < n_sink, -1)
        return torch.cat((sink.masked_fill(sink > last, -1), recent), -1)

    @cached_property
    def evicted(self) -> Int[Tensor, "row query"]:
        """How many tokens have left the cache when each query is answered."""
        return (self.query_position + 1 - self.ring.size).clamp(min=0)

    @cached_property
    def delta(self) -> Int[Tensor, "row query"]:
        """Tokens by which each query finds the sinks' keys rotated on."""
        return (self.evicted if self.ring.moves else 0 * self.evicted) - self.base

    @cached_property
    def spread(self) -> bool:
        """Whether the queries of a band find the sinks at different distances.

        Then each query turns to the sinks itself, or gets a copy of them that is rotated for it.
        """
        if not self.ring.copies or not self.ring.n_sink or self.layout != "band":
            return False
        return bool((self.delta != self.delta[:1, :1]).any())

    @property
    def copies(self) -> int:
        """How many times the sinks stand in front of the band."""
        return self.n_new if self.spread and not self.turning else 1

    @cached_property
    def band(self) -> Band:
        """What ``banded_attention`` must know; and which query sees which key, copies aside."""
        turn = None
        if self.spread and self.turning and self.ring.frequencies is not None:
            turn = rotation_by(-self.delta, self.ring.frequencies)
        return Band(
            query_position=self.query_position,
            key_position=self.key_position,
            n_sink=min(self.ring.n_sink, self.key_position.shape[-1]),
            n_recent=self.ring.n_recent,
            turn=turn,
            interleaved=self.ring.interleaved,
        )

    @cached_property
    def visible(self) -> Bool[Tensor, "row query key"]:
        """Which query sees which key: of the copies of the sinks, its own alone."""
        visible = self.band.visible
        if self.copies == 1:
            return visible
        front, rest = visible.split((self.ring.n_sink, visible.shape[-1] - self.ring.n_sink), -1)
        own = torch.eye(self.n_new, dtype=torch.bool)[None, :, :, None]
        return torch.cat(((front[:, :, None] & own).flatten(2), rest), -1)

    @property
    def returned_position(self) -> Int[Tensor, "row key"]:
        """Text positions of all keys that this pass returns, copies of the sinks included."""
        front, rest = self.key_position.tensor_split((self.ring.n_sink,), -1)
        return torch.cat((front.repeat(1, self.copies), rest), -1)

    @cached_property
    def distance(self) -> Int[Tensor, "row query key"]:
        """How far each key lies from each query, within the cache where sinks move along."""
        query, key = self.query_position[..., None], self.key_position[:, None]
        moved = self.evicted[..., None] if self.ring.moves else 0
        return query - key - torch.where(key < self.ring.n_sink, moved, 0)

    @property
    def slot(self) -> Int[Tensor, " row"]:
        """Slot of the one new token, one for all rows or one for each.

        Padding goes to the last slot, which stays hidden until a token of its own overwrites it.
        """
        n_sink, position = self.ring.n_sink, self.query_position[:, 0]
        ring = n_sink + (position - n_sink) % self.ring.n_recent
        slot = torch.where(position < n_sink, position, ring)
        return torch.where(position < 0, self.ring.size - 1, slot)


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
        # The sinks' pairs as complex numbers, and where they go.
        self._pairs: tuple[Tensor, Tensor] | None = None
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

    def _check(self, key: Tensor) -> Pass:
        step = self.ring.step
        if step is None:
            raise ValueError(
                "this cache belongs to another model, or its model was not called itself: call "
                "the model that the cache was made for, with past_key_values=cache"
            )
        held = self.keys if self.is_initialized else key
        wanted = (*held.shape[:2], step.n_new, held.shape[3])
        if key.shape != wanted or key.dtype != held.dtype:
            raise ValueError(
                f"keys of {tuple(key.shape)} in {key.dtype} do not fit this cache, which holds "
                f"{tuple(held.shape)} in {held.dtype} and expects {tuple(wanted)} now; make a new "
                "cache for another model, batch or dtype"
            )
        return step

    def _update_head(self, key: Tensor, value: Tensor, seen: int) -> tuple[Tensor, Tensor]:
        after = seen + key.shape[2]
        self.keys[:, :, seen:after] = key
        self.values[:, :, seen:after] = value
        if seen < self.ring.n_sink:
            self.sinks[:, :, seen:after] = key[:, :, : self.ring.n_sink - seen]
            self._pairs = None
        return self.keys[:, :, :after], self.values[:, :, :after]

    def _update_slot(self, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        ring, slot = self.ring, self.ring.slot.to(key.device)
        if len(slot) == 1:
            self.keys.index_copy_(2, slot, key)
            self.values.index_copy_(2, slot, value)
        else:
            row = torch.arange(len(slot), device=slot.device)
            self.keys[row, :, slot] = key[:, :, 0]
            self.values[row, :, slot] = value[:, :, 0]
        if ring.n_sink and ring.frequencies is not None:
            if ring.clock.compiled:
                self.keys[:, :, : ring.n_sink] = self._rotated(self.sinks, ring.turn)
            else:
                self._turn_sinks()
        return self.keys, self.values

    def _turn_sinks(self) -> None:
        """Rotate the sinks' keys into their slots, in as few operations as possible.

        In eager mode every operation costs more than its arithmetic here. Compilers fuse them, but
        not complex numbers.
        """
        ring, pairs = self.ring, len(self.ring.frequencies)
        if self._pairs is None:
            first, second = halves(self.sinks.to(ring.spin.real.dtype), pairs, ring.interleaved)
            slots = self.keys[:, :, : ring.n_sink, : 2 * pairs]
            slots = slots.unflatten(-1, (pairs, 2) if ring.interleaved else (2, pairs))
            slots = slots if ring.interleaved else slots.transpose(-1, -2)
            self._pairs = torch.complex(first, second), slots
        sinks, slots = self._pairs
        slots.copy_(torch.view_as_real(sinks * ring.spin.to(sinks.device)))

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
        slot = ring.n_sink + (step.old_position - ring.n_sink) % ring.n_recent
        old_keys, old_values = (_gather(x, slot) for x in (self.keys, self.values))
        recent = min(key.shape[2], ring.n_recent)
        kept = (x[:, :, -recent:] for x in (key, value))
        # A long block would be held whole by a view of its end.
        self._pending = tuple(x.clone() if recent < key.shape[2] else x for x in kept)
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
        self._pairs = None

    def commit(self) -> None:
        """Write the end of a band into the ring, now that all layers have passed."""
        if self._pending is None:
            return
        ring, last = self.ring, self.ring.step.query_position[:, -1:]
        first_kept = last + 1 - self._pending[0].shape[2]
        slot = torch.arange(ring.n_recent)
        position = last - (last - ring.n_sink - slot) % ring.n_recent
        here = ((position >= first_kept) & (position >= ring.n_sink)).to(self.keys.device)
        source = (position - first_kept).clamp(min=0)
        for held, new in zip((self.keys, self.values), self._pending, strict=True):
            held = held[:, :, ring.n_sink :]
            held.copy_(torch.where(here[:, None, :, None], _gather(new, source), held))
        self._pending = None

    def rollback(self) -> None:
        """Forget a pass that broke off."""
        self._pending = None

    def rotated_by(self, delta: int) -> Tensor | None:
        """Return all keys rotated by ``delta`` tokens, or None where keys are not rotated."""
        if not self.is_initialized or self.ring.frequencies is None:
            return None
        return self._rotated(self.keys, rotation_by(delta, self.ring.frequencies))

    def get_seq_length(self) -> int:
        """Return how many tokens were fed, evicted ones included."""
        return self.ring.size - 1 if self.ring.clock.compiled else self.ring.clock.seen

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Return how many keys the next ``query_length`` queries meet, and the mask's offset."""
        ring = self.ring
        if ring.clock.compiled:
            return ring.size, 0
        if ring.layout(query_length) == "head":
            return ring.clock.seen + query_length, 0
        n_key = ring.size - 1 + query_length
        return n_key, ring.clock.seen + query_length - n_key

    def get_max_length(self) -> int:
        """Return the number of slots."""
        return self.ring.size

    def reset(self) -> None:
        """Forget everything; keep the memory."""
        self._pending = None

    def restore(self, keys: Tensor, values: Tensor, sinks: Tensor) -> None:
        """Hold these tensors, as saved from a layer of the same ring."""
        self.lazy_initialization(keys, values)
        self.keys.copy_(keys)
        self.values.copy_(values)
        self.sinks.copy_(sinks)
        self._pairs = None

    def take_rows(self, rows: Int[Tensor, " row"]) -> None:
        """Keep these rows of the batch, in this order; a row may come more than once."""
        if self.is_initialized:
            self.keys, self.values, self.sinks = (
                x.index_select(0, rows.to(x.device)) for x in (self.keys, self.values, self.sinks)
            )
            self._pairs = None


def _gather(x: Tensor, index: Int[Tensor, "row key"]) -> Tensor:
    """Return ``x`` (batch, head, key, dimension) at the given keys; one row of index serves all."""
    index = index.to(x.device)
    if len(index) == 1:
        return x.index_select(2, index[0])
    return x.gather(2, index[:, None, :, None].expand(-1, x.shape[1], -1, x.shape[3]))
