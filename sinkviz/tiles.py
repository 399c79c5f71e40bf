"""Tiles of queries and keys: which of them flex attention's kernels look at, and which they skip.

Geometry alone. Knows nothing about models, bands or attention.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Bool, Int
from torch import Tensor
from torch.nn.functional import pad

# Tokens along a side of a tile: the least that the kernels' own blocks always divide.
SIDE = 128


def grids(
    n_query: int,
    n_key: int,
    pairs: Sequence[int],
    device: torch.device,
    parts: tuple[Tensor, Tensor] | None = None,
) -> tuple[Bool[Tensor, "*row tile_row tile_column"], Bool[Tensor, "*row tile_row tile_column"]]:
    """Return which tiles have some pairs that count and lack others, and which have all.

    The last key belongs to the last query, and distances are counted from there.

    Args:
        n_query: queries.
        n_key: keys.
        pairs: those that count: the least distance, that after the greatest; the first key, that
            after the last.
        device: where the truths are wanted.
        parts: of a mask: tiles with some pairs, and tiles with all.

    Example:
        >>> some, every = grids(256, 512, (0, 256, 0, 512), torch.device("cpu"))
        >>> (some.int() + 2 * every.int()).tolist()
        [[1, 2, 1, 0], [0, 1, 2, 1]]
    """
    nearest, beyond, least, stop = pairs
    row = torch.arange(n_key - n_query, n_key, SIDE, device=device)[:, None]
    column = torch.arange(0, n_key, SIDE, device=device)
    last_row, last_column = ((x + SIDE - 1).clamp(max=n_key - 1) for x in (row, column))
    some = (last_row - column >= nearest) & (row - last_column < beyond)
    some &= (last_column >= least) & (column < stop)
    every = (row - last_column >= nearest) & (last_row - column < beyond)
    every &= (column >= least) & (last_column < stop)
    if parts is not None:
        some, every = some & parts[0], every & parts[1]
    return some & ~every, every


def of_keys(
    there: Bool[Tensor, "row key"],
) -> tuple[Bool[Tensor, "row 1 tile"], Bool[Tensor, "row 1 tile"]]:
    """Return which columns of tiles have some of the keys that are there, and which have all."""
    spare = -there.shape[1] % SIDE
    some, every = (pad(there, (0, spare), value=filled) for filled in (False, True))
    return (
        some.unflatten(1, (-1, SIDE)).any(-1)[:, None],
        every.unflatten(1, (-1, SIDE)).all(-1)[:, None],
    )


def in_order(
    grid: Bool[Tensor, "row tile_row tile_column"],
) -> tuple[Int[Tensor, "row 1 tile_row"], Int[Tensor, "row 1 tile_row tile_column"]]:
    """Return how many tiles of each row there are, and all columns, those first that are there.

    As ``BlockMask.from_kv_blocks`` takes them, the same for all heads.
    """
    columns = grid.to(torch.uint8).argsort(dim=-1, descending=True, stable=True)
    return grid.sum(-1).int()[:, None], columns.int()[:, None].contiguous()
