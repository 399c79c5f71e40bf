"""AttentionExplorer: what the kernel tells is held against plain loops, and a browser uses it."""

from __future__ import annotations

import base64
import dataclasses
import json
import re
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pytest
import traitlets

from sinkviz.bench import widgets as bench
from sinkviz.bench.widgets import random_trace
from sinkviz.metrics import ROLES
from sinkviz.records import Trace
from sinkviz.widgets import AttentionExplorer
from sinkviz.widgets.tiles import TILE, MapTiles, codes, pooled, triangles
from sinkviz.widgets.token_labels import LONGEST, labels

pytest_plugins = ["browser"]

HOSTILE = (
    "<script>window.hurt = 1</script>", "</script><b id=hurt>", '"\'`', "\u202eright to left\u202c",
    "\u200b\u200d\ufeff", "\U0001f468\u200d\U0001f469\u200d\U0001f467 family", "x" * 10_000,
    "a\u0301" * 5_000, "\u0645\u0631\u062d\u0628\u0627", "\n\t\x00\x1b[31m", "\ud800", "",
)  # fmt: skip


def small(n_tokens: int = 37, **more) -> Trace:
    return random_trace(n_tokens, 2, 3, **more)


def changed(trace: Trace, **fields) -> Trace:
    return dataclasses.replace(trace, **fields)


def pooled_trace(n_tokens: int = 50, cell: int = 8, keep: tuple | None = None) -> Trace:
    """The same attention, of which pooled maps were kept, and the whole maps of some heads."""
    trace = random_trace(n_tokens, 2, 3)
    side = -(-n_tokens // cell)
    cells = np.full((2, 3, side, side), np.nan, np.float32)
    for row in range(side):
        for column in range(row + 1):
            rows, columns = (slice(cell * at, cell * at + cell) for at in (row, column))
            cells[:, :, row, column] = trace.attention[:, :, rows, columns].max((2, 3))
    kept = None if keep is None else np.stack([trace.attention[one] for one in keep])[None]
    return changed(trace, attention=kept, heads=keep, pooled_max=cells, cell=cell)


def naive(weights: np.ndarray, cell: int, gone: int = 0) -> np.ndarray:
    """Codes of a whole map by plain loops; weights of keys that are gone are left out."""
    n = len(weights)
    side = -(-n // cell)
    found = np.zeros((side, side), np.uint8)
    for query in range(n):
        for key in range(gone, query + 1):
            code = 1 + round(254 * float(weights[query, key]) ** 0.5)
            at = query // cell, key // cell
            found[at] = max(found[at], code)
    return found


def without_first(weights: np.ndarray, n: int) -> np.ndarray:
    rest = weights[:, n:].sum(-1, keepdims=True)
    return np.where(rest > 1e-6, weights / np.maximum(rest, 1e-6), 0) * (
        np.arange(len(weights)) >= n
    )


def near(one: np.ndarray, other: np.ndarray) -> None:
    """The same cells are empty, and codes differ by rounding at most."""
    assert one.shape == other.shape
    np.testing.assert_array_equal(one == 0, other == 0)
    assert np.abs(one.astype(int) - other).max() <= 1


# Tiles ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cell", [1, 2, 3, 16, 64])
@pytest.mark.parametrize("rest", [False, True])
def test_tiles_are_the_largest_of_each_cell(cell, rest):
    trace = small(37)
    tiles = MapTiles(trace, 1)
    for layer, head in np.ndindex(2, 3):
        weights = trace.attention[layer, head].astype(float)
        expected = naive(without_first(weights, 1) if rest else weights, cell, int(rest))
        near(tiles.tile(layer, head, cell, 0, 0, rest), expected)


def test_tiles_cut_a_long_map_without_seams():
    trace = random_trace(2 * TILE + 40, 1, 1)
    tiles = MapTiles(trace, 1)
    whole = naive(trace.attention[0, 0], 1)
    rows = [
        np.hstack([tiles.tile(0, 0, 1, row, column) for column in range(3)]) for row in range(3)
    ]
    near(np.vstack(rows), whole)
    near(tiles.tile(0, 0, 2, 1, 0), naive(trace.attention[0, 0], 2)[TILE:, :TILE])


def test_thumbnails_and_lines():
    trace = small(50)
    tiles = MapTiles(trace, 2)
    for rest in (False, True):
        cell, found = tiles.thumbnails(20, rest)
        assert cell == 3 and found.shape == (2, 3, 17, 17)
        for layer, head in np.ndindex(2, 3):
            weights = trace.attention[layer, head].astype(float)
            weights = without_first(weights, 2) if rest else weights
            near(found[layer, head], naive(weights, 3, 2 * rest))
            np.testing.assert_array_equal(
                tiles.thumbnail(layer, head, 20, rest)[1], found[layer, head]
            )
            for way, line in (("keys", weights[30]), ("queries", weights[:, 30])):
                size, values = tiles.line(layer, head, 30, way, rest)
                assert size == 1
                np.testing.assert_allclose(values, line, atol=1e-6)
    assert len(triangles(found)) == 6 * 17 * 18 // 2


def test_what_is_left_without_the_sink_sums_to_one():
    tiles = MapTiles(small(40), 3)
    for token in range(3, 40):
        assert tiles.line(1, 2, token, "keys", True)[1].sum() == pytest.approx(1, abs=1e-4)


def test_pooled_maps_and_a_few_whole_ones():
    trace = pooled_trace(50, 8, keep=((1, 2),))
    tiles = MapTiles(trace, trace.n_sink)
    assert [tiles.finest(1, 2), tiles.finest(0, 0)] == [1, 8]
    whole = random_trace(50, 2, 3).attention
    near(tiles.tile(0, 0, 8, 0, 0), naive(whole[0, 0], 8))
    near(tiles.tile(0, 0, 16, 0, 0), naive(whole[0, 0], 16))
    near(tiles.tile(1, 2, 1, 0, 0), naive(whole[1, 2], 1))
    cell, line = tiles.line(0, 1, 33, "keys")
    assert cell == 8
    np.testing.assert_allclose(line[:5], np.nan_to_num(trace.pooled_max[0, 1, 4, :5]))
    # The sink's cell is taken out, and rows grow by the mean of what their queries left it.
    rest = tiles.tile(0, 0, 8, 0, 0, True)
    assert not rest[:, 0].any()
    left = trace.mass[0, 0, 40:48, [ROLES.index(r) for r in ("middle", "recent", "self")]].sum(0)
    grown = np.clip(trace.pooled_max[0, 0, 5, 1:6] / left.mean(), 0, 1)
    assert np.abs(rest[5, 1:6].astype(int) - codes(grown)).max() <= 1


def test_shares_of_the_sink():
    trace = small(30)
    np.testing.assert_allclose(MapTiles(trace, 1).shares(), trace.received[..., 0])
    expected = trace.attention[:, :, 3:, :3].sum(-1).mean(-1)
    np.testing.assert_allclose(MapTiles(trace, 3).shares(), expected, rtol=1e-5)
    statistics = changed(pooled_trace(50), n_sink=2)
    expected = statistics.mass_of("sink")[..., 2:].mean(-1)
    np.testing.assert_allclose(MapTiles(statistics, 2).shares(), expected, rtol=1e-5)


def test_pooling_leaves_the_map_as_it_was():
    weights = np.arange(12.0).reshape(3, 4)
    for cell in (1, 2, 9):
        pooled(weights, cell)
    np.testing.assert_array_equal(weights, np.arange(12.0).reshape(3, 4))


@pytest.mark.parametrize(
    ("fields", "n_sink", "said"),
    [
        ({"attention": None}, 1, "holds no maps"),
        ({}, 0, r"n_sink must be in 1\.\.37, got 0"),
        (
            {"attention": None, "pooled_max": np.zeros((2, 3, 1, 1)), "cell": 64},
            2,
            "first 1 tokens",
        ),
    ],
)
def test_bad_traces_are_refused(fields, n_sink, said):
    with pytest.raises(ValueError, match=said):
        MapTiles(changed(small(37), **fields), n_sink)


@pytest.mark.parametrize("at", [(0, 0, 0, 0, 0), (0, 0, 1, 1, 0), (0, 0, 1, 0, -1)])
def test_tiles_that_are_not_there(at):
    with pytest.raises(ValueError, match="no tile|no cells"):
        MapTiles(small(37), 1).tile(*at)


# Tokens -----------------------------------------------------------------------------------------


def test_labels_hold_nothing_invisible_and_nothing_endless():
    lines = labels(HOSTILE).decode().split("\n")
    assert len(lines) == len(HOSTILE) and max(map(len, lines)) == LONGEST
    assert all(character.isprintable() for line in lines for character in line)


# The widget -------------------------------------------------------------------------------------


def asked(explorer: AttentionExplorer, **content) -> tuple[dict, list[bytes]]:
    sent = []
    explorer.send = lambda content, buffers=None: sent.append((content, buffers))
    explorer._on_message(explorer, content, [])
    (answer,) = sent or [({}, [])]
    return answer


def test_front_end_is_sent_what_it_asks_for():
    trace = small(37)
    explorer = AttentionExplorer(trace)
    where = {"layer": 1, "head": 2, "rest": False}
    answer, (tile,) = asked(explorer, do="tiles", cell=2, tiles=[[0, 0]], **where)
    assert answer["shapes"] == [(19, 19)] and answer["tiles"] == [[0, 0]]
    near(np.frombuffer(tile, np.uint8).reshape(19, 19), naive(trace.attention[1, 2], 2))
    answer, (line,) = asked(explorer, do="line", token=20, way="queries", **where)
    np.testing.assert_array_equal(np.frombuffer(line, "<f4"), trace.attention[1, 2, :, 20])
    answer, (thumbs,) = asked(explorer, do="thumbs", rest=True)
    assert answer["cell"] == 1 and len(thumbs) == 6 * 37 * 38 // 2
    assert asked(explorer, do="tokens")[1] == [labels(trace.tokens)]
    assert asked(explorer, do="nothing we know") == ({}, [])
    asked(explorer, do="tiles", cell=2, tiles=[[7, 7]], **where)
    assert explorer.error == "no tile (7, 7) of cells of 2 tokens."


def test_begins_with_the_strongest_sink():
    trace = small(40)
    explorer = AttentionExplorer(trace)
    strongest = np.unravel_index(trace.received[..., 0].argmax(), (2, 3))
    assert (explorer.layer, explorer.head) == strongest
    assert explorer.n_sink == 1 and explorer.view == [0, 0, 40]
    kept = AttentionExplorer(pooled_trace(50, keep=((1, 1),)))
    assert (kept.layer, kept.head) == (1, 1)
    assert AttentionExplorer(trace, layer=-1, head=-2).layer == 1


def test_settings_stay_within_the_trace():
    explorer = AttentionExplorer(small(40))
    for name, value in (("layer", 2), ("head", -1), ("token", 40), ("gamma", 0.1), ("view", [1])):
        before = getattr(explorer, name)
        with pytest.raises(traitlets.TraitError, match=name):
            setattr(explorer, name, value)
        assert getattr(explorer, name) == before
    explorer.view = [-5, 90, 20]
    assert explorer.view == [0, 20, 20]
    explorer.view = [10, 10, 0.1]
    assert explorer.view == [10, 10, 8]
    with pytest.raises(IndexError, match="head must be in 0..2, got 3"):
        AttentionExplorer(small(40), layer=0, head=3)
    with pytest.raises(ValueError, match="neither"):
        AttentionExplorer(small(40), layer=0)


def saved(explorer: AttentionExplorer) -> int:
    """Characters of the state in a notebook."""
    return len(json.dumps(explorer.get_state(), default=lambda one: base64.b64encode(one).decode()))


@pytest.mark.parametrize(("layers", "heads", "n"), [(12, 12, 400), (32, 32, 40), (1, 1, 900)])
def test_a_saved_notebook_stays_small(layers, heads, n):
    trace = random_trace(n, layers, heads)
    words = tuple("\U0001f600" * 3 for _ in trace.tokens)
    assert saved(AttentionExplorer(changed(trace, tokens=words))) < 100_000


def test_repr_picture_and_twin():
    for trace in (small(60), pooled_trace(50)):
        explorer = AttentionExplorer(trace)
        n = len(trace.tokens)
        assert repr(explorer) == f"AttentionExplorer(random: {n} tokens, 2 layers x 3 heads)"
        data, _ = explorer._repr_mimebundle_()
        assert data["text/plain"] == repr(explorer) and len(data["image/png"]) > 10_000
        assert plt.get_fignums() == []
        for explorer.sink in (True, False):
            figure = explorer.figure()
            figure.canvas.draw()
            assert f"layer {explorer.layer}, head {explorer.head}" in figure.axes[1].get_title(
                "left"
            )
            plt.close(figure)


def test_page_holds_every_map_and_reaches_for_nothing(tmp_path):
    explorer = AttentionExplorer(changed(small(12), tokens=HOSTILE))
    text = explorer.to_html(tmp_path / "page.html", title="<i>a & b</i>").read_text("utf-8")
    assert text.count("<script") == text.count("</script>") == 2 and "<i>a" not in text
    assert not re.search(r"https?:|//\w+\.\w|url\(|@import", text)
    state = explorer.page_state(side=6)
    assert state["thumb_cell"] == 2 and len(state["thumbs"]) == 6 * 6 * 7 // 2
    with pytest.raises(ValueError, match=r"the page would take \d+ MB, more than 0.01"):
        explorer.to_html(tmp_path / "large.html", most_mb=0.01)
    assert [one.name for one in tmp_path.iterdir()] == ["page.html"]


def test_bench_says_what_it_lacks(monkeypatch):
    monkeypatch.delenv("CHROMIUM", raising=False)
    monkeypatch.setattr(bench.shutil, "which", lambda name: None)
    with pytest.raises(RuntimeError, match="install it"):
        bench.find_chromium()
    monkeypatch.setitem(__import__("sys").modules, "playwright.sync_api", None)
    with pytest.raises(RuntimeError, match="pip install playwright"):
        next(bench.bench_widgets())


# In the browser ---------------------------------------------------------------------------------

SETUP = """\
import dataclasses
import numpy as np
from sinkviz.bench.widgets import random_trace
from sinkviz.widgets import AttentionExplorer
from test_explorer import HOSTILE, pooled_trace
trace = random_trace(700, 3, 4)"""
EXPLORER = "explorer = AttentionExplorer(trace, layer=0, head=1); explorer"
AGAIN = "explorer"
NASTY = """\
tokens = HOSTILE + trace.tokens[len(HOSTILE):]
nasty = AttentionExplorer(dataclasses.replace(trace, tokens=tokens), layer=0, head=0)
nasty"""
POOLED = "pooled = AttentionExplorer(pooled_trace(120, 8)); pooled"

RESTART = "() => window.jupyterapp.shell.currentWidget.sessionContext.restartKernel()"


def sharp(page, head: str, index: int = 0) -> None:
    page.wait_for_function(
        "([i, head]) => { const one = document.querySelectorAll('.sinkviz')[i]?.dataset;"
        " return one?.drawn === head && one.cell !== 'coarse'; }",
        arg=[index, head],
    )


def heard(page, expression: str, *wanted: str) -> str:
    """What the kernel has, once it has heard of a move: ``wanted``, or anything but None."""
    for _ in range(60):
        found = page.kernel(f"print({expression})")
        if found in wanted or (not wanted and found != "None"):
            break
        page.wait_for_timeout(250)
    return found


def picture(page) -> str:
    return page.evaluate("document.querySelector('.sinkviz .map canvas').toDataURL()")


def spoken(page) -> str:
    return page.locator(".sinkviz .live").first.inner_text()


def pixel(page, query: float, key: float) -> list[int]:
    """Colour of the map at a query and a key, counted in tokens of the whole text."""
    return page.evaluate(
        """([query, key]) => {
          const canvas = document.querySelector('.sinkviz .map canvas');
          const dense = canvas.width / canvas.clientWidth;
          const side = canvas.clientWidth - 96 - 72;
          const at = (n) => Math.round(n * dense);
          const [x, y] = [96 + side * key / 700, 10 + side * query / 700];
          return [...canvas.getContext('2d').getImageData(at(x), at(y), 1, 1).data];
        }""",
        [query, key],
    )


@pytest.mark.browser
@pytest.mark.timeout(300)
@pytest.mark.parametrize("theme", ["light", "dark"])
def test_explorer_by_keyboard(open_page, theme):
    page = open_page(SETUP, EXPLORER, AGAIN, theme=theme, reduced_motion="reduce")
    sharp(page, "0.1")
    assert "Layer 0, head 1, the first token takes" in spoken(page)
    grid = page.get_by_role("grid").first
    assert grid.locator("[tabindex='0']").count() == 1
    grid.locator("[tabindex='0']").focus()
    pictures = {picture(page)}
    for key, head in (
        ("ArrowDown", "1.1"),
        ("ArrowRight", "1.2"),
        ("End", "1.3"),
        ("PageDown", "2.3"),
    ):
        page.keyboard.press(key)
        sharp(page, head)
        sharp(page, head, index=1)  # the other view of the same widget
        pictures.add(picture(page))
    assert len(pictures) == 5
    assert heard(page, "f'{explorer.layer} {explorer.head}'", "2 3") == "2 3"
    focused = "document.activeElement.getAttribute('aria-label')"
    assert page.evaluate(focused).startswith("layer 2, head 3: the sink takes")
    outline = page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
    assert outline == "solid"
    # A cross on the map, moved and pinned by keys alone.
    page.get_by_role("application").first.focus()
    for key in ("0", "ArrowUp", "ArrowUp", "Enter"):
        page.keyboard.press(key)
    pinned = int(heard(page, "explorer.token"))
    page.wait_for_selector(f'.sinkviz[data-line="{pinned}"]')
    page.keyboard.press("+")
    page.keyboard.press("+")
    page.wait_for_function("document.querySelector('.sinkviz').dataset.cell === '1'")
    assert heard(page, "float(explorer.view[2])", "175.0") == "175.0"
    # The kernel's exact shares stand in the list.
    page.keyboard.press("Escape")
    page.kernel("explorer.token = 300")
    page.wait_for_selector('.sinkviz[data-line="300"]')
    top = page.locator(".sinkviz .strongest").first.locator("li b").first.inner_text()
    assert top == page.kernel("print(f'{100 * trace.attention[2, 3, 300].max():.0f} %')")
    page.locator(".sinkviz .live", has_text="Token 300").first.wait_for()
    assert "reads" in spoken(page)
    # Tokens are walked with arrows.
    page.locator(".sinkviz .tokens").first.locator("[tabindex='0']").focus()
    page.keyboard.press("ArrowRight")
    page.wait_for_selector('.sinkviz[data-line="301"]')
    assert page.evaluate(focused).startswith("301:")
    colour = page.locator(".sinkviz h4").first.evaluate("one => getComputedStyle(one).color")
    assert (max(map(int, re.findall(r"\d+", colour)[:3])) > 127) == (theme == "dark")
    light = sum(pixel(page, 650, 320)[:3]) > 380
    assert light == (theme == "light")


@pytest.mark.browser
@pytest.mark.timeout(300)
def test_explorer_by_mouse(open_page):
    page = open_page(SETUP, EXPLORER, NASTY, POOLED)
    sharp(page, "0.1")
    first = page.locator(".sinkviz").first
    before = picture(page)
    first.get_by_label("Sink column").uncheck()
    page.locator(".verdict-line", has_text="this is the other").first.wait_for()
    sharp(page, "0.1")
    page.wait_for_timeout(300)
    without = picture(page)
    assert without != before and heard(page, "explorer.sink", "False") == "False"
    first.get_by_role("slider").fill("1")
    page.wait_for_timeout(200)
    assert picture(page) != without and heard(page, "float(explorer.gamma)", "1.0") == "1.0"
    first.get_by_label("Search").fill("word7 ")
    first.get_by_label("Search").fill("word96 word0")
    assert first.locator(".hits").inner_text() == "7 found"
    first.get_by_label("Search").press("Enter")
    assert first.locator(".hits").inner_text() == "1 of 7"
    assert heard(page, "explorer.token", "96") == "96"
    first.get_by_role("button", name="who reads it").click()
    page.wait_for_selector('.sinkviz[data-line="96"]')
    map_ = first.get_by_role("application")
    map_.scroll_into_view_if_needed()
    box = map_.bounding_box()
    page.mouse.move(box["x"] + 150, box["y"] + 200)
    assert "reads key" in first.locator(".readout").inner_text()
    page.mouse.down()
    page.mouse.move(box["x"] + 190, box["y"] + 240, steps=4)
    page.mouse.up()
    page.wait_for_function("document.querySelector('.sinkviz').dataset.cell === '1'")
    assert heard(page, "explorer.view[2] < 120", "True") == "True"
    # Text is text, whatever it says, and it does not break the page.
    nasty = page.locator(".sinkviz").nth(1)
    assert page.evaluate("window.hurt") is None and page.locator("#hurt").count() == 0
    assert "<script>window.hurt = 1</script>" in nasty.locator(".tokens").inner_text()
    assert nasty.evaluate("one => one.scrollWidth <= one.clientWidth + 1")
    pooled = page.locator(".sinkviz").nth(2)
    assert "pooled maps: a cell is the largest of 8" in pooled.locator("small").last.inner_text()
    assert pooled.get_attribute("data-cell") == "8"


@pytest.mark.browser
@pytest.mark.timeout(300)
def test_explorer_after_a_restart(open_page):
    page = open_page(SETUP, EXPLORER)
    sharp(page, "0.1")
    page.evaluate(RESTART)
    page.run_all()
    sharp(page, "0.1")
    assert page.locator(".sinkviz").count() == 1


@pytest.mark.browser
@pytest.mark.timeout(120)
def test_page_works_with_the_network_off(browser, tmp_path):
    tokens = HOSTILE + tuple(f" word{n}" for n in range(48))
    explorer = AttentionExplorer(changed(small(60), tokens=tokens), layer=0, head=0)
    file = explorer.to_html(tmp_path / "page.html")
    context = browser.new_context(offline=True)
    page = context.new_page()
    errors: list[str] = []
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.on("console", lambda said: errors.append(said.text) if said.type == "error" else 0)
    page.goto(Path(file).as_uri())
    page.wait_for_selector('.sinkviz[data-drawn="0.0"]')
    page.get_by_role("gridcell").nth(4).click()
    page.wait_for_selector('.sinkviz[data-drawn="1.1"]')
    assert page.evaluate("window.hurt") is None and page.locator("#hurt").count() == 0
    page.get_by_role("option").nth(50).click()
    page.wait_for_selector('.sinkviz[data-line="50"]')
    share = float(explorer._trace.attention[1, 1, 50].max())
    said = page.locator(".strongest b").first.inner_text()
    assert abs(float(said.split()[0].strip("<")) / 100 - share) < 0.012
    page.get_by_label("Sink column").uncheck()
    page.locator(".verdict-line", has_text="this is the other").first.wait_for()
    context.close()
    assert errors == []
