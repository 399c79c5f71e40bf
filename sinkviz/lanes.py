"""A lane: one model reading one text, or a batch of texts, under one policy.

Feed it tokens, get the next token's logits; save it, and go on another day. Knows nothing about
sampling, scoring or figures.
"""

from __future__ import annotations

import contextlib
from collections import Counter, deque
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import DynamicCache

from sinkviz.bound import BoundCache
from sinkviz.caches import SinkCache
from sinkviz.choosing import FasterAttention
from sinkviz.families import layer_devices, position_limit
from sinkviz.fingerprints import weights_of
from sinkviz.forward import check_eager, compiled_step, forward, watch
from sinkviz.models import LM, few_threads, untouched
from sinkviz.policies import Dense, Policy, check_registered, parse_policy
from sinkviz.ranked import RankedCache
from sinkviz.records import load_tensors, save_tensors
from sinkviz.rows import LastRows

KIND = "lane"


class Lane:
    """A model reading one text, or a batch of them, under one policy.

    ``stream``, ``compare`` and the slow reference of ``score`` are loops around ``feed``.

    Args:
        lm: the language model.
        policy: what stays in the cache.
        compiled: once the cache is full, run each single token in one compiled graph (on CUDA, a
            CUDA graph). The first such token takes seconds to minutes. SinkWindow and Window only.

    Raises:
        ValueError: the policy is not possible with this model.
    """

    def __init__(self, lm: LM, policy: Policy, *, compiled: bool = False) -> None:
        check_policy(lm, policy)
        self.lm, self.policy = lm, policy
        self.seen = 0
        self.cache: Any = None
        self.attend = FasterAttention()  # of ``read``
        # What Recompute runs afresh, per row: the beginning, and the most recent tokens.
        self.rows: list[tuple[list[int], deque[int]]] = []
        self._held: list[int] = []  # what a RankedCache held when last asked
        if not policy.recompute:
            self.cache = lm.cache(policy)
        if compiled and not isinstance(self.cache, SinkCache):
            raise ValueError(f"only Window and SinkWindow can be compiled, not {policy}")
        self._compiled = compiled_step(lm) if compiled else None

    def feed(
        self,
        ids: Int[Tensor, "*batch token"],
        attention_mask: Int[Tensor, "*batch token"] | None = None,
        *,
        rows: LastRows | None = None,
    ) -> Float[Tensor, "*batch vocabulary"]:
        """Take in tokens; return the logits of the one that follows.

        A pass that breaks off, by an error or Ctrl-C, leaves the lane as it was before.

        Args:
            ids: of one stream, or of a batch.
            attention_mask: 0 where a token is padding, on the left of a stream.
            rows: is filled with the attention of the last of these tokens, of the first stream.

        Raises:
            ValueError: full attention would pass the end of the model's table of positions, or the
                padding is not on the left.
        """
        self._check_length(ids.shape[-1])
        if self._compiled and ids.shape == (1,) and self.cache.is_full and rows is None:
            logits = self._compiled(self.cache, ids)[-1]
        else:
            alone = few_threads(self.lm) if ids.numel() == 1 else contextlib.nullcontext()
            with alone, self._watched(rows, ids.shape[-1]):
                logits = self._pass(ids, attention_mask, rows is not None)
        self.seen += ids.shape[-1]
        return logits

    def _pass(self, ids: Tensor, mask: Tensor | None, maps: bool) -> Tensor:
        if self.cache is None:
            return self._recompute(ids, mask, maps)
        logits = forward(self.lm, self.cache, ids, attention_mask=mask, last_only=True, maps=maps)
        return logits[..., -1, :]

    @contextlib.contextmanager
    def _watched(self, rows: LastRows | None, n_new: int) -> Iterator[None]:
        if rows is None:
            yield
            return
        n_layers = self.lm.model.config.get_text_config().num_hidden_layers
        rows.query = self.seen + n_new - 1
        # The first token counts as a sink also where nothing protects it.
        rows.n_sink = self.policy.n_sink or 1
        rows.n_recent = self.policy.n_recent or self.lm.train_length or 1024
        rows.attention, rows.key_position = [None] * n_layers, [None] * n_layers
        plain, by_ring = torch.arange(self.seen + n_new), {}
        if self.policy.recompute:
            plain = torch.tensor(self.policy.keep(self.seen + n_new))

        def note(layer: int, attention: Tensor) -> None:
            rows.attention[layer] = attention[0, :, -1]
            rows.key_position[layer] = plain
            if isinstance(self.cache, SinkCache):
                step = self.cache.layers[layer].ring.step
                own = by_ring.setdefault(id(step), step.returned_position[0])
                rows.key_position[layer] = own

        with watch(self.lm, note):
            yield
        if isinstance(self.cache, RankedCache):
            for layer, attention in enumerate(rows.attention):
                kept = self.cache.kept(layer)[0]
                rows.key_position[layer] = kept.repeat_interleave(len(attention) // len(kept), 0)

    def read(self, ids: Int[Tensor, " token"], *, maps: bool = False) -> Tensor:
        """Take in a block of tokens at once; return the logits after each, (token, vocabulary).

        Args:
            ids: the tokens.
            maps: compute attention maps, for ``sinkviz.forward.watch``.
        """
        self._check_length(len(ids))
        logits = forward(self.lm, self.cache, ids, maps=maps, attend=self.attend)
        self.seen += len(ids)
        return logits

    def parts(self, n_new: int) -> list[int]:
        """Return the sizes of the passes that ``read`` takes for so many tokens."""
        if isinstance(self.cache, BoundCache):
            return self.cache.parts(n_new, self.lm.family.interface)
        return [n_new]

    @property
    def attention(self) -> str:
        """How blocks attended: over a band, the way that served most, or as the model does."""
        return self.attend.word or self.lm.attention

    def _check_length(self, n_new: int) -> None:
        if not isinstance(self.policy, Dense):
            return
        limit = self.lm.train_length if self.lm.family.ends else None
        if limit is not None and self.seen + n_new > limit:
            raise ValueError(
                f"{self.lm.name} has positions for {limit} tokens, and full attention has reached "
                f"{self.seen + n_new}; use a policy that forgets, or a shorter text"
            )
        # Long scaling changes once, so that a first pass beyond the limit may be followed by more;
        # dynamic scaling changes with every token.
        limit = position_limit(self.lm.model, self.lm.family)
        once = limit is not None and self._rope_type == "longrope" and self.seen > limit
        if limit is not None and self.seen and self.seen + n_new > limit and not once:
            raise ValueError(
                f"the rotary frequencies of {self.lm.name} change after {limit} tokens, where keys "
                "in the cache keep the old ones: full attention would depend on how the text is "
                "cut; use a policy that forgets, a shorter text, or one pass for the whole text"
            )

    @property
    def _rope_type(self) -> str | None:
        parameters = getattr(self.lm.model.config.get_text_config(), "rope_parameters", None)
        return (parameters or {}).get("rope_type")

    def _recompute(self, ids: Tensor, mask: Tensor | None, maps: bool) -> Tensor:
        batch = ids if ids.ndim == 2 else ids[None]
        if not self.rows:
            self.rows = [([], deque(maxlen=self.policy.n_recent)) for _ in batch]
        real = [None] * len(batch) if mask is None else (mask if mask.ndim == 2 else mask[None])
        rows = []
        for (begin, recent), row, seen in zip(self.rows, batch, real, strict=True):
            new = (row if seen is None else row[seen.bool()]).tolist()
            n_begin = max(0, self.policy.n_begin - len(begin))
            late = deque([*recent, *new[n_begin:]], maxlen=self.policy.n_recent)
            rows.append(([*begin, *new[:n_begin]], late))
        windows = [[*begin, *recent] or [0] for begin, recent in rows]
        logits: dict[int, Tensor] = {}
        if maps:
            check_eager(self.lm)
        with untouched(self.lm.model, "eager" if maps else None):
            # Windows of one length run together; padding would change nothing but the rounding.
            for length in {len(window) for window in windows}:
                alike = [i for i, window in enumerate(windows) if len(window) == length]
                same = torch.tensor([windows[i] for i in alike], device=self.lm.device)
                output = self.lm.model(same, use_cache=False, logits_to_keep=1)
                logits.update(zip(alike, output.logits[:, -1], strict=True))
        self.rows = rows
        whole = torch.stack([logits[i] for i in range(len(windows))])
        return whole if ids.ndim == 2 else whole[0]

    @property
    def cache_size(self) -> int:
        """Tokens that the last prediction saw."""
        if isinstance(self.cache, RankedCache):
            return self.cache.n_kept
        return min(self.seen, self.policy.cache_size or self.seen)

    @property
    def cache_bytes(self) -> int:
        """Bytes of keys and values held between steps."""
        if self.cache is None:
            return 0
        if isinstance(self.cache, DynamicCache):
            held = (x for layer in self.cache.layers for x in (layer.keys, layer.values))
            return sum(x.numel() * x.element_size() for x in held if x is not None)
        return self.cache.n_bytes

    def evicted(self, n_new: int) -> tuple[int, ...]:
        """Return the text positions that the last ``n_new`` tokens pushed out.

        Where a policy chooses by layer and head: out of all of them.
        """
        if isinstance(self.cache, RankedCache):
            there = {*self._held, *range(self.seen - n_new, self.seen)}
            self._held = self.cache.kept_anywhere()
            return tuple(sorted(there.difference(self._held)))
        if self.policy.cache_size is None:
            return ()
        first = max(self.policy.n_sink, self.seen - n_new - self.policy.n_recent)
        return tuple(range(first, max(first, self.seen - self.policy.n_recent)))

    # Saving -------------------------------------------------------------------------------------

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Return all that it takes to go on: tensors by name, and plain values."""
        plain = {
            "policy": str(self.policy),
            "model": self.lm.name,
            "dtype": str(self.lm.model.dtype),
            "parameters": self.lm.model.num_parameters(),
            "weights": weights_of(self.lm.model),
            "seen": self.seen,
            "attended": dict(self.attend.attended),
            "rows": [[begin, list(recent)] for begin, recent in self.rows],
        }
        if isinstance(self.cache, DynamicCache):
            held = {
                f"layers.{index}.{name}": getattr(layer, name)
                for index, layer in enumerate(self.cache.layers)
                for name in ("keys", "values")
            }
            return held, plain
        if self.cache is None:
            return {}, plain
        held, clock = self.cache.state()
        return held, plain | {"clock": clock}

    def restore(self, tensors: dict[str, Tensor], plain: dict[str, Any]) -> None:
        """Go on where ``state`` was taken.

        Raises:
            ValueError: it was taken with another policy, model, precision or other weights.
        """
        wanted = self.state()[1]
        for name in ("policy", "model", "dtype", "parameters", "weights"):
            known = None not in (plain.get(name), wanted[name])  # older files know less
            if known and plain[name] != wanted[name]:
                raise ValueError(
                    f"this stream was saved with {name} {plain[name]}, not {wanted[name]}; "
                    "load it with the same, or begin a new one"
                )
        if isinstance(self.cache, DynamicCache):
            for index, device in enumerate(layer_devices(self.lm.model, self.lm.family)):
                if f"layers.{index}.keys" in tensors:
                    held = (tensors[f"layers.{index}.{name}"] for name in ("keys", "values"))
                    self.cache.update(*(x.to(device) for x in held), index)
        elif self.cache is not None:
            self.cache.restore(tensors, plain["clock"])
            if isinstance(self.cache, RankedCache):
                self._held = self.cache.kept_anywhere()
        n_recent = self.policy.n_recent
        self.rows = [(begin, deque(recent, maxlen=n_recent)) for begin, recent in plain["rows"]]
        self.seen = plain["seen"]
        self.attend.attended = Counter(plain.get("attended", {}))

    def save(self, path: str | Path) -> Path:
        """Write the lane to one safetensors file, whole or not at all; return the path."""
        return save_tensors(path, KIND, *self.state())

    @classmethod
    def load(cls, lm: LM, path: str | Path) -> Lane:
        """Return a lane that goes on where ``save`` left off.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: the file holds something else, or was saved with another model.
        """
        tensors, plain = load_tensors(path, KIND)
        lane = cls(lm, parse_policy(plain["policy"]))
        lane.restore(tensors, plain)
        return lane


def check_policy(lm: LM, policy: Policy) -> None:
    """Raise ValueError where a policy is none, or asks for more positions than a table has."""
    check_registered(policy)
    longest = lm.train_length if lm.family.ends else None
    if longest is not None and policy.cache_size is not None and policy.cache_size > longest:
        raise ValueError(
            f"{lm.name} has positions for {longest} tokens, the policy needs {policy.cache_size}; "
            f"use a cache of at most {longest}"
        )
