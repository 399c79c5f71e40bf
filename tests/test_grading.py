"""Grading: submitted notebooks, good, bad and hostile, become rows of a table."""

from __future__ import annotations

import csv
from pathlib import Path

import nbformat
import pytest

from sinkviz.grading import COLUMNS, grade, write_csv

SOLUTIONS = Path(__file__).parent.parent / "notebooks" / "solutions"
STUDENTS = SOLUTIONS.parent


def submit(folder: Path, name: str, *sources: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(s) for s in sources])
    nbformat.write(notebook, folder / name)


def test_solutions_pass_and_stubs_are_not_attempted(tmp_path):
    for who, source in (("ada", SOLUTIONS), ("ben", STUDENTS)):
        (tmp_path / who).mkdir()
        name = "08_cliff_and_rescue.ipynb"
        (tmp_path / who / name).write_bytes((source / name).read_bytes())
    rows = list(grade(tmp_path))
    assert [row["exercise"] for row in rows] == ["08.1", "08.2", "08.3"] * 2
    assert [row["passed"] for row in rows] == [1, 1, 1, "", "", ""]
    with open(write_csv(rows, tmp_path / "grades.csv"), newline="") as file:
        read = list(csv.DictReader(file))
    assert tuple(read[0]) == COLUMNS and read[0]["notebook"] == "ada/08_cliff_and_rescue.ipynb"


def test_what_breaks_costs_its_own_exercise_alone(tmp_path):
    submit(
        tmp_path,
        "08_mine.ipynb",
        "import numpy as np",
        "while True print('no Python')",
        'def f(n, s, r):\n    return [1 / 0]\n\nsv.check("08.1", f)',
        'g = undefined\nsv.check("08.2", g)',
        'import os\nprint("noise")\nsv.check("08.3", lambda w, s: np.log(w / s))',
    )
    first, second, third = grade(tmp_path)
    assert first["passed"] == 0 and "ZeroDivisionError" in first["message"]
    assert second["passed"] == 0 and "its cell stops with NameError" in second["message"]
    assert third["passed"] == 1


def test_time_runs_out_and_what_was_reached_counts(tmp_path):
    submit(
        tmp_path,
        "08_slow.ipynb",
        'sv.check("08.3", lambda w, s: w / s)',
        'while True: pass\nsv.check("08.1", 0)',
    )
    rows = {row["exercise"]: row for row in grade(tmp_path, seconds=30)}
    assert rows["08.3"]["passed"] == 0 and "how many times" in rows["08.3"]["message"]
    assert rows["08.1"]["passed"] == "" and rows["08.1"]["message"] == "stopped after 30 s"


def test_a_notebook_that_ends_the_process_is_said(tmp_path):
    submit(tmp_path, "08_exit.ipynb", 'import os\nos._exit(3)\nsv.check("08.1", 0)')
    assert next(grade(tmp_path))["message"] == "it stopped"
    (tmp_path / "08_exit.ipynb").write_text("not a notebook")
    assert "JSON" in next(grade(tmp_path))["message"]


def test_a_folder_without_the_course_is_refused(tmp_path):
    submit(tmp_path, "99_other.ipynb", "1")
    with pytest.raises(ValueError, match="has no notebook of the course"):
        next(grade(tmp_path))
