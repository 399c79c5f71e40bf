"""The notebooks: what each must have, that student and solution agree, that nothing leaks.

That they run is tested by nbval, which collects ``notebooks/`` beside this folder.
"""

from __future__ import annotations

import ast
import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest

import sinkviz as sv
import sinkviz.widgets
from sinkviz.checks import EXERCISES

ROOT = Path(__file__).parent.parent
FOLDER = ROOT / "notebooks"
SOLUTIONS = sorted(FOLDER.glob("solutions/*.ipynb"))
STUDENTS = sorted(FOLDER.glob("*.ipynb"))
ALL = [*STUDENTS, *SOLUTIONS]
IDS = [str(path.relative_to(FOLDER)) for path in ALL]
COMMAND = [sys.executable, "notebooks/build.py"]

# Words of Markdown and code cells: a lesson, and the short way in.
LESSON = (range(1000, 1601), range(12, 19))
SHORT = {"00_start_here": (range(600, 1401), range(6, 13))}

WIDGET = rf"sv\.({'|'.join(sinkviz.widgets.__all__)})\("

every_notebook = pytest.mark.parametrize("path", ALL, ids=IDS)


def read(path: Path):
    return nbformat.read(path, as_version=4)


def cells(path: Path, kind: str) -> list:
    return [cell for cell in read(path).cells if cell.cell_type == kind]


def prose(path: Path) -> str:
    return "\n\n".join(cell.source for cell in cells(path, "markdown"))


def minutes_of(path: Path) -> str:
    return re.search(r"\*\*Minutes:\*\* (\d+)", prose(path))[1]


def exercise_cells(path: Path) -> dict[str, str]:
    found = {}
    for cell in cells(path, "code"):
        for name in re.findall(r'sv\.check\("([^"]+)"', cell.source):
            assert name not in found, f"exercise {name} stands twice"
            found[name] = cell.source
    return found


def build():
    spec = importlib.util.spec_from_file_location("build_notebooks", FOLDER / "build.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


# What a reader meets ----------------------------------------------------------------------------


@every_notebook
def test_head_of_the_notebook(path):
    nbformat.validate(read(path))
    first = read(path).cells[0]
    number = path.name[:2]
    assert first.cell_type == "markdown" and first.source.startswith(f"# {number} · ")
    assert len(re.findall(r"^# ", prose(path), re.M)) == 1
    box = "\n".join(line for line in first.source.splitlines() if line.startswith(">"))
    assert re.search(r"\*\*Minutes:\*\* \d+", box)
    assert "**Needed first:**" in box
    assert re.search(r"\*\*runs on a CPU in \d+ s\*\*", box)
    assert len(re.findall(r"^> - \*\*[a-z]", box, re.M)) == 3, "three objectives that begin boldly"


@every_notebook
def test_predict_before_the_first_result(path):
    shown = read(path).cells
    predict = next(n for n, cell in enumerate(shown) if "## Predict first" in cell.source)
    assert predict < next(n for n, cell in enumerate(shown) if cell.cell_type == "code")


@pytest.mark.parametrize("table", ["README.md", "notebooks/README.md", STUDENTS[0]], ids=str)
def test_tables_of_the_course_list_every_notebook_with_its_minutes(table):
    page = (ROOT / table).read_text(encoding="utf-8") if isinstance(table, str) else prose(table)
    told = dict(re.findall(r"\]\((?:notebooks/)?([\w]+)\.ipynb\) \| (\d+) \|", page))
    others = [path for path in STUDENTS if path != table]
    assert told.items() >= {path.stem: minutes_of(path) for path in others}.items()


@every_notebook
def test_figures_are_told_in_words(path):
    shown = read(path).cells
    figures = 0
    for cell, after in zip(shown, [*shown[1:], None], strict=True):
        outputs = cell.get("outputs", ())
        if any("image/png" in one.get("data", {}) for one in outputs):
            figures += 1
            assert after is not None and after.cell_type == "markdown", cell.id
            assert re.search(r"^What you see: \S", after.source, re.M), cell.id
    assert figures, "no figure: run make notebooks"
    text = prose(path)
    assert len(re.findall(r"figure to remember", text, re.I)) == 1
    for alternative in re.findall(r"!\[(.*?)\]\(", text):
        assert alternative, "an image in Markdown needs a text alternative"
    for image in re.findall(r"<img\b[^>]*>", text):
        assert re.search(r'\balt="[^"]+"', image), "an image needs a text alternative"


@every_notebook
def test_widgets_come_with_things_to_try(path):
    shown = read(path).cells
    widgets = [n for n, cell in enumerate(shown) if re.search(WIDGET, cell.source)
               and cell.cell_type == "code"]  # fmt: skip
    assert widgets
    for n in widgets:
        _, _, things = shown[n + 1].source.partition("Three things to try:")
        assert len(re.findall(r"^\d\. ", things, re.M)) == 3


@every_notebook
def test_exercises_have_their_cards(path):
    given = exercise_cells(path)
    assert given and all(name.startswith(path.name[:2]) for name in given)
    for name in given:
        assert name in EXERCISES
        (card,) = [
            c.source for c in cells(path, "markdown") if f"### Exercise {name} · " in c.source
        ]
        assert re.search(r"\*\*Difficulty:\*\* [●○]{3} · \*\*Minutes:\*\* \d+", card)
        assert "<summary>Hint</summary>" in card and "Expected picture: " in card


@every_notebook
def test_foot_of_the_notebook(path):
    text = prose(path)
    assert "> **What this does not show.**" in text
    recall = re.search(r"^## Recall\n(.*?)<details>", text, re.M | re.S)[1]
    assert len(re.findall(r"^\d\. .+\?$", recall, re.M)) == 5
    assert "## Key points" in text
    assert "Sources" in text and re.search(r"arXiv \d{4}\.\d{5}", text)


@every_notebook
def test_it_is_short(path):
    words, codes = SHORT.get(path.stem, LESSON)
    assert len(prose(path).split()) in words
    assert len(cells(path, "code")) in codes
    for cell in cells(path, "code"):
        assert len(cell.source.splitlines()) <= 20, cell.id


@every_notebook
def test_links_between_notebooks_hold(path):
    for target in re.findall(r"\]\(([^)#]+)", prose(path)):
        assert (path.parent / target).is_file(), target


def test_the_spelling():
    words = "\n".join(map(prose, SOLUTIONS))
    command = [sys.executable, "-m", "codespell_lib", "-"]
    done = subprocess.run(command, input=words, capture_output=True, text=True)
    assert not done.stdout, done.stdout


# What the file holds ----------------------------------------------------------------------------


@every_notebook
def test_the_file_is_clean(path):
    notebook = read(path)
    assert path.stat().st_size <= 500_000
    assert set(notebook.metadata) == {"kernelspec", "language_info"}
    assert notebook.metadata.kernelspec == build().KERNEL
    assert notebook.metadata.language_info == {"name": "python"}
    ids = [cell.id for cell in notebook.cells]
    assert len(set(ids)) == len(ids)
    for cell in notebook.cells:
        assert cell.metadata == {}, cell.id
        for output in cell.get("outputs", ()):
            assert output.output_type != "error" and output.get("name") != "stderr", cell.id
            assert not any("widget" in kind for kind in output.get("data", {})), cell.id


@every_notebook
def test_it_was_run_from_top_to_bottom(path):
    counts = [cell.execution_count for cell in cells(path, "code")]
    assert counts == list(range(1, len(counts) + 1)), "run make notebooks"


@every_notebook
def test_nothing_is_fetched_and_no_machine_is_named(path):
    code = "\n".join(cell.source for cell in cells(path, "code"))
    assert not re.search(r"https?://|urllib|requests|!pip|%pip|!wget|!curl", code)
    text = path.read_text(encoding="utf-8")
    assert not re.search(r"(?<![\w.])/(?:home|root|tmp|Users|usr|opt|mnt)/", text)
    assert not re.search(r"[A-Z]:\\\\(?!n)", text)


@every_notebook
def test_printed_numbers_are_checked(path):
    """Every notebook has cells whose output nbval compares."""
    checked = [c for c in cells(path, "code") if "# NBVAL_CHECK_OUTPUT" in c.source.splitlines()]
    assert len(checked) >= 2
    for cell in checked:
        assert [one.output_type for one in cell.outputs] == ["stream"], cell.id
        assert not re.search(r"seconds|\bms\b|0x", cell.outputs[0].text), cell.id


# Students and solutions -------------------------------------------------------------------------


def test_student_notebooks_follow_their_solutions():
    done = subprocess.run([*COMMAND, "--check"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_drift_is_noticed(tmp_path, monkeypatch, capsys):
    module = build()
    (tmp_path / "solutions").mkdir()
    notebook = read(SOLUTIONS[0])
    nbformat.write(notebook, tmp_path / "solutions" / SOLUTIONS[0].name)
    monkeypatch.setattr(module, "HERE", tmp_path)
    monkeypatch.setattr(sys, "argv", ["build.py", "--check"])
    target = tmp_path / SOLUTIONS[0].name
    with pytest.raises(SystemExit, match="00_start_here.ipynb; run: make notebooks"):
        module.main()
    derived = module.student(notebook)
    nbformat.write(derived, target)
    module.main()
    derived.cells[-1].source += " More."
    nbformat.write(derived, target)
    with pytest.raises(SystemExit, match="00_start_here"):
        module.main()
    nbformat.write(module.student(notebook), target)
    nbformat.write(notebook, tmp_path / "99_orphan.ipynb")
    with pytest.raises(SystemExit, match="99_orphan"):
        module.main()


@pytest.mark.parametrize("path", SOLUTIONS, ids=lambda path: path.stem)
def test_solutions_pass_and_stubs_do_not(path, monkeypatch):
    student = exercise_cells(FOLDER / path.name)
    monkeypatch.setenv("SINKVIZ_STRICT", "1")
    for name, source in exercise_cells(path).items():
        namespace = {"sv": sv}
        exec("import numpy as np", namespace)
        exec(source, namespace)
        assert "BEGIN SOLUTION" in source and "SOLUTION" not in student[name]
        assert f'raise NotImplementedError("exercise {name}")' in student[name]
        with pytest.raises(NotImplementedError):
            exec(student[name], {"sv": sv})
    monkeypatch.delenv("SINKVIZ_STRICT")
    for source in student.values():
        exec(source, {"sv": sv})  # Run All goes on


@pytest.mark.parametrize("path", STUDENTS, ids=lambda path: path.stem)
def test_no_later_cell_uses_a_students_answer(path):
    written = set()
    for cell in cells(path, "code"):
        tree = ast.parse(cell.source.replace("%", "#"))
        used = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
        own = {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}
        assert not used & (written - own), f"{cell.id} uses {used & written}"
        written |= own if "sv.check(" in cell.source else set()


def test_every_exercise_stands_in_a_notebook():
    assert {name for path in STUDENTS for name in exercise_cells(path)} == set(EXERCISES)
