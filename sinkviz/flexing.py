"""Attention over a band by torch's flex attention, whose kernels for GPUs store no scores.

Does what ``sinkviz.folding`` does. Knows nothing about models or caches: tensors in, tensors out.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import no_type_check

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.attention.flex_attention import AuxRequest, BlockMask, flex_attention

from sinkviz import tiles
from sinkviz.bands import Band, turned
from sinkviz.folding import with_sinks

# The kernels multiply matrices of no fewer columns.
LEAST_COLUMNS = 16
# Shapes, windows and kinds of heads in a session, each of which is compiled anew.
KERNELS = 64


def flex_banded(
    query: Float[Tensor, "batch head query dimension"],
    key: Float[Tensor, "batch kv_head key dimension"],
    value: Float[Tensor, "batch kv_head key dimension"],
    band: Band,
    scaling: float,
    s_aux: Float[Tensor, " head"] | None = None,
    softcap: float | None = None,
) -> Float[Tensor, "batch query head dimension"]:
    """Attend over a band by flex attention, and over the few sinks by a product of matrices.

    Queries meet the sinks turned by another angle, which one kernel cannot do; they come in
    afterwards (``folding.with_sinks``). Padding, which sees nothing, gets any finite numbers.

    Compiled when it is first called, and anew for other shapes. No gradients.

    Args:
        query: see ``sinkviz.attention.banded_attention``.
        key: likewise.
        value: likewise.
        band: what each query sees; it has a window.
        scaling: factor of the dot products.
        s_aux: one null logit per head.
        softcap: scores are squeezed into (-softcap, softcap) with a tanh.

    Source: Dong et al. 2024, arXiv 2412.05496.
    """
    far = turned(query, band) if band.n_sink else None
    in_band = band.in_band.expand(len(query), -1).contiguous()
    places = band.query_position, band.key_position[:, : band.n_sink], in_band
    sizes = band.n_sink, band.n_recent
    options = scaling, s_aux, softcap
    return _run()(query, far, key, value, *places, band.tiles, *sizes, *options)


@functools.cache
def _run() -> Callable[..., Tensor]:
    """Return ``_attend``, compiled.

    As it is written it would store all scores, and so it never runs: with ``fullgraph``, more than
    ``KERNELS`` raise an error. Every number in it is a constant, which makes a kernel faster.
    """
    return torch.compile(_attend, fullgraph=True, dynamic=False, recompile_limit=KERNELS)


@no_type_check  # checks, where there are some, cannot be compiled
def _attend(
    query: Tensor,
    far: Tensor | None,
    key: Tensor,
    value: Tensor,
    query_position: Tensor,
    sink_position: Tensor,
    in_band: Tensor,
    blocks: list[Tensor],
    n_sink: int,
    n_recent: int,
    scaling: float,
    s_aux: Tensor | None,
    softcap: float | None,
) -> Tensor:
    """Return what ``flex_banded`` returns.

    Args:
        query: see ``flex_banded``.
        far: the queries as the sinks meet them; None without sinks.
        key: sinks first, then the band.
        value: likewise.
        query_position: (row, query), negative for padding.
        sink_position: (row, sink), negative where there is none.
        in_band: (batch, key), see ``Band.in_band``.
        blocks: see ``Band.tiles``.
        n_sink: leading keys that are sinks.
        n_recent: tokens that a query sees, itself included, sinks aside.
        scaling: see ``flex_banded``.
        s_aux: likewise.
        softcap: likewise.
    """
    batch, heads, n_query, _ = query.shape
    kv_heads, n_key = key.shape[1:3]
    first = n_key - n_query

    def seen(row, head, at, of):
        distance = first + at - of
        return (distance >= 0) & (distance < n_recent) & in_band[row, of]

    def squeezed(score, *place):
        return softcap * torch.tanh(score / softcap)

    mask = BlockMask.from_kv_blocks(
        *blocks,
        BLOCK_SIZE=tiles.SIDE,
        mask_mod=seen,
        seq_lengths=(n_query, n_key),
        compute_q_blocks=False,
    )
    output, found = flex_attention(
        query,
        key,
        value,
        score_mod=None if softcap is None else squeezed,
        block_mask=mask,
        scale=scaling,
        enable_gqa=heads != kv_heads,
        return_aux=AuxRequest(lse=True),
        kernel_options={"BACKEND": "TRITON"},
    )
    at, of = query_position[:, None], sink_position[..., None]
    hidden = ((of < 0) | (of > at)) & (at >= 0)
    parts = (
        *(output, found.lse, query if far is None else far),
        *(x[:, :, :n_sink] for x in (key, value)),
        hidden[:, None].expand(batch, heads, -1, -1),
    )
    nulls = None if s_aux is None else s_aux.repeat(batch)
    output = with_sinks(*(x.flatten(0, 1) for x in parts), scaling, nulls, softcap)
    return output.unflatten(0, (batch, heads)).transpose(1, 2).contiguous()
