"""Run a model over a text and hand every layer's attention to its statistics, as the layer is done.

Two engines. Where attention goes through transformers' interface, the model computes its output as
ever, and we compute the weights again from queries and keys, block by block. Where it does not,
the model runs in eager mode and its modules return their weights. Knows nothing about figures.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import AttentionInterface, AttentionMaskInterface, DynamicCache
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from sinkviz.binding import one_at_a_time
from sinkviz.capturing.gathering import Gathered, Kept
from sinkviz.capturing.statistics import Plan
from sinkviz.families import attention_modules
from sinkviz.models import LM, untouched

OBSERVED = "sinkviz_observed"
# Returns the attended values, and the logarithms of the sums that its softmax divides by.
FUSED_ATTENTION = "aten::_scaled_dot_product_flash_attention_for_cpu"
# Weights that a model in eager mode may hold at a time; longer texts are fed in parts.
EAGER_BYTES = 64 * 2**20


@dataclass(frozen=True)
class _Watcher:
    """Who looks on, and the model's own attention that goes on as ever."""

    own: str
    layers: dict[nn.Module, int]
    gathered: Sequence[Gathered]


_WATCHER: ContextVar[_Watcher | None] = ContextVar("watcher", default=None)


def _observed(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    **kwargs: Any,
) -> tuple[Tensor, Tensor | None]:
    """Let the model's own attention do its work, and look on; a transformers attention function."""
    watcher = _WATCHER.get()
    eager = getattr(sys.modules[type(module).__module__], "eager_attention_forward", None)
    attend = ALL_ATTENTION_FUNCTIONS.get_interface(watcher.own, eager)
    given = module, query, key, value, attention_mask
    if module not in watcher.layers:
        return attend(*given, **kwargs)
    heard = _LogSums()
    with heard if any(one.plan.sums_alone for one in watcher.gathered) else nullcontext():
        output = attend(*given, **kwargs)
    layer = watcher.layers[module]
    for one in watcher.gathered:
        one.see(layer, query, key, value, attention_mask, kwargs, heard.of(query))
    return output


class _LogSums(TorchDispatchMode):
    """Overhears what torch's fused attention computes anyway: what each query's softmax divides by.

    Operators are as they were: what they return is passed on.
    """

    def __init__(self) -> None:
        super().__init__()
        self._heard: list[Tensor] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Look on; change nothing."""
        found = func(*args, **(kwargs or {}))
        if func.name() == FUSED_ATTENTION:
            self._heard.append(found[1])
        return found

    def of(self, query: Tensor) -> Tensor | None:
        """Return (row, head, query) of the one attention that was heard, or None.

        None in half precision, too: sums of scores that were rounded so are not ours.
        """
        heard, self._heard = self._heard, []
        alike = [(x.shape, x.dtype) for x in heard] == [(query.shape[:3], query.dtype)]
        return heard[0] if alike else None


def _own_mask(*args: Any, **kwargs: Any) -> Any:
    """Make the mask that the model's own attention asks for."""
    make = ALL_MASK_ATTENTION_FUNCTIONS.get(_WATCHER.get().own)
    return None if make is None else make(*args, **kwargs)


AttentionInterface.register(OBSERVED, _observed)
AttentionMaskInterface.register(OBSERVED, _own_mask)


def engine_of(lm: LM) -> str:
    """Return how a model's attention is observed: ``interface`` or ``eager``."""
    return "interface" if lm.family.interface or lm.family.watched else "eager"


def pass_size(lm: LM, n_tokens: int, n_texts: int = 1) -> int:
    """Return how many tokens of each text to feed in one pass, so that memory stays linear.

    All of them, as the plain model takes them, where its attention never holds whole maps and its
    mask no bias for each head and pair of tokens.
    """
    fused = lm.attention != "eager" and lm.family.positions != "bias"
    if engine_of(lm) == "interface" and fused:
        return n_tokens
    n_heads = lm.model.config.get_text_config().num_attention_heads
    return min(n_tokens, max(16, EAGER_BYTES // (4 * n_heads * n_tokens * n_texts)))


def observe(
    lm: LM,
    texts: Sequence[Int[Tensor, " _"]],
    plans: Sequence[Plan],
    *,
    kept: Sequence[Kept] | None = None,
    block: int | None = None,
    done: Callable[[int], Any] = lambda n_tokens: None,
) -> list[list[dict[str, Tensor]]]:
    """Return what its plan asks for of every layer of each text, on the CPU.

    Texts of a batch are padded at the end, where a causal model never looks: no mask is needed, and
    all positions stay what they are alone.

    Args:
        lm: the language model; it is left exactly as it was.
        texts: what to feed at once.
        plans: what to find out about each.
        kept: of each, heads whose whole maps to keep, as (layer, head, map): on the CPU, zero so
            far.
        block: tokens of each text per pass; by default ``pass_size``.
        done: called with the number of tokens after each layer of each pass.

    Raises:
        ValueError: a module returns no weights in eager mode, or looks ahead.
    """
    through, n_tokens = engine_of(lm) == "interface", max(map(len, texts))
    block = min(n_tokens, block or pass_size(lm, n_tokens, len(texts)))
    modules = attention_modules(lm.model, lm.family)
    _check_causal(lm, modules)
    gathered = [
        Gathered(plan, row, kept[row] if kept else (), done) for row, plan in enumerate(plans)
    ]
    watching = untouched(lm.model, OBSERVED) if through else _in_eager(lm, modules, gathered)
    cache = None if through and block == n_tokens else DynamicCache()
    fed = torch.stack(
        [nn.functional.pad(x, (0, n_tokens - len(x)), value=int(x[-1])) for x in texts]
    )
    with (
        one_at_a_time(lm.model),
        _watched_by(lm, modules, gathered),
        watching,
        _residuals(lm, modules, gathered),
        _uncompiled(),
    ):
        for part in fed.split(block, 1):
            lm.model(part, past_key_values=cache, use_cache=cache is not None, logits_to_keep=1)
    for one in gathered:
        if not through and one.wants_norms:
            for layer, held in enumerate(cache.layers):
                one.note(layer, "key_norm", held.keys)
                one.note(layer, "value_norm", held.values)
    return [[one.result(layer) for layer in range(len(modules))] for one in gathered]


def _check_causal(lm: LM, modules: Sequence[nn.Module]) -> None:
    """Raise ValueError where a token sees those that follow it: no row would be what it seems."""
    if not all(getattr(module, "is_causal", True) for module in modules):
        raise ValueError(
            f"{lm.name} attends in both directions, as an encoder does; sinkviz needs a causal "
            "language model, in which tokens see only what came before"
        )


@contextlib.contextmanager
def _watched_by(lm: LM, modules: list[nn.Module], gathered: Sequence[Gathered]) -> Iterator[None]:
    """Name who looks on meanwhile; a capture within a capture has the looks to itself."""
    before, own = _WATCHER.get(), lm.model.config._attn_implementation
    if own == OBSERVED:
        own = before.own
    layers = {module: layer for layer, module in enumerate(modules)}
    token = _WATCHER.set(_Watcher(own, layers, gathered))
    try:
        yield
    finally:
        _WATCHER.reset(token)


@contextlib.contextmanager
def _in_eager(lm: LM, modules: list[nn.Module], gathered: Sequence[Gathered]) -> Iterator[None]:
    """Let the model compute its weights meanwhile, and take them in."""

    def take(module: nn.Module, args: Any, output: Any) -> None:
        if _WATCHER.get().gathered is not gathered:
            return
        attention = output[1] if isinstance(output, tuple) and len(output) > 1 else None
        if not isinstance(attention, Tensor) or attention.ndim != 4:
            raise ValueError(
                f"{type(module).__name__} returns no weights in eager mode, so there is nothing to "
                "capture"
            )
        scores = softmax.take(attention.shape)
        for one in gathered:
            one.see_weights(modules.index(module), attention, scores)

    softmax = _SoftmaxInputs()
    wanted = any(one.plan.scores for one in gathered)
    looking = softmax if wanted else contextlib.nullcontext()
    before = _bias_in_the_mask_alone if lm.family.doubled_alibi else None
    with _hooked(modules, [take] * len(modules), before), untouched(lm.model, "eager"), looking:
        yield


class _SoftmaxInputs(TorchFunctionMode):
    """Remember what the last softmax was given: modules return weights, but no scores."""

    def __init__(self) -> None:
        super().__init__()
        self._last: Tensor | None = None

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Look on; change nothing."""
        if func in (torch.softmax, Tensor.softmax, nn.functional.softmax) and args:
            self._last = args[0]
        return func(*args, **(kwargs or {}))

    def take(self, shape: torch.Size) -> Tensor | None:
        """Return the scores of weights of a shape, or None where there were none."""
        last, self._last = self._last, None
        return last if last is not None and last.shape == shape else None


def _bias_in_the_mask_alone(module: nn.Module, args: Any, kwargs: dict[str, Any]) -> tuple:
    """Take away the bias that transformers' Falcon adds a second time in eager mode."""
    return args, kwargs | {"alibi": torch.zeros_like(kwargs["alibi"])}


@contextlib.contextmanager
def _residuals(lm: LM, modules: list[nn.Module], gathered: Sequence[Gathered]) -> Iterator[None]:
    """Note the length of each token's vector after every layer: of the module around attention."""
    paths = {module: path for path, module in lm.model.named_modules()}

    def hook(layer: int) -> Callable[..., None]:
        def take(module: nn.Module, args: Any, output: Any) -> None:
            if _WATCHER.get().gathered is gathered:
                hidden = output[0] if isinstance(output, tuple) else output
                for one in gathered:
                    one.note(layer, "residual_norm", hidden)

        return take

    around = []
    if any(one.wants_norms for one in gathered):
        around = [lm.model.get_submodule(paths[module].rpartition(".")[0]) for module in modules]
    with _hooked(around, [hook(layer) for layer in range(len(around))]):
        yield


@contextlib.contextmanager
def _hooked(
    modules: Sequence[nn.Module],
    hooks: Sequence[Callable[..., None]],
    before: Callable[..., Any] | None = None,
) -> Iterator[None]:
    """Hook each module, after its forward pass and maybe before; all are free again afterwards."""
    handles = []
    try:
        for module, hook in zip(modules, hooks, strict=True):
            handles.append(module.register_forward_hook(hook))
            if before is not None:
                handles.append(module.register_forward_pre_hook(before, with_kwargs=True))
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextlib.contextmanager
def _uncompiled() -> Iterator[None]:
    """Run compiled models as they are written: or our looking on would be compiled into them."""
    if "torch._dynamo" not in sys.modules:  # nothing is compiled, and to import it takes a second
        yield
        return
    with torch.compiler.set_stance("force_eager"):
        yield
