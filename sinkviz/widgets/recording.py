"""Where the lanes of SideBySide come from: a model at work, or the file of a run that is over.

Both begin afresh as often as they are asked to. Knows nothing about widgets.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from sinkviz.files import write_whole
from sinkviz.models import LM, Text, few_threads
from sinkviz.policies import Policy, parse_policy
from sinkviz.records import versions
from sinkviz.streaming import Step, compare
from sinkviz.widgets.lanes import STAYS, LaneRecord, Spell

KIND, VERSION = "sinkviz side by side", 1
MOST_STEPS = 100_000  # of a file
# A column of the file for each series of a lane, and how many numbers it has: one per token, or one
# per step.
PER_TOKEN = {"token_ids": "ids", "nll": "nll", "evicted_at": "gone"}
PER_STEP = {"seconds": "seconds", "cache_size": "sizes", "cache_bytes": "bytes", "sink": "sink"}
WHOLE = {"token_ids", "evicted_at", "cache_size", "cache_bytes"}


@dataclass(frozen=True)
class Start:
    """A run before its first step: empty lanes, the steps to come, and how many; None is no end."""

    lanes: tuple[LaneRecord, ...]
    steps: Iterator[tuple[Step, ...]]
    limit: int | None


class Live:
    """A model that writes from a prompt, or reads a text, under several policies."""

    recorded = False

    def __init__(
        self,
        lm: LM,
        policies: Sequence[Policy],
        *,
        prompt: Text | None,
        text: Text | None,
        max_new_tokens: int | None,
        **options: Any,
    ) -> None:
        self.name, self.train_length, self.policies = lm.name, lm.train_length, tuple(policies)
        self.reading = text is not None
        self._lm, self._options = lm, options
        self._given = {"prompt": prompt, "text": text, "max_new_tokens": max_new_tokens}

    def begin(self, seed: int) -> Start:
        """Return the run from its beginning; ``seed`` is of the sampling."""
        steps = compare(self._lm, self.policies, **self._given, **self._options, seed=seed)
        ids = self._lm.encode(self._given["text" if self.reading else "prompt"]).tolist()
        known = ids[:1] if self.reading else ids
        about = {"model": self.name, "engine": "stepwise", "device": str(self._lm.device)}
        lanes = [
            LaneRecord(policy, known, speller(self._lm), about | versions())
            for policy in self.policies
        ]
        limit = len(ids) - 1 if self.reading else self._given["max_new_tokens"]
        return Start(tuple(lanes), self._few_threads(steps), limit)

    def texts(self, lanes: Sequence[LaneRecord]) -> tuple[tuple[str, ...], ...]:
        """Return the text of every token of its lanes, as they stand."""
        return tuple(tuple(map(speller(self._lm), lane.ids)) for lane in lanes)

    def _few_threads(self, steps: Iterator[tuple[Step, ...]]) -> Iterator[tuple[Step, ...]]:
        while True:
            with few_threads(self._lm):
                step = next(steps, None)
            if step is None:
                return
            yield step


def speller(lm: LM) -> Spell:
    """Return what spells a stream; a character split over tokens comes with the last of them."""
    pending: list[int] = []

    def spell(token_id: int) -> str:
        if lm.tokenizer is None:
            return f"{token_id} "
        pending.append(token_id)
        text = lm.decode(pending)
        if text.endswith("\ufffd") and len(pending) < 4:
            return ""
        pending.clear()
        return text or lm.tokens([token_id])[0]

    return spell


@dataclass(frozen=True)
class Recording:
    """A run that is over: every lane as it was, to be looked at without a model.

    Attributes:
        name: of the model.
        reading: whether a text was read and none written.
        seed: of the sampling.
        train_length: of the model, tokens; None where it is not known.
        histories: one per lane, whole.
        spelled: text of the tokens of each lane, those of the prompt included.
    """

    recorded: ClassVar[bool] = True
    name: str
    reading: bool
    seed: int
    train_length: int | None
    histories: tuple[LaneRecord, ...]
    spelled: tuple[tuple[str, ...], ...]

    @property
    def policies(self) -> tuple[Policy, ...]:
        """One per lane."""
        return tuple(one.policy for one in self.histories)

    def begin(self, seed: int = 0) -> Start:
        """Return the run from its beginning; it goes as it went, whatever the seed."""
        lanes = []
        for one, texts in zip(self.histories, self.spelled, strict=True):
            told = iter(texts)
            spell = lambda _, told=told: next(told)  # noqa: E731
            lanes.append(LaneRecord(one.policy, one.ids[: one.start], spell, one.about))
        steps = zip(
            *(one.steps(texts) for one, texts in zip(self.histories, self.spelled, strict=True)),
            strict=True,
        )
        return Start(tuple(lanes), steps, self.histories[0].predicted)

    def texts(self, lanes: Sequence[LaneRecord]) -> tuple[tuple[str, ...], ...]:
        """Return the text of every token of its lanes, as they stand."""
        pairs = zip(self.spelled, lanes, strict=True)
        return tuple(texts[: len(lane.ids)] for texts, lane in pairs)

    def save(self, path: str | Path) -> Path:
        """Write the recording to one JSON file, whole or not at all; return the path.

        Raises:
            ValueError: there are no steps, or more than a file should hold.
            OSError: it cannot be written; nothing is left behind.
        """
        n_steps = self.histories[0].predicted
        if not 1 <= n_steps <= MOST_STEPS:
            raise ValueError(
                f"a recording holds 1 to {MOST_STEPS:,} steps, this run has {n_steps:,}; "
                "play or advance first, or save the runs one by one: runs[0].save(path)"
            )
        document = {
            "kind": KIND,
            "version": VERSION,
            "model": self.name,
            "reading": self.reading,
            "seed": self.seed,
            "train_length": self.train_length,
            "start": self.histories[0].start,
            "lanes": [
                {
                    "policy": str(one.policy),
                    "about": one.about,
                    "tokens": list(texts),
                    **{
                        column: [_written(value) for value in getattr(one, series)]
                        for column, series in (PER_TOKEN | PER_STEP).items()
                    },
                }
                for one, texts in zip(self.histories, self.spelled, strict=True)
            ],
        }
        # Surrogates that stand alone are no UTF-8; as ASCII with escapes they come back.
        text = json.dumps(document, allow_nan=False)
        write_whole(Path(path), lambda partial: partial.write_text(text, encoding="ascii"))
        return Path(path)

    @classmethod
    def load(cls, path: str | Path) -> Recording:
        """Return the recording that ``save`` wrote.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: the file holds something else, or its parts do not fit together.
        """
        path = Path(path)
        if not path.is_file():
            raise FileNotFoundError(f"no recording at {path}")
        try:
            document = json.loads(path.read_text(encoding="utf-8"))
            if document["kind"] != KIND or document["version"] != VERSION:
                raise ValueError(f"it says {document['kind']!r}, version {document['version']!r}")
            lanes, start = document["lanes"], int(document["start"])
            histories = tuple(_history(lane, start) for lane in lanes)
            if len({one.predicted for one in histories}) != 1 or not histories[0].predicted:
                raise ValueError("its lanes must have one number of steps, at least 1")
            train_length = document["train_length"]
            return cls(
                name=str(document["model"]),
                reading=bool(document["reading"]),
                seed=int(document["seed"]),
                train_length=None if train_length is None else int(train_length),
                histories=histories,
                spelled=tuple(tuple(map(str, lane["tokens"])) for lane in lanes),
            )
        except KeyError as error:
            raise ValueError(f"{path} is no recording of SideBySide: no {error} in it") from None
        except (IndexError, OverflowError, TypeError, ValueError) as error:
            raise ValueError(f"{path} is no recording of SideBySide: {error}") from None


def _written(value: float) -> float | str | None:
    """Return a number as JSON knows it, with as many digits as a float32 has."""
    if isinstance(value, int):
        return value
    if math.isnan(value):
        return None
    return str(value) if math.isinf(value) else float(str(np.float32(value)))


def _history(lane: dict[str, Any], start: int) -> LaneRecord:
    """Return the lane of a file, whole."""
    n_tokens = len(lane["tokens"])
    if not 1 <= start < n_tokens:
        raise ValueError(f"it begins after {start} of {n_tokens} tokens")
    about = dict(lane["about"])
    one = LaneRecord(parse_policy(lane["policy"]), (), str, about)
    one.start = start
    for columns, length in ((PER_TOKEN, n_tokens), (PER_STEP, n_tokens - start)):
        for column, series in columns.items():
            values = lane[column]
            if len(values) != length:
                raise ValueError(f"{column} has {len(values)} numbers for {length}")
            as_number = int if column in WHOLE else _read
            getattr(one, series).extend([as_number(value) for value in values])
    steps = n_tokens - start
    for position, step in enumerate(one.gone):
        if step != STAYS and not (1 <= step <= steps and position < start + step):
            raise ValueError(f"token {position} is evicted at step {step} of {steps}")
    return one


def _read(value: float | str | None) -> float:
    return math.nan if value is None else float(value)


Source = Live | Recording
