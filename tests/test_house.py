"""The house around the package: rooms, public names, README, environment, assets, paths."""

from __future__ import annotations

import ast
import importlib.util
import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import torch
import typer
import yaml
from jaxtyping import TypeCheckError

import sinkviz
from sinkviz.metrics import received_attention

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "sinkviz"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]

# Room -> the rooms it may know. Arrows only point upwards; * is every room above.
ROOMS = {
    "positions": "",
    "registry": "",
    "policies": "registry",
    "metrics": "",
    "text": "",
    "questions": "",
    "memory": "",
    "sampling": "",
    "files": "",
    "terminal": "files",
    "course": "",
    "style": "policies metrics",
    "labelled": "metrics",
    "differences": "labelled",
    "records": "policies metrics labelled differences files",
    "rows": "metrics",
    "tiles": "",
    "bands": "positions tiles",
    "folding": "bands",
    "flexing": "bands folding tiles",
    "choosing": "bands folding flexing",
    "attention": "bands folding",
    "families": "positions",
    "fingerprints": "",
    "trial": "positions families",
    "classroom": "positions attention",
    "bound": "families",
    "clock": "",
    "rings": "positions bands families clock",
    "ring_layers": "positions bound rings",
    "ranks": "positions policies bound",
    "binding": "positions families bound",
    "caches": "families trial bound clock rings ring_layers binding",
    "ranked": "positions policies registry families trial bound ranks binding",
    "models": "policies classroom families trial binding caches ranked",
    "forward": "bands attention bound binding caches ranked families models",
    "interventions": "attention families bound models forward",
    "recipes": "classroom",
    "corpus": "recipes files text",
    "training": "metrics files classroom models recipes corpus",
    "capturing": "memory metrics tiles records families binding models",
    "lanes": "policies families fingerprints records rows choosing bound caches ranked models "
    "forward",
    "streaming": "policies files records rows models binding lanes sampling",
    "scoring": "policies families files memory metrics records models caches forward lanes",
    "chatting": "policies questions memory records models lanes sampling",
    "plots": "positions policies memory metrics style records",
    "checks": "positions policies metrics records recipes interventions",
    "widgets": "positions registry policies files metrics style records attention models capturing "
    "streaming scoring plots",
    "bench": "*",
    "experiments": "*",
    "cards": "*",
    "grading": "checks",
    "report": "*",
    "cli": "*",
    "__init__": "*",
}


def room_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def rooms_known_by(path: Path) -> set[str]:
    """Rooms that a module imports from, at its top or inside a function."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path.name} line {node.lineno}: write sinkviz.{node.module}"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    parts = [name.split(".") for name in names if name.startswith("sinkviz.")]
    return {part[1] for part in parts} - {room_of(path)}


def test_arrows_run_one_way():
    above: set[str] = set()
    allowed = {}
    for room, known in ROOMS.items():
        allowed[room] = set(above) if known == "*" else set(known.split())
        assert allowed[room] <= above, f"{room} knows {allowed[room] - above}, which stands below"
        above.add(room)
    wrong = []
    for path in sorted(PACKAGE.rglob("*.py")):
        room = room_of(path)
        assert room in ROOMS, f"{path.name} is no room yet: give it a row in ROOMS"
        wrong += [f"{path.name} -> {other}" for other in rooms_known_by(path) - allowed[room]]
    assert not wrong, f"arrows that run back: {', '.join(wrong)}"


def test_shapes_are_checked():
    with pytest.raises(TypeCheckError):
        received_attention(torch.zeros(3))


# The public names -------------------------------------------------------------------------------


def documented_names() -> list[str]:
    """Names of docs/API.md: the first cell of each table row, in backticks."""
    text = (ROOT / "docs" / "API.md").read_text(encoding="utf-8")
    return re.findall(r"^\|\s*`(?:sv\.)?(\w+)", text, re.MULTILINE)


def test_public_names_are_documented():
    documented = documented_names()
    assert len(documented) == len(set(documented)), "a name stands twice in docs/API.md"
    assert set(documented) == set(sinkviz.__all__)


def test_public_names_have_docstrings():
    for name in sinkviz.__all__:
        doc = getattr(sinkviz, name).__doc__ or ""
        # A dataclass without one gets its signature as docstring.
        assert len(doc.split()) > 3 and not doc.startswith(f"{name}("), f"{name} has no docstring"


# The README -------------------------------------------------------------------------------------


def fences(language: str) -> list[str]:
    """Fenced blocks of the README; one after ``<!-- not run: reason -->`` is left out."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    blocks = re.findall(
        rf"(<!-- not run: .+? -->\s*)?^```(?:{language})\n(.*?)^```", text, re.DOTALL | re.MULTILINE
    )
    return [code for mark, code in blocks if not mark]


def readme_commands(program: str) -> list[list[str]]:
    lines = "\n".join(fences("bash|sh|console")).replace("\\\n", " ").splitlines()
    words = [shlex.split(line.removeprefix("$ "), comments=True) for line in lines]
    return [line[1:] for line in words if line and line[0] == program]


def test_readme_names_real_commands():
    from sinkviz.cli import app

    commands = typer.main.get_command(app).commands
    given = readme_commands("sinkviz")
    assert given, "the README shows no sinkviz command"
    for name, *arguments in given:
        assert name in commands, f"sinkviz {name} is no command"
        # Parses the arguments as the command would, and runs nothing.
        commands[name].make_context(name, list(arguments))


def test_readme_names_real_make_targets():
    makefile = (ROOT / "Makefile").read_text()
    given = readme_commands("make")
    assert given, "the README shows no make command"
    for words in given:
        for word in words:
            variable = word.partition("=")[0] if "=" in word else None
            if variable:
                assert re.search(rf"^{variable} \?=", makefile, re.M), f"no variable {variable}"
            else:
                assert re.search(rf"^{word}:", makefile, re.M), f"no target {word}"


def test_readme_snippet_runs(tmp_path, monkeypatch):
    snippets = fences("python")
    assert snippets, "the README shows no Python"
    monkeypatch.chdir(tmp_path)
    exec(compile("\n".join(snippets), "README.md", "exec"), {"__name__": "readme"})


# Files that say the same thing twice ------------------------------------------------------------


def test_environment_agrees_with_pyproject():
    environment = yaml.safe_load((ROOT / "environment.yml").read_text())
    *conda, pip = environment["dependencies"]
    torch_bound = next(one for one in PROJECT["dependencies"] if one.startswith("torch"))
    assert environment["name"] == PROJECT["name"]
    assert f"python{PROJECT['requires-python']}" in conda
    assert torch_bound.replace("torch", "pytorch") in conda
    # The rest is pyproject's own list, with an extra that exists.
    assert pip == {"pip": ["-e .[test]"]}
    assert "test" in PROJECT["optional-dependencies"]


def test_makefile_installs_the_torch_that_pyproject_allows():
    (pinned,) = re.findall(r"^TORCH \?= torch==(\S+)", (ROOT / "Makefile").read_text(), re.M)
    torch_bound = next(one for one in PROJECT["dependencies"] if one.startswith("torch"))
    least = torch_bound.removeprefix("torch>=")
    assert [int(n) for n in pinned.split(".")] >= [int(n) for n in least.split(".")]


def test_version_is_the_same_everywhere():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["version"] == PROJECT["version"]
    assert f"## [{PROJECT['version']}]" in (ROOT / "CHANGELOG.md").read_text()


# Assets -----------------------------------------------------------------------------------------


def make_table():
    spec = importlib.util.spec_from_file_location("make_table", ROOT / "assets" / "make_table.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_provenance_table_agrees_with_the_folder():
    table, readme = make_table(), (ROOT / "assets" / "README.md").read_text(encoding="utf-8")
    assert table.update(ROOT / "assets", readme) == readme, "run: make assets-table"
    for file, row in table.read_rows(readme).items():
        assert "?" not in row.values(), f"assets/README.md: fill in the row of {file}"
        assert "" not in row.values(), f"assets/README.md: an empty cell in the row of {file}"


def test_provenance_table_follows_the_folder(tmp_path):
    table = make_table()
    empty = f"# Assets\n\n{table.BEGIN}\n{table.END}\n"
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "a.json").write_text("{}")
    first = table.update(tmp_path, empty)
    assert table.read_rows(first)["runs/a.json"]["command"] == "?"
    filled = first.replace("| ? | ? |", "| `make a` | 0 |").replace("| ? |", "| MIT |")
    (tmp_path / "runs" / "a.json").write_text("[1]")
    (tmp_path / "runs" / "b.json").write_text("")
    rows = table.read_rows(table.update(tmp_path, filled))
    assert rows["runs/a.json"]["bytes"] == "3"
    assert rows["runs/b.json"]["command"] == "`make a`"
    assert rows["runs/b.json"]["licence"] == "MIT"


# Machines ---------------------------------------------------------------------------------------


def our_files() -> list[Path]:
    listing = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard", "-z"], cwd=ROOT, capture_output=True
    )
    if listing.returncode == 0:
        names = listing.stdout.decode().split("\0")
        return [ROOT / name for name in names if name and (ROOT / name).is_file()]
    rooms = ("sinkviz", "notebooks", "assets", "tests", "docs")
    inner = (path for room in rooms for path in (ROOT / room).rglob("*") if path.is_file())
    files = [*inner, *(path for path in ROOT.iterdir() if path.is_file())]
    return [path for path in files if path.suffix != ".pyc"]


def test_no_machine_is_named():
    path_of_a_machine = re.compile(rb"(?<![\w.$~*-])/(?:home|root|work|Users)/[\w.]")
    named = [
        f"{path.relative_to(ROOT)}: {found[0].decode()}..."
        for path in our_files()
        if path.suffix not in (".safetensors", ".png")
        and (found := path_of_a_machine.search(path.read_bytes()))
    ]
    assert not named, f"paths of somebody's machine: {named}"


def test_help_answers_at_once():
    """Nothing heavy is imported before a command runs."""
    code = "import sys, sinkviz.cli; print([m for m in ('torch', 'transformers', 'matplotlib') \
        if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout.strip() == "[]", done.stdout + done.stderr


def test_every_family_is_documented():
    from sinkviz.families import FAMILIES

    text = (ROOT / "docs" / "STREAMING.md").read_text(encoding="utf-8")
    rows = "\n".join(re.findall(r"^\| (`.+?) \|", text, re.M))
    assert set(re.findall(r"`(\w+)`", rows)) >= set(FAMILIES)


def test_the_spelling():
    """Words that codespell takes for misspelt."""
    prose = [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("assets/**/*.md")]
    code = [
        path
        for folder in ("sinkviz", "tests", "notebooks")
        for path in ROOT.glob(f"{folder}/**/*.py")
    ]
    done = subprocess.run(
        [sys.executable, "-m", "codespell_lib", *map(str, prose + code)],
        capture_output=True,
        text=True,
    )
    assert not done.stdout, done.stdout
