"""The gallery: every public figure and widget is in it, page and notebook show what is there."""

import ast
import re
import struct
import sys
from pathlib import Path

import matplotlib.pyplot as plt
import nbformat
import pytest
from nbclient import NotebookClient

from sinkviz import plots, widgets

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"


@pytest.fixture(scope="module")
def gallery():
    sys.path.insert(0, str(DOCS))
    try:
        import make_gallery

        yield make_gallery
    finally:
        sys.path.remove(str(DOCS))


@pytest.fixture(scope="module")
def pictures(gallery):
    return [one for chapter in gallery.chapters().values() for one in chapter]


def names_called(code: str) -> set[str]:
    """Attributes of ``sv`` that a piece of code calls."""
    calls = (node.func for node in ast.walk(ast.parse(code)) if isinstance(node, ast.Call))
    return {call.attr for call in calls if isinstance(call, ast.Attribute)}


def modules_of_experiments() -> set[str]:
    """Modules of figures that experiments draw: these come in with their recorded tables."""
    sources = (ROOT / "sinkviz" / "experiments").glob("*.py")
    nodes = [node for path in sources for node in ast.walk(ast.parse(path.read_text()))]
    modules = [node.module or "" for node in nodes if isinstance(node, ast.ImportFrom)]
    return {name for name in modules if name.startswith("sinkviz.plots.")}


def test_every_public_figure_is_in_the_gallery(pictures):
    shown = {name for one in pictures for name in names_called(one.code)}
    public = {name for name in plots.__all__ if name.startswith(("plot_", "grid_"))}
    later = modules_of_experiments()
    missing = {one for one in public - shown if getattr(plots, one).__module__ not in later}
    assert not missing, f"add to docs/gallery_pictures.py: {', '.join(sorted(missing))}"


def test_every_widget_is_in_the_gallery(gallery):
    shown = set().union(*(names_called(one.code) for one in gallery.WIDGETS))
    assert set(widgets.__all__) <= shown
    assert len(gallery.WIDGETS) == len(widgets.__all__)


def test_recorded_experiments_come_in_by_themselves(gallery, tmp_path):
    assert gallery.recorded(tmp_path) == ()
    name = next(iter(gallery.EXPERIMENTS))
    (tmp_path / f"{name}.json").touch()
    (picture,) = gallery.recorded(tmp_path)
    assert gallery.experiment(name).question in picture.alt and name in picture.code
    compile(picture.code, name, "exec")


def test_every_picture_is_told_in_words(pictures):
    assert len({one.name for one in pictures}) == len(pictures)
    for one in pictures:
        assert 10 <= len(one.alt.split()) <= 60 and one.alt[-1] in ".?", one.name
        assert '"' not in one.alt and "<" not in one.alt, "it stands in an attribute"


def test_the_page_is_the_one_that_the_command_writes(gallery):
    written = (DOCS / "GALLERY.md").read_text(encoding="utf-8")
    assert written == gallery.markdown(), "run: python docs/make_gallery.py"


def test_the_notebook_is_the_one_that_the_command_writes(gallery, pictures):
    path = DOCS / "gallery.ipynb"
    written, made = nbformat.read(path, as_version=4), gallery.notebook()
    nbformat.validate(written)
    assert written == made, "run: python docs/make_gallery.py"
    assert path.stat().st_size < 500_000
    code = [cell for cell in written.cells if cell.cell_type == "code"]
    assert all(cell.outputs == [] and cell.execution_count is None for cell in code)
    # Every picture has its words right below it.
    cells = {cell.id: nth for nth, cell in enumerate(written.cells)}
    for one in pictures:
        below = written.cells[cells[one.name] + 1]
        assert below.cell_type == "markdown" and below.source == f"What you see: {one.alt}"


OFFLINE = """\
import socket


def refuse(*_, **__):
    raise OSError("the gallery asked for the network")


socket.getaddrinfo = socket.create_connection = refuse"""


@pytest.mark.models
@pytest.mark.timeout(300)
def test_the_notebook_runs_from_a_fresh_kernel(gallery, pictures, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.delenv("MPLBACKEND", raising=False)
    book = gallery.notebook()
    book.cells.insert(0, nbformat.v4.new_code_cell(OFFLINE))
    resources = {"metadata": {"path": str(tmp_path)}}
    NotebookClient(book, timeout=120, kernel_name="python3", resources=resources).execute()
    cells = {cell.id: cell for cell in book.cells}
    for one in pictures:
        outputs = cells[one.name].outputs
        shown = [output for output in outputs if "image/png" in output.get("data", {})]
        assert len(shown) == 1, one.name
        said = [output.text for output in outputs if output.output_type == "stream"]
        assert said == [], one.name
    for one in gallery.WIDGETS:
        data = cells[one.name].outputs[-1].data
        assert "application/vnd.jupyter.widget-view+json" in data and len(data["text/plain"]) < 200
    assert list(tmp_path.iterdir()) == []


def test_every_picture_lies_there_and_no_other(gallery, pictures):
    folder = ROOT / gallery.FOLDER
    expected = {f"{one.name}{end}.png" for one in pictures for end in gallery.SHEETS}
    files = {path.name: path.stat().st_size for path in folder.iterdir()}
    assert set(files) == expected
    assert sum(files.values()) < 3_000_000
    drawn = {f"{one.name}.svg" for one in pictures if one not in gallery.WIDGETS}
    assert {path.name for path in (ROOT / gallery.VECTORS).iterdir()} == drawn
    linked = re.findall(r'(?:src|srcset)="\.\./([^"]+)"', (DOCS / "GALLERY.md").read_text())
    assert linked and all((ROOT / one).is_file() for one in linked)
    for name in expected:
        wide, high = struct.unpack(">II", (folder / name).read_bytes()[16:24])
        assert 300 < wide < 1400 and 200 < high < 1400, name


def test_a_picture_is_drawn_saved_and_small(gallery, tmp_path):
    one = gallery.Picture("fan", "A fan.", "sv.plot_alibi(8)")
    import sinkviz

    for end, sheet in gallery.SHEETS.items():
        figure = gallery.draw(one, {"sv": sinkviz}, sheet)
        assert gallery.save(figure, tmp_path / f"fan{end}.png") < 60_000
        gallery.save_vectors(figure, tmp_path / f"{sheet}.svg")
        gallery.save_vectors(figure, tmp_path / "again.svg")
    assert (tmp_path / "fan.png").read_bytes() != (tmp_path / "fan-dark.png").read_bytes()
    dark = (tmp_path / "dark_background.svg").read_text()
    assert dark.startswith("<?xml") and "<svg" in dark and "dc:date" not in dark
    silent = gallery.Picture("none", "Nothing.", "1 + 1")
    with pytest.raises(RuntimeError, match="none drew 0 figures, not one"):
        gallery.draw(silent, {}, "default")
    plt.close("all")
