"""Capture where a model's attention goes, layer by layer.

Hooks reduce each layer's attention as soon as the layer is done, a block of queries at a time, so
that memory grows with the length of the text and not with its square. Knows nothing about
figures.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from tqdm.auto import tqdm
from transformers import DynamicCache

from sinkviz.forward import forward, watch
from sinkviz.metrics import ROLES, entropy, mass
from sinkviz.models import LM, Text
from sinkviz.records import Trace, provenance

MAPS_BY_DEFAULT = 64 * 2**20
MAPS_AT_MOST = 4 * 2**30


def capture(
    lm: LM,
    text: Text,
    *,
    keep: str | Sequence[tuple[int, int]] | None = None,
    n_sink: int = 4,
    n_recent: int = 64,
    block: int = 256,
    progress: bool = False,
) -> Trace:
    """Run a model over a text and record where its attention goes.

    Args:
        lm: the language model; it is left exactly as it was.
        text: text or ids.
        keep: ``maps`` (every whole map), ``statistics``, or the (layer, head) pairs whose maps to
            keep beside the statistics. By default maps as long as they fit into 64 MB.
        n_sink: first tokens that count as sinks in the mass by role.
        n_recent: tokens that count as recent, the query's own included.
        block: queries per forward pass; memory grows with it, results do not change.
        progress: show a progress bar.

    Returns:
        The trace: received attention, mass by role and entropy of every head, and maps.

    Raises:
        ValueError: the text is empty, ``keep`` is unknown, a layer or head does not exist, or the
            maps would need more than 4 GB.
    """
    ids = lm.encode(text)
    config, n_tokens = lm.model.config, len(ids)
    n_layers, n_heads = config.num_hidden_layers, config.num_attention_heads
    map_bytes = 4 * n_tokens**2
    if keep is None:
        keep = "maps" if n_layers * n_heads * map_bytes <= MAPS_BY_DEFAULT else "statistics"
    if isinstance(keep, str) and keep not in ("maps", "statistics"):
        raise ValueError(f"keep={keep!r} is none of 'maps', 'statistics', [(layer, head), ...]")
    heads = None if isinstance(keep, str) else tuple((int(a), int(b)) for a, b in keep)
    for layer, head in heads or ():
        if not (0 <= layer < n_layers and 0 <= head < n_heads):
            raise ValueError(
                f"no head {(layer, head)}: {lm.name} has layers 0..{n_layers - 1} and heads "
                f"0..{n_heads - 1}"
            )
    n_maps = {"maps": n_layers * n_heads, "statistics": 0}[keep] if heads is None else len(heads)
    if n_maps * map_bytes > MAPS_AT_MOST:
        raise ValueError(
            f"{n_maps} whole maps of {n_tokens} x {n_tokens} tokens would need "
            f"{n_maps * map_bytes / 1e9:.0f} GB; use keep='statistics' or name a few heads"
        )

    received = torch.zeros(n_layers, n_heads, n_tokens, dtype=torch.float64)
    by_role = np.zeros((n_layers, n_heads, n_tokens, len(ROLES)), dtype=np.float32)
    spread = np.zeros((n_layers, n_heads, n_tokens), dtype=np.float32)
    maps = None
    if n_maps:
        shape = (n_layers, n_heads) if heads is None else (1, n_maps)
        maps = np.zeros((*shape, n_tokens, n_tokens), dtype=np.float32)

    def reduce(layer: int, attention: Float[Tensor, "1 head query key"]) -> None:
        attention = attention[0].float()
        n_query, n_key = attention.shape[-2:]
        rows = slice(n_key - n_query, n_key)
        received[layer, :, :n_key] += attention.sum(-2).double().cpu()
        shares = mass(attention, n_sink, n_recent)
        by_role[layer, :, rows] = torch.stack([shares[r] for r in ROLES], -1).cpu().numpy()
        spread[layer, :, rows] = entropy(attention).cpu().numpy()
        if maps is not None and heads is None:
            maps[layer, :, rows, :n_key] = attention.cpu().numpy()
        for index, (wanted, head) in enumerate(heads or ()):
            if wanted == layer:
                maps[0, index, rows, :n_key] = attention[head].cpu().numpy()

    cache = DynamicCache()
    with watch(lm, reduce), tqdm(total=n_tokens, unit="token", disable=not progress) as bar:
        for part in ids.split(block):
            forward(lm, cache, part, last_only=True, maps=True)
            bar.update(len(part))
    viewers = torch.arange(n_tokens, 0, -1)
    host_ids = ids.cpu().numpy()
    return Trace(
        tokens=lm.tokens(ids),
        token_ids=host_ids,
        received=(received / viewers).float().numpy(),
        mass=by_role,
        entropy=spread,
        attention=maps,
        heads=heads,
        n_sink=n_sink,
        n_recent=n_recent,
        provenance=provenance(lm.name, host_ids, device=str(lm.device)),
    )
