"""Kinds of softmax: which of them need sinks to stream, and when in training sinks are born."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from sinkviz.capturing import capture
from sinkviz.experiments.measuring import x_plus_y
from sinkviz.experiments.probing import probes
from sinkviz.experiments.running import Cell, Experiment, Row, Setting
from sinkviz.experiments.softmaxes_claims import (
    BIRTH_CLAIMS,
    CLASSROOM,
    OFF_BY_ONE,
    SOFTMAXES,
    STANDARD,
    TOKEN_CLAIMS,
    VARIANT_CLAIMS,
)
from sinkviz.experiments.stretches import n_front
from sinkviz.metrics import ROLES, SINK_EPSILON
from sinkviz.models import LM, assets_folder
from sinkviz.plots.birth import grid_birth
from sinkviz.plots.retrained import grid_retrained
from sinkviz.plots.sink_table import grid_sink_table
from sinkviz.recipes import ALTERED, SEEDS, Recipe
from sinkviz.scoring import score

SINKS = (0, 1, 2, 4)
MOST_FRONT = 8  # tokens that any tokenizer puts in front of a text, and more
LARGEST_CACHE = {True: 128, False: 1024}  # tokens; quick or not


def record_of(lm: LM) -> Path | None:
    """Return the folder with the record of a model's growth, or None where there is none.

    It lies beside the weights that ``sinkviz train`` wrote.
    """
    beside = Path(lm.model.config.name_or_path or ".")
    for folder in (beside, assets_folder() / "models" / lm.name):
        if (folder / "growth.jsonl").is_file():
            return folder
    return None


def growth_of(folder: Path) -> list[dict[str, Any]]:
    """Return what was recorded while a model was trained, step by step.

    A run that was broken off and resumed repeats some steps; the last word counts.
    """
    lines = (folder / "growth.jsonl").read_text(encoding="utf-8").splitlines()
    by_step = {line["step"]: line for line in map(json.loads, lines)}
    return [by_step[step] for step in sorted(by_step)]


# Which softmax needs sinks ------------------------------------------------------------------------


def _token_cells(setting: Setting) -> list[Cell]:
    cells: list[Cell] = []
    for name, lm in setting.models.items():
        cells += [{"model": name, "part": "streaming", "n_sink": n} for n in SINKS]
        cells.append({"model": name, "part": "attention"})
        if record_of(lm) is not None:
            cells.append({"model": name, "part": "training"})
    return cells


def _measure_token(setting: Setting, cell: Cell) -> list[Row]:
    lm = setting.models[cell["model"]]
    if cell["part"] == "streaming":
        found = _streamed(setting, lm, cell["n_sink"])
    elif cell["part"] == "attention":
        found = _attended(setting, lm)
    else:
        found = [
            {"quantity": quantity, "step": line["step"], "value": line[quantity]}
            for line in growth_of(record_of(lm))
            for quantity in ("loss", "sink_rate")
        ]
    blank = {"model": cell["model"], "quantity": "", "n_sink": None, "step": None}
    return [blank | row for row in found]


def _streamed(setting: Setting, lm: LM, n_sink: int) -> list[Row]:
    """Return the perplexity of a text under a cache of half the training length."""
    n_tokens = 1_500 if setting.quick else 20_000
    largest = LARGEST_CACHE[setting.quick]
    cache_size = min((lm.train_length or 2 * largest) // 2, largest)
    n_tokens = max(n_tokens, 4 * cache_size)
    ids = setting.ids(lm, n_tokens + MOST_FRONT)
    # The same words for all models, whatever stands in front of them.
    front = n_front(lm, ids)
    ids = ids[: n_tokens + front]
    (policy,) = x_plus_y(cache_size, (n_sink,))
    nll = score(lm, ids, policy).mean_nll(front + cache_size)
    return [
        {"quantity": "nll", "n_sink": n_sink, "value": nll},
        {"quantity": "perplexity", "n_sink": n_sink, "value": float(np.exp(nll))},
    ]


def _attended(setting: Setting, lm: LM) -> list[Row]:
    """Return what the first token gets, how many heads sink, and what goes nowhere."""
    texts = probes(setting, lm, 4 if setting.quick else 32)
    traces = capture(lm, texts, keep="statistics", statistics=("received", "mass"), n_sink=1)
    n_last = len(texts[0]) // 2
    mass = np.mean([trace.mass[:, :, -n_last:].mean((0, 1, 2)) for trace in traces], axis=0)
    received = np.mean([trace.received[..., 0] for trace in traces], axis=0)
    found = {
        "first token": mass[ROLES.index("sink")],
        "sink rate": (received > SINK_EPSILON).mean(),
        "null": mass[ROLES.index("null")],
    }
    return [{"quantity": name, "value": float(value)} for name, value in found.items()]


SINK_TOKEN = Experiment(
    name="sink_token",
    question="Which kinds of softmax need sinks to stream, and is one learned sink token enough?",
    cells=_token_cells,
    measure=_measure_token,
    draw=grid_sink_table,
    models=SOFTMAXES,
    claims=TOKEN_CLAIMS,
)

# What is chance ----------------------------------------------------------------------------------

RETRAINED = Experiment(
    name="retrained",
    question="How far do runs of one recipe lie apart, and what do its rates and decay change?",
    cells=_token_cells,
    measure=_measure_token,
    draw=grid_retrained,
    models=(
        *(run for name in (CLASSROOM, STANDARD, OFF_BY_ONE) for run in (name, *SEEDS[name])),
        *ALTERED,
    ),
    claims=VARIANT_CLAIMS,
)

# When sinks are born ------------------------------------------------------------------------------


def _birth_cells(setting: Setting) -> list[Cell]:
    for name, lm in setting.models.items():
        if record_of(lm) is None:
            raise ValueError(
                f"{name} has no record of its growth (growth.jsonl beside its weights); sink_birth "
                "reads those that sinkviz train writes"
            )
    return [{"model": name} for name in setting.models]


def _recipe_of(folder: Path) -> Recipe:
    """Return what a model was trained by; JSON knows lists only."""
    said = json.loads((folder / "recipe.json").read_text(encoding="utf-8"))
    lists = {name: tuple(value) for name, value in said.items() if isinstance(value, list)}
    return Recipe(**said | lists | {"phases": tuple(map(tuple, said["phases"]))})


def _measure_birth(setting: Setting, cell: Cell) -> list[Row]:
    folder = record_of(setting.models[cell["model"]])
    recipe = _recipe_of(folder)
    ends = np.cumsum([tokens for tokens, _, _ in recipe.phases])
    rows = []
    for line in growth_of(folder):
        # The step before: the one whose gradient this line has seen.
        seen = (line["step"] - 1) * recipe.tokens_per_step
        phase = min(int((ends <= seen).sum()), len(ends) - 1)
        rate, decay = recipe.at(line["step"] - 1)
        heads = np.array(line["first_token"])
        rows.append(
            {
                "model": cell["model"],
                "step": line["step"],
                "tokens": line["tokens"],
                "loss": line["loss"],
                "sink_rate": line["sink_rate"],
                "first_token": round(float(heads.mean()), 4),
                "strongest": float(heads.max()),
                **{f"layer_{i}": round(float(x), 4) for i, x in enumerate(heads.mean(1))},
                "learning_rate": float(f"{rate:.4g}"),
                "weight_decay": decay,
                "phase_start": int(ends[phase - 1] // recipe.tokens_per_step) if phase else 0,
            }
        )
    return rows


SINK_BIRTH = Experiment(
    name="sink_birth",
    question="When in training are sinks born, and what has the model learned by then?",
    cells=_birth_cells,
    measure=_measure_birth,
    draw=grid_birth,
    models=(CLASSROOM, *SOFTMAXES),
    claims=BIRTH_CLAIMS,
)
