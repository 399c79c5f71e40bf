"""AttentionExplorer: what the kernel tells is held against plain loops, and a browser uses it."""

from __future__ import annotations

import base64
import dataclasses
import json
import re
from collections.abc import Collection
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pytest
import traitlets

from sinkviz.bench import widgets as bench
from sinkviz.bench import widgets_against as against
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


def naive(weights: np.ndarray, cell: int, gone: Collection[int] = ()) -> np.ndarray:
    """Codes of a whole map by plain loops; weights of keys that are gone are left out."""
    n = len(weights)
    side = -(-n // cell)
    found = np.zeros((side, side), np.uint8)
    for query in range(n):
        for key in range(query + 1):
            if key not in gone:
                code = 1 + round(254 * float(weights[query, key]) ** 0.5)
                at = query // cell, key // cell
                found[at] = max(found[at], code)
    return found


def left_over(weights: np.ndarray, gone: Collection[int]) -> np.ndarray:
    """What each query gives to the other keys, brought up to one."""
    if not gone:
        return weights
    there = ~np.isin(np.arange(len(weights)), list(gone))
    left = weights[:, there].sum(-1, keepdims=True)
    return np.where(left > 1e-6, weights / np.maximum(left, 1e-6), 0) * there


def near(one: np.ndarray, other: np.ndarray) -> None:
    """The same cells are empty, and codes differ by rounding at most."""
    assert one.shape == other.shape
    np.testing.assert_array_equal(one == 0, other == 0)
    assert np.abs(one.astype(int) - other).max() <= 1


# Tiles ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cell", [1, 2, 3, 16, 64])
@pytest.mark.parametrize("gone", [(), (0,), (0, 1, 9), (16, 36), tuple(range(3, 37))])
def test_tiles_are_the_largest_of_each_cell(cell, gone):
    trace = small(37)
    tiles = MapTiles(trace)
    for layer, head in np.ndindex(2, 3):
        weights = trace.attention[layer, head].astype(float)
        expected = naive(left_over(weights, gone), cell, gone)
        near(tiles.tile(layer, head, cell, 0, 0, gone), expected)


def test_tiles_cut_a_long_map_without_seams():
    trace = random_trace(2 * TILE + 40, 1, 1)
    tiles = MapTiles(trace)
    whole = naive(trace.attention[0, 0], 1)
    rows = [
        np.hstack([tiles.tile(0, 0, 1, row, column) for column in range(3)]) for row in range(3)
    ]
    near(np.vstack(rows), whole)
    near(tiles.tile(0, 0, 2, 1, 0), naive(trace.attention[0, 0], 2)[TILE:, :TILE])


def test_thumbnails_and_lines():
    trace = small(50)
    tiles = MapTiles(trace)
    for gone in ((), (0, 1), (7, 22, 23)):
        cell, found = tiles.thumbnails(20, gone)
        assert cell == 3 and found.shape == (2, 3, 17, 17)
        for layer, head in np.ndindex(2, 3):
            weights = left_over(trace.attention[layer, head].astype(float), gone)
            near(found[layer, head], naive(weights, 3, gone))
            np.testing.assert_array_equal(
                tiles.thumbnail(layer, head, 20, gone)[1], found[layer, head]
            )
            for way, line in (("keys", weights[30]), ("queries", weights[:, 30])):
                size, values = tiles.line(layer, head, 30, way, gone)
                assert size == 1
                np.testing.assert_allclose(values, line, atol=1e-6)
    assert len(triangles(found)) == 6 * 17 * 18 // 2


@pytest.mark.parametrize("gone", [(0, 1, 2), (2, 17, 30)])
def test_what_is_left_without_the_sinks_sums_to_one(gone):
    tiles = MapTiles(small(40))
    for token in range(3, 40):
        assert tiles.line(1, 2, token, "keys", gone)[1].sum() == pytest.approx(1, abs=1e-4)


def test_pooled_maps_and_a_few_whole_ones():
    trace = pooled_trace(50, 8, keep=((1, 2),))
    tiles = MapTiles(trace)
    assert [tiles.finest(1, 2), tiles.finest(0, 0)] == [1, 8]
    whole = random_trace(50, 2, 3).attention
    near(tiles.tile(0, 0, 8, 0, 0), naive(whole[0, 0], 8))
    near(tiles.tile(0, 0, 16, 0, 0), naive(whole[0, 0], 16))
    near(tiles.tile(1, 2, 1, 0, 0), naive(whole[1, 2], 1))
    cell, line = tiles.line(0, 1, 33, "keys")
    assert cell == 8
    np.testing.assert_allclose(line[:5], np.nan_to_num(trace.pooled_max[0, 1, 4, :5]))
    # The sink's cell is taken out, and rows grow by the mean of what their queries left it.
    rest = tiles.tile(0, 0, 8, 0, 0, tiles.sinks([0]))
    assert not rest[:, 0].any()
    left = trace.mass[0, 0, 40:48, [ROLES.index(r) for r in ("middle", "recent", "self")]].sum(0)
    grown = np.clip(trace.pooled_max[0, 0, 5, 1:6] / left.mean(), 0, 1)
    assert np.abs(rest[5, 1:6].astype(int) - codes(grown)).max() <= 1


def test_shares_of_the_sinks():
    trace = small(30)
    tiles = MapTiles(trace)
    for one in (0, 7, 29):
        np.testing.assert_allclose(tiles.shares((one,)), trace.received[..., one])
    for sinks in ((0, 1, 2), (0, 11), (4, 28)):
        later = [query for query in range(30) if query > sinks[-1]]
        expected = sum(trace.attention[:, :, later, key].mean(-1) for key in sinks)
        np.testing.assert_allclose(tiles.shares(sinks), expected, rtol=1e-5)
    statistics = changed(pooled_trace(50), n_sink=2)
    expected = statistics.mass_of("sink")[..., 2:].mean(-1)
    np.testing.assert_allclose(MapTiles(statistics).shares((0, 1)), expected, rtol=1e-5)


def test_pooling_leaves_the_map_as_it_was():
    weights = np.arange(12.0).reshape(3, 4)
    for cell in (1, 2, 9):
        pooled(weights, cell)
    np.testing.assert_array_equal(weights, np.arange(12.0).reshape(3, 4))


def test_traces_without_maps_are_refused():
    with pytest.raises(ValueError, match="holds no maps"):
        MapTiles(changed(small(37), attention=None))


def test_sinks_that_are_not_there():
    tiles = MapTiles(small(37))
    assert tiles.sinks([9, 0, 9]) == (0, 9)
    for wrong in ([], [-1, 3], [37]):
        with pytest.raises(ValueError, match=r"one of the tokens 0\.\.36, got"):
            tiles.sinks(wrong)
    kept = MapTiles(pooled_trace(50))
    assert kept.sinks([0]) == (0,)
    for other in ([0, 1], [8]):
        with pytest.raises(ValueError, match=r"first 1 tokens, as captured, not \[.*keep='maps'"):
            kept.sinks(other)


@pytest.mark.parametrize("at", [(0, 0, 0, 0, 0), (0, 0, 1, 1, 0), (0, 0, 1, 0, -1)])
def test_tiles_that_are_not_there(at):
    with pytest.raises(ValueError, match="no tile|no cells"):
        MapTiles(small(37)).tile(*at)


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
    where = {"layer": 1, "head": 2, "without": []}
    answer, (tile,) = asked(explorer, do="tiles", cell=2, tiles=[[0, 0]], **where)
    assert answer["shapes"] == [(19, 19)] and answer["tiles"] == [[0, 0]]
    near(np.frombuffer(tile, np.uint8).reshape(19, 19), naive(trace.attention[1, 2], 2))
    answer, (line,) = asked(explorer, do="line", token=20, way="queries", **where)
    np.testing.assert_array_equal(np.frombuffer(line, "<f4"), trace.attention[1, 2, :, 20])
    answer, (thumbs,) = asked(explorer, do="thumbs", without=[0])
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
    assert explorer.sinks == [0] and explorer.view == [0, 0, 40]
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


def test_the_sink_may_be_anywhere():
    trace = small(40)
    explorer = AttentionExplorer(trace, sink_at=(20, 4), n_sink=2, layer=0, head=0)
    assert explorer.sinks == [4, 5, 20, 21]
    assert AttentionExplorer(trace, sink_at=7).sinks == [7]
    for explorer.sinks in ([4, 5, 20, 21], [9], [0, 30]):
        expected = MapTiles(trace).shares(tuple(explorer.sinks)).ravel().astype("<f4")
        np.testing.assert_array_equal(np.frombuffer(explorer.shares, "<f4"), expected)
    # The head that is shown at first is the one with the strongest of these sinks.
    moved = AttentionExplorer(trace, sink_at=9)
    strongest = np.unravel_index(trace.received[..., 9].argmax(), (2, 3))
    assert (moved.layer, moved.head) == strongest
    moved.show_sinks = False
    figure = moved.figure()
    cells = figure.axes[1].images[0].get_array()
    weights = left_over(trace.attention[moved.layer, moved.head].astype(float), [9])
    assert cells.mask[:, 9].all() and not cells.mask[10, 10]
    np.testing.assert_allclose(cells[20, :9], weights[20, :9], atol=0.005)
    plt.close(figure)


def test_a_sink_must_be_a_token():
    trace = small(40)
    with pytest.raises(ValueError, match=r"0\.\.39, got \[40\]"):
        AttentionExplorer(trace, sink_at=40)
    with pytest.raises(ValueError, match="n_sink must be at least 1, got 0"):
        AttentionExplorer(trace, n_sink=0)
    with pytest.raises(ValueError, match="first 1 tokens, as captured"):
        AttentionExplorer(pooled_trace(50), sink_at=8)
    explorer = AttentionExplorer(trace)
    with pytest.raises(traitlets.TraitError, match="got \\[\\]"):
        explorer.sinks = []
    assert explorer.sinks == [0]


def saved(explorer: AttentionExplorer) -> int:
    """Characters of the state in a notebook."""
    return len(json.dumps(explorer.get_state(), default=lambda one: base64.b64encode(one).decode()))


@pytest.mark.parametrize(("layers", "heads", "n"), [(12, 12, 400), (32, 32, 40), (1, 1, 900)])
def test_a_saved_notebook_stays_small(layers, heads, n):
    trace = random_trace(n, layers, heads)
    words = tuple("\U0001f600" * 3 for _ in trace.tokens)
    assert saved(AttentionExplorer(changed(trace, tokens=words))) < 100_000


def test_a_text_of_32768_tokens_is_shown_from_its_statistics():
    n, cell, rng = 32_768, 128, np.random.default_rng(0)
    mass = rng.random((2, 3, n, len(ROLES))).astype(np.float32)
    trace = changed(
        pooled_trace(),
        tokens=("word",) * n,
        token_ids=np.zeros(n, np.int64),
        received=rng.random((2, 3, n)).astype(np.float32),
        mass=mass / mass.sum(-1, keepdims=True),
        entropy=rng.random((2, 3, n)).astype(np.float32),
        pooled_max=rng.random((2, 3, n // cell, n // cell)).astype(np.float32),
        cell=cell,
    )
    explorer = AttentionExplorer(trace)
    assert saved(explorer) < 100_000
    explorer.token = n - 1
    assert explorer.view == [0, 0, n]
    tile = MapTiles(trace).tile(1, 2, cell, 0, 0)
    seen = np.tril(np.ones_like(tile, bool))
    near(tile, np.where(seen, codes(trace.pooled_max[1, 2])[: len(tile), : len(tile)], 0))
    assert explorer.figure().axes


def test_repr_picture_and_twin():
    for trace in (small(60), pooled_trace(50)):
        explorer = AttentionExplorer(trace)
        n = len(trace.tokens)
        assert repr(explorer) == f"AttentionExplorer(random: {n} tokens, 2 layers x 3 heads)"
        data, _ = explorer._repr_mimebundle_()
        assert data["text/plain"] == repr(explorer) and len(data["image/png"]) > 10_000
        assert plt.get_fignums() == []
        for explorer.show_sinks in (True, False):
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


# Beside other tools -----------------------------------------------------------------------------


def pages_of(monkeypatch, **pages: str) -> None:
    """Tools that write these pages, all installed, beside our own."""
    tools = {
        name: against.Tool("page", lambda _, path, text=text: path.write_text(text), "window.done")
        for name, text in pages.items()
    }
    monkeypatch.setattr(against, "TOOLS", {"sinkviz": against.TOOLS["sinkviz"], **tools})
    monkeypatch.setattr(against.importlib.util, "find_spec", lambda name: name)


@pytest.mark.browser
def test_pages_are_timed_and_what_draws_nothing_is_told(chromium, monkeypatch):
    pages_of(
        monkeypatch,
        quick="<script>setTimeout(() => { window.done = true; }, 300)</script>",
        never="<script>const start = Date.now(); while (Date.now() - start < 20000);</script>",
        online="<script src='https://scripts.invalid/d3.js'></script>",
    )
    names = "quick,never,online"
    rows = against.compare(names, lambda n: small(n), chromium, lengths=(40,), limit=5)
    ours, quick, never, online = rows
    assert ours["tool"] == "sinkviz AttentionExplorer" and 0 < ours["seconds"] < 5
    assert ours["page_mb"] > 0.05 and ours["tokens"] == 40
    assert 0.3 <= quick["seconds"] < 5 and quick["says"] == ""
    assert never["seconds"] is None and never["says"] == "not within 5 s"
    assert online["seconds"] is None
    assert online["says"] == "draws nothing offline: it needs scripts from scripts.invalid"


def test_tools_that_are_unknown_or_missing(monkeypatch):
    with pytest.raises(ValueError, match="no tool 'exbert'.*known are bertviz, circuitsvis"):
        next(bench.bench_widgets(against="exbert"))
    monkeypatch.setattr(against.importlib.util, "find_spec", lambda name: name == "sinkviz" or None)
    rows = list(against.compare("bertviz", small, "no browser", lengths=()))
    assert [row["says"] for row in rows] == [
        "not installed: pip install bertviz, or sinkviz[compare]"
    ]


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


def pixel(page, query: float, key: float, view: tuple[float, float, float] = (0, 0, 700)):
    """Red, green, blue and opacity of the map at a query and a key, text positions."""
    return page.evaluate(
        """([query, key, view]) => {
          const canvas = document.querySelector('.sinkviz .map canvas');
          const dense = canvas.width / canvas.clientWidth;
          const side = canvas.clientWidth - 96 - 72;
          const at = (n) => Math.round(n * dense);
          const x = 96 + side * (key - view[1]) / view[2];
          const y = 10 + side * (query - view[0]) / view[2];
          return [...canvas.getContext('2d').getImageData(at(x), at(y), 1, 1).data];
        }""",
        [query, key, view],
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
    assert without != before and heard(page, "explorer.show_sinks", "False") == "False"
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
def test_any_token_may_be_called_a_sink(open_page):
    page = open_page(SETUP, EXPLORER, POOLED)
    sharp(page, "0.1")
    first = page.locator(".sinkviz").first
    call = first.get_by_role("button", name="is a sink")
    assert call.is_disabled()  # nothing is pinned
    page.kernel("explorer.view = [600, 250, 100]; explorer.token = 0")
    page.wait_for_selector('.sinkviz[data-line="0"]')
    assert call.is_disabled() and call.get_attribute("aria-pressed") == "true"  # the only one
    page.kernel("explorer.token = 300")
    page.wait_for_selector('.sinkviz[data-line="300"]')
    titles = "[...document.querySelectorAll('[role=gridcell]')].map((one) => one.title)"
    before = page.evaluate(titles)
    call.focus()
    page.keyboard.press("Enter")
    first.locator(".verdict-line", has_text="tokens 0 and 300 take").wait_for()
    assert heard(page, "explorer.sinks", "[0, 300]") == "[0, 300]"
    both = page.kernel("print(f'{100 * trace.attention[2, 3, 301:, [0, 300]].sum(0).mean():.1f}')")
    page.wait_for_function(f"before => `${{{titles}}}` !== `${{before}}`", arg=before)
    said = first.get_by_role("gridcell").nth(11).get_attribute("aria-label")
    assert float(said.split()[-2]) == pytest.approx(float(both), abs=0.51)
    view = (600, 250, 100)
    # Without their columns the map is empty there, and only there; the cells beside it stay.
    page.keyboard.press("Escape")
    assert pixel(page, 650.5, 300.5, view)[3] == 255
    first.get_by_label("Sink columns").uncheck()
    first.locator(".verdict-line", has_text="this is the other").wait_for()
    page.wait_for_function(
        "document.querySelector('.sinkviz').dataset.cell === '1'"
        " && document.querySelector('.sinkviz').dataset.line === '300'"
    )
    assert pixel(page, 650.5, 300.5, view)[3] < 255
    assert [pixel(page, 650.5, key + 0.5, view)[3] for key in (299, 301)] == [255, 255]
    # The kernel may move them, too, and a token that is one can be let go.
    page.kernel("explorer.sinks = [299]; explorer.token = 299")
    first.locator(".verdict-line", has_text="token 299").wait_for()
    page.wait_for_function("document.querySelector('.sinkviz').dataset.cell === '1'")
    page.wait_for_selector('.sinkviz[data-line="299"]')
    assert pixel(page, 650.5, 299.5, view)[3] < 255 == pixel(page, 650.5, 300.5, view)[3]
    assert call.is_disabled()
    # A trace of statistics knows the sinks of its capture only.
    assert page.locator(".sinkviz").nth(1).get_by_text("is a sink").is_hidden()


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
