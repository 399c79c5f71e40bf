"""A call of an attention function, and the ways to change it.

Each change is a frozen dataclass with ``before`` (the call, changed) and ``after`` (its output,
changed). They commute, so nesting needs no order. Knows nothing about models or hooks.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from sinkviz.attention import null_softmax

# Numbers in a block of scores: 64 MB.
AT_ONCE = 2**24


@dataclass(frozen=True, eq=False)
class Call:
    """What an attention function is called with, and where its queries and keys stand.

    Attributes:
        layer: which layer calls.
        query: of the pass.
        key: all that the queries may attend over.
        value: likewise.
        mask: of transformers: true where seen, or numbers to add; None where it is causal alone.
        options: the other arguments.
        query_position: text positions, one row or one per stream; negative for padding.
        key_position: likewise, the same for all heads or not; negative where there is no key.
    """

    layer: int
    query: Float[Tensor, "batch head query dimension"]
    key: Float[Tensor, "batch kv_head key dimension"]
    value: Float[Tensor, "batch kv_head key value_dimension"]
    mask: Tensor | None
    options: dict[str, Any]
    query_position: Int[Tensor, "row query"]
    key_position: Int[Tensor, "some_row some_head key"]


@dataclass(frozen=True, eq=False)
class Change:
    """A change of attention.

    Attributes:
        explicit: needs an attention function that takes any mask and a null logit.
    """

    @property
    def explicit(self) -> bool:
        """Whether the model's own attention function may not do what is asked."""
        return False

    def before(self, call: Call) -> Call:
        """Return the call as it shall be."""
        return call

    def after(self, output: Float[Tensor, "batch query head dimension"]) -> Tensor:
        """Return the output as it shall be."""
        return output


@dataclass(frozen=True, eq=False)
class ZeroValue(Change):
    """The value at a text position is zero."""

    position: int

    def before(self, call: Call) -> Call:
        """Blank the value wherever the token lies."""
        there = call.key_position == self.position
        if not there.any():
            return call
        there = there.to(call.value.device)[..., None]
        return replace(call, value=call.value.masked_fill(there, 0))


@dataclass(frozen=True, eq=False)
class KnockOut(Change):
    """The output of a head is zero."""

    head: int

    def after(self, output: Float[Tensor, "batch query head dimension"]) -> Tensor:
        """Blank the head."""
        return output.index_fill(2, torch.tensor([self.head], device=output.device), 0)


@dataclass(frozen=True, eq=False)
class NullKey(Change):
    """One more key, with a logit and without a value."""

    logit: float

    @property
    def explicit(self) -> bool:
        """Fused attention has no place for it."""
        return True

    def before(self, call: Call) -> Call:
        """Add the logit to what there is: the sum of the exponentials is what counts."""
        query, own = call.query, call.options.get("s_aux")
        wide = torch.promote_types(torch.float32, query.dtype)
        null = torch.full((query.shape[1],), self.logit, dtype=wide, device=query.device)
        if own is not None:
            null = torch.logaddexp(own.to(null), null)
        return replace(call, options=call.options | {"s_aux": null})


@dataclass(frozen=True, eq=False)
class Forbid(Change):
    """No other token attends to a text position; None for all heads."""

    position: int
    heads: tuple[int, ...] | None = None

    @property
    def explicit(self) -> bool:
        """Not every attention function takes a mask."""
        return True

    def before(self, call: Call) -> Call:
        """Hide the token, in the band or in the mask."""
        there = call.key_position == self.position
        if not there.any():
            return call
        bands, later = call.options.get("bands"), call.query_position > self.position
        if bands is not None and call.mask is None and self.heads is None and later.all():
            # A band that lacks a key is still folded; one with a mask is not.
            band = bands[call.layer]
            missing = band.key_position.masked_fill(band.key_position == self.position, -1)
            band = replace(band, key_position=missing)
            return replace(call, options=call.options | {"bands": bands | {call.layer: band}})
        there = self._of_heads(there, call.query.shape[1])
        forbidden = there[:, :, None] & later[:, None, :, None]
        return replace(call, mask=_hiding(call, forbidden.to(call.query.device)))

    def _of_heads(self, there: Bool[Tensor, "row some_head key"], n_heads: int) -> Tensor:
        if self.heads is None and there.shape[1] == 1:
            return there
        chosen = torch.ones(n_heads, 1, dtype=torch.bool)
        if self.heads is not None:
            chosen[:] = False
            chosen[list(self.heads)] = True
        return there.repeat_interleave(n_heads // there.shape[1], 1) & chosen


def _hiding(call: Call, forbidden: Bool[Tensor, "row some_head query key"]) -> Tensor:
    """Return the call's mask as numbers to add, with some pairs forbidden.

    What is forbidden gets a quarter of the lowest number: nothing is left of it after a softmax,
    but whoever reads the mask can tell it from what is out of sight, such as the future.
    """
    mask, lowest = call.mask, torch.finfo(call.query.dtype).min
    if mask is None and "bands" not in call.options:
        mask = causal(*forbidden.shape[2:], call.options.get("sliding_window"), forbidden.device)
    if mask is None:
        mask = torch.zeros((), dtype=call.query.dtype, device=forbidden.device)
    elif mask.dtype == torch.bool:
        mask = torch.zeros_like(mask, dtype=call.query.dtype).masked_fill(~mask, lowest)
    return torch.where(forbidden & (mask > lowest / 2), lowest / 4, mask)


def causal(
    n_query: int, n_key: int, window: int | None, device: torch.device
) -> Bool[Tensor, "1 1 query key"]:
    """Return which of the last queries of a text sees which key.

    Args:
        n_query: how many queries.
        n_key: keys; the last is the last query's own.
        window: tokens that a query sees, itself included; None for all.
        device: where the truths are wanted.
    """
    visible = torch.ones(n_query, n_key, dtype=torch.bool, device=device).tril_(n_key - n_query)
    if window is not None:
        visible = visible.triu_(n_key - n_query - window + 1)
    return visible[None, None]


def explicit_attention(
    module: Any,
    query: Float[Tensor, "batch head query dimension"],
    key: Float[Tensor, "batch kv_head key dimension"],
    value: Float[Tensor, "batch kv_head key value_dimension"],
    attention_mask: Tensor | None,
    *,
    scaling: float | None = None,
    softcap: float | None = None,
    s_aux: Float[Tensor, " head"] | None = None,
    sliding_window: int | None = None,
    weights: bool = False,
    **kwargs: Any,
) -> tuple[Float[Tensor, "batch query head value_dimension"], Tensor | None]:
    """Attend with any mask, cap and null logit, a block of queries at a time.

    A transformers attention function; memory follows the number of keys.

    Args:
        module: not used.
        query: of the pass.
        key: all that the queries may attend over.
        value: in the order of the keys.
        attention_mask: true where seen, or numbers to add to the scores; None where it is causal.
        scaling: factor of the dot products.
        softcap: scores are squeezed into (-softcap, softcap) with a tanh.
        s_aux: one null logit per head, see ``sinkviz.attention.null_softmax``.
        sliding_window: tokens that a query sees, itself included, where there is no mask.
        weights: return the attention, too.
        kwargs: whatever else transformers passes on; a bias among it is refused.

    Raises:
        ValueError: the model wants a position bias added, which only its own attention does.
    """
    if kwargs.get("position_bias") is not None:
        raise ValueError(
            "this model adds a position bias within its attention function, which forbid and "
            "null_key do not know; zero_value and knock_out work with it"
        )
    n_query, n_key = query.shape[2], key.shape[2]
    groups = query.shape[1] // key.shape[1]
    key, value = (x.repeat_interleave(groups, 1) if groups > 1 else x for x in (key, value))
    keys = key.transpose(-1, -2) * (query.shape[-1] ** -0.5 if scaling is None else scaling)
    if attention_mask is None and (n_query > 1 or sliding_window is not None):
        attention_mask = causal(n_query, n_key, sliding_window, query.device)
    rows = n_query if weights else max(16, AT_ONCE // (n_key * query.shape[0] * query.shape[1]))
    outputs, maps = [], []
    for start in range(0, n_query, rows):
        scores = query[:, :, start : start + rows] @ keys
        if softcap is not None:
            scores = softcap * torch.tanh(scores / softcap)
        if attention_mask is not None:
            mask = attention_mask[..., start : start + rows, :]
            if mask.dtype == torch.bool:
                scores = scores.masked_fill(~mask, torch.finfo(scores.dtype).min)
            else:
                scores = scores + mask
        attention = null_softmax(scores, s_aux)
        outputs.append((attention.to(value.dtype) @ value).transpose(1, 2))
        maps.append(attention if weights else None)
    return torch.cat(outputs, 1).contiguous(), maps[0]
