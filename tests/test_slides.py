"""Decks of slides: made from the notebooks as they are, whole without a network."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

import nbformat
import pytest

FOLDER = Path(__file__).parent.parent / "notebooks"
SOLUTIONS = sorted(FOLDER.glob("solutions/*.ipynb"))


@pytest.fixture(scope="module")
def slides():
    spec = importlib.util.spec_from_file_location("make_slides", FOLDER / "slides.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def reveal(tmp_path):
    for name in ("reveal.css", "theme/white.css", "reveal.js", "plugin/notes.js"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text('"</script>"' if name.endswith("js") else "")
    return tmp_path


@pytest.mark.parametrize("path", SOLUTIONS, ids=lambda path: path.stem)
def test_every_figure_is_a_slide_with_its_words(path, slides, reveal):
    page = slides.deck(path, reveal)
    cells = nbformat.read(path, as_version=4).cells
    figures = sum(slides.picture(cell) is not None for cell in cells if cell.cell_type == "code")
    assert page.count('<img src="data:image/png') == figures
    assert not re.search(r'alt=""', page)
    for heading in ("Predict first", "Key points", "Recall"):
        assert heading in page
    assert page.count("<section>") == page.count("</section>") >= figures + 4
    assert not re.search(r'(?:src|href)="(?:https?:)?//', page), "a deck needs no network"
    assert page.count("</script>") == 3, "a script must not end early"
