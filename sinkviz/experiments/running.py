"""How an experiment runs: cell by cell, in order or spread over an executor, and resumed.

An experiment is data and three functions; this room knows none of them by what it asks.
"""

from __future__ import annotations

import hashlib
import importlib
import json
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib.figure import Figure
from torch import Tensor
from tqdm.auto import tqdm

from sinkviz.files import write_whole
from sinkviz.models import LM, assets_folder, bundled, load
from sinkviz.records import versions
from sinkviz.text import books_folder, read_text

Row = dict[str, Any]
Cell = dict[str, Any]

# Name -> the module that holds it, as an attribute of the same name in capitals.
EXPERIMENTS: dict[str, str] = {
    "four_methods": "methods",
    "x_plus_y": "caching",
    "cache_sizes": "caching",
    "endless": "endless",
    "sink_token": "softmaxes",
    "token_or_position": "sinks",
    "inside_a_sink": "sinks",
    "sink_birth": "softmaxes",
    "retrained": "softmaxes",
    "train_short_test_long": "lengths",
    "retrained_lengths": "lengths",
    "attention_costs": "costs",
    "stream_eval": "recall",
    "limits": "limits",
}


@dataclass(frozen=True)
class Claim:
    """One sentence of a paper, and what this table says to it.

    Attributes:
        says: the claim, in our words.
        paper: the paper's own numbers.
        source: the paper, with its table or figure.
        judge: from the experiment's table to (whether it agrees, the numbers here in words);
            None instead of a truth value where the table cannot decide.
    """

    says: str
    paper: str
    source: str
    judge: Callable[[pd.DataFrame], tuple[bool | None, str]]


@dataclass(frozen=True)
class Setting:
    """What every cell of a run is given: the models, the text, the seed.

    Attributes:
        models: the language models, by name.
        text: where texts come from, see ``sinkviz.text.read_text``.
        quick: less of everything, for a run of under a minute on two CPU cores.
        seed: of whatever is drawn at random.
    """

    models: dict[str, LM]
    text: str = "stories"
    quick: bool = False
    seed: int = 0

    @property
    def lm(self) -> LM:
        """The first model, for experiments on one."""
        return next(iter(self.models.values()))

    def ids(self, lm: LM, n_tokens: int) -> Tensor:
        """Return the first ``n_tokens`` token ids of the text, as the model reads it.

        Raises:
            ValueError: the text is shorter.
        """
        # Eight characters per token is more than any tokenizer needs; the rest is cut off.
        ids = lm.encode(read_text(self.text, n_characters=8 * n_tokens, seed=self.seed))
        if len(ids) < n_tokens:
            raise ValueError(f"{self.text} has {len(ids)} tokens, {n_tokens} are needed")
        return ids[:n_tokens]


@dataclass(frozen=True)
class Experiment:
    """A question, how to ask it, and how to draw the answer.

    Attributes:
        name: as in ``sinkviz run NAME``.
        question: one sentence.
        cells: from the setting to the grid; a cell is JSON: strings, numbers, lists.
        measure: from the setting and a cell to its rows of the table.
        draw: from the table to a figure.
        models: bundled models it runs on, unless given others.
        claims: what the papers say.
    """

    name: str
    question: str
    cells: Callable[[Setting], list[Cell]]
    measure: Callable[[Setting, Cell], list[Row]]
    draw: Callable[[pd.DataFrame], Figure]
    models: tuple[str, ...] = ("classroom-rope",)
    claims: tuple[Claim, ...] = field(default=())


def experiment(name: str) -> Experiment:
    """Return an experiment by its name.

    Raises:
        ValueError: there is none of that name.
    """
    if name not in EXPERIMENTS:
        raise ValueError(f"no experiment {name!r}; known are {', '.join(EXPERIMENTS)}")
    return getattr(
        importlib.import_module(f"sinkviz.experiments.{EXPERIMENTS[name]}"), name.upper()
    )


def run(
    name: str,
    lm: LM | Sequence[LM] | None = None,
    *,
    quick: bool = False,
    text: str | None = None,
    seed: int = 0,
    executor: Any = None,
    folder: str | Path | None = None,
    progress: bool = False,
) -> pd.DataFrame:
    """Run a named experiment and return its tidy table.

    Args:
        name: a key of ``EXPERIMENTS``.
        lm: the language model, or several for experiments that compare models; by default the
            bundled ones that the experiment is about.
        quick: less of everything, in under a minute on two CPU cores.
        text: source of texts, see ``sinkviz.text.read_text``; by default held-out books where
            there are any, otherwise stories.
        seed: of whatever is drawn at random.
        executor: spreads the cells: a ``ProcessPoolExecutor`` (or any with ``submit``, such as
            Dask's client), or the module ``ray``. Threads would share the models' hooks.
        folder: where finished cells wait while the run goes on; after a kill, the same call goes
            on from there.
        progress: show a progress bar.

    Returns:
        The rows in the order of the cells; ``attrs`` holds what it takes to repeat them.

    Raises:
        ValueError: no such experiment, an executor of threads, or what the experiment refuses.
    """
    asked = experiment(name)
    if lm is None:
        lms: Sequence[LM] = [load(model) for model in _bundled(asked.models)]
    else:
        lms = [lm] if isinstance(lm, LM) else list(lm)
    text = text or ("books:valid" if books_folder() else "stories")
    setting = Setting({one.name: one for one in lms}, text, quick, seed)
    cells = asked.cells(setting)
    finished = _Finished(Path(folder), name, setting) if folder is not None else None
    rows_of: dict[int, list[Row]] = {}
    if finished is not None:
        rows_of = {i: rows for i, cell in enumerate(cells) if (rows := finished.get(cell))}
    todo = [i for i in range(len(cells)) if i not in rows_of]
    answers = _spread(executor, asked.name, setting, [cells[i] for i in todo])
    bar = tqdm(total=len(cells), initial=len(rows_of), desc=name, unit="cell", disable=not progress)
    with bar:
        for i, rows in zip(todo, answers, strict=True):
            rows_of[i] = rows
            if finished is not None:
                finished.add(cells[i], rows)
            bar.update()
    table = pd.DataFrame([row for i in range(len(cells)) for row in rows_of[i]])
    said = {"models": list(setting.models), "text": text, "seed": seed, "quick": quick}
    table.attrs = {
        "experiment": name,
        "question": asked.question,
        "provenance": said | versions(),
    }
    if finished is not None:
        finished.forget()
    return table


def _bundled(names: Sequence[str]) -> list[str]:
    """Return those of the models that come along; one that is not trained yet is said."""
    missing = [name for name in names if name not in bundled()]
    if missing:
        left = "sinkviz train NAME makes one"
        if len(missing) == len(names):
            raise ValueError(f"none of its models is here: {', '.join(names)}; {left}")
        warnings.warn(f"run without {', '.join(missing)}, not bundled yet; {left}", stacklevel=3)
    return [name for name in names if name not in missing]


def save_table(table: pd.DataFrame, path: str | Path) -> Path:
    """Write a table with its provenance to one JSON file, whole or not at all."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = json.loads(table.to_json(orient="records", double_precision=6))
    body = ",\n".join("  " + json.dumps(row) for row in rows)
    head = json.dumps(table.attrs, indent=1)[:-2]
    page = f'{head},\n "rows": [\n{body}\n ]\n}}\n'
    write_whole(path, lambda partial: partial.write_text(page, encoding="utf-8"))
    return path


def load_table(path: str | Path) -> pd.DataFrame:
    """Return a table that ``save_table`` wrote, or of an experiment's bundled record by its name.

    Raises:
        FileNotFoundError: there is none.
    """
    if str(path) in EXPERIMENTS:
        path = assets_folder() / "runs" / f"{path}.json"
    if not Path(path).is_file():
        raise FileNotFoundError(f"no record at {path}; make it with sinkviz run")
    document = json.loads(Path(path).read_text(encoding="utf-8"))
    table = pd.DataFrame(document.pop("rows"))
    table.attrs = document
    return table


def _measure(name: str, setting: Setting, cell: Cell) -> list[Row]:
    return experiment(name).measure(setting, cell)


def _spread(executor: Any, name: str, setting: Setting, cells: list[Cell]) -> Iterator[list[Row]]:
    """Yield the rows of each cell, in order, wherever they are measured."""
    if executor is None:
        yield from (_measure(name, setting, cell) for cell in cells)
    elif isinstance(executor, ThreadPoolExecutor):
        raise ValueError("threads would share the models' hooks; use a ProcessPoolExecutor")
    elif hasattr(executor, "submit"):
        futures = [executor.submit(_measure, name, setting, cell) for cell in cells]
        yield from (future.result() for future in futures)
    elif hasattr(executor, "remote"):
        task = executor.remote(_measure)
        references = [task.remote(name, setting, cell) for cell in cells]
        yield from (executor.get(reference) for reference in references)
    else:
        raise ValueError(f"{type(executor).__name__} is no executor: it lacks submit")


class _Finished:
    """The cells that a run has behind it, one line each, for this setting alone."""

    def __init__(self, folder: Path, name: str, setting: Setting) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.path = folder / f"{name}.cells.jsonl"
        self.setting = [name, setting.text, setting.quick, setting.seed]
        for model_name, lm in setting.models.items():
            weights = sum(float(p.detach().double().sum()) for p in lm.model.parameters())
            self.setting += [model_name, weights]
        self.known: dict[str, list[Row]] = {}
        if self.path.exists():
            for line in self.path.read_text(encoding="utf-8").splitlines():
                try:
                    self.known.update(json.loads(line))
                except json.JSONDecodeError:
                    break  # the line that a kill cut short
            # A cut line must not swallow the next.
            lines = (json.dumps({key: rows}) + "\n" for key, rows in self.known.items())
            write_whole(self.path, lambda partial: partial.write_text("".join(lines)))

    def _key(self, cell: Cell) -> str:
        return hashlib.sha256(json.dumps([self.setting, cell]).encode()).hexdigest()

    def get(self, cell: Cell) -> list[Row] | None:
        """Return the rows of a cell, or None where it has not been measured."""
        return self.known.get(self._key(cell))

    def add(self, cell: Cell, rows: list[Row]) -> None:
        """Keep the rows of a cell."""
        with open(self.path, "a", encoding="utf-8") as file:
            file.write(json.dumps({self._key(cell): rows}) + "\n")

    def forget(self) -> None:
        """The run is whole; its table says it all."""
        self.path.unlink(missing_ok=True)
