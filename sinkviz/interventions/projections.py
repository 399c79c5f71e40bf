"""Hooks on projections, for families that compute their attention out of reach.

They can be met before their attention, where values are projected, and after it, where heads are
joined. Where values stand in a fused projection is written here, family by family.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor, nn

from sinkviz.families import Family
from sinkviz.interventions.routes import Place, Whereabouts, check_not_compiled

OUT = ("o_proj", "out_proj", "dense", "c_proj")


def out_projection_hook(module: nn.Module, head: int, n_heads: int) -> Place:
    """Return where, and how, to silence a head before heads are joined.

    Args:
        module: an attention module.
        head: which of its heads.
        n_heads: how many it has.

    Raises:
        ValueError: the module has no output projection of a known name, or bypasses it.
    """
    place = next((found for name in OUT if (found := getattr(module, name, None))), None)
    if place is None:
        raise ValueError(
            f"{type(module).__name__} has no output projection named {', '.join(OUT)}, so its "
            "heads cannot be told apart"
        )
    if getattr(module, "slow_but_exact", False) and module.pretraining_tp > 1:
        raise ValueError(
            f"{type(module).__name__} does not call its output projection under slow_but_exact; "
            "set config.slow_but_exact = False to knock out a head"
        )

    def silence(module: nn.Module, args: tuple) -> tuple:
        check_not_compiled()
        joined = args[0].unflatten(-1, (n_heads, -1))
        index = torch.tensor([head], device=joined.device)
        return joined.index_fill(-2, index, 0).flatten(-2), *args[1:]

    return place, lambda place, where: place.register_forward_pre_hook(silence)


def value_hook(module: nn.Module, family: Family, position: int) -> Place:
    """Return where, and how, to make a token's value zero as the token is read.

    Args:
        module: an attention module.
        family: of the model.
        position: of the token in the text.

    Raises:
        ValueError: it is not known where the family's values are projected.
    """
    place, columns = value_columns(module, family)

    def hook(where: Whereabouts) -> Callable[..., Any]:
        def blank(projection: nn.Module, args: tuple, output: Tensor) -> Tensor | None:
            check_not_compiled()
            there = where.queries(module.layer_idx, output.shape[1]) == position
            if not there.any():
                return None
            chosen = torch.zeros(output.shape[-1], dtype=torch.bool)
            chosen[columns] = True
            return output.masked_fill((there[..., None] & chosen).to(output.device), 0)

        return blank

    return place, lambda place, where: place.register_forward_hook(hook(where))


def value_columns(module: nn.Module, family: Family) -> tuple[nn.Module, Int[Tensor, " column"]]:
    """Return the projection that makes a module's values, and which of its columns do.

    Args:
        module: an attention module.
        family: of the model.

    Raises:
        ValueError: it is not known.
    """
    if family.name == "gptj":
        return module.v_proj, torch.arange(module.v_proj.out_features)
    name = {"codegen": "qkv_proj", "mpt": "Wqkv", "bloom": "query_key_value"}.get(
        family.name, "query_key_value"
    )
    if family.name not in ("codegen", "mpt", "bloom", "falcon"):
        raise ValueError(
            f"it is not known where {family.name} projects its values, so none can be made zero; "
            "knock_out works with it"
        )
    place = getattr(module, name)
    column = torch.arange(place.out_features)
    if family.name == "codegen":  # in four parts, each of queries, values and keys
        return place, column.view(4, 3, -1)[:, 1].flatten()
    if family.name == "mpt":
        return place, column.view(3, -1)[2]
    # Head by head; the queries of heads that share a value stand before it.
    if getattr(module, "new_decoder_architecture", False):
        each = module.num_heads // module.num_kv_heads + 2
    else:
        each = module.num_heads + 2 if getattr(module, "multi_query", False) else 3
    return place, column.view(-1, each, module.head_dim)[:, -1].flatten()
