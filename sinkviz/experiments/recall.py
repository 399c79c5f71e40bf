"""StreamEval: queries in a stream, and whether the line that answers them is still there.

Knows nothing about how a text with queries is made or asked.
"""

from __future__ import annotations

import math
from itertools import islice

import pandas as pd

from sinkviz.experiments import measuring
from sinkviz.experiments.asking import (
    GUESSING,
    TASKS,
    answers,
    ask_back,
    beyond_chance,
    gone,
    prepare,
    share_right,
    tokens_per_line,
)
from sinkviz.experiments.judging import PAPER, Verdict, of_each_model
from sinkviz.experiments.queries import choices_text, read_choices
from sinkviz.experiments.running import Cell, Claim, Experiment, Row, Setting
from sinkviz.experiments.scales import usual_cache
from sinkviz.plots.recall import grid_recall
from sinkviz.policies import parse_policy

# Of the cache: how far back the lines are that are asked for.
SHARES = (1 / 4, 1 / 2, 3 / 4, 0.9, 1.1, 5 / 4, 3 / 2, 2, 3)
SHARES_QUICK = (1 / 2, 1.1, 2)
MULTIPLE_CHOICE = "arc:"
BETTER = 0.1


def _cells(setting: Setting) -> list[Cell]:
    cells = []
    for name, lm in setting.models.items():
        cache = usual_cache(setting, lm)
        policies = [str(policy) for policy in measuring.four_methods(cache)]
        if setting.text.startswith(MULTIPLE_CHOICE):
            n_queries = 50 if setting.quick else None
            cells += [
                {"model": name, "task": "arc", "policy": policy, "queries": n_queries}
                for policy in policies
            ]
            continue
        for task in TASKS:
            line = tokens_per_line(lm, task)
            shares = SHARES_QUICK if setting.quick else SHARES
            cells += [
                {
                    "model": name,
                    "task": task,
                    "policy": policy,
                    "lines": lines,
                    "queries": 16 if setting.quick else 100,
                }
                for lines in sorted({max(1, round(share * cache / line)) for share in shares})
                for policy in policies
            ]
    return cells


def _measure(setting: Setting, cell: Cell) -> list[Row]:
    lm, policy = setting.models[cell["model"]], parse_policy(cell["policy"])
    if cell["task"] == "arc":
        records = read_choices(setting.text.removeprefix(MULTIPLE_CHOICE))
        asked = prepare(lm, *choices_text(islice(records, cell["queries"])))
    else:
        asked = ask_back(lm, cell["task"], cell["lines"], cell["queries"], setting.seed)
    row = {
        "model": lm.name,
        "task": cell["task"],
        "method": type(policy).__name__,
        "policy": cell["policy"],
        "cache": policy.cache_size,
        "train_length": lm.train_length,
        "lines": cell.get("lines"),
        "tokens": len(asked.ids),
    }
    return [row | answers(lm, asked, policy)]


def _of(table: pd.DataFrame, task: str, method: str) -> pd.DataFrame:
    return table[(table["task"] == task) & (table["method"] == method)]


def _lines(table: pd.DataFrame) -> tuple[list[str], str]:
    """Return the tasks that the model can do with the line in its cache, and what it cannot."""
    able, said = [], []
    for task in TASKS:
        rows = _of(table, task, "Recompute")
        if not len(rows):
            continue
        if beyond_chance(rows, seen=True) > GUESSING:
            able.append(task)
        else:
            said.append(
                f"({task}: {share_right(rows, seen=True):.0%} right with the line in the cache, "
                f"chance {rows['chance'].mean():.0%}: this model cannot do the task, which decides "
                "nothing)"
            )
    return able, " ".join(said)


@of_each_model
def _judge_sinks(table: pd.DataFrame) -> Verdict:
    able, cannot = _lines(table)
    said, better = [], []
    for task in able:
        right = {m: share_right(_of(table, task, m), seen=True) for m in ("SinkWindow", "Window")}
        better.append(right["SinkWindow"] - right["Window"] > BETTER)
        said.append(
            f"{task}, line in the cache: {right['SinkWindow']:.0%} with sinks, "
            f"{right['Window']:.0%} with the window alone"
        )
    return (all(better) if better else None), "; ".join([*said, cannot]).strip("; ")


@of_each_model
def _judge_edge(table: pd.DataFrame) -> Verdict:
    able, cannot = _lines(table)
    verdicts = {task: gone(_of(table, task, "SinkWindow")) for task in able}
    said = [f"{task}: {words}" for task, (_, words) in verdicts.items()]
    decided = [agrees for agrees, _ in verdicts.values() if agrees is not None]
    return (all(decided) if decided else None), "; ".join([*said, cannot]).strip("; ")


@of_each_model
def _judge_dense(table: pd.DataFrame) -> Verdict:
    able, cannot = _lines(table)
    said, worse = [], []
    for task in able:
        rows = {m: _of(table, task, m) for m in ("Dense", "SinkWindow")}
        near = rows["SinkWindow"][rows["SinkWindow"]["seen"] == rows["SinkWindow"]["queries"]]
        full = rows["Dense"][rows["Dense"]["lines"].isin(near["lines"])]
        if not len(near) or math.isnan(share_right(full)):
            continue
        worse.append(share_right(near) - share_right(full) > BETTER)
        said.append(
            f"{task}, lines that a cache with sinks still holds: Dense {share_right(full):.0%}, "
            f"SinkWindow {share_right(near):.0%}, in a text of {int(full['tokens'].max()):,} tokens"
        )
    return (all(worse) if worse else None), "; ".join([*said, cannot]).strip("; ")


@of_each_model
def _judge_choices(table: pd.DataFrame) -> Verdict:
    if "arc" not in set(table["task"]):
        return None, "not asked: give text='arc:ARC-Easy', or a file of such questions"
    right = {m: share_right(_of(table, "arc", m)) for m in ("SinkWindow", "Window")}
    chance = table["chance"].mean()
    said = (
        f"{right['SinkWindow']:.0%} right with sinks, {right['Window']:.0%} with the window alone, "
        f"chance {chance:.0%}"
    )
    if beyond_chance(_of(table, "arc", "SinkWindow")) <= GUESSING:
        return None, f"{said}: this model cannot do the task"
    return right["SinkWindow"] - right["Window"] > BETTER, said


STREAM_EVAL = Experiment(
    name="stream_eval",
    question="Does a model in a stream answer queries about a line some lines back?",
    cells=_cells,
    measure=_measure,
    draw=grid_recall,
    claims=(
        Claim(
            "With sinks a model goes on answering; with the window alone it fails.",
            "window attention's accuracy falls to nearly nothing once the input passes the cache, "
            "StreamingLLM's stays; figure only",
            f"{PAPER}, figure 9",
            _judge_sinks,
        ),
        Claim(
            "Full attention fails beyond the length the model was trained on.",
            "its accuracy falls to nothing where the input passes the pre-training length (or "
            "memory); figure only",
            f"{PAPER}, figure 9",
            _judge_dense,
        ),
        Claim(
            "Once a line has left the cache, queries about it can only be guessed.",
            "accuracy falls to zero when the distance passes the cache size",
            f"{PAPER}, appendix on query-answer distances",
            _judge_edge,
        ),
        Claim(
            "Streams of multiple-choice questions are answered as well as single ones.",
            "ARC-Easy, Llama-2-7B-Chat: 71.34 % with sinks, 3.58 % with the window",
            f"{PAPER}, table 5",
            _judge_choices,
        ),
    ),
)
