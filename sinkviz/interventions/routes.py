"""Lead attention modules past our changes, and then to whatever attention they run meanwhile.

A model looks its attention function up by the name in its config. Each module that is to change
gets a view of its config that says another name: ours. Our function changes the call, and hands it
to the function that the config itself names then: the model's own, the band of ``score``, the
looking-on of ``capture``. So they all see the changed attention, and none needs to know.
"""

from __future__ import annotations

import contextlib
import sys
import weakref
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, DynamicCache
from transformers.cache_utils import Cache
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from sinkviz.bound import BoundCache
from sinkviz.forward import uncompiled
from sinkviz.interventions.changes import Call, Change, explicit_attention

OURS = "sinkviz_"
REROUTED = f"{OURS}rerouted"
EXPLICIT = f"{OURS}explicit"


class Whereabouts:
    """Where the tokens of the pass under way stand in the text.

    Filled in by hooks on the model and on its attention modules.
    """

    def __init__(self) -> None:
        self._cache: Callable[[], Cache | None] = lambda: None
        self._padded: Int[Tensor, "row token"] | None = None

    def note_model(self, module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        """Hook: take note of the padding, which attention modules are not told."""
        given = [args[1] if len(args) > 1 else None, kwargs.get("attention_mask")]
        mask = next((x for x in given if isinstance(x, Tensor) and x.ndim == 2), None)
        padded = mask is not None and bool((mask == 0).any())
        self._padded = (mask.long().cumsum(-1) - 1).masked_fill(mask == 0, -1) if padded else None

    def note_module(self, module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        """Hook: take note of the cache."""
        cache = next((x for x in (*args, *kwargs.values()) if isinstance(x, Cache)), None)
        self._cache = (lambda: None) if cache is None else weakref.ref(cache)

    def queries(self, layer: int, n_query: int, end: int | None = None) -> Int[Tensor, "row query"]:
        """Return the text positions of the tokens of the pass; negative for padding.

        Args:
            layer: which layer.
            n_query: tokens of the pass.
            end: tokens of the text so far, these included; asked from the cache where not given,
                which must not have taken them in yet.
        """
        cache = self._cache()
        if isinstance(cache, BoundCache):
            return cache.query_position(layer).cpu()
        if self._padded is not None:
            return self._padded[:, -n_query:].cpu()
        if end is None:
            end = n_query + (0 if cache is None else cache.get_seq_length(layer))
        return torch.arange(end - n_query, end)[None]

    def keys(self, layer: int, n_key: int) -> Int[Tensor, "row head key"]:
        """Return the text positions of the keys that the cache has returned; negative for none.

        Raises:
            ValueError: the cache lays its keys out in a way of its own.
        """
        cache = self._cache()
        if isinstance(cache, BoundCache):
            return cache.key_position(layer).cpu()
        if cache is not None and not isinstance(cache, DynamicCache):
            raise ValueError(
                f"interventions cannot tell where a {type(cache).__name__} keeps which token; use "
                "a DynamicCache, or one of lm.cache(policy)"
            )
        if self._padded is not None:
            return self._padded[:, None, -n_key:].cpu()
        end = self.end(layer, n_key)
        return torch.arange(end - n_key, end)[None, None]

    def end(self, layer: int, n_key: int) -> int:
        """Return how many tokens of the text a plain cache has taken in; all, without a cache."""
        cache = self._cache()
        return n_key if cache is None else cache.get_seq_length(layer)


class Route:
    """A config as an attention module sees it: the model's own, but for the attention's name.

    Args:
        own: the config of the model.

    Attributes:
        changes: in force now, and what each knows of where the tokens stand: one may go before
            another that came later, and takes its hooks along.
    """

    _attn_implementation = REROUTED

    def __init__(self, own: Any) -> None:
        self.own = own
        self.changes: dict[Change, Whereabouts] = {}

    @property
    def whereabouts(self) -> Whereabouts:
        """Where the tokens stand: the same for all changes."""
        return next(iter(self.changes.values()))

    def __getattr__(self, name: str) -> Any:
        if name == "own":  # not there yet, as in a copy
            raise AttributeError(name)
        return getattr(self.own, name)

    def attend(self, module: nn.Module, call: Call) -> tuple[Tensor, Tensor | None]:
        """Change a call, let it be answered, and change the answer."""
        for change in self.changes:
            call = change.before(call)
        name, options = self.own._attn_implementation, call.options
        if any(change.explicit for change in self.changes) and not name.startswith(OURS):
            # Someone needs the weights that eager attention returns, or asked for this by name.
            attend, options = explicit_attention, options | {"weights": name == "eager"}
        else:
            eager = getattr(sys.modules[type(module).__module__], "eager_attention_forward", None)
            attend = ALL_ATTENTION_FUNCTIONS.get_interface(name, eager)
        output, attention = attend(module, call.query, call.key, call.value, call.mask, **options)
        for change in self.changes:
            output = change.after(output)
        return output, attention


def check_not_compiled() -> None:
    """Raise ValueError within ``torch.compile``: a graph would keep the change for ever."""
    if torch.compiler.is_compiling():
        raise ValueError("interventions do not go into compiled models; run the model as it is")


def _rerouted(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    **options: Any,
) -> tuple[Tensor, Tensor | None]:
    """Attend with changes; a transformers attention function."""
    check_not_compiled()
    layer, where = module.layer_idx, module.config.whereabouts
    n_query, n_key = query.shape[2], key.shape[2]
    keys = where.keys(layer, n_key)
    queries = where.queries(layer, n_query, where.end(layer, n_key))
    call = Call(layer, query, key, value, attention_mask, options, queries, keys)
    return module.config.attend(module, call)


AttentionInterface.register(REROUTED, _rerouted)
AttentionInterface.register(EXPLICIT, explicit_attention)
# No mask at all where a pass is causal alone, and truths elsewhere.
AttentionMaskInterface.register(
    EXPLICIT, lambda *args, **kwargs: ALL_MASK_ATTENTION_FUNCTIONS["sdpa"](*args, **kwargs)
)


def goes_through_interface(module: nn.Module) -> bool:
    """Return whether an attention module looks its attention function up by name."""
    return hasattr(sys.modules[type(module).__module__], "ALL_ATTENTION_FUNCTIONS")


# The attention that each explicit change of a model has found. They need not leave in the order in
# which they came: whichever does puts back what the last one found.
_FOUND: weakref.WeakKeyDictionary[nn.Module, list[str]] = weakref.WeakKeyDictionary()


@contextlib.contextmanager
def rerouted(model: nn.Module, modules: Sequence[nn.Module], change: Change) -> Iterator[None]:
    """Change the attention of some modules, and leave the model as it was afterwards."""
    where, handles, found = Whereabouts(), [], _FOUND.setdefault(model, [])
    if change.explicit:
        found.append(model.config._attn_implementation)
    try:
        handles.append(model.register_forward_pre_hook(where.note_model, with_kwargs=True))
        for module in modules:
            handles.append(module.register_forward_pre_hook(where.note_module, with_kwargs=True))
            if not isinstance(module.config, Route):
                module.config = Route(module.config)
            module.config.changes[change] = where
        if change.explicit:
            model.config._attn_implementation = EXPLICIT
        with uncompiled(model):
            yield
    finally:
        if change.explicit:
            model.config._attn_implementation = found.pop()
        for module in modules:
            if isinstance(module.config, Route):
                _leave(module, change)
        for handle in handles:
            handle.remove()


def _leave(module: nn.Module, change: Change) -> None:
    route = module.config
    route.changes = {one: where for one, where in route.changes.items() if one is not change}
    if not route.changes:
        module.config = route.own


Place = tuple[nn.Module, Callable[[nn.Module, Whereabouts], Any]]


@contextlib.contextmanager
def hooked(
    model: nn.Module, modules: Sequence[nn.Module], places: Sequence[Place]
) -> Iterator[None]:
    """Hook submodules of some attention modules, and remove the hooks afterwards.

    Args:
        model: the model.
        modules: attention modules.
        places: for each of them a function that registers a hook, and where.
    """
    where, handles = Whereabouts(), []
    try:
        handles.append(model.register_forward_pre_hook(where.note_model, with_kwargs=True))
        for module, (place, register) in zip(modules, places, strict=True):
            handles.append(module.register_forward_pre_hook(where.note_module, with_kwargs=True))
            handles.append(register(place, where))
        with uncompiled(model):
            yield
    finally:
        for handle in handles:
            handle.remove()
