"""Score a long text under a cache policy: nll per token, stepwise or in parallel blocks.

Knows nothing about sampling, figures or widgets.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor
from tqdm.auto import tqdm

from sinkviz.caches import SinkCache
from sinkviz.families import position_limit
from sinkviz.files import check_place
from sinkviz.forward import watch
from sinkviz.lanes import Lane
from sinkviz.memory import keep_freed_memory
from sinkviz.metrics import ROLES
from sinkviz.metrics import mass as mass_by_role
from sinkviz.models import LM, Text, untouched
from sinkviz.policies import Dense, Policy, SinkWindow, Window
from sinkviz.records import StreamRun, load_tensors, provenance, save_tensors

KIND = "score"
SAVE_EVERY = 30.0  # seconds
# Logits of a block take vocabulary x block numbers; 4 M are 16 MB.
LOGITS = 2**22


def score(
    lm: LM,
    text: Text,
    policy: Policy,
    *,
    engine: str = "parallel",
    block: int | None = None,
    mass: bool = False,
    progress: bool = False,
    state: str | Path | None = None,
) -> StreamRun:
    """Measure how well a model predicts every token of a text under a policy.

    Memory does not grow with the text, the numbers that are returned aside.

    Args:
        lm: the language model.
        text: text or ids; two tokens at least, and it may be of any length.
        policy: what stays in the cache.
        engine: ``parallel`` (a block of queries per forward pass, exact) or ``stepwise`` (a token
            per pass: its slow reference).
        block: queries per forward pass; memory grows with it, results do not change. By default
            256 to 2,048, fewer for large vocabularies.
        mass: also record where the attention went, by role of the key (parallel engine, for Dense,
            Window and SinkWindow).
        progress: show a progress bar.
        state: a file to keep half a score in. It is written every half minute and when the score
            breaks off, whole or not at all; where it exists, the score goes on from it.

    Returns:
        The run: nll per token, in nats.

    Raises:
        ValueError: the text is too short, an option is out of range, or the state belongs to
            another text, model or policy.
        FloatingPointError: the model returned logits that are not numbers.
    """
    if engine not in ("parallel", "stepwise"):
        raise ValueError(f"no engine {engine!r}; known are parallel, stepwise")
    if block is not None and block < 1:
        raise ValueError(f"block must be at least 1, got {block}")
    if mass and (engine == "stepwise" or not isinstance(policy, Dense | Window | SinkWindow)):
        raise ValueError(
            "mass is recorded by the parallel engine for Dense, Window and SinkWindow, not for "
            f"{policy} with engine {engine!r}"
        )
    ids = lm.encode(text)
    if len(ids) < 2:
        raise ValueError("a text to score needs at least two tokens; the first predicts the next")
    if state is not None:
        check_place(state)
    job = _Job(lm, policy, ids, engine, mass)
    if state is not None and Path(state).is_file():
        job.restore(state)
    try:
        with tqdm(
            total=len(ids) - 1,
            initial=job.done,
            desc=str(policy),
            unit="token",
            unit_scale=True,
            disable=not progress,
        ) as bar:
            for n_scored in job.run(block or _block(lm, policy), state):
                bar.update(n_scored)
    finally:
        if state is not None:
            job.save(state)
    return job.result()


def _block(lm: LM, policy: Policy) -> int:
    if policy.cache_size is None:  # full attention: scores grow with block times text
        return 256
    return max(256, min(2048, LOGITS // lm.model.config.get_text_config().vocab_size))


def _nll(
    logits: Float[Tensor, "token vocabulary"], targets: Int[Tensor, " token"]
) -> Float[Tensor, " token"]:
    # In pieces that stay in a processor's cache.
    size = max(1, LOGITS // 16 // logits.shape[1]) if logits.device.type == "cpu" else len(logits)
    wide = torch.promote_types(logits.dtype, torch.float32)
    return torch.cat(
        [
            torch.nn.functional.cross_entropy(part.to(wide), target, reduction="none")
            for part, target in zip(logits.split(size), targets.split(size), strict=True)
        ]
    )


@dataclass
class _Job:
    """A score under way: which tokens are done, and what came out."""

    lm: LM
    policy: Policy
    ids: Int[Tensor, " token"]
    engine: str
    mass: bool
    done: int = 0  # tokens whose successor is predicted
    seconds: float = 0.0
    lane: Lane = field(init=False)
    nll: np.ndarray = field(init=False)
    shares: np.ndarray | None = None

    def __post_init__(self) -> None:
        self.lane = Lane(self.lm, self.policy)
        wide = self.lm.model.dtype == torch.float64
        self.nll = np.full(len(self.ids), np.nan, np.float64 if wide else np.float32)
        if self.mass:
            # The last token predicts nothing and is not fed: its row stays NaN.
            self.shares = np.full((len(self.ids), len(ROLES)), np.nan, np.float32)

    def run(self, block: int, state: str | Path | None) -> Iterator[int]:
        """Score what is left, block by block; yield how many tokens each one scored."""
        keep_freed_memory()
        saved = started = time.perf_counter()
        for logits in self._blocks(block):
            targets = self.ids[self.done + 1 : self.done + 1 + len(logits)]
            end = self.done + 1 + len(targets)
            self.nll[self.done + 1 : end] = _nll(logits, targets).cpu().numpy()
            if np.isnan(self.nll[self.done + 1 : end]).any():
                raise FloatingPointError(
                    f"{self.lm.name} returned logits that are not numbers between tokens "
                    f"{self.done} and {end}; load it in float32 or bfloat16"
                )
            self.done += len(targets)
            now = time.perf_counter()
            self.seconds, started = self.seconds + now - started, now
            if state is not None and now - saved > SAVE_EVERY:
                self.save(state)
                saved = now
            yield len(targets)

    def _blocks(self, block: int) -> Iterator[Tensor]:
        last = len(self.ids) - 1
        if self.policy.recompute and self.engine == "parallel":
            yield from self._windows(max(1, 256 * 16 // self.policy.cache_size))
            return
        size = 1 if self.engine == "stepwise" else block
        while self.done < last:
            part = self.ids[self.done : min(self.done + size, last)]
            if self.engine == "stepwise":
                yield self.lane.feed(part)[None]
            elif self.shares is None:
                self.lane.attend.left = last - self.done
                yield self.lane.read(part)
            else:
                # The rows of one pass: a block may take several.
                part = part[: self.lane.parts(len(part))[0]]
                self.shares[self.done : self.done + len(part)] = 0
                with watch(self.lm, self._mass_observer(len(part))):
                    logits = self.lane.read(part, maps=True)
                yield logits

    def _windows(self, batch: int) -> Iterator[Tensor]:
        """Score Recompute: one pass over the first window, then a batch of windows at a time."""
        ids, size, model = self.ids, self.policy.cache_size, self.lm.model
        last = len(ids) - 1
        if self.done == 0:
            # In a longer pass dynamic and long rotary scaling would turn all tokens otherwise.
            first = min(size, last, position_limit(model, self.lm.family) or size)
            with untouched(model):
                logits = model(ids[None, :first], use_cache=False).logits[0]
            yield logits
        while self.done < min(size, last):
            with untouched(model):
                part = ids[None, : self.done + 1]
                logits = model(part, use_cache=False, logits_to_keep=1).logits[0]
            yield logits
        begin = ids[: self.policy.n_begin].expand(batch, -1)
        while self.done < last:
            ends = range(self.done + 1, min(self.done + batch, last) + 1)
            recent = torch.stack([ids[end - self.policy.n_recent : end] for end in ends])
            windows = torch.cat((begin[: len(recent)], recent), dim=1)
            with untouched(model):
                logits = model(windows, use_cache=False, logits_to_keep=1).logits[:, -1]
            yield logits

    def _mass_observer(self, n_new: int) -> Callable[[int, Tensor], None]:
        """Return an observer that adds each layer's mass by role to the block's rows."""
        policy, start = self.policy, self.done
        n_layers = self.lm.model.config.get_text_config().num_hidden_layers
        # The first token counts as a sink also where nothing protects it, until it is evicted.
        n_sink, n_recent = policy.n_sink or 1, policy.n_recent or self.lm.train_length or 1024
        query, cache = torch.arange(start, start + n_new), self.lane.cache

        def observe(layer: int, attention: Tensor) -> None:
            key = torch.arange(start + n_new)
            if isinstance(cache, SinkCache):
                key = cache.layers[layer].ring.step.returned_position[0]
            mean = attention[0].float().mean(0)
            by_role = mass_by_role(mean, n_sink, n_recent, query=query, key=key)
            rows = torch.stack([by_role[role] for role in ROLES], dim=-1) / n_layers
            self.shares[start : start + n_new] += rows.cpu().numpy()

        return observe

    @property
    def _attention(self) -> str:
        """What the record calls the way in which most tokens attended."""
        if self.engine == "stepwise":
            return "the model's own"
        return "whole maps" if self.mass else self.lane.attention

    @property
    def provenance(self) -> dict[str, str]:
        """What it takes to repeat this."""
        return provenance(
            self.lm.name,
            self.ids.cpu().numpy(),
            policy=str(self.policy),
            engine=self.engine,
            attention=self._attention,
            device=str(self.lm.device),
            interventions=self.lm.changes,
        )

    def save(self, path: str | Path) -> None:
        """Keep what is done; what was kept before, if a block broke off that the lane had read."""
        if self.lane.seen > self.done:
            return
        tensors, plain = self.lane.state()
        tensors["nll"] = torch.from_numpy(self.nll[: self.done + 1])
        if self.shares is not None:
            tensors["mass"] = torch.from_numpy(self.shares[: self.done])
        own = {"done": self.done, "seconds": self.seconds, "provenance": self.provenance}
        save_tensors(path, KIND, tensors, plain | own)

    def restore(self, path: str | Path) -> None:
        """Go on from what is done."""
        tensors, plain = load_tensors(path, KIND)
        same = {"text_sha256": "text", "engine": "engine", "interventions": "intervention"}
        for name, said in same.items():
            if plain["provenance"].get(name) != self.provenance.get(name):
                raise ValueError(f"{path} belongs to another {said}; delete it to begin anew")
        if ("mass" in tensors) != self.mass:
            raise ValueError(f"{path} was begun with mass={not self.mass}; delete it to begin anew")
        self.done, self.seconds = plain["done"], plain["seconds"]
        self.nll[: self.done + 1] = tensors.pop("nll").numpy()
        if self.shares is not None:
            self.shares[: self.done] = tensors.pop("mass").numpy()
        self.lane.restore(tensors, plain)

    def result(self) -> StreamRun:
        """Return the record of the whole text."""
        return StreamRun(
            policy=self.policy,
            token_ids=self.ids.cpu().numpy(),
            nll=self.nll,
            mass=self.shares,
            seconds=self.seconds,
            cache_bytes=self.lane.cache_bytes,
            provenance=self.provenance,
        )
