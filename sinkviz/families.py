"""Model families as data: how each tells tokens apart by position, and where its attention lives.

One frozen row per transformers ``model_type``; a family is never a subclass or a patch. Knows
nothing about caches or policies.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor, nn


@dataclass(frozen=True)
class Family:
    """What sinkviz must know about a family of models.

    Attributes:
        name: transformers ``model_type``.
        positions: ``rotary``; ``bias`` (ALiBi, T5: computed from distances); ``none``; or
            ``absolute`` (learned or sinusoidal vectors, baked into every key).
        attention: name of the attention module within a layer.
        rotary: path from the causal LM to the module that holds ``inv_freq``.
        interleaved: rotary coordinates are paired 2 i with 2 i + 1.
    """

    name: str
    positions: str = "rotary"
    attention: str = "self_attn"
    rotary: str = "model.rotary_emb"
    interleaved: bool = False


FAMILIES: dict[str, Family] = {
    family.name: family
    for family in (
        Family("sinkviz_classroom"),
        Family("llama"),
        Family("mistral"),
        Family("qwen2"),
        Family("qwen3"),
        Family("phi"),
        Family("gpt_neox", attention="attention", rotary="gpt_neox.rotary_emb"),
    )
}

CLASSROOM_POSITIONS = {"rope": "rotary", "alibi": "bias", "t5": "bias", "none": "none"}


def family_of(model: nn.Module) -> Family:
    """Return the family of a causal language model.

    Raises:
        ValueError: the family is not in the table.
    """
    name = model.config.model_type
    if name not in FAMILIES:
        raise ValueError(
            f"no family {name!r} in sinkviz.families; known are {', '.join(FAMILIES)}. "
            "Use a model of one of these families"
        )
    if name == "sinkviz_classroom":
        scheme = model.config.position
        return replace(FAMILIES[name], positions=CLASSROOM_POSITIONS.get(scheme, "absolute"))
    return FAMILIES[name]


def check_sliding_window(model: nn.Module, n_tokens: int, what: str) -> None:
    """Raise ValueError where a model's own sliding window would cut ``what``.

    Args:
        model: the model.
        n_tokens: how many tokens back it would have to see.
        what: named in the message.
    """
    window = getattr(model.config, "sliding_window", None)
    if window is not None and n_tokens > window:
        raise ValueError(
            f"{model.config.model_type} sees only {window} tokens back in its sliding layers, "
            f"{what} of {n_tokens} would be cut; use at most {window} tokens"
        )


def rotary_frequencies_of(model: nn.Module, family: Family) -> Tensor | None:
    """Return the rotary frequencies of a model, radians per token, or None if it has none."""
    if family.positions != "rotary":
        return None
    return model.get_submodule(family.rotary).inv_freq.detach()


def attention_modules(model: nn.Module, family: Family) -> list[nn.Module]:
    """Return the model's self-attention modules, first layer first."""
    found: list[Any] = [
        module
        for name, module in model.named_modules()
        if name.rpartition(".")[2] == family.attention and hasattr(module, "layer_idx")
    ]
    return sorted(found, key=lambda module: module.layer_idx)
