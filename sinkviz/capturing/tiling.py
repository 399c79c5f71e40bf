"""Sums of attention where the model's own kernel has said what its softmax divides by.

With the logarithm of each query's sum, a score becomes attention at once, whatever the other
scores are: so a tile of some queries and some keys is computed, summed and forgotten while it is in
the processor's cache. Knows nothing about models.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from jaxtyping import Float
from torch import Tensor

from sinkviz.capturing.reducing import LEAST_SCORE, in_columns, largest_score
from sinkviz.capturing.sights import Sight
from sinkviz.capturing.statistics import LayerStatistics

# Queries and keys of a tile: 1 MB of weights.
ROWS, KEYS = 256, 1024


def reduce_tiles(
    found: LayerStatistics,
    query: Float[Tensor, "head query dimension"],
    key: Float[Tensor, "kv_head key dimension"],
    sight: Sight,
    scaling: float,
    log_sums: Float[Tensor, "head query"],
) -> None:
    """Add the attention of queries and keys, as ``reducing.reduce_products`` does.

    Args:
        found: where to; only ``SUMS`` are wanted.
        query: of a pass.
        key: of the text up to the end of the pass.
        sight: who sees whom; it adds no bias.
        scaling: factor of the dot products.
        log_sums: logarithm of the sum of exponentials of each query's scores.
    """
    found.see(sight)
    n_query, size, n_shared = *query.shape[1:], len(query) // len(key)
    # One coordinate more takes each query's logarithm off its scores within the product.
    rows = query.new_empty(n_query, size + 1, dtype=found.dtype)
    columns = rows.new_ones(size + 1, sight.n_keys)
    room, spare = (rows.new_empty(ROWS * (KEYS + ROWS)) for _ in range(2))
    ones, totals = rows.new_ones(1, ROWS), rows.new_zeros(query.shape[:2])
    for head, own in enumerate(query):
        heads = slice(head, head + 1)
        rows[:, :size], rows[:, size] = own, -log_sums[head]
        if head % n_shared == 0:
            keys = key[head // n_shared, None].to(found.dtype)
            in_columns(keys, scaling, out=columns[None, :size])
        bounded = 2 * largest_score(rows[:, :size], keys, scaling) < -LEAST_SCORE
        for row in range(0, n_query, ROWS):
            some = rows[row : row + ROWS]
            first, share = sight.first + row, ones[:, : len(some)]
            total = totals[heads, row : row + ROWS]
            for start, stop in _tiles(sight.start(row, 1), first, first + len(some)):
                n = len(some) * (stop - start)
                logs = room[:n].view(1, len(some), -1)
                torch.mm(some, columns[:, start:stop], out=logs[0])
                if not bounded:  # above zero is only what is not seen
                    logs.clamp_(LEAST_SCORE, 1.0)
                weights, entropy = logs, None
                if found.wants("entropy"):
                    weights = spare[:n].view(logs.shape)
                torch.exp(logs, out=weights)
                if stop > first or sight.has_gaps:
                    sight.clear(weights, row, start)
                if found.wants("entropy"):
                    entropy = -logs.mul_(weights).sum(-1)
                total += weights.sum(-1)
                found.add(heads, first, start, weights, share, entropy=entropy)
    found.rescale(sight.first, totals)


def _tiles(start: int, first: int, stop: int) -> Iterator[tuple[int, int]]:
    """Yield the keys of each tile of some rows, of which the last has all that some of them miss.

    Example:
        >>> list(_tiles(0, 2048, 2304)), list(_tiles(7, 7, 9))
        ([(0, 1024), (1024, 2304)], [(7, 9)])
    """
    edges = [*range(start, max(first, start + 1), KEYS), stop]
    yield from zip(edges, edges[1:], strict=False)
