"""Attention over a band by whichever of two ways is faster on a GPU, which is measured.

Knows nothing about models or caches: tensors in, tensors out.
"""

from __future__ import annotations

import time
import warnings
from collections import Counter
from collections.abc import Callable, Hashable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from sinkviz.bands import Band
from sinkviz.flexing import LEAST_COLUMNS, flex_banded
from sinkviz.folding import folded_attention

FOLDED, FLEX = "folded band", "flex attention"
DEVICES = {"cuda"}
# How far flex attention's output may be off, as a part of its length. Single precision may be cut
# to ten bits by a setting of torch; what has fewer is rounded between the two products.
ROUNDING = {torch.float32: 1e-2, torch.float16: 1e-2, torch.bfloat16: 2e-2}
# Shorter blocks leave most of a GPU idle either way.
LEAST_QUERIES = 256
# Tokens of a text that are left: a kernel takes ten seconds or more to compile, in which a GPU
# reads some hundred thousand of them.
LEAST_TOKENS = 2**18
# Runs of a measurement, one after another, as in a pass.
RUNS = 10

# The faster way, by kind of passes: found once in a session.
_faster: dict[Hashable, str] = {}
_given_up = False


class FasterAttention:
    """Attends over a band as ``folded_attention`` does, or by flex attention where that is faster.

    Where a long text is ahead, the first pass of its kind on a GPU runs both, compares what comes
    out, takes their time, and the faster one is taken for the rest of the session. Everything else
    is folded, on a processor always. Where flex attention does not run, or its output is off, a
    warning says so, and from then on all is folded.

    Attributes:
        left: tokens of the text that are still to be read, to be set by who reads it.
        attended: how many queries of all layers each way has served.
    """

    def __init__(self) -> None:
        self.left = 0
        self.attended: Counter[str] = Counter()

    @property
    def word(self) -> str | None:
        """The way that served most queries; None where there were none."""
        return max(self.attended, key=self.attended.get, default=None)

    def __call__(
        self,
        query: Float[Tensor, "batch head query dimension"],
        key: Float[Tensor, "batch kv_head key dimension"],
        value: Float[Tensor, "batch kv_head key dimension"],
        band: Band,
        scaling: float,
        s_aux: Float[Tensor, " head"] | None = None,
        softcap: float | None = None,
    ) -> Float[Tensor, "batch query head dimension"]:
        """Attend; see ``folded_attention``."""
        arguments = query, key, value, band, scaling, s_aux, softcap
        way, output = FOLDED, None
        if _served(query, key, band):
            way, output = self._try(arguments)
        self.attended[way] += query.shape[2]
        return folded_attention(*arguments) if output is None else output

    def _try(self, arguments: tuple) -> tuple[str, Tensor | None]:
        """Return flex attention's output where it is the faster way, or None."""
        global _given_up
        kind = _kind(*arguments)
        try:
            if kind not in _faster and self.left >= LEAST_TOKENS:
                _measure(kind, arguments)
            if _faster.get(kind) == FLEX:
                return FLEX, flex_banded(*arguments)
        except torch.OutOfMemoryError:
            raise
        except Exception as error:  # compilers raise anything
            _given_up = True
            said = f"{type(error).__name__}: {error}".strip().splitlines()[0]
            warnings.warn(
                f"torch's flex attention does not work here ({said}); blocks attend over a folded "
                "band from now on, exactly, but perhaps in more time",
                RuntimeWarning,
                stacklevel=2,
            )
        return FOLDED, None


def _served(query: Tensor, key: Tensor, band: Band) -> bool:
    """Whether flex attention serves a pass, and passes like it follow: a whole window lies ahead.

    The first blocks of a text have shapes of their own, for which nothing is compiled.
    """
    if _given_up or query.device.type not in DEVICES or query.dtype not in ROUNDING:
        return False
    n_query, size = query.shape[2:]
    whole = key.shape[2] - band.n_sink - n_query >= band.n_recent
    return whole and n_query >= LEAST_QUERIES and size >= LEAST_COLUMNS


def _kind(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    band: Band,
    scaling: float,
    s_aux: Tensor | None,
    softcap: float | None,
) -> Hashable:
    """Return what makes a kernel of its own."""
    shapes = (query.shape, query.stride(), key.shape, key.stride(), value.stride())
    sizes = len(band.query_position), band.n_sink, band.n_recent, band.turn is None
    return query.device, query.dtype, shapes, sizes, scaling, s_aux is None, softcap


def _measure(kind: Hashable, arguments: tuple) -> None:
    """Note which way is faster for a kind of passes, if both come to the same.

    Raises:
        ArithmeticError: they do not.
    """
    states, options = arguments[:3], arguments[3:]
    expected = folded_attention(*(x.float() for x in states), *options)
    if not bool(expected.isfinite().all()):
        return  # says nothing about flex attention
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # compilers advise on settings that are not ours
        found = flex_banded(*arguments)
    off = (found.float() - expected).norm() / expected.norm()
    if not bool(off <= ROUNDING[found.dtype]):
        raise ArithmeticError(f"it is off by {float(off):.1%} of what a folded band gives")
    folded, flex = (_seconds(way, arguments) for way in (folded_attention, flex_banded))
    _faster[kind] = FLEX if flex < folded else FOLDED


def _seconds(attend: Callable[..., Tensor], arguments: tuple[Any, ...]) -> float:
    """Return how long an attention function takes, seconds."""
    device = arguments[0].device
    attend(*arguments)
    torch.cuda.synchronize(device)
    begun = time.perf_counter()
    for _ in range(RUNS):
        attend(*arguments)
    torch.cuda.synchronize(device)
    return (time.perf_counter() - begun) / RUNS
