"""Questions in a stream of text: our own data sets, and multiple-choice questions from a file.

A query is a place in a text and some candidates. The true answer follows each query in the text, as
if it had been given. Knows nothing about models or tokens: everything here is ``str``.

The authors of StreamEval never released theirs; ours follows what the paper says about it.
"""

from __future__ import annotations

import json
import math
import random
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sinkviz.text import ANIMALS, NAMES, PLACES, WEATHER

EVERY = 10  # lines between two queries, as in the paper
N_CANDIDATES = 8


@dataclass(frozen=True)
class Query:
    """A question and where it stands in a text.

    Attributes:
        start: first character of the answer in the text.
        candidates: what it may be, the answer among them; words or numbers, no space in front.
        answer: which of them is right.
        told: first character of where the text told it, or None where it did not.
    """

    start: int
    candidates: tuple[str, ...]
    answer: int
    told: int | None = None


def _filler(draw: random.Random) -> str:
    """Return a line that names nobody."""
    weather, place, animal = draw.choice(WEATHER), draw.choice(PLACES), draw.choice(ANIMALS)
    lines = (
        f"{weather} near {place}.",
        f"The {animal} walked back to {place}.",
        f"There was a {animal} at {place}.",
        f"{weather}, and the {animal} stayed at {place}.",
    )
    return draw.choice(lines) + "\n"


def names_text(
    n_lines_back: int, n_queries: int, seed: int = 0, *, names: Sequence[str] = NAMES
) -> tuple[str, list[Query]]:
    """Return a text that names somebody, and asks for the name so many lines later.

    The candidates are the name, and those that were not mentioned for longest: whoever still sees
    the line can answer by having seen the name. That needs no reasoning, which is why a model of a
    million parameters can do it.

    Args:
        n_lines_back: how many lines before the query the name was told, at least 1.
        n_queries: how many queries; one every ten lines, and fewer where names would run out.
        seed: of the text.
        names: to choose from; more than ``N_CANDIDATES``.

    Raises:
        ValueError: too few names, or less than a line back.
    """
    if n_lines_back < 1 or len(names) < N_CANDIDATES + 6:
        raise ValueError(
            f"queries need n_lines_back of at least 1 and {N_CANDIDATES + 6} names, got "
            f"{n_lines_back} and {len(names)}"
        )
    draw = random.Random(seed)
    # At any time a few names have been told and not yet asked for.
    every = max(EVERY, math.ceil(n_lines_back / 3))
    tell = {every * query: query for query in range(n_queries)}
    ask = {every * query + n_lines_back: query for query in range(n_queries)}
    last_seen = dict.fromkeys(draw.sample(list(names), len(names)), -1)
    told: dict[int, tuple[str, int]] = {}
    parts, size, queries = [], 0, []
    for line in range(max(ask) + 1):
        here: list[str] = []
        if line in ask:
            name, place = told.pop(ask[line])
            start = f"The {draw.choice(ANIMALS)} followed "
            here.append(f"{start}{name} all the way to {draw.choice(PLACES)}.\n")
            waiting = {other for other, _ in told.values()}
            others = sorted(
                set(names) - waiting - {name}, key=lambda other: (last_seen[other], other)
            )
            candidates = draw.sample([name, *others[: N_CANDIDATES - 1]], N_CANDIDATES)
            where = size + len(start)
            queries.append(Query(where, tuple(candidates), candidates.index(name), place))
            last_seen[name] = line
        if line in tell:
            waiting = {name for name, _ in told.values()}
            oldest = sorted(set(names) - waiting, key=lambda name: (last_seen[name], name))
            name = draw.choice(oldest[: len(oldest) // 2])
            start = "One morning "
            told[tell[line]] = (name, size + sum(map(len, here)) + len(start))
            here.append(f"{start}{name} went to {draw.choice(PLACES)}.\n")
            last_seen[name] = line
        parts += here or [_filler(draw)]
        size += sum(map(len, parts[-max(1, len(here)) :]))
    return "".join(parts), queries


def codes_text(n_lines_back: int, n_queries: int, seed: int = 0) -> tuple[str, list[Query]]:
    """Return numbered lines with a code each, and queries for the code of a line further back.

    The paper's StreamEval: every line tells something, and every ten lines a query asks for what
    the line ``n_lines_back`` before it told. The candidates are the codes of the lines around the
    one that is asked for, so that having seen a code is not enough: the model must know whose it
    is.

    Args:
        n_lines_back: how many lines before the query the code was told, at least 1.
        n_queries: how many queries, one every ten lines.
        seed: of the text.

    Raises:
        ValueError: less than a line back.

    Source: Xiao et al. 2023, arXiv 2309.17453, section 4.4 and figure 8.
    """
    if n_lines_back < 1:
        raise ValueError(f"n_lines_back must be at least 1, got {n_lines_back}")
    draw = random.Random(seed)
    ask = {EVERY * query + n_lines_back for query in range(n_queries)}
    parts, size, queries = [], 0, []
    codes: list[str] = []
    places: list[int] = []
    for line in range(max(ask) + N_CANDIDATES):
        if line % N_CANDIDATES == 0:  # all first digits of a block differ: so do first tokens
            digits = draw.sample("123456789", N_CANDIDATES)
        if line in ask:
            number = line - n_lines_back
            start = f"Once more: line {number} has the code <"
            block = number // N_CANDIDATES * N_CANDIDATES
            candidates = codes[block : block + N_CANDIDATES]
            # A block that is not yet whole gets codes of nobody.
            candidates += [
                f"{digit}{draw.randrange(1000):03}"
                for digit in draw.sample("123456789", 9)
                if digit not in {code[0] for code in candidates}
            ][: N_CANDIDATES - len(candidates)]
            answer = number - block
            queries.append(Query(size + len(start), tuple(candidates), answer, places[number]))
            text = f"{start}{candidates[answer]}>.\n"
            parts.append(text)
            size += len(text)
        codes.append(f"{digits[line % N_CANDIDATES]}{draw.randrange(1000):03}")
        start = f"Line {line} has the code <"
        places.append(size + len(start))
        parts.append(f"{start}{codes[-1]}>.\n")
        size += len(parts[-1])
    return "".join(parts), queries


def choices_text(questions: Iterable[dict[str, Any]]) -> tuple[str, list[Query]]:
    """Return multiple-choice questions one after the other, each with its answer, as one text.

    Args:
        questions: records of ARC's form: ``question``, ``choices`` (with lists ``text`` and
            ``label``) and ``answerKey``.

    Raises:
        ValueError: a record is not of that form, or there is none.

    Example:
        >>> one = {"question": "What falls from a cloud?", "answerKey": "B",
        ...        "choices": {"text": ["soup", "rain"], "label": ["A", "B"]}}
        >>> text, (query,) = choices_text([one])
        >>> query.candidates, text[query.start]
        (('A', 'B'), 'B')
    """
    parts, size, queries = [], 0, []
    for nth, record in enumerate(questions):
        try:
            labels = [str(label) for label in record["choices"]["label"]]
            options = zip(labels, record["choices"]["text"], strict=True)
            answer = labels.index(str(record["answerKey"]))
            listed = "".join(f"{label}) {option}\n" for label, option in options)
            text = f"Question: {record['question']}\n{listed}Answer: "
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(
                f"question {nth} is not of ARC's form (question, choices with text and label, "
                f"answerKey): {error!r}"
            ) from None
        queries.append(Query(size + len(text), tuple(labels), answer))
        parts.append(f"{text}{labels[answer]}\n\n")
        size += len(parts[-1])
    if not queries:
        raise ValueError("there is no question; give at least one")
    return "".join(parts), queries


def read_choices(source: str) -> Iterator[dict[str, Any]]:
    """Yield multiple-choice questions of ARC's form.

    Args:
        source: a file of JSON lines, or a configuration of the Hub data set ``allenai/ai2_arc``:
            ``ARC-Easy`` or ``ARC-Challenge`` (its test split; needs ``datasets`` and a network).

    Raises:
        FileNotFoundError: there is no such file, and it is no configuration either.
        ImportError: a Hub data set was asked for without the ``datasets`` package.
        ValueError: a line of the file is not JSON.
    """
    if source in ("ARC-Easy", "ARC-Challenge"):
        try:
            from datasets import load_dataset
        except ImportError:
            raise ImportError(
                f"reading {source} from the Hub needs: pip install datasets"
            ) from None
        yield from load_dataset("allenai/ai2_arc", source, split="test")
        return
    if not Path(source).is_file():
        raise FileNotFoundError(
            f"no file {source!r} of questions; give JSON lines of ARC's form, ARC-Easy or "
            "ARC-Challenge"
        )
    for nth, line in enumerate(Path(source).read_text(encoding="utf-8").splitlines()):
        if line.strip():
            try:
                yield json.loads(line)
            except json.JSONDecodeError as error:
                raise ValueError(f"line {nth + 1} of {source} is not JSON ({error})") from None
