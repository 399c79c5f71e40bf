"""Run a model over a text and hand every layer's attention to its statistics, as the layer is done.

Two engines. Where attention goes through transformers' interface, the model computes its output as
ever, and we compute the weights again from queries and keys, block by block. Where it does not,
the model runs in eager mode and its modules return their weights. Knows nothing about figures.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from transformers import AttentionInterface, AttentionMaskInterface, DynamicCache
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from sinkviz.families import attention_modules
from sinkviz.models import LM, untouched
from sinkviz.reducing import reduce_products, reduce_weights
from sinkviz.sights import Sight
from sinkviz.statistics import LayerStatistics, Plan

OBSERVED = "sinkviz_observed"
Kept = Sequence[tuple[int, int, Tensor]]
# Weights that a model in eager mode may hold at a time; longer texts are fed in parts.
EAGER_BYTES = 64 * 2**20


@dataclass(frozen=True)
class _Watcher:
    """Who looks on, and the model's own attention that goes on as ever."""

    own: str
    layers: dict[nn.Module, int]
    gathered: _Gathered


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
    output = attend(module, query, key, value, attention_mask, **kwargs)
    if module in watcher.layers:
        layer = watcher.layers[module]
        watcher.gathered.see(layer, query, key, value, attention_mask, kwargs)
    return output


def _own_mask(*args: Any, **kwargs: Any) -> Any:
    """Make the mask that the model's own attention asks for."""
    make = ALL_MASK_ATTENTION_FUNCTIONS.get(_WATCHER.get().own)
    return None if make is None else make(*args, **kwargs)


AttentionInterface.register(OBSERVED, _observed)
AttentionMaskInterface.register(OBSERVED, _own_mask)


def engine_of(lm: LM) -> str:
    """Return how a model's attention is observed: ``interface`` or ``eager``."""
    return "interface" if lm.family.interface or lm.family.watched else "eager"


def pass_size(lm: LM, n_tokens: int) -> int:
    """Return how many tokens of a text to feed in one pass, so that memory stays linear.

    All of them, as the plain model takes them, where its attention never holds whole maps and its
    mask no bias for each head and pair of tokens.
    """
    fused = lm.model.config._attn_implementation != "eager" and lm.family.positions != "bias"
    if engine_of(lm) == "interface" and fused:
        return n_tokens
    n_heads = lm.model.config.get_text_config().num_attention_heads
    return min(n_tokens, max(16, EAGER_BYTES // (4 * n_heads * n_tokens)))


def observe(
    lm: LM,
    ids: Int[Tensor, " token"],
    plan: Plan,
    *,
    kept: Kept = (),
    block: int | None = None,
    done: Callable[[int], Any] = lambda n_tokens: None,
) -> list[dict[str, Tensor]]:
    """Return what the plan asks for of every layer, on the CPU.

    Args:
        lm: the language model; it is left exactly as it was.
        ids: the text.
        plan: what to find out.
        kept: heads whose whole maps to keep, as (layer, head, map): on the CPU, zero so far.
        block: tokens per pass; by default ``pass_size``.
        done: called with the number of tokens after each layer of each pass.

    Raises:
        ValueError: a module returns no weights in eager mode.
    """
    through, n_tokens = engine_of(lm) == "interface", len(ids)
    block = min(n_tokens, block or pass_size(lm, n_tokens))
    modules = attention_modules(lm.model, lm.family)
    gathered = _Gathered(plan, kept, done)
    watching = untouched(lm.model, OBSERVED) if through else _in_eager(lm, modules, gathered)
    cache = None if through and block == n_tokens else DynamicCache()
    with _watched_by(lm, modules, gathered), watching, _residuals(lm, modules, gathered):
        for part in ids.split(block):
            lm.model(
                part[None], past_key_values=cache, use_cache=cache is not None, logits_to_keep=1
            )
    if not through and gathered.wants_norms:
        for layer, held in enumerate(cache.layers):
            gathered.note(layer, "key_norm", held.keys)
            gathered.note(layer, "value_norm", held.values)
    return [gathered.result(layer) for layer in range(len(modules))]


class _Gathered:
    """What has been seen of every layer so far."""

    def __init__(self, plan: Plan, kept: Kept, done: Callable[[int], Any]) -> None:
        self.plan, self.kept, self.done = plan, kept, done
        self.wants_norms = "norms" in plan.statistics
        self._found: dict[int, LayerStatistics] = {}
        self._norms: dict[tuple[int, str], list[Tensor]] = {}

    def see(
        self, layer: int, query: Tensor, key: Tensor, value: Tensor, mask: Any, more: dict[str, Any]
    ) -> None:
        """Take in a call of the attention interface."""
        n_new, n_keys = query.shape[2], key.shape[2]
        mask = mask[0] if isinstance(mask, Tensor) and mask.ndim == 4 else None
        window = more.get("sliding_window")
        sight = Sight(n_keys - n_new, n_keys, mask, window, query.device)
        scaling = more.get("scaling") or query.shape[-1] ** -0.5
        found = self._statistics(layer, query)
        reduce_products(
            found, query[0], key[0], sight, scaling, more.get("softcap"), more.get("s_aux")
        )
        self.note(layer, "key_norm", key[:, :, -n_new:])
        self.note(layer, "value_norm", value[:, :, -n_new:])
        self.done(n_new)

    def see_weights(self, layer: int, attention: Tensor, scores: Tensor | None) -> None:
        """Take in weights that a module has returned, and what its softmax was given."""
        n_new, n_keys = attention.shape[2:]
        sight = Sight(n_keys - n_new, n_keys, device=attention.device)
        reduce_weights(self._statistics(layer, attention), attention[0], sight, scores)
        self.done(n_new)

    def note(self, layer: int, name: str, vectors: Tensor) -> None:
        """Keep the lengths of some vectors of tokens that follow each other."""
        if self.wants_norms:
            wide = torch.promote_types(vectors.dtype, torch.float32)
            lengths = vectors[0].norm(dim=-1, dtype=wide).cpu()
            self._norms.setdefault((layer, name), []).append(lengths)

    def _statistics(self, layer: int, like: Tensor) -> LayerStatistics:
        if layer not in self._found:
            dtype = torch.promote_types(like.dtype, torch.float32)
            heads = [(head, whole) for at, head, whole in self.kept if at == layer]
            self._found[layer] = LayerStatistics(
                self.plan, like.shape[1], like.device, dtype, heads
            )
        return self._found[layer]

    def result(self, layer: int) -> dict[str, Tensor]:
        """Return what was found out about a layer."""
        norms = {name: torch.cat(x, -1) for (at, name), x in self._norms.items() if at == layer}
        return self._found.pop(layer).result() | norms


@contextlib.contextmanager
def _watched_by(lm: LM, modules: list[nn.Module], gathered: _Gathered) -> Iterator[None]:
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
def _in_eager(lm: LM, modules: list[nn.Module], gathered: _Gathered) -> Iterator[None]:
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
        gathered.see_weights(modules.index(module), attention, softmax.take(attention.shape))

    softmax = _SoftmaxInputs()
    looking = softmax if gathered.plan.scores else contextlib.nullcontext()
    handles = [module.register_forward_hook(take) for module in modules]
    if lm.family.doubled_alibi:
        handles += [
            module.register_forward_pre_hook(_bias_in_the_mask_alone, with_kwargs=True)
            for module in modules
        ]
    with _removing(handles), untouched(lm.model, "eager"), looking:
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
        """Return the scores of one text's weights of a shape, (head, query, key)."""
        last, self._last = self._last, None
        if last is None or last.shape != shape:
            return None
        return last[0]


def _bias_in_the_mask_alone(module: nn.Module, args: Any, kwargs: dict[str, Any]) -> tuple:
    """Take away the bias that transformers' Falcon adds a second time in eager mode."""
    return args, kwargs | {"alibi": torch.zeros_like(kwargs["alibi"])}


@contextlib.contextmanager
def _residuals(lm: LM, modules: list[nn.Module], gathered: _Gathered) -> Iterator[None]:
    """Note the length of each token's vector after every layer: of the module around attention."""
    paths = {module: path for path, module in lm.model.named_modules()}

    def hook(layer: int) -> Callable[..., None]:
        def take(module: nn.Module, args: Any, output: Any) -> None:
            if _WATCHER.get().gathered is gathered:
                hidden = output[0] if isinstance(output, tuple) else output
                gathered.note(layer, "residual_norm", hidden)

        return take

    around = [lm.model.get_submodule(paths[module].rpartition(".")[0]) for module in modules]
    wanted = enumerate(around if gathered.wants_norms else ())
    with _removing([module.register_forward_hook(hook(layer)) for layer, module in wanted]):
        yield


@contextlib.contextmanager
def _removing(handles: list[Any]) -> Iterator[None]:
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
