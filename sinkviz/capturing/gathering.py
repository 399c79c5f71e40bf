"""What has been seen so far of one text's attention: layer by layer, one text of a batch.

Passes of a model come in with all texts of a batch; each text takes its own part, without the
padding. Knows nothing about models, nor how their attention is observed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from sinkviz.capturing.fused import reduce_fused, serves
from sinkviz.capturing.reducing import reduce_products, reduce_weights
from sinkviz.capturing.sights import Sight
from sinkviz.capturing.statistics import LayerStatistics, Plan
from sinkviz.capturing.tiling import reduce_tiles

Kept = Sequence[tuple[int, int, Tensor]]


class Gathered:
    """What has been seen of every layer so far, for one text of a batch.

    Args:
        plan: what to find out.
        row: of the batch, the text's.
        kept: heads whose whole maps to keep, as (layer, head, map): on the CPU, zero so far.
        done: called with the number of tokens after each layer of each pass.
    """

    def __init__(
        self,
        plan: Plan,
        row: int = 0,
        kept: Kept = (),
        done: Callable[[int], Any] = lambda n_tokens: None,
    ) -> None:
        self.plan, self.row, self.kept, self.done = plan, row, kept, done
        self.wants_norms = "norms" in plan.statistics
        self._found: dict[int, LayerStatistics] = {}
        self._norms: dict[tuple[int, str], list[Tensor]] = {}

    def _own(self, n_new: int, n_keys: int) -> tuple[int, int]:
        """Return this text's first token of a pass, and how many of its tokens are new."""
        first = n_keys - n_new
        return first, min(n_new, self.plan.n_tokens - first)

    def see(
        self,
        layer: int,
        query: Float[Tensor, "row head query dimension"],
        key: Float[Tensor, "row kv_head key dimension"],
        value: Float[Tensor, "row kv_head key value_dimension"],
        mask: Any,
        more: dict[str, Any],
        log_sums: Float[Tensor, "row head query"] | None = None,
    ) -> None:
        """Take in a call of the attention interface.

        Args:
            layer: which.
            query: of a pass.
            key: of the texts up to the end of the pass.
            value: likewise.
            mask: as the interface has it: (row, head, query, key), or None.
            more: its further arguments.
            log_sums: logarithms of the sums that its softmax divides by, where they are known.
        """
        first, n_new = self._own(query.shape[2], key.shape[2])
        if n_new <= 0:
            return
        stop = first + n_new
        own = query[self.row, :, :n_new]
        if isinstance(mask, Tensor) and mask.ndim == 4:
            mask = mask[self.row if len(mask) > 1 else 0, :, :n_new, :stop]
        else:
            mask = None
        sight = Sight(first, stop, mask, more.get("sliding_window"), query.device)
        scaling = more.get("scaling") or query.shape[-1] ** -0.5
        found = self._statistics(layer, own)
        keys = key[self.row, :, :stop]
        given = found, own, keys, sight, scaling
        sums_alone = self.plan.sums_alone and not (found.kept or sight.adds)
        if serves(found, own, sight):
            reduce_fused(*given, more.get("softcap"), more.get("s_aux"))
        elif log_sums is not None and sums_alone:
            reduce_tiles(*given, log_sums[self.row, :, :n_new])
        else:
            reduce_products(*given, more.get("softcap"), more.get("s_aux"))
        self.note(layer, "key_norm", key[:, :, first:])
        self.note(layer, "value_norm", value[:, :, first:])
        self.done(n_new)

    def see_weights(
        self,
        layer: int,
        attention: Float[Tensor, "row head query key"],
        scores: Float[Tensor, "row head query key"] | None,
    ) -> None:
        """Take in weights that a module has returned, and what its softmax was given."""
        first, n_new = self._own(*attention.shape[2:])
        if n_new <= 0:
            return
        part = (self.row, slice(None), slice(n_new), slice(first + n_new))
        own, given = attention[part], None if scores is None else scores[part]
        sight = Sight(first, first + n_new, device=attention.device)
        reduce_weights(self._statistics(layer, own), own, sight, given)
        self.done(n_new)

    def note(
        self, layer: int, name: str, vectors: Float[Tensor, "row *head token dimension"]
    ) -> None:
        """Keep the lengths of some vectors of tokens that follow those before.

        Args:
            layer: which.
            name: what they are.
            vectors: of all texts, padding included.
        """
        if not self.wants_norms:
            return
        lengths = self._norms.setdefault((layer, name), [])
        left = self.plan.n_tokens - sum(part.shape[-1] for part in lengths)
        own = vectors[self.row, ..., :left, :]
        wide = torch.promote_types(own.dtype, torch.float32)
        lengths.append(own.norm(dim=-1, dtype=wide).cpu())

    def _statistics(self, layer: int, like: Float[Tensor, "head query _"]) -> LayerStatistics:
        if layer not in self._found:
            dtype = torch.promote_types(like.dtype, torch.float32)
            heads = [(head, whole) for at, head, whole in self.kept if at == layer]
            self._found[layer] = LayerStatistics(
                self.plan, like.shape[0], like.device, dtype, heads
            )
        return self._found[layer]

    def result(self, layer: int) -> dict[str, Tensor]:
        """Return what was found out about a layer, on the CPU."""
        norms = {name: torch.cat(x, -1) for (at, name), x in self._norms.items() if at == layer}
        return self._found.pop(layer).result() | norms
