"""A KV cache for any policy, also one that goes by attention: general, exact and slow.

``SinkCache`` writes one slot and rotates a few sinks per token. ``RankedCache`` knows no sinks and
no window: it holds keys without their rotation, in text order, and rotates all of them anew in
every pass, each to its rank among those kept. A token costs time in proportion to the cache.
Knows nothing about text, sampling or scoring.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from sinkviz.binding import bind, uninterrupted
from sinkviz.bound import BoundCache
from sinkviz.families import (
    check_movable_keys,
    check_sliding_window,
    layer_kinds,
    position_limit,
)
from sinkviz.policies import Policy, check_registered
from sinkviz.positions import rotation_by
from sinkviz.ranks import Pass, RankedLayer
from sinkviz.registry import next_kept
from sinkviz.trial import family_of


class RankedCache(BoundCache):
    """A KV cache that keeps what a policy says, with positions within the cache.

    Pass it to the model it was made for, as ``past_key_values``, or leave that to
    ``sinkviz.stream``. Several tokens at a time are fine as long as none of them pushes another
    out: ``parts`` says how to cut a text. It takes no padding.

    A policy by attention chooses in each layer, and may choose in each kv head, what to evict
    before the next token: among as many keys as the cache may hold, from the attention that these
    have received. The model's attention must then return its weights (``eager``). A long prompt is
    no exception: it is cut while it is read, where other projects read it whole and then cut.

    Args:
        model: the causal language model that will use the cache.
        policy: what to keep.

    Raises:
        ValueError: the policy has no cache, no end, or positions in the text; the family bakes
            absolute positions into its keys; some layers have a sliding window of their own, or all
            have one that is shorter than the cache; or the positions end before the cache does.
    """

    def __init__(self, model: nn.Module, policy: Policy) -> None:
        check_registered(policy)
        if policy.recompute or policy.cache_size is None:
            raise ValueError(f"{policy} has no cache of a fixed size; sinkviz.stream runs it")
        if policy.positions != "cache":
            raise ValueError(
                f"a RankedCache counts positions within the cache, not in the {policy.positions} "
                f"as {policy} does; of our caches only SinkCache does that"
            )
        family, size = family_of(model), policy.cache_size
        check_movable_keys(model, family)
        check_sliding_window(model, size, "a cache")
        kinds, limit = layer_kinds(model, family), position_limit(model, family)
        if any(kind.window is not None for kind in kinds):
            raise ValueError(
                f"some layers of {family.name} slide by their own design, which only SinkWindow "
                f"and Window go along with, not {policy}"
            )
        if limit is not None and size > limit:
            raise ValueError(
                f"{family.name} tells {limit} positions apart, {policy} needs {size}; use at most "
                f"{limit} tokens"
            )
        self.policy, self.family, self.observes = policy, family, policy.by_attention
        self._device, self._step, self._kept = model.device, None, []
        self._frequencies: list[Tensor] = []
        layers = [
            RankedLayer(policy, self._shared(kind.frequencies, model.dtype), family.interleaved)
            for kind in kinds
        ]
        super().__init__(layers)
        bind(self, model, family)

    def _shared(self, frequencies: Tensor | None, dtype: torch.dtype) -> Tensor | None:
        """Return the same tensor for equal frequencies, in double precision if the model is."""
        if frequencies is None:
            return None
        frequencies = frequencies.to(torch.promote_types(frequencies.dtype, dtype))
        equal = (one for one in self._frequencies if torch.equal(one, frequencies))
        if (found := next(equal, None)) is None:
            self._frequencies.append(found := frequencies)
        return found

    @property
    def cache_size(self) -> int:
        """Most tokens that a query sees, itself included."""
        return self.policy.cache_size

    @property
    def seen(self) -> int:
        """Tokens fed so far, evicted ones included."""
        return self.layers[0].seen

    @property
    def n_kept(self) -> int:
        """Tokens that the last query saw, in each layer and head."""
        return self.layers[0].tokens.shape[-1] if self.seen else 0

    def kept(self, layer: int = 0) -> Int[Tensor, "batch head key"]:
        """Return the text positions that the last query saw in a layer, per kv head.

        Raises:
            ValueError: nothing has been fed yet.
        """
        if not self.seen:
            raise ValueError("this cache is empty; feed it tokens first")
        found = self.layers[layer]
        return found.tokens.expand(*found.keys.shape[:2], -1)

    def kept_anywhere(self) -> list[int]:
        """Return the text positions that the last query saw in some layer and head."""
        held = [layer.tokens.flatten().cpu() for layer in self.layers if layer.seen]
        return torch.cat(held).unique().tolist() if held else []

    def _count(self, n: int) -> int:
        """Return how many tokens the n-th token sees."""
        if self.policy.by_attention:
            return min(n, self.cache_size)
        return len(self.policy.keep(n)) if n else 0

    def parts(self, n_new: int, turning: bool = False) -> list[int]:
        """Return the sizes of the passes in which to feed so many tokens: none evicts within."""
        counts = [self._count(n) for n in range(self.seen, self.seen + n_new + 1)]
        sizes: list[int] = []
        for before, after in pairwise(counts):
            if sizes and after == before + 1:
                sizes[-1] += 1
            else:
                sizes.append(1)
        return sizes

    # A pass -------------------------------------------------------------------------------------

    def begin(self, batch: int, n_new: int, attention_mask: Tensor | None) -> dict[str, Any]:
        """Prepare a pass; return position ids and mask.

        Raises:
            ValueError: a token is padding, one of several tokens would evict another, or the
                policy breaks its own rules.
        """
        self._rollback()
        if attention_mask is not None and (attention_mask == 0).any():
            raise ValueError(
                f"a RankedCache, which {self.policy} needs, takes no padding; feed texts of one "
                "length, or one at a time"
            )
        if n_new > 1 and len(parts := self.parts(n_new)) > 1:
            raise ValueError(
                f"within these {n_new} tokens some leave the cache, which holds {self.cache_size}; "
                f"feed {parts[0]} tokens now, or one at a time (sinkviz.stream does)"
            )
        self._step = step = self._next(n_new)
        for layer in self.layers:
            layer.step = step
        position = torch.arange(step.n_key - n_new, step.n_key, device=self._device)
        changes = {"position_ids": position.expand(batch, -1), "attention_mask": None}
        if self.family.alibi:
            # Only its length counts; the hooks of the attention modules bring the real mask.
            ones = torch.ones(batch, step.n_key, dtype=torch.long, device=self._device)
            changes["attention_mask"] = ones
            if self.family.positions == "bias":
                del changes["position_ids"]
        return changes

    def _next(self, n_new: int) -> Pass:
        kept, stay = self._kept, None
        if not self.policy.by_attention:
            for n in range(self.seen + 1, self.seen + n_new + 1):
                kept = next_kept(self.policy, n, kept)
            left = set(kept)
            ranks = [rank for rank, token in enumerate(self._kept) if token in left]
            if len(ranks) < len(self._kept):
                stay = torch.tensor(ranks, dtype=torch.long, device=self._device)[None, None]
        n_key = len(kept) or self._count(self.seen + n_new)
        rank = torch.arange(n_key, device=self._device)
        turns = {id(one): rotation_by(rank, one) for one in self._frequencies}
        return Pass(n_new, n_key, kept, stay, turns)

    def commit(self) -> None:
        """Let the tokens of the pass count."""
        with uninterrupted():
            for layer in self.layers:
                layer.commit()
            self._step, self._kept = None, self._step.kept

    def _rollback(self) -> None:
        self._step = None
        for layer in self.layers:
            layer.rollback()

    def observe(self, layer: int, attention: Float[Tensor, "batch head query key"]) -> None:
        """Take note of the attention of a layer, in [0, 1]."""
        self.layers[layer].observe(attention)

    def layout_of(
        self, layer: int
    ) -> tuple[Int[Tensor, "1 query key"], Bool[Tensor, "1 query key"]]:
        """Return distance and visibility of this pass, the same in all layers."""
        rank = torch.arange(self._step.n_key, device=self._device)
        distance = (rank[-self._step.n_new :, None] - rank)[None]
        return distance, distance >= 0

    def query_position(self, layer: int) -> Int[Tensor, "1 query"]:
        """Return the text positions of this pass's tokens."""
        return torch.arange(self.seen, self.seen + self._step.n_new)[None]

    def key_position(self, layer: int) -> Int[Tensor, "row head key"]:
        """Return the text positions of the keys of this pass; heads may differ."""
        return self.layers[layer].passing

    def distances(self, position_ids: Int[Tensor, "batch query"]) -> Int[Tensor, "1 query key"]:
        """Return how far each key of this pass lies from each query *within the cache*, tokens.

        For the classroom models that turn distances into biases. Negative for keys in the future.
        """
        return self.layout_of(0)[0].to(position_ids.device)

    # Saving -------------------------------------------------------------------------------------

    def state(self) -> tuple[dict[str, Tensor], dict[str, int]]:
        """Return all that it takes to go on: tensors by name, and the clock."""
        return self.held(), {"seen": self.seen}

    def restore(self, tensors: dict[str, Tensor], clock: dict[str, int]) -> None:
        """Go on where ``state`` was taken, with a cache of the same policy."""
        self.reset()
        for layer, held in zip(self.layers, self.by_layer(tensors), strict=True):
            layer.restore(held, clock["seen"])
        if not self.policy.by_attention and self.seen:
            self._kept = self.policy.keep(self.seen)

    def anew(self, model: nn.Module) -> RankedCache:
        """Return an empty cache of the same policy."""
        return RankedCache(model, self.policy)

    def reset(self) -> None:
        """Forget everything."""
        super().reset()
        self._step, self._kept = None, []

    def __repr__(self) -> str:
        return f"RankedCache({self.policy!r}, seen={self.seen})"
