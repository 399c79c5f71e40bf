"""Logarithms of sums over dot products, by kernels that store none: torch's flex attention.

Such a kernel returns the logarithm of each row's sum of exponentials. Where queries and keys
change places, and each query's own sum is taken off its scores, the rows are keys, and their sums
what they receive. Knows nothing about models, nor what is asked for.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple, no_type_check

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn.attention.flex_attention import AuxRequest, BlockMask, flex_attention

from sinkviz import tiles
from sinkviz.capturing.sights import Sight

# The kernels multiply matrices of no fewer columns.
LEAST_COLUMNS = 16
# Lengths, masks and kinds of heads in a session, each of which may be compiled anew.
KERNELS = 64


class Pairs(NamedTuple):
    """A range of distances and a range of keys: of pairs that see each other, those within both.

    Attributes:
        nearest: the least distance, tokens.
        beyond: the distance after the greatest.
        first: text position of the first key.
        stop: that after the last key.
    """

    nearest: int
    beyond: int
    first: int
    stop: int


@dataclass(frozen=True, eq=False)
class Products:
    """Dot products of the queries and keys of a pass.

    Attributes:
        query: of the pass.
        key: of the text up to the end of the pass.
        sight: who sees whom; it adds no bias, and is the same for all heads.
        scaling: factor of the dot products.
        softcap: scores are squeezed into (-softcap, softcap) with a tanh.
    """

    query: Float[Tensor, "head query dimension"]
    key: Float[Tensor, "kv_head key dimension"]
    sight: Sight
    scaling: float
    softcap: float | None = None

    @property
    def reach(self) -> int:
        """Tokens that a query may see, itself included."""
        sight = self.sight
        no_window = sight.mask is not None or sight.window is None
        return sight.n_keys if no_window else sight.window

    @cached_property
    def _parts(self) -> tuple[Tensor, Tensor] | None:
        return None if self.sight.mask is None else _parts(self.sight.mask[0])

    def log_sums(
        self, kind: str, pairs: Pairs, shift: Float[Tensor, "head query"] | None = None
    ) -> Float[Tensor, "head _"]:
        """Return logarithms of sums over the keys of each query, or over the queries of each key.

        Args:
            kind: what is summed: ``exponentials`` of scores; ``received`` attention, by key;
                attention times its own negative logarithm, which makes its ``entropy``.
            pairs: which pairs count, of those that see each other.
            shift: logarithm of each query's whole sum; of all kinds but the first.

        Returns:
            Minus infinity where nothing counts.
        """
        sight, rows, columns = self.sight, self.query, self.key
        limits = torch.tensor([sight.first, *pairs], device=rows.device)
        n_queries = sight.n_keys - sight.first
        grids = tiles.grids(n_queries, sight.n_keys, pairs, rows.device, self._parts)
        if kind == "received":
            # As many heads as the queries have: then the kernel is the same without shared keys.
            rows, columns = columns.repeat_interleave(len(rows) // len(columns), 0), rows
            grids = [grid.mT for grid in grids]
        blocks = [x for grid in grids for x in tiles.in_order(grid[None])]
        visible = None if sight.mask is None else sight.mask[0]
        states = rows[None], columns[None], columns[None, ..., :LEAST_COLUMNS]
        options = visible, shift, self.scaling, self.softcap
        return _run()(kind, *states, blocks, limits, *options)[0]


@functools.cache
def _run() -> Callable[..., Tensor]:
    """Return ``_logs``, which is compiled when it is first called, and for each kind of tensors.

    As it is written it would store all scores, and so it never runs: with ``fullgraph``, more than
    ``KERNELS`` raise an error, and the stance is not that of the models that we look on at, which
    run uncompiled (see observing.py).
    """
    compiled = torch.compile(_logs, fullgraph=True, recompile_limit=KERNELS)
    return torch.compiler.set_stance("default")(compiled)


@no_type_check  # checks, where there are some, cannot be compiled
def _logs(
    kind: str,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    blocks: list[Tensor],
    limits: Tensor,
    visible: Tensor | None,
    shift: Tensor | None,
    scaling: float,
    softcap: float | None,
) -> Tensor:
    """Return logarithms of sums, (1, head, query), or (1, head, key) of what keys receive.

    Args:
        kind: see ``Products.log_sums``.
        query: (1, head, query, dimension); keys, where it is about what they receive.
        key: (1, kv_head, key, dimension); then queries.
        value: (1, kv_head, key, _), of which nothing is wanted, and as little as can be given.
        blocks: blocks with some pairs, and full ones, see ``tiles.in_order``.
        limits: text position of the first query, and the ``Pairs``.
        visible: (query, key): a mask of the pairs that see each other.
        shift: see ``Products.log_sums``.
        scaling: see ``Products``.
        softcap: likewise.
    """
    turned = kind == "received"

    def seen(batch, head, row, column):
        at, of = (column, row) if turned else (row, column)
        distance = limits[0] + at - of
        inside = (distance >= limits[1]) & (distance < limits[2])
        inside = inside & (of >= limits[3]) & (of < limits[4])
        return inside if visible is None else inside & visible[at, of]

    def score(product, batch, head, row, column):
        if softcap is not None:
            product = softcap * torch.tanh(product / softcap)
        if shift is None:
            return product
        log_attention = product - shift[head, column if turned else row]
        if turned:
            return log_attention
        return log_attention + torch.log((-log_attention).clamp(min=1e-30))

    mask = BlockMask.from_kv_blocks(
        *blocks,
        BLOCK_SIZE=tiles.SIDE,
        mask_mod=seen,
        seq_lengths=(query.shape[2], key.shape[2]),
        compute_q_blocks=False,
    )
    _, found = flex_attention(
        query,
        key,
        value,
        score_mod=score,
        block_mask=mask,
        scale=scaling,
        enable_gqa=query.shape[1] != key.shape[1],
        return_aux=AuxRequest(lse=True),
        kernel_options={"BACKEND": "TRITON"},
    )
    return found.lse


def _parts(visible: Bool[Tensor, "query key"]) -> tuple[Tensor, Tensor]:
    """Return which blocks of a mask have some pairs, and which have all."""
    rows, columns = (-size % tiles.SIDE for size in visible.shape)
    padded = torch.nn.functional.pad(visible, (0, columns, 0, rows))
    cells = padded.unflatten(1, (-1, tiles.SIDE)).unflatten(0, (-1, tiles.SIDE))
    return cells.any(3).any(1), cells.all(3).all(1)
