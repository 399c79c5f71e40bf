"""Model families as data: how each tells tokens apart by position, and where its attention lives.

One frozen row per transformers ``model_type``; a family is never a subclass or a patch. Knows
nothing about caches or policies.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sinkviz.positions import rotary_frequencies


@dataclass(frozen=True)
class Family:
    """What sinkviz must know about a family of models.

    Attributes:
        name: transformers ``model_type``.
        positions: ``rotary``; ``bias`` (ALiBi, T5: computed from distances); ``none``; or
            ``absolute`` (learned or sinusoidal vectors, baked into every key).
        attention: name of the attention module within a layer.
        rotary: path from the causal LM to the module that holds ``inv_freq``; empty where the
            model has a table of sines instead.
        interleaved: rotary coordinates are paired 2 i with 2 i + 1.
        interface: attention goes through transformers' attention interface, arguments of ours
            included, so that it can be replaced by name.
        watched: attention goes through the interface with arguments of its own alone: it can be
            watched there, but not replaced.
        alibi: argument of the attention module that takes the ALiBi bias, where the model builds
            the bias itself.
        scaled_alibi: the bias is divided by the square root of the head size, as the scores are.
        doubled_alibi: in eager mode transformers adds the bias twice.
        unrotated: layers without positions in a rotary model: those that the config's list of this
            name marks with 0, or all layers of this type.
        drops_cache: ``generate`` throws any cache away once, at the original training length.
    """

    name: str
    positions: str = "rotary"
    attention: str = "self_attn"
    rotary: str = "model.rotary_emb"
    interleaved: bool = False
    interface: bool = True
    watched: bool = False
    alibi: str = ""
    scaled_alibi: bool = False
    doubled_alibi: bool = False
    unrotated: str = ""
    drops_cache: bool = False

    @property
    def ends(self) -> bool:
        """Whether positions come from a table, which ends."""
        table = self.positions == "rotary" and not self.rotary
        return table or self.positions == "absolute" or self.alibi == "position_bias"


@dataclass(frozen=True)
class LayerKind:
    """How the layers of one kind see the text.

    Attributes:
        frequencies: rotary frequencies, radians per token; None where keys are not rotated.
        window: tokens that the layer sees by its own design, itself included; None for all.
        name: transformers' name of the kind, under which a model looks up its mask.
    """

    frequencies: Tensor | None
    window: int | None = None
    name: str = "full_attention"


FAMILIES: dict[str, Family] = {
    family.name: family
    for family in (
        Family("sinkviz_classroom"),
        *map(
            Family,
            ("llama", "mistral", "mixtral", "qwen2", "qwen3", "qwen3_moe", "gemma", "gemma2")
            + ("gemma3_text", "phi", "olmo2", "starcoder2", "gpt_oss"),
        ),
        Family("phi3", drops_cache=True),
        # Its attention does not hand further arguments on to the interface.
        Family("stablelm", interface=False, watched=True),
        Family("cohere", interleaved=True),
        Family("cohere2", interleaved=True, unrotated="full_attention"),
        Family("smollm3", unrotated="no_rope_layers"),
        Family("gpt_neox", attention="attention", rotary="gpt_neox.rotary_emb"),
        Family("gptj", attention="attn", rotary="", interleaved=True, interface=False),
        Family("codegen", attention="attn", rotary="", interleaved=True, interface=False),
        Family(
            "falcon",
            attention="self_attention",
            rotary="transformer.rotary_emb",
            interface=False,
        ),
        Family("mpt", "bias", "attn", "", interface=False, alibi="position_bias"),
        Family("bloom", "bias", "self_attention", "", interface=False, alibi="alibi"),
        Family("gpt2", "absolute", "attn", ""),
        Family("opt", "absolute", "self_attn", ""),
    )
}

CLASSROOM_POSITIONS = {"rope": "rotary", "alibi": "bias", "t5": "bias", "none": "none"}


def known_family(model: nn.Module) -> Family | None:
    """Return the row of a causal language model, or None where the table has none."""
    config = model.config.get_text_config()
    family = FAMILIES.get(config.model_type)
    if config.model_type == "sinkviz_classroom":
        return replace(family, positions=CLASSROOM_POSITIONS.get(config.position, "absolute"))
    if config.model_type == "falcon" and config.alibi:
        return replace(
            family, positions="bias", alibi="alibi", scaled_alibi=True, doubled_alibi=True
        )
    return family


def layer_kinds(model: nn.Module, family: Family) -> list[LayerKind]:
    """Return what each layer sees and how its keys are rotated, first layer first."""
    config = model.config.get_text_config()
    n_layers = config.num_hidden_layers
    types = getattr(config, "layer_types", None) or ["full_attention"] * n_layers
    # Where all layers slide alike, the window limits the policy instead: see check_sliding_window.
    mixed = len(set(types)) > 1
    marks = getattr(config, family.unrotated, None) if family.unrotated else None
    kinds = []
    for index, name in enumerate(types):
        turns = marks[index] if marks is not None else name != family.unrotated
        frequencies = _frequencies(model, family, name) if turns else None
        window = config.sliding_window if mixed and name == "sliding_attention" else None
        kinds.append(LayerKind(frequencies, window, name))
    return kinds


def _frequencies(model: nn.Module, family: Family, kind: str) -> Tensor | None:
    if family.positions != "rotary":
        return None
    precision = torch.promote_types(model.dtype, torch.float32)
    if not family.rotary:
        config = model.config
        dimension = config.rotary_dim or config.hidden_size // config.num_attention_heads
        return rotary_frequencies(dimension).to(model.device, precision)
    module = model.get_submodule(family.rotary)
    # Dynamic variants overwrite ``inv_freq`` when positions grow; ours never do.
    for name in ("original_inv_freq", "inv_freq", f"{kind}_inv_freq"):
        if isinstance(found := getattr(module, name, None), Tensor):
            return found.detach().to(precision)
    raise ValueError(f"{family.name} has no rotary frequencies at {family.rotary}")


def position_limit(model: nn.Module, family: Family) -> int | None:
    """Return how many positions a model can tell apart without changing; None for any number.

    Models with a table of positions end there. Dynamic and long rotary scaling changes its
    frequencies beyond the original training length, while keys that were cached before keep theirs.
    """
    config = model.config.get_text_config()
    if family.ends and not family.alibi:
        return getattr(config, "max_position_embeddings", None)
    parameters = getattr(config, "rope_parameters", None) or {}
    if parameters.get("rope_type") in ("dynamic", "longrope"):
        return parameters.get("original_max_position_embeddings", config.max_position_embeddings)
    return None


def check_movable_keys(model: nn.Module, family: Family) -> None:
    """Raise ValueError where a model's keys or masks hold absolute positions, and so cannot move.

    Args:
        model: named in the message as it was loaded, or by its family where it was made here.
        family: of the model.
    """
    text_config = model.config.get_text_config()
    if "chunked_attention" in (getattr(text_config, "layer_types", None) or ()):
        raise ValueError(
            f"some layers of {family.name} attend within chunks of "
            f"{text_config.attention_chunk_size} tokens that begin at fixed places of the text: no "
            "cache that moves keys can follow; use Dense or Recompute"
        )
    if family.positions != "absolute":
        return
    config = model.config
    name = Path(config.name_or_path).name or family.name
    kind = getattr(config, "position", "learned")  # the classroom's may be sinusoidal instead
    raise ValueError(
        f"{name} has {kind} positions, which are part of every token's key: no key can move within "
        "a cache, so neither Window nor SinkWindow nor any other eviction is defined; use Dense or "
        "Recompute"
    )


def check_sliding_window(model: nn.Module, n_tokens: int, what: str) -> None:
    """Raise ValueError where the sliding window of all of a model's layers would cut ``what``.

    Args:
        model: the model.
        n_tokens: how many tokens back it would have to see.
        what: named in the message.
    """
    config = model.config.get_text_config()
    window = getattr(config, "sliding_window", None)
    mixed = len(set(getattr(config, "layer_types", None) or ())) > 1
    if window is not None and not mixed and n_tokens > window:
        raise ValueError(
            f"{config.model_type} sees only {window} tokens back in its sliding layers, "
            f"{what} of {n_tokens} would be cut; use at most {window} tokens"
        )


def attention_modules(model: nn.Module, family: Family) -> list[nn.Module]:
    """Return the model's self-attention modules, first layer first."""
    found: list[Any] = [
        module
        for name, module in model.named_modules()
        if name.rpartition(".")[2] == family.attention and hasattr(module, "layer_idx")
    ]
    return sorted(found, key=lambda module: module.layer_idx)


def computes_on(module: nn.Module) -> torch.device:
    """Return the device that a module computes on, wherever accelerate keeps its weights."""
    kept = next(chain(module.parameters(), module.buffers())).device
    if kept.type != "meta":
        return kept
    hooks = (getattr(part, "_hf_hook", None) for part in module.modules())
    named = (getattr(hook, "execution_device", None) for hook in hooks)
    return torch.device(next((device for device in named if device is not None), "cpu"))


def layer_devices(model: nn.Module, family: Family) -> list[torch.device]:
    """Return where each layer's keys and values are made, first layer first."""
    return [computes_on(module) for module in attention_modules(model, family)]
