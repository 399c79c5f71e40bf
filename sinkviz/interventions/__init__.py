"""Change how a model attends, for as long as a ``with`` block lasts; and change how a text begins.

``zero_value`` ``knock_out`` ``forbid`` ``null_key`` are context managers. They nest, and go with
``capture``, ``stream``, ``score`` and the model itself; nothing of them stays, whatever happened.
Positions are those of the text, wherever a cache holds the token, and whether or not it still does.
With ``Recompute`` each window is a text of its own. Edits of the text are functions on ids.

Example:
    >>> from sinkviz import capture, load
    >>> lm = load("classroom-rope")
    >>> plain = capture(lm, "Once upon a time there was a fox.")
    >>> with forbid(lm, 0):
    ...     blind = capture(lm, "Once upon a time there was a fox.")
    >>> float(blind.attention[..., 1:, 0].max()) < 1e-30, blind.sink_rate < plain.sink_rate
    (True, True)

Knows nothing about capture, streams or scores: it changes what the model's attention is called
with, and what comes out.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
from collections.abc import Callable, Sequence

from torch import nn

from sinkviz.interventions.changes import Forbid, KnockOut, NullKey, ZeroValue
from sinkviz.interventions.edits import (
    move_first,
    prepend,
    remove_first,
    repeat_first,
    replace_first,
)
from sinkviz.interventions.projections import out_projection_hook, value_hook
from sinkviz.interventions.routes import goes_through_interface, hooked, rerouted
from sinkviz.models import LM, changed

__all__ = [
    "forbid",
    "knock_out",
    "move_first",
    "null_key",
    "prepend",
    "remove_first",
    "repeat_first",
    "replace_first",
    "zero_value",
]

Context = contextlib.AbstractContextManager[None]
Layers = int | Sequence[int] | None


def _recorded(change: Callable[..., Context]) -> Callable[..., Context]:
    """Let records that are made while a change lasts say what was asked for."""
    signature = inspect.signature(change)

    @functools.wraps(change)
    def asked(*args: object, **options: object) -> Context:
        given = signature.bind(*args, **options).arguments
        says = ", ".join(f"{name}={value!r}" for name, value in given.items() if name != "lm")
        return changed(given["lm"].model, f"{change.__name__}({says})", change(**given))

    return asked


@_recorded
def zero_value(lm: LM, position: int, layers: Layers = None) -> Context:
    """Make a token's value vector zero: attention to it then adds nothing to the output.

    Families outside transformers' attention interface (GPT-J, CodeGen, Falcon, MPT, BLOOM) compute
    the zero when they read the token, so it stays in a cache that was filled meanwhile; elsewhere
    caches keep the true value.

    Args:
        lm: the language model.
        position: of the token in the text.
        layers: one or several; all by default.

    Raises:
        ValueError: a number is out of range, or the family keeps its values where we cannot tell.
    """
    modules = _modules(lm, layers)
    change = ZeroValue(_position(position))
    if _through_interface(modules):
        return rerouted(lm.model, modules, change)
    return hooked(lm.model, modules, [value_hook(one, lm.family, position) for one in modules])


@_recorded
def knock_out(lm: LM, layer: int, head: int) -> Context:
    """Silence a head: its output is zero before the layer's output projection.

    Its attention is computed as ever, so ``capture`` still shows it.

    Args:
        lm: the language model.
        layer: which layer.
        head: which of its heads.

    Raises:
        ValueError: a number is out of range, or the family has no output projection that we know.
    """
    (module,) = _modules(lm, layer)
    (head,) = _heads(lm, head)
    if _through_interface([module]):
        return rerouted(lm.model, [module], KnockOut(head))
    n_heads = lm.model.config.get_text_config().num_attention_heads
    return hooked(lm.model, [module], [out_projection_hook(module, head, n_heads)])


@_recorded
def forbid(
    lm: LM, position: int, layers: Layers = None, heads: int | Sequence[int] | None = None
) -> Context:
    """Let no later token attend to a token; the rest of the softmax takes over its share.

    The token itself still sees itself, since the first of a text has nothing else to see. For
    ``capture`` the others still have it in sight and give it nothing, so that sink rates with and
    without are means over the same queries. It then needs a mask of the pass, which grows with the
    square of its tokens; ``capture(..., block=...)`` bounds that.

    Args:
        lm: the language model.
        position: of the token in the text.
        layers: one or several; all by default.
        heads: one or several of each of these layers; all by default.

    Raises:
        ValueError: a number is out of range, or the family computes its attention out of reach.
    """
    modules = _modules(lm, layers)
    change = Forbid(_position(position), None if heads is None else _heads(lm, heads))
    _check_interface(lm, modules, "a position cannot be forbidden")
    return rerouted(lm.model, modules, change)


@_recorded
def null_key(lm: LM, logit: float = 0.0, layers: Layers = None) -> Context:
    """Add a key that carries nothing, so that a head can attend to nothing.

    With a logit of 0 this is softmax off by one. What a model has learned of the kind stays, and
    null keys add up when nested: each is one more term in the sum under the softmax.

    Args:
        lm: the language model.
        logit: score of the null key, the same for every query.
        layers: one or several; all by default.

    Raises:
        ValueError: a number is out of range, or the family computes its attention out of reach.

    Source: Miller 2023, "Attention is off by one".
    """
    modules = _modules(lm, layers)
    _check_interface(lm, modules, "a null key cannot be added")
    return rerouted(lm.model, modules, NullKey(float(logit)))


def _position(position: int) -> int:
    if position < 0:
        raise ValueError(
            f"position must be one of the text, counted from 0 at its beginning, got {position}"
        )
    return int(position)


def _modules(lm: LM, layers: Layers) -> list[nn.Module]:
    modules = lm.attention_modules
    if layers is None:
        return list(modules)
    chosen = [layers] if isinstance(layers, int) else list(layers)
    for layer in chosen:
        if not 0 <= layer < len(modules):
            raise ValueError(f"no layer {layer}: {lm.name} has layers 0..{len(modules) - 1}")
    return [modules[layer] for layer in sorted(set(chosen))]


def _heads(lm: LM, heads: int | Sequence[int]) -> tuple[int, ...]:
    n_heads = lm.model.config.get_text_config().num_attention_heads
    chosen = (heads,) if isinstance(heads, int) else tuple(heads)
    for head in chosen:
        if not 0 <= head < n_heads:
            raise ValueError(f"no head {head}: {lm.name} has heads 0..{n_heads - 1}")
    return chosen


def _through_interface(modules: Sequence[nn.Module]) -> bool:
    return all(map(goes_through_interface, modules))


def _check_interface(lm: LM, modules: Sequence[nn.Module], what: str) -> None:
    if not _through_interface(modules):
        raise ValueError(
            f"{lm.family.name} computes its attention itself, not through transformers' attention "
            f"interface, so {what}; zero_value and knock_out work with it, and so do other families"
        )
