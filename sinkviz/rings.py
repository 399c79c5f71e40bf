"""Where the tokens of a stream lie in memory: sinks in the first slots, then a ring.

A ``Ring`` is the geometry that all layers of one kind share, and a ``Pass`` is what one pass over
the model makes of it: who stands where, who sees whom. Knows nothing about models, keys or values.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from sinkviz.bands import Band
from sinkviz.clock import Clock
from sinkviz.families import LayerKind
from sinkviz.positions import rotation_by

# Steps whose slots and rotations are computed together: many cost hardly more than one.
AHEAD = 64


@dataclass
class Ahead:
    """Slots and rotations of the next steps of a stream.

    Attributes:
        seen: tokens that were fed before the first of these steps.
        base: text position that the model called 0 then.
        slot: where the token of each step goes.
        spin: rotation of the sinks' keys at each step; none where there is none.
    """

    seen: int
    base: int
    slot: tuple[Tensor, ...]
    spin: tuple[Tensor, ...]

    def __contains__(self, clock: Clock) -> bool:
        """Whether the next step is one of these."""
        return clock.base == self.base and 0 <= clock.seen - self.seen < AHEAD


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
        spin: rotation of the sinks' keys then, as complex numbers.
        turn: the same as cosine and sine, for a compiled graph.
        stacks: the sinks of all its layers, a ``SinkStack`` per device; None where they have to be
            gathered anew.
        turned: whether the sinks' keys in their slots are those of this pass already.
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
    spin: Tensor | None = None
    turn: tuple[Tensor, Tensor] | None = None
    stacks: list | None = None
    turned: bool = False
    _ahead: Ahead | None = None

    def __post_init__(self) -> None:
        if self.frequencies is not None:
            self._exact = self.frequencies.double().cpu().numpy()

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

    @property
    def spins(self) -> bool:
        """Whether this pass rotates the sinks' keys in their slots."""
        return bool(self.step.layout == "slots" and self.n_sink and self.frequencies is not None)

    def begin(self, n_new: int, device: torch.device) -> None:
        """Prepare a pass over ``n_new`` tokens."""
        self.step = step = Pass(self, n_new)
        if step.layout != "slots":
            return
        clock = self.clock
        if clock.padding is None:  # this is every step of an endless stream
            if self._ahead is None or clock not in self._ahead:
                self._ahead = self._look_ahead(device)
            nth = clock.seen - self._ahead.seen
            self.slot = self._ahead.slot[nth]
            if self.spins:
                self.spin = self._ahead.spin[nth]
        else:
            self.slot = step.slot.to(device)
            if self.spins:
                self.spin = self._spin(step.delta[..., None].numpy()).to(device)
        if clock.compiled:  # whose graphs want memory that begins at round addresses
            self.slot = self.slot.clone()
            if self.spins:  # and fuse no operations on complex numbers
                self.turn = self.spin.real.clone(), self.spin.imag.clone()

    def _look_ahead(self, device: torch.device) -> Ahead:
        seen, base = self.clock.seen, self.clock.base
        steps = np.arange(seen, seen + AHEAD)
        slot = self.n_sink + (steps - self.n_sink) % self.n_recent
        delta = (steps + 1 - self.size if self.moves else 0 * steps) - base
        spin = self._spin(delta).to(device).unbind() if self.spins else ()
        return Ahead(seen, base, torch.from_numpy(slot).to(device).split(1), spin)

    def _spin(self, delta: np.ndarray) -> Tensor:
        """Return the rotations by so many tokens, as complex numbers, one more axis for the pairs.

        On the host: a few numbers, and a dozen operations that cost a device more to begin than to
        do. The angle is exact at any distance, see ``positions.rotation_by``.
        """
        angle = np.remainder(delta[..., None] * self._exact, 2 * np.pi)
        dtype = np.complex64 if self.frequencies.dtype == torch.float32 else np.complex128
        return torch.from_numpy(np.exp(1j * angle).astype(dtype))


def rings_of(
    kinds: Sequence[LayerKind],
    clock: Clock,
    n_sink: int,
    n_recent: int,
    *,
    interleaved: bool,
    moves: bool,
) -> tuple[list[Ring], list[int]]:
    """Return the rings of a model's layers, and which of them each layer has.

    Layers that see and rotate alike share a ring. One that slides by its own design has no sinks,
    and keeps its own window.

    Args:
        kinds: of the layers, first layer first.
        clock: of the cache.
        n_sink: first tokens that are never evicted.
        n_recent: most recent tokens kept, the current one included.
        interleaved: how rotary coordinates are paired.
        moves: whether sinks move along, right before the window.
    """
    rings: list[Ring] = []
    which = []
    for kind in kinds:
        size = (n_sink, n_recent) if kind.window is None else (0, kind.window)
        alike = (
            index
            for index, ring in enumerate(rings)
            if (ring.n_sink, ring.n_recent) == size and _equal(ring.frequencies, kind.frequencies)
        )
        if (found := next(alike, None)) is None:
            found = len(rings)
            rings.append(Ring(clock, *size, kind.frequencies, interleaved, moves))
        which.append(found)
    for ring in rings:
        alike = (one for one in rings if (one.n_sink, one.n_recent) == (ring.n_sink, ring.n_recent))
        ring.copies = any(one.frequencies is not None for one in alike)
    return rings, which


def _equal(one: Tensor | None, other: Tensor | None) -> bool:
    return one is other or (None not in (one, other) and torch.equal(one, other))


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
        last = 0 if self.padding is None else int(self.padding.max())
        return self.seen - last < self.ring.n_sink

    @cached_property
    def old_position(self) -> Int[Tensor, "row key"]:
        """Text positions of the earlier tokens in a band, whether they are there or not."""
        held = self.seen if self.padding is not None else max(0, self.seen - self.ring.n_sink)
        n_old = min(self.ring.n_recent, held)
        return self.query_position[:, :1] + torch.arange(-n_old, 0)

    @cached_property
    def ring_position(self) -> Int[Tensor, "row slot"]:
        """Text positions of what the slots of the ring hold after the pass, if it is there."""
        n_recent, last = self.ring.n_recent, self.query_position[:, -1:]
        return last - (last - self.ring.n_sink - torch.arange(n_recent)) % n_recent

    @property
    def n_kept(self) -> int:
        """How many tokens of a band, its last, may stay in the ring."""
        return min(self.n_new, self.ring.n_recent)

    @cached_property
    def old_slot(self) -> Int[Tensor, "row key"]:
        """Slots of the earlier tokens in a band."""
        return self.ring.n_sink + (self.old_position - self.ring.n_sink) % self.ring.n_recent

    @cached_property
    def kept(self) -> tuple[Int[Tensor, "row slot"], Bool[Tensor, "row slot"]]:
        """What a band leaves in the ring: which of its last ``n_kept`` tokens, and in which slots.

        One place per slot of the ring, sinks aside.
        """
        first, position = self.query_position[:, -1:] + 1 - self.n_kept, self.ring_position
        here = (position >= first) & (position >= self.ring.n_sink)
        return (position - first).clamp(min=0), here

    @cached_property
    def key_position(self) -> Int[Tensor, "row key"]:
        """Text positions of the keys that this pass returns; negative where there is none.

        Of the copies of the sinks (``copies``) this counts the first alone.
        """
        n_sink, last = self.ring.n_sink, self.query_position[:, -1:]
        if self.layout == "head":
            return torch.arange(self.seen + self.n_new)[None]
        if self.layout == "slots":
            recent = self.ring_position
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

    @cached_property
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
