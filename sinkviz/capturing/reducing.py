"""From queries and keys, or from weights, to statistics: a block of rows at a time.

A block fits into the processor's cache, is reduced there and forgotten, so that memory follows the
length of the text and not its square. Knows nothing about models.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from jaxtyping import Float
from torch import Tensor

from sinkviz.capturing.sights import HIDDEN, MOST_ROWS, Sight
from sinkviz.capturing.statistics import LayerStatistics

# Numbers in a block of weights: 4 MB, near a processor's caches; enough to fill a GPU.
AT_ONCE = {"cpu": 2**20}
AT_ONCE_ELSEWHERE = 2**25
LEAST_ROWS = 32
# The exponential of less takes many times as long, and is nothing beside the largest, which is one.
LEAST_SCORE = -70.0
# Exponentials of scores that cannot be larger are summed as they are, without a shift.
BOUND = 60.0


def row_blocks(first: int, n_rows: int, budget: int, cell: int) -> Iterator[tuple[int, int]]:
    """Yield (row, rows) of blocks that cut no cell of the pooled maps apart, where they can.

    Args:
        first: text position of the first row; a row is as long as its position.
        n_rows: how many there are.
        budget: numbers in a block, about; but a product of few rows is slow, whatever fits.
        cell: rows of a cell.

    Example:
        >>> list(row_blocks(0, 100, 2048, 24)), list(row_blocks(90, 10, 2048, 96))
        ([(0, 48), (48, 24), (72, 24), (96, 4)], [(0, 6), (6, 4)])
    """
    row = 0
    while row < n_rows:
        position = first + row
        most = min(MOST_ROWS, max(LEAST_ROWS, budget // (position + LEAST_ROWS)))
        left = cell - position % cell
        size = most // cell * cell if left == cell and most >= cell else min(most, left)
        size = min(size, n_rows - row)
        if size > cell:
            size -= size % cell
        yield row, size
        row += size


def reduce_products(
    found: LayerStatistics,
    query: Float[Tensor, "head query dimension"],
    key: Float[Tensor, "kv_head key dimension"],
    sight: Sight,
    scaling: float,
    softcap: float | None = None,
    null_logit: Float[Tensor, " head"] | None = None,
) -> None:
    """Compute attention from queries and keys, block by block, and add it.

    Args:
        found: where to.
        query: of a pass.
        key: of the text up to the end of the pass.
        sight: who sees whom.
        scaling: factor of the dot products.
        softcap: scores are squeezed into (-softcap, softcap) with a tanh.
        null_logit: see ``sinkviz.attention.null_softmax``.
    """
    shared, n_query = len(query) // len(key), query.shape[1]
    found.see(sight)
    at_once = _heads_at_once(query)
    budget = AT_ONCE.get(query.device.type, AT_ONCE_ELSEWHERE) // at_once
    for head in range(0, len(query), at_once):
        heads = slice(head, head + at_once)
        some = query[heads].to(found.dtype).contiguous()
        keys = key[head // shared : -(-(head + at_once) // shared)].to(found.dtype)
        null = None if null_logit is None else null_logit[heads, None, None].to(some)
        largest = softcap or largest_score(some, keys, scaling, null)
        bounded = largest <= BOUND and not sight.adds and found.scores is None
        keys = in_columns(keys, scaling)
        for row, n_rows in row_blocks(sight.first, n_query, budget, found.plan.cell):
            start = sight.start(row, found.plan.cell)
            stop = sight.first + row + n_rows
            scores = _products(found, some[:, row : row + n_rows], keys[..., start:stop])
            if softcap is not None:
                scores.div_(softcap).tanh_().mul_(softcap)
            if not bounded:
                sight.hide(scores, heads, row, start)
            if found.scores is not None:
                kept = scores.masked_fill(scores < HIDDEN / 2, torch.nan)
                found.scores[heads, stop - n_rows : stop, start:stop] = kept.cpu()
            _add_softmax(found, sight, heads, row, start, scores, null, bounded)


def _heads_at_once(query: Tensor) -> int:
    """A processor works on a head at a time, which fits into its cache; a GPU on all of them."""
    return 1 if query.device.type == "cpu" else len(query)


def largest_score(query: Tensor, key: Tensor, scaling: float, null: Tensor | None = None) -> float:
    """Return what no score can pass: by Cauchy and Schwarz, and the null logits."""
    largest = float(query.norm(dim=-1).amax() * key.norm(dim=-1).amax()) * scaling
    return largest if null is None else max(largest, float(null.abs().amax()))


def in_columns(
    keys: Float[Tensor, "head key dimension"],
    scaling: float,
    out: Float[Tensor, "head dimension key"] | None = None,
) -> Float[Tensor, "head dimension key"]:
    """Return scaled keys side by side, which makes products with few rows half as long.

    A processor transposes best by a product: each number is one product and many zeros, exactly.
    """
    if len(keys) > 1:
        return torch.mul(keys.mT, scaling, out=out)
    unit = torch.eye(keys.shape[2], dtype=keys.dtype, device=keys.device) * scaling
    return torch.bmm(unit[None], keys.mT, out=out)


def _products(found: LayerStatistics, query: Tensor, keys: Tensor) -> Float[Tensor, "head row key"]:
    """Return dot products; keys are shared by neighbouring heads, and never repeated for them."""
    heads, rows, size = *query.shape[:2], keys.shape[2]
    if heads == 1:
        # Where scores are not needed again, weights take their place.
        name = "scores" if found.wants("entropy") else "weights"
        scores = found.scratch(name, heads, rows, size, query)
        torch.mm(query[0], keys[0], out=scores[0])
        return scores
    return torch.bmm(query.reshape(len(keys), -1, query.shape[2]), keys).view(heads, rows, size)


def _add_softmax(
    found: LayerStatistics,
    sight: Sight,
    heads: slice,
    row: int,
    start: int,
    scores: Float[Tensor, "head row key"],
    null: Float[Tensor, "head 1 1"] | None,
    bounded: bool,
) -> None:
    """Take the softmax of a block of scores, which are used up, and add it.

    Args:
        found: where to.
        sight: who sees whom.
        heads: which heads.
        row: of the pass, the block's first.
        start: text position of the block's first key.
        scores: of the block; hidden where not ``bounded``.
        null: null logits.
        bounded: no score is so large that it must be shifted.
    """
    if not bounded:
        most = scores.amax(-1, keepdim=True)
        if null is not None:
            most = torch.maximum(most, null)
            null = null - most
        scores.sub_(most).clamp_(min=LEAST_SCORE)
    weights = scores
    if found.wants("entropy") or scores.shape[0] > 1:
        weights = found.scratch("weights", *scores.shape, scores)
    torch.exp(scores, out=weights)
    sight.clear(weights, row, start)
    total = weights.sum(-1, keepdim=True)
    if null is not None:
        lost = null.exp()
        total += lost
    share = total.reciprocal()
    entropy = None
    if found.wants("entropy"):
        log_attention = scores.sub_(total.log())
        entropy = -(log_attention.mul_(weights).sum(-1) * share[..., 0])
    null_share = None if null is None else (lost * share)[..., 0]
    found.add(heads, sight.first + row, start, weights, share[..., 0], null_share, entropy)


def reduce_weights(
    found: LayerStatistics,
    attention: Float[Tensor, "head query key"],
    sight: Sight,
    scores: Float[Tensor, "head query key"] | None = None,
) -> None:
    """Add attention that a model has computed itself, block by block.

    Args:
        found: where to.
        attention: of a pass; rows that sum to less than one have lost the rest to a null logit,
            but in half precision sums are not that exact, and a little is taken for rounding.
        sight: who sees whom.
        scores: before the softmax, where they are wanted and known.
    """
    found.see(sight)
    if found.scores is not None and scores is not None:
        hidden = torch.ones_like(scores[0], dtype=torch.bool).triu(1 + sight.first)
        hidden = hidden | (scores < HIDDEN / 2)
        scores = scores.to(found.dtype).masked_fill(hidden, torch.nan)
        found.scores[:, sight.first : sight.n_keys, : sight.n_keys] = scores.cpu()
    rounded = torch.finfo(attention.dtype).eps > 1e-4
    n_heads, n_query = attention.shape[:2]
    budget = AT_ONCE.get(attention.device.type, AT_ONCE_ELSEWHERE) // n_heads
    for row, n_rows in row_blocks(sight.first, n_query, budget, found.plan.cell):
        start, stop = sight.start(row, found.plan.cell), sight.first + row + n_rows
        weights = found.scratch("weights", n_heads, n_rows, stop - start, attention)
        weights.copy_(attention[:, row : row + n_rows, start:stop])
        total = weights.sum(-1, keepdim=True)
        if rounded:
            exact = torch.where(total > 0.97, total, 1)
            weights /= exact
            total /= exact
        null = (1 - total[..., 0]).clamp(min=0)
        entropy = None
        if found.wants("entropy"):
            log = weights.clamp(min=torch.finfo(weights.dtype).tiny).log_()
            entropy = -log.mul_(weights).sum(-1)
        share = torch.ones_like(null)
        found.add(slice(0, n_heads), stop - n_rows, start, weights, share, null, entropy)
