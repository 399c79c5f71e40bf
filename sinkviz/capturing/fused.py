"""Sums of attention alone, in a few sweeps over all queries and keys: for long texts on a GPU.

Blocks of rows cost a GPU many passes over its memory; see kernels.py for what costs none. Knows
nothing about models.
"""

from __future__ import annotations

import warnings

import torch
from jaxtyping import Float
from torch import Tensor

from sinkviz.capturing.kernels import LEAST_COLUMNS, Pairs, Products
from sinkviz.capturing.reducing import reduce_products
from sinkviz.capturing.sights import Sight
from sinkviz.capturing.statistics import LayerStatistics, Plan

DEVICES = {"cuda"}
DTYPES = {torch.float32, torch.bfloat16, torch.float16}
# Blocks of rows are done with shorter passes before a kernel is compiled.
LEAST_QUERIES = 8192
# Sums over keys and over queries come from different kernels, and differ by less than this part.
ROUNDING = 1e-3

_given_up = False


def serves(found: LayerStatistics, query: Tensor, sight: Sight) -> bool:
    """Whether ``reduce_fused`` finds all that is asked for, and in less time than blocks of rows.

    It knows no single weight, and adds no bias to scores.

    Args:
        found: what is asked for.
        query: (head, query, dimension) of a pass.
        sight: who sees whom.
    """
    one_mask = sight.mask is None or (not sight.adds and len(sight.mask) == 1)
    fits = query.shape[1] >= LEAST_QUERIES and query.shape[2] >= LEAST_COLUMNS
    runs = query.device.type in DEVICES and query.dtype in DTYPES and not _given_up
    return runs and fits and one_mask and found.plan.sums_alone and not found.kept


def reduce_fused(
    found: LayerStatistics,
    query: Float[Tensor, "head query dimension"],
    key: Float[Tensor, "kv_head key dimension"],
    sight: Sight,
    scaling: float,
    softcap: float | None = None,
    null_logit: Float[Tensor, " head"] | None = None,
) -> None:
    """Add the attention of queries and keys, as ``reducing.reduce_products`` does.

    Where flex attention does not run, or its sums contradict each other, a warning says so, and
    from then on all is computed block by block.

    Args:
        found: where to.
        query: of a pass.
        key: of the text up to the end of the pass.
        sight: who sees whom.
        scaling: factor of the dot products.
        softcap: scores are squeezed into (-softcap, softcap) with a tanh.
        null_logit: see ``sinkviz.attention.null_softmax``.
    """
    global _given_up
    try:
        sums = _sums(found.plan, Products(query, key, sight, scaling, softcap), null_logit)
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # compilers raise anything
        _given_up = True
        said = f"{type(error).__name__}: {error}".strip().splitlines()[0]
        warnings.warn(
            f"torch's flex attention does not work here ({said}); statistics of attention are "
            "computed block by block from now on, exactly, but in more time",
            RuntimeWarning,
            stacklevel=2,
        )
        reduce_products(found, query, key, sight, scaling, softcap, null_logit)
    else:
        found.see(sight)
        found.put(sight.first, sums)


def _sums(
    plan: Plan, products: Products, null_logit: Float[Tensor, " head"] | None
) -> dict[str, Tensor]:
    """Return what ``LayerStatistics.put`` takes."""
    n_keys, reach = products.sight.n_keys, products.reach
    seen = Pairs(0, reach, 0, n_keys)
    total = of_keys = products.log_sums("exponentials", seen)
    null = None if null_logit is None else null_logit[:, None].to(total)
    if null is not None:
        total = torch.logaddexp(total, null)
    # Who sees nothing gives nothing.
    total = total.masked_fill(total == -torch.inf, 0)
    # Also where nobody asks for it, since it tells whether the kernels are right.
    sums = {"received": products.log_sums("received", seen, total).exp()}
    _check(sums["received"], (of_keys - total).exp())
    if "entropy" in plan.statistics:
        sums["entropy"] = products.log_sums("entropy", seen, total).exp()
    if "mass" in plan.statistics:
        roles = {
            "self": Pairs(0, 1, 0, n_keys),
            "sink": Pairs(1, reach, 0, plan.n_sink),
            "recent": Pairs(1, min(plan.n_recent, reach), plan.n_sink, n_keys),
        }
        for role, pairs in roles.items():
            sums[role] = (products.log_sums("exponentials", pairs) - total).exp()
        if null is not None:
            sums["null"] = (null - total).exp()
    return sums


def _check(received: Float[Tensor, "head key"], given: Float[Tensor, "head query"]) -> None:
    """Raise ArithmeticError where keys do not receive what queries give."""
    received, given = (x.sum(-1, dtype=torch.float64) for x in (received, given))
    if not bool(((received - given).abs() <= ROUNDING * given).all()):
        raise ArithmeticError("its sums over queries contradict its sums over keys")
