"""What an experiment leaves behind: ``Trace`` (attention of a text) and ``StreamRun`` (its nll).

Frozen numpy records with a readable repr, saved whole to one file without pickle; and ``Turn``, a
question of a chat with its answer. Knows nothing about models: figures and widgets need nothing
else.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import platform
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pandas as pd
import torch
import transformers
from safetensors import safe_open
from safetensors.numpy import save_file
from safetensors.torch import save_file as save_torch_file

from sinkviz.differences import TraceDifference, difference, frame_of, kept, labels_of
from sinkviz.files import write_whole
from sinkviz.labelled import to_dataset
from sinkviz.metrics import ROLES, perplexity, sink_rate
from sinkviz.policies import Policy, parse_policy


def versions() -> dict[str, str]:
    """Return the versions that a number may depend on."""
    return {
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "python": platform.python_version(),
    }


def provenance(model: str, token_ids: np.ndarray, **more: Any) -> dict[str, Any]:
    """Return what it takes to repeat a record: model, text hash, versions and what is given.

    What is given as ``""`` was not there, and is left out.
    """
    digest = hashlib.sha256(np.ascontiguousarray(token_ids, dtype=np.int64).tobytes()).hexdigest()
    return {
        "model": model,
        "text_sha256": digest,
        **versions(),
        **{name: value for name, value in more.items() if value != ""},
    }


def save_tensors(
    path: str | Path, kind: str, tensors: dict[str, torch.Tensor], plain: dict[str, Any]
) -> Path:
    """Write tensors and plain values to one safetensors file, whole or not at all.

    Args:
        path: the file.
        kind: what it holds, for ``load_tensors``.
        tensors: by name; on any device.
        plain: whatever JSON can hold.
    """
    path, metadata = Path(path), {"kind": kind, "fields": json.dumps(plain)}
    held = {name: x.detach().cpu().contiguous().clone() for name, x in tensors.items()}
    write_whole(path, lambda partial: save_torch_file(held, partial, metadata=metadata))
    return path


def load_tensors(
    path: str | Path, kind: str, framework: str = "pt"
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the tensors and the plain values of a file.

    Args:
        path: the file.
        kind: what it must hold.
        framework: ``pt`` for tensors, ``numpy`` for arrays.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file holds something else.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"no record at {path}")
    try:
        with safe_open(path, framework=framework) as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except Exception as error:
        raise ValueError(f"{path} is not a safetensors file ({error})") from None
    if metadata.get("kind") != kind:
        raise ValueError(f"{path} holds a {metadata.get('kind')!r}, expected {kind!r}")
    return tensors, json.loads(metadata["fields"])


@dataclass(frozen=True, repr=False)
class Record:
    """Shared behaviour of the records: arrays and JSON in one safetensors file."""

    kind: ClassVar[str]

    def save(self, path: str | Path) -> Path:
        """Write the record to ``path``, whole or not at all, and return the path."""
        path = Path(path)
        arrays, plain = {}, {}
        for one in dataclasses.fields(self):
            value = getattr(self, one.name)
            if isinstance(value, np.ndarray):
                arrays[one.name] = np.ascontiguousarray(value)
            else:
                plain[one.name] = str(value) if one.name == "policy" else value
        metadata = {"kind": self.kind, "fields": json.dumps(plain)}
        write_whole(path, lambda partial: save_file(arrays, partial, metadata=metadata))
        return path

    @classmethod
    def load(cls, path: str | Path) -> Record:
        """Read a record that ``save`` wrote.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: the file holds something else.
        """
        arrays, plain = load_tensors(path, cls.kind, "numpy")
        if "policy" in plain:
            plain["policy"] = parse_policy(plain["policy"])
        return cls(**arrays, **{name: _tuples(value) for name, value in plain.items()})


def _tuples(value: Any) -> Any:
    return tuple(map(_tuples, value)) if isinstance(value, list) else value


@dataclass(frozen=True, repr=False)
class Trace(Record):
    """Where the attention of a text went, layer by layer.

    Attributes:
        tokens: the text's tokens as short strings.
        token_ids: their ids, (token,).
        received: received attention in [0, 1], (layer, head, key).
        mass: share of each query's attention by role of the key, (layer, head, query, role), in
            the order of ``sinkviz.metrics.ROLES``; sums to one over roles.
        entropy: of each query's attention, nats, (layer, head, query); NaN where it was not asked
            for, as all statistics but those that are None then.
        attention: whole maps, (layer, head, query, key) in [0, 1], or None when only statistics
            were kept.
        heads: which (layer, head) pairs ``attention`` holds when a selection was asked for; the
            layer axis then has length one and the head axis follows this order.
        n_sink: tokens that count as sinks in ``mass``.
        n_recent: tokens that count as recent in ``mass``.
        provenance: what it takes to repeat this; ``engine`` says how attention was observed.
        distance: mean share of attention by distance of the key, (layer, head, bin).
        distance_edges: edges of those bins, tokens: bin i holds edge i up to before edge i + 1.
        pooled_mean: mean attention of the pairs in a cell that see each other, (layer, head, query
            cell, key cell) in [0, 1]; NaN in cells where nobody sees anybody.
        pooled_max: the largest attention in each cell, likewise.
        cell: tokens along a side of a cell.
        queries: text positions whose strongest keys were asked for.
        top_keys: their text positions, the strongest first, (layer, head, query, rank); -1 beyond
            the last key that gets anything.
        top_attention: what they get, in [0, 1].
        key_norm: length of each token's key, (layer, key-value head, token).
        value_norm: of its value, likewise.
        residual_norm: length of each token's vector in the residual stream after each layer,
            (layer, token).
        scores: before the softmax, (layer, head, query, key); NaN where a query sees no key.
    """

    kind: ClassVar[str] = "trace"
    tokens: tuple[str, ...]
    token_ids: np.ndarray
    received: np.ndarray
    mass: np.ndarray
    entropy: np.ndarray
    attention: np.ndarray | None = None
    heads: tuple[tuple[int, int], ...] | None = None
    n_sink: int = 4
    n_recent: int = 64
    provenance: dict[str, Any] = field(default_factory=dict)
    distance: np.ndarray | None = None
    distance_edges: tuple[int, ...] | None = None
    pooled_mean: np.ndarray | None = None
    pooled_max: np.ndarray | None = None
    cell: int = 1
    queries: tuple[int, ...] | None = None
    top_keys: np.ndarray | None = None
    top_attention: np.ndarray | None = None
    key_norm: np.ndarray | None = None
    value_norm: np.ndarray | None = None
    residual_norm: np.ndarray | None = None
    scores: np.ndarray | None = None

    @property
    def n_layers(self) -> int:
        """Layers of the model."""
        return self.received.shape[0]

    @property
    def n_heads(self) -> int:
        """Heads per layer."""
        return self.received.shape[1]

    @property
    def sink_rate(self) -> float:
        """Share of heads in which the first token receives more than 0.3."""
        return sink_rate(torch.from_numpy(self.received))

    def map(self, layer: int, head: int) -> np.ndarray:
        """Return one head's attention map, (query, key) in [0, 1].

        Raises:
            IndexError: the model has no such layer or head.
            ValueError: this trace did not keep that map.
        """
        for name, index, size in (("layer", layer, self.n_layers), ("head", head, self.n_heads)):
            if not -size <= index < size:
                raise IndexError(f"{name} must be in 0..{size - 1}, got {index}")
        layer, head = layer % self.n_layers, head % self.n_heads
        if self.attention is None:
            raise ValueError(
                "this trace kept statistics only; capture(lm, text, keep='maps') keeps whole maps"
            )
        if self.heads is None:
            return self.attention[layer, head]
        pairs = [tuple(pair) for pair in self.heads]
        if (layer, head) not in pairs:
            raise ValueError(f"this trace kept the maps of {pairs}, not of {(layer, head)}")
        return self.attention[0, pairs.index((layer, head))]

    def mass_of(self, role: str) -> np.ndarray:
        """Return the share of one role, (layer, head, query) in [0, 1].

        Raises:
            ValueError: no such role.
        """
        if role not in ROLES:
            raise ValueError(f"no role {role!r}; known are {', '.join(ROLES)}")
        return self.mass[..., ROLES.index(role)]

    def __sub__(self, other: Trace) -> TraceDifference:
        """Return what is different from another trace of the same text, number by number.

        Raises:
            ValueError: the texts differ, or the models' sizes, or what counts as a sink or recent.
        """
        return difference(self, other) if isinstance(other, Trace) else NotImplemented

    def to_frame(self, name: str = "received") -> pd.DataFrame:
        """Return a field as a tidy table: a row per number, a column per axis.

        Args:
            name: of the field: ``received``, ``mass``, ``entropy``, ``attention`` ...

        Returns:
            Columns such as layer, head, key, key_token and the field's own name; in maps, keys that
            a query cannot see are left out.

        Raises:
            ValueError: this trace has no such field.
        """
        return frame_of(self, name)

    def to_xarray(self) -> Any:
        """Return all fields as an ``xarray.Dataset`` with named axes.

        Raises:
            ImportError: xarray, which sinkviz does not need otherwise, is not installed.
        """
        about = {name: str(value) for name, value in self.provenance.items()}
        about |= {"n_sink": self.n_sink, "n_recent": self.n_recent}
        return to_dataset(kept(self), labels_of(self), about)

    def __repr__(self) -> str:
        kept = "statistics" if self.attention is None else "maps"
        if self.heads is not None:
            kept = f"statistics and maps of {len(self.heads)} heads"
        name = self.provenance.get("model", "?")
        return (
            f"Trace({name}: {len(self.tokens)} tokens, {self.n_layers} layers x "
            f"{self.n_heads} heads, {kept})"
        )


@dataclass(frozen=True, repr=False)
class StreamRun(Record):
    """How well a text was predicted, token by token, under a policy.

    Attributes:
        policy: the policy.
        token_ids: ids of the text, (token,).
        nll: nats per token, (token,); NaN for the first, which nothing predicts.
        mass: attention of each token's query by role of the key, mean over layers and heads,
            (token, role); NaN for the last token, which predicts nothing; None where it was not
            asked for.
        seconds: time the run took.
        cache_bytes: bytes of the cache at the end.
        provenance: what it takes to repeat this.
    """

    kind: ClassVar[str] = "stream_run"
    policy: Policy
    token_ids: np.ndarray
    nll: np.ndarray
    mass: np.ndarray | None = None
    seconds: float = 0.0
    cache_bytes: int = 0
    provenance: dict[str, Any] = field(default_factory=dict)

    @property
    def perplexity(self) -> float:
        """``exp`` of the mean nll of all predicted tokens."""
        return perplexity(torch.from_numpy(self.nll))

    def mean_nll(self, start: int = 0, stop: int | None = None) -> float:
        """Return the mean nll of the tokens in ``[start, stop)``, nats per token.

        Raises:
            ValueError: no token in that range was predicted.
        """
        part = self.nll[start:stop]
        if not np.isfinite(part).any():
            raise ValueError(
                f"no predicted token in [{start}, {stop}); the run has {len(self.nll)} tokens"
            )
        return float(np.nanmean(part))

    def __repr__(self) -> str:
        name = self.provenance.get("model", "?")
        return (
            f"StreamRun({name}, {self.policy}: {len(self.nll)} tokens, "
            f"perplexity {self.perplexity:.2f})"
        )


@dataclass(frozen=True)
class Turn:
    """A question of a chat and its answer, under a policy.

    Attributes:
        policy: the policy.
        round: number of the question in the chat, from 1.
        question: what was asked.
        answer: what the model wrote, so far if the turn is not done.
        question_nll: how surprising the question was, nats per token; NaN where none was predicted.
        answer_nll: how surprising the model found its own answer, nats per token; NaN without one.
        n_tokens: tokens read and written in this turn.
        n_seen: tokens read and written since the chat began.
        seconds: time that the turn took.
        cache_bytes: bytes of the cache after it.
        done: whether the answer is complete.
        stopped: why the chat ended for this policy, a sentence; empty where it goes on.
    """

    policy: Policy
    round: int
    question: str
    answer: str
    question_nll: float
    answer_nll: float
    n_tokens: int
    n_seen: int
    seconds: float
    cache_bytes: int
    done: bool = True
    stopped: str = ""

    @property
    def ms_per_token(self) -> float:
        """Milliseconds per token read or written."""
        return 1000 * self.seconds / max(1, self.n_tokens)
