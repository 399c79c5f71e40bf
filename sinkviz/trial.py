"""Families that the table does not know: try them, measure, and accept or refuse with a sentence.

A rotary model shows itself: move a text by some positions, and its keys turn by exactly so much
while its predictions stay. Knows nothing about caches or policies.
"""

from __future__ import annotations

from collections import Counter
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from transformers import DynamicCache

from sinkviz.families import FAMILIES, Family, known_family, layer_kinds
from sinkviz.positions import rotate, rotation_by

SHIFT, LENGTH = 5, 12
# Relative to the size of the keys; rounding in bfloat16 stays well below, a wrong pairing above 1.
TOLERANCE = 0.05
_TRIED: WeakKeyDictionary[nn.Module, Family] = WeakKeyDictionary()


def family_of(model: nn.Module) -> Family:
    """Return the family of a causal language model: its row in the table, or one found by trial.

    Raises:
        ValueError: the model is in no row, and its keys do not turn with its positions.
    """
    family = known_family(model)
    if family is not None:
        return family
    if model not in _TRIED:
        _TRIED[model] = try_rotary(model)
    return _TRIED[model]


def try_rotary(model: nn.Module) -> Family:
    """Find out by measurement how an unknown model rotates its keys.

    Args:
        model: a causal language model that is not in the table.

    Returns:
        A row for it, with the pairing under which every layer's keys turn as they must.

    Raises:
        ValueError: the model has no rotary frequencies where transformers keeps them, or its keys
            do not follow them.
    """
    name = model.config.get_text_config().model_type
    known = f"known families are {', '.join(FAMILIES)}"
    paths = [path for path, module in model.named_modules() if hasattr(module, "inv_freq")]
    attention = Counter(
        path.rpartition(".")[2]
        for path, module in model.named_modules()
        if hasattr(module, "layer_idx") and "attention" in type(module).__name__.lower()
    )
    if not paths or not attention:
        raise ValueError(
            f"no family {name!r} in sinkviz.families, and the model shows no rotary frequencies "
            f"(inv_freq), so its positions cannot be told; {known}"
        )
    try:
        (here, here_logits), (there, there_logits) = (_keys(model, start) for start in (0, SHIFT))
    except Exception as error:
        raise ValueError(
            f"no family {name!r} in sinkviz.families, and the model cannot be tried "
            f"({type(error).__name__}: {error}); {known}"
        ) from error
    for interleaved in (False, True):
        family = Family(
            name,
            attention=attention.most_common(1)[0][0],
            rotary=paths[0],
            interleaved=interleaved,
            interface=False,
        )
        try:
            kinds = layer_kinds(model, family)
            turned = [
                rotate(key, *rotation_by(SHIFT, kind.frequencies), interleaved=interleaved)
                for key, kind in zip(here, kinds, strict=True)
            ]
        except (ValueError, RuntimeError, AttributeError):
            continue
        if all(map(_close, turned, there)) and _close(here_logits, there_logits):
            return family
    raise ValueError(
        f"no family {name!r} in sinkviz.families, and a trial of {LENGTH} tokens shows that its "
        "keys do not turn with the positions as its rotary frequencies say; a cache that moves "
        f"keys would be wrong; {known}"
    )


def _keys(model: nn.Module, start: int) -> tuple[list[Tensor], Tensor]:
    """Return every layer's keys and the logits of a short text that begins at ``start``."""
    size = model.config.get_text_config().vocab_size
    ids = (torch.arange(LENGTH, device=model.device) * 7 + 3) % size
    cache, training = DynamicCache(), model.training
    position_ids = torch.arange(start, start + LENGTH, device=model.device)[None]
    try:
        model.eval()
        with torch.no_grad():
            output = model(
                ids[None], position_ids=position_ids, past_key_values=cache, use_cache=True
            )
    finally:
        model.train(training)
    return [layer.keys for layer in cache.layers], output.logits


def _close(found: Tensor, expected: Tensor) -> bool:
    error = (found.float() - expected.float()).abs().max()
    return bool(error <= TOLERANCE * expected.float().abs().max())
