"""Ways to compute attention, side by side: eager, sdpa, flash, flex, local window, top-k keys.

All are transformers attention functions. Knows nothing about texts or tables.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.attention.flex_attention import create_block_mask, flex_attention
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from sinkviz.attention import banded_attention, null_softmax
from sinkviz.bands import Band
from sinkviz.classroom import eager_attention_forward
from sinkviz.models import LM

MEASURED = "sinkviz_measured"
Attend = Callable[..., tuple[Tensor, Tensor | None]]


@dataclass(frozen=True)
class Mechanism:
    """One way to compute attention.

    Attributes:
        name: in tables and figures.
        attend: a transformers attention function. Without a mask it is causal.
        masked: whether it adds a mask to scores, which a model makes once for all layers.
        keys: keys that get weight from a query, its own included; None for all before it.
        holds: keys that a cache must hold for it: those that it may still look at; None for all.
    """

    name: str
    attend: Attend
    masked: bool = False
    keys: int | None = None
    holds: int | None = None

    @property
    def exact(self) -> bool:
        """Whether the result is that of full attention."""
        return self.keys is None


def top_k_attention(
    module: nn.Module,
    query: Float[Tensor, "batch head query dimension"],
    key: Float[Tensor, "batch kv_head key dimension"],
    value: Float[Tensor, "batch kv_head key dimension"],
    attention_mask: Tensor | None,
    *,
    n_keys: int,
    scaling: float,
    s_aux: Float[Tensor, " head"] | None = None,
    **kwargs: Any,
) -> tuple[Float[Tensor, "batch query head dimension"], Tensor]:
    """Attend to the ``n_keys`` highest scores of each query; a transformers attention function.

    The others get no weight, and their values are never read: conditional computation. This one is
    for looking at and for measuring quality. It saves nothing: to know the highest scores it
    computes them all, and sorting costs more than the softmax that it spares.

    Args:
        module: the attention module; not used.
        query: rotated where positions are rotary.
        key: rotated likewise.
        value: in the order of the keys.
        attention_mask: added to the scores: very negative where a key must not be seen. Without
            one, a query sees the keys up to its own.
        n_keys: how many keys each query reads; all where there are no more.
        scaling: factor of the dot products.
        s_aux: one null logit per head, see ``sinkviz.attention.null_softmax``.
        kwargs: whatever else transformers passes on; not used.

    Returns:
        The output, and the attention (batch, head, query, key), zero but for ``n_keys`` per query.

    Raises:
        ValueError: ``n_keys`` is below 1.

    Source: Gupta et al. 2021, arXiv 2106.06899, section 2 (there in chunks of queries, which
        bounds memory).
    """
    if n_keys < 1:
        raise ValueError(f"n_keys must be at least 1, got {n_keys}; each query reads some key")
    groups = query.shape[1] // key.shape[1]
    key, value = (x.repeat_interleave(groups, dim=1) for x in (key, value))
    scores = query @ key.transpose(-1, -2) * scaling
    if attention_mask is None:
        attention_mask = causal_mask(query, key.shape[2])
    scores = scores + attention_mask
    # Of keys that a query must not see, all are equally low: none is taken before one it may see.
    highest, place = scores.topk(min(n_keys, scores.shape[-1]), dim=-1)
    weights = null_softmax(highest, s_aux).to(query.dtype)
    attention = torch.zeros_like(scores).scatter(-1, place, weights)
    return (attention @ value).transpose(1, 2).contiguous(), attention


def causal_mask(query: Tensor, n_keys: int) -> Float[Tensor, "one one query key"]:
    """Return a mask to add to the scores: the last query sees all keys, each earlier one less."""
    shape = (query.shape[2], n_keys)
    least = torch.full(shape, torch.finfo(query.dtype).min, dtype=query.dtype, device=query.device)
    return least.triu(1 + n_keys - query.shape[2])[None, None]


def top_k(n_keys: int) -> Mechanism:
    """Return attention to the ``n_keys`` highest scores of each query."""

    def attend(*args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        return top_k_attention(*args, n_keys=n_keys, **kwargs)

    return Mechanism(f"top-{n_keys} keys", attend, masked=True, keys=n_keys)


def local_window(lm: LM, length: int, n_recent: int, n_sink: int = 0) -> Mechanism:
    """Return attention to the most recent keys and the first ones, ``banded_attention``.

    Keys keep their places in the text: nothing moves along, as nothing is far behind yet in a text
    of the training length.

    Args:
        lm: whose layers attend so.
        length: tokens of the text.
        n_recent: most recent keys that a query sees, itself included.
        n_sink: first keys that all queries see.
    """
    place = torch.arange(length, device=lm.device)[None]
    band = Band(query_position=place, key_position=place, n_sink=n_sink, n_recent=n_recent)
    bands = {layer: band for layer in range(lm.model.config.get_text_config().num_hidden_layers)}

    def attend(*args: Any, **kwargs: Any) -> tuple[Tensor, Tensor | None]:
        return banded_attention(*args, bands=bands, **kwargs)

    name = f"{n_sink} sinks + window {n_recent}" if n_sink else f"window {n_recent}"
    size = n_sink + n_recent
    return Mechanism(name, attend, keys=size, holds=size)


def eager() -> Mechanism:
    """Return attention as the textbook writes it: all scores, then a softmax."""

    def attend(
        module: nn.Module,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Tensor | None,
        **kwargs: Any,
    ) -> tuple[Tensor, Tensor]:
        mask = causal_mask(query, key.shape[2]) if attention_mask is None else attention_mask
        return eager_attention_forward(module, query, key, value, mask, **kwargs)

    return Mechanism("eager", attend, masked=True)


def sdpa() -> Mechanism:
    """Return torch's fused attention, whatever kernel it picks."""
    return Mechanism("sdpa", ALL_ATTENTION_FUNCTIONS["sdpa"])


def flash() -> Mechanism:
    """Return torch's fused attention, with its flash kernel and no other."""

    def attend(*args: Any, **kwargs: Any) -> tuple[Tensor, Tensor | None]:
        with sdpa_kernel(SDPBackend.FLASH_ATTENTION):
            return ALL_ATTENTION_FUNCTIONS["sdpa"](*args, **kwargs)

    return Mechanism("flash", attend)


def flex(length: int, device: torch.device) -> Mechanism:
    """Return torch's flex attention: a causal rule, compiled into a kernel for one length.

    Args:
        length: tokens of the text.
        device: where it runs.
    """
    blocks = create_block_mask(
        lambda row, head, query, key: query >= key, None, None, length, length, device=device.type
    )
    run = torch.compile(flex_attention, dynamic=False)

    def attend(
        module: nn.Module,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Tensor | None,
        *,
        scaling: float,
        **kwargs: Any,
    ) -> tuple[Tensor, None]:
        shared = query.shape[1] != key.shape[1]
        output = run(query, key, value, block_mask=blocks, scale=scaling, enable_gqa=shared)
        return output.transpose(1, 2).contiguous(), None

    return Mechanism("flex", attend)


@contextlib.contextmanager
def attending(mechanism: Mechanism) -> Iterator[str]:
    """Give a mechanism a name in transformers' attention interface, and take it back afterwards.

    Args:
        mechanism: how to attend.

    Yields:
        The name, for ``untouched(model, name)``.

    Raises:
        RuntimeError: another mechanism has the name just now.
    """
    if MEASURED in ALL_ATTENTION_FUNCTIONS:
        raise RuntimeError("one mechanism is measured at a time; leave the other one first")
    ALL_ATTENTION_FUNCTIONS[MEASURED] = mechanism.attend
    # None is made: each mechanism is causal by itself, and biases come as a mask of their own.
    ALL_MASK_ATTENTION_FUNCTIONS[MEASURED] = lambda *args, **kwargs: None
    try:
        yield MEASURED
    finally:
        del ALL_ATTENTION_FUNCTIONS[MEASURED]
        del ALL_MASK_ATTENTION_FUNCTIONS[MEASURED]
