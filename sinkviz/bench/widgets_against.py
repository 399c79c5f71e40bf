"""The attention explorer beside other tools that draw a model's attention: bytes, time to draw.

Each tool writes one page of every head of the same trace, and headless Chromium opens it. A tool is
an optional extra of its own licence; where it is not installed, its row says so. Needs playwright
and a Chromium.
"""

from __future__ import annotations

import importlib.util
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

from sinkviz.bench.measure import Row
from sinkviz.records import Trace
from sinkviz.widgets import AttentionExplorer

LENGTHS = (64, 128, 256)
LIMIT = 60.0  # seconds for a page
PATIENCE = 3.0  # seconds to draw nevertheless, once a script could not be fetched
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
PAGE = '<!DOCTYPE html>\n<html><head><meta charset="utf-8"></head><body>\n{}\n</body></html>'
# Looks twenty times a second; the clock of a page starts when it is asked for.
WATCH = """() => {
  const look = () => {
    if (%s) console.log(`sinkviz drawn ${performance.now()}`);
    else setTimeout(look, 50);
  };
  look();
}"""
# A canvas whose first pixel is there has been painted: the first token reads itself.
PAINTED = """[...document.querySelectorAll("canvas")].filter(
  (one) => one.getContext("2d")?.getImageData(0, 0, 1, 1).data[3]).length >= HEADS"""


@dataclass(frozen=True)
class Tool:
    """Another tool.

    Attributes:
        shows: what of it is compared.
        write: writes a page of all heads of a trace.
        drawn: in JavaScript, whether all HEADS heads are in the page.
    """

    shows: str
    write: Callable[[Trace, Path], None]
    drawn: str


def _write_sinkviz(trace: Trace, path: Path) -> None:
    AttentionExplorer(trace).to_html(path, most_mb=1000)


def _write_bertviz(trace: Trace, path: Path) -> None:
    import torch
    from bertviz import model_view

    maps = [torch.from_numpy(layer)[None] for layer in trace.attention]
    made = model_view(maps, list(trace.tokens), html_action="return")
    path.write_text(PAGE.format(made.data), encoding="utf-8")


def _write_circuitsvis(trace: Trace, path: Path) -> None:
    from circuitsvis.attention import attention_heads

    layers, heads, length, _ = trace.attention.shape
    made = attention_heads(
        trace.attention.reshape(layers * heads, length, length),
        list(trace.tokens),
        [f"{layer}.{head}" for layer in range(layers) for head in range(heads)],
    )
    # It asks the network which page to give; this is the one that needs none.
    path.write_text(PAGE.format(made.local_src), encoding="utf-8")


TOOLS = {
    "sinkviz": Tool(
        "AttentionExplorer", _write_sinkviz, "document.querySelector('.sinkviz[data-drawn]')"
    ),
    "bertviz": Tool(
        "model_view", _write_bertviz, "document.querySelectorAll('svg line').length >= HEADS"
    ),
    "circuitsvis": Tool("attention_heads", _write_circuitsvis, PAINTED),
}


def tools_named(names: str) -> list[str]:
    """Return the tools of a comma-separated list, ours first.

    Raises:
        ValueError: we do not know one.

    Example:
        >>> tools_named("circuitsvis, bertviz")
        ['sinkviz', 'circuitsvis', 'bertviz']
    """
    wanted = [name.strip() for name in names.split(",") if name.strip()]
    if unknown := [name for name in wanted if name not in TOOLS]:
        known = ", ".join(name for name in TOOLS if name != "sinkviz")
        raise ValueError(f"no tool {unknown[0]!r} to compare with; known are {known}")
    return ["sinkviz", *(name for name in wanted if name != "sinkviz")]


def compare(
    names: str,
    trace_of: Callable[[int], Trace],
    chromium: str,
    *,
    lengths: tuple[int, ...] = LENGTHS,
    limit: float = LIMIT,
) -> Iterator[Row]:
    """Yield a row per tool and length: megabytes of its page, seconds until all heads are drawn.

    Args:
        names: the tools, comma-separated.
        trace_of: gives a trace of so many tokens, with whole maps.
        chromium: path of the browser.
        lengths: of the text, tokens.
        limit: seconds for a page to draw.
    """
    tools = tools_named(names)
    missing = [name for name in tools if importlib.util.find_spec(name) is None]
    for name in missing:
        said = f"not installed: pip install {name}, or sinkviz[compare]"
        yield {"tool": name, "tokens": None, "page_mb": None, "seconds": None, "says": said}
    with tempfile.TemporaryDirectory() as folder:
        for length in lengths:
            trace = trace_of(length)
            heads = trace.n_layers * trace.n_heads
            for name in tools:
                if name in missing:
                    continue
                path = Path(folder) / f"{name}{length}.html"
                TOOLS[name].write(trace, path)
                drawn = TOOLS[name].drawn.replace("HEADS", str(heads))
                seconds, said = _open(path, drawn, chromium, limit)
                yield {
                    "tool": f"{name} {TOOLS[name].shows}",
                    "tokens": length,
                    "page_mb": path.stat().st_size / 1e6,
                    "seconds": seconds,
                    "says": said,
                }
                path.unlink()


def _open(path: Path, drawn: str, chromium: str, limit: float) -> tuple[float | None, str]:
    """Return the seconds a page takes to draw, and why it did not."""
    from playwright.sync_api import Error, sync_playwright

    refused: set[str] = set()
    drawn_at: list[float] = []

    def listen(said: Any) -> None:
        if said.text.startswith("sinkviz drawn "):
            drawn_at.append(float(said.text.split()[-1]) / 1000)

    with sync_playwright() as playwright:
        # A browser each: a page that is still busy would slow down the next one.
        browser = playwright.chromium.launch(executable_path=chromium, args=FLAGS)
        page = browser.new_page(viewport={"width": 1280, "height": 1000})
        page.on("console", listen)
        page.on("requestfailed", lambda one: refused.add(urlparse(one.url).hostname or "nowhere"))
        page.add_init_script(f"({WATCH % drawn})()")
        started = time.monotonic()
        try:
            page.goto(path.as_uri(), wait_until="commit", timeout=1000 * limit)
            # A busy page answers no question: it is listened to, and closed when time is up.
            while not drawn_at and (waited := time.monotonic() - started) < limit:
                if refused and waited > PATIENCE:
                    hosts = ", ".join(sorted(refused))
                    return None, f"draws nothing offline: it needs scripts from {hosts}"
                page.wait_for_timeout(100)
        except Error as error:
            return None, error.message.splitlines()[0]
        finally:
            browser.close()
    return (drawn_at[0], "") if drawn_at else (None, f"not within {limit:g} s")
