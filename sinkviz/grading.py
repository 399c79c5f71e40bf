"""Grade submitted notebooks: run their exercise cells in a process of its own, collect verdicts.

Only imports and the cells that call ``sv.check`` are run, so a notebook takes seconds. A student's
code is still code: grade on a machine, or in a container, that may be broken.
"""

from __future__ import annotations

import ast
import csv
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from sinkviz.checks import EXERCISES, CheckResult, check

COLUMNS = ("notebook", "exercise", "passed", "message")
Row = dict[str, Any]


def grade(folder: str | Path, *, seconds: float = 120.0) -> Iterator[Row]:
    """Yield one row per exercise of each notebook in a folder, its subfolders included.

    Args:
        folder: of submitted notebooks; their names begin as those of the course (``08_...``).
        seconds: time limit per notebook.

    Yields:
        Rows with ``notebook`` (path within the folder), ``exercise``, ``passed`` (1, 0, or empty
        where it was not attempted) and ``message``.

    Raises:
        ValueError: there is no notebook of the course in the folder.
    """
    folder = Path(folder)
    found = sorted(
        (path, exercises)
        for path in folder.rglob("*.ipynb")
        if ".ipynb_checkpoints" not in path.parts
        and (exercises := [name for name in EXERCISES if name[:3] == f"{path.name[:2]}."])
    )
    if not found:
        raise ValueError(f"{folder} has no notebook of the course with an exercise")
    for path, exercises in found:
        verdicts, trouble = _verdicts(path, seconds)
        for name in exercises:
            passed, message = verdicts.get(name, (None, trouble or "its cell is missing"))
            yield {
                "notebook": path.relative_to(folder).as_posix(),
                "exercise": name,
                "passed": "" if passed is None else int(passed),
                "message": message,
            }


def write_csv(rows: list[Row], path: str | Path) -> Path:
    """Write rows as CSV, for a spreadsheet."""
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        writer.writerows(rows)
    return Path(path)


def _verdicts(path: Path, seconds: float) -> tuple[dict[str, tuple[bool | None, str]], str]:
    """Return the verdict on each exercise that was reached, and what kept us from the others."""
    with tempfile.TemporaryDirectory() as scratch:
        answers = Path(scratch) / "answers.jsonl"
        command = [sys.executable, "-m", "sinkviz.grading", str(path.resolve()), str(answers)]
        process = subprocess.Popen(
            command,
            cwd=scratch,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        trouble = ""
        try:
            _, complaint = process.communicate(timeout=seconds)
            if process.returncode:
                trouble = (complaint.strip().splitlines() or ["it stopped"])[-1]
        except subprocess.TimeoutExpired:
            trouble = f"stopped after {seconds:g} s"
        finally:
            # Whatever the student's code has started ends with it.
            if hasattr(os, "killpg"):
                try:
                    os.killpg(process.pid, signal.SIGKILL)
                except ProcessLookupError:
                    pass
            process.kill()
            process.communicate()
        lines = answers.read_text(encoding="utf-8").splitlines() if answers.exists() else []
    return {name: (passed, said) for name, passed, said in map(json.loads, lines)}, trouble


def _exercise_cells(path: Path) -> tuple[list[str], list[str]]:
    """Return the import lines and the exercise cells of a notebook."""
    import nbformat

    imports, cells = [], []
    for cell in nbformat.read(path, as_version=4).cells:
        if cell.cell_type != "code":
            continue
        if "sv.check(" in cell.source:
            cells.append(cell.source)
            continue
        try:
            tree = ast.parse(cell.source)
        except SyntaxError:
            continue
        imports += [ast.unparse(n) for n in tree.body if isinstance(n, ast.Import | ast.ImportFrom)]
    return imports, cells


def _run(path: Path, answers: Path) -> None:
    """Run the exercise cells of one notebook, and write a line per verdict as it is reached."""
    import sinkviz

    def record(*verdict: Any) -> None:
        with open(answers, "a", encoding="utf-8") as file:
            file.write(json.dumps(verdict) + "\n")

    def recorded(exercise: str, answer: Any) -> CheckResult:
        result = check(exercise, answer)
        record(result.exercise, result.passed, result.message)
        return result

    sinkviz.check = recorded
    os.environ.pop("SINKVIZ_STRICT", None)
    namespace: dict[str, Any] = {"sv": sinkviz}
    imports, cells = _exercise_cells(path)
    for line in imports:
        exec(line, namespace)
    for source in cells:
        try:
            exec(source, namespace)
        except Exception as error:  # the next exercise may still be right
            name = source.partition('sv.check("')[2].partition('"')[0]
            record(name, False, f"its cell stops with {type(error).__name__}: {error}")


if __name__ == "__main__":
    _run(Path(sys.argv[1]), Path(sys.argv[2]))
