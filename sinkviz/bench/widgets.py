"""How long a widget takes to draw and to answer, in JupyterLab and headless Chromium.

Needs playwright and a Chromium, which the package itself does not.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from sinkviz.bench.measure import Row
from sinkviz.bench.widgets_against import compare, tools_named
from sinkviz.metrics import ROLES
from sinkviz.records import Trace

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
START = 90  # seconds for JupyterLab
EXPLORER = """\
import sinkviz as sv
from sinkviz.bench.widgets import random_trace
trace = random_trace({tokens}, {layers}, {heads})
explorer = sv.AttentionExplorer(trace)
explorer"""
SLIDER = """\
import sinkviz as sv
slider = sv.SinkSlider(sv.load({model!r}), "Once upon a time there was a mill. " * 150)
slider"""
# Acts, and answers with the milliseconds until the widget says that it has drawn what was wanted.
TIMED = """([widget, act, wanted]) => new Promise((done, fail) => {
  const root = document.querySelectorAll(".sinkviz")[widget];
  const until = new Function("root", `return ${wanted}`);
  const watch = new MutationObserver(() => {
    if (until(root)) requestAnimationFrame(() => {
      watch.disconnect();
      done(performance.now() - started);
    });
  });
  watch.observe(root, { attributes: true });
  setTimeout(() => fail(new Error(`never saw ${wanted}`)), 20000);
  const started = performance.now();
  new Function("root", act)(root);
})"""
CLICK = "root.querySelectorAll('[role=gridcell]')[{index}].click()"
MOVE = """
const input = root.querySelectorAll('input[type=range]')[{index}];
input.value = {value};
input.dispatchEvent(new Event('input', {{ bubbles: true }}));"""


def random_trace(n_tokens: int, n_layers: int, n_heads: int, seed: int = 0) -> Trace:
    """Return a trace of random causal attention with sinks of every strength.

    Args:
        n_tokens: length of the text.
        n_layers: layers.
        n_heads: heads per layer.
        seed: of the random numbers.
    """
    rng = np.random.default_rng(seed)
    position = np.arange(n_tokens)
    distance = position[:, None] - position
    shape = (n_layers, n_heads, n_tokens, n_tokens)
    maps = np.empty(shape, np.float32)
    noise = rng.gamma(0.3, 1, (n_tokens, n_tokens)).astype(np.float32) + 1e-3
    for layer, head in np.ndindex(n_layers, n_heads):
        reach = 3 + n_tokens * rng.random() ** 3
        weights = np.roll(noise, rng.integers(n_tokens), 1) * np.exp(-np.abs(distance) / reach)
        weights[distance == 1 + head] += rng.random() * 3
        weights = np.where(distance < 0, 0, weights)
        sink = (rng.beta(2, 2, n_tokens) * rng.random() * 1.9).clip(0, 0.98)
        sink[0] = 1
        maps[layer, head] = weights / weights.sum(-1, keepdims=True) * (1 - sink[:, None])
        maps[layer, head, :, 0] += sink
    mass = np.zeros((*shape[:3], len(ROLES)), np.float32)
    mass[..., ROLES.index("sink")] = maps[..., 0]
    mass[..., ROLES.index("middle")] = 1 - maps[..., 0]
    return Trace(
        tokens=("<|begin|>", *(f" word{n % 97}" for n in range(1, n_tokens))),
        token_ids=position,
        received=maps.sum(2) / (n_tokens - position),
        mass=mass,
        entropy=np.zeros(shape[:3], np.float32),
        attention=maps,
        n_sink=1,
        provenance={"model": "random"},
    )


def bench_widgets(
    model: str = "classroom-rope",
    *,
    tokens: int = 1024,
    layers: int = 12,
    heads: int = 12,
    repeat: int = 15,
    against: str | None = None,
) -> Iterator[Row]:
    """First draw, change of head, and slider to picture in JupyterLab, headless Chromium.

    With ``against``, names of other tools, instead the pages that we and they write.
    """
    if against is not None:
        tools_named(against)
        _playwright()
        yield from compare(
            against, lambda length: random_trace(length, layers, heads), find_chromium()
        )
        return
    cells = [
        EXPLORER.format(tokens=tokens, layers=layers, heads=heads),
        SLIDER.format(model=model),
    ]
    with _notebook(cells) as page:
        name = f"AttentionExplorer {layers}x{heads}, {tokens} tokens"
        rng = np.random.default_rng(0)
        heads_met = rng.permutation(layers * heads)[: repeat + 1].tolist()
        # Sharp tiles come from the kernel, which by then runs the next cell.
        first, sharp = page.evaluate(FIRST_DRAW)
        yield _row(name, "first draw", [first])
        yield _row(name, "first draw, sharp", [sharp])
        changes = [
            page.evaluate(TIMED, [0, CLICK.format(index=one), _sharp(one, heads)])
            for one in heads_met
        ]
        yield _row(name, "other head, sharp", changes[1:])
        again = [
            page.evaluate(TIMED, [0, CLICK.format(index=one), _sharp(one, heads)])
            for one in heads_met[:-1]
        ]
        yield _row(name, "head seen before", again)
        scales = [
            page.evaluate(TIMED, [0, MOVE.format(index=0, value=0.25 + 0.05 * (n % 12)), "true"])
            for n in range(repeat)
        ]
        yield _row(name, "colour scale to picture", scales)
        moves = [
            page.evaluate(
                TIMED,
                [1, MOVE.format(index=0, value=n), f"root.dataset.drawn === '{n}+60'"],
            )
            for n in (3, 2, 1, 0, 5, 6, 7, 8)
        ]
        yield _row("SinkSlider, 1,000 tokens", "slider to picture", moves)


FIRST_DRAW = "() => window.firstDraw"


def _sharp(index: int, heads: int) -> str:
    head = f"{index // heads}.{index % heads}"
    return f"root.dataset.drawn === '{head}' && root.dataset.cell !== 'coarse'"


def _row(widget: str, what: str, times: list[float]) -> Row:
    return {
        "widget": widget,
        "measures": what,
        "ms": float(np.median(times)),
        "longest_ms": float(np.max(times)),
        "times": len(times),
    }


def _playwright() -> tuple[Any, Any]:
    try:
        from playwright.sync_api import TimeoutError, sync_playwright
    except ImportError:
        raise RuntimeError("this benchmark drives a browser: pip install playwright") from None
    return TimeoutError, sync_playwright


def find_chromium() -> str:
    """Return the path of a Chromium; ``CHROMIUM`` names one that is not on the PATH.

    Raises:
        RuntimeError: there is none.
    """
    named = os.environ.get("CHROMIUM")
    found = named or next(filter(None, map(shutil.which, BROWSERS)), None)
    if found is None:
        raise RuntimeError(
            "no Chromium here: install it (on Debian: apt install chromium), or set CHROMIUM to "
            "its path"
        )
    return found


@contextlib.contextmanager
def _notebook(cells: list[str]) -> Iterator[Any]:
    """Open a notebook of these cells in JupyterLab, run it, and wait for what it draws."""
    TimeoutError, sync_playwright = _playwright()
    chromium = find_chromium()
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        book = {
            "cells": [
                {"cell_type": "code", "id": f"cell{n}", "source": cell, "metadata": {},
                 "outputs": [], "execution_count": None}
                for n, cell in enumerate(cells)
            ],
            "metadata": {"kernelspec": {"name": "python3", "display_name": "Python 3"}},
            "nbformat": 4,
            "nbformat_minor": 5,
        }  # fmt: skip
        (Path(folder) / "bench.ipynb").write_text(json.dumps(book))
        with _lab(Path(folder)) as address:
            browser = playwright.chromium.launch(executable_path=chromium, args=FLAGS)
            page = browser.new_page(viewport={"width": 1280, "height": 1000})
            page.set_default_timeout(120_000)
            page.goto(address)
            page.wait_for_selector(".jp-Notebook")
            page.wait_for_function(IDLE)
            page.evaluate(RUN_ALL)
            try:
                page.wait_for_function(f"{DRAWN} === {len(cells)}", timeout=1000 * START)
            except TimeoutError:
                said = page.locator(".jp-OutputArea-output").all_inner_texts()
                raise RuntimeError(f"the widgets were not drawn: {said}") from None
            page.wait_for_timeout(2000)  # thumbnails and whatever else comes late
            yield page
            browser.close()


DRAWN = "document.querySelectorAll('.sinkviz[data-drawn]').length"
IDLE = """() => window.jupyterapp?.shell.currentWidget
  ?.sessionContext?.session?.kernel?.status === "idle\""""
# The clock of the first draw starts when the output that holds the widget comes into the page.
RUN_ALL = """() => {
  let began = 0;
  const watch = new MutationObserver(() => {
    if (!began && document.querySelector(".jp-OutputArea-output")) began = performance.now();
    const root = document.querySelector(".sinkviz");
    if (!root?.dataset.drawn) return;
    window.firstDraw ??= [performance.now() - began];
    if (root.dataset.cell === "coarse") return;
    window.firstDraw.push(performance.now() - began);
    watch.disconnect();
  });
  watch.observe(document.body, { subtree: true, childList: true, attributes: true });
  window.jupyterapp.commands.execute("notebook:run-all-cells");
}"""


@contextlib.contextmanager
def _lab(folder: Path) -> Iterator[str]:
    """Run JupyterLab in a folder; yield the address of its notebook."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port = one.getsockname()[1]
    token = secrets.token_hex(16)
    environment = {
        **os.environ,
        "JUPYTER_CONFIG_DIR": str(folder / "config"),
        "JUPYTER_RUNTIME_DIR": str(folder / "runtime"),
        "NO_PROXY": "127.0.0.1",
    }
    command = [
        *(sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root"),
        "--ServerApp.ip=127.0.0.1",
        f"--ServerApp.port={port}",
        "--ServerApp.port_retries=0",
        f"--ServerApp.root_dir={folder}",
        f"--IdentityProvider.token={token}",
        "--LabApp.expose_app_in_browser=True",
        f"--LabApp.user_settings_dir={folder / 'settings'}",
        f"--LabApp.workspaces_dir={folder / 'workspaces'}",
    ]
    # Every cell is in the page, also below what is seen of it.
    tracker = folder / "settings" / "@jupyterlab" / "notebook-extension"
    tracker.mkdir(parents=True)
    (tracker / "tracker.jupyterlab-settings").write_text('{"windowingMode": "none"}')
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    process = subprocess.Popen(command, env=environment, cwd=folder, **quiet)
    try:
        address = f"http://127.0.0.1:{port}"
        until = time.monotonic() + START
        while True:
            try:
                urllib.request.urlopen(f"{address}/api?token={token}", timeout=5).close()
                break
            except (urllib.error.URLError, OSError):
                if process.poll() is not None or time.monotonic() > until:
                    raise RuntimeError("JupyterLab did not start; try: jupyter lab") from None
                time.sleep(0.3)
        yield f"{address}/lab/tree/bench.ipynb?reset&token={token}"
    finally:
        process.terminate()  # the server takes its kernels along
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()
