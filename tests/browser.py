"""JupyterLab in headless Chromium: ``pytest_plugins = ["browser"]``, then ``run_notebook``.

One server serves the session, from an empty folder and with the network off; a test that takes
``front_end`` runs in JupyterLab and in Notebook 7. What a page asked for and what it logged is
kept, so that a test can hold it against nothing.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

import nbformat
import pytest

ROOT = Path(__file__).parent.parent
START = 60  # seconds for the server to answer
FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
SETTINGS = {
    "apputils-extension/notification": {"fetchNews": "false", "checkForUpdates": False},
    "notebook-extension/tracker": {"windowingMode": "none"},
    "docmanager-extension/plugin": {"autosave": False},
}
RUN_ALL = """() => {
  window.ran = null;
  window.jupyterapp.commands
    .execute("notebook:run-all-cells")
    .then(() => { window.ran = ""; }, (error) => { window.ran = `${error}`; });
}"""
EXECUTE = """async (code) => {
  let said = "";
  const kernel = window.jupyterapp.shell.currentWidget.sessionContext.session.kernel;
  const future = kernel.requestExecute({ code, store_history: false });
  future.onIOPub = ({ content }) => {
    said += content.text ?? (content.traceback ? content.traceback.join("\\n") : "");
  };
  await future.done;
  return said.trim();
}"""
IDLE = """() => {
  const panel = window.jupyterapp.shell.currentWidget;
  return panel?.sessionContext?.session?.kernel?.status === "idle";
}"""


@dataclass
class Page:
    """A notebook that has been run, and what its page did."""

    page: Any
    errors: list[str] = field(default_factory=list)
    hosts: set[str | None] = field(default_factory=set)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.page, name)

    def execute(self, command: str) -> None:
        """Start one of JupyterLab's commands."""
        self.page.evaluate("name => { window.jupyterapp.commands.execute(name); }", command)

    def kernel(self, code: str) -> str:
        """Run code in the notebook's kernel, outside its cells, and return what it printed."""
        return self.page.evaluate(EXECUTE, code)

    def run_all(self, seconds: float = 120) -> None:
        """Run all cells and wait until they are done."""
        self.page.wait_for_selector(".jp-Notebook", timeout=60_000)
        self.page.wait_for_function(IDLE, timeout=60_000)
        self.page.evaluate(RUN_ALL)
        self.page.wait_for_function("window.ran !== null", timeout=1000 * seconds)
        assert self.page.evaluate("window.ran") == ""

    def failed_cells(self) -> list[str]:
        """Return the text of every output that is an error."""
        mime = "application/vnd.jupyter.error"
        return self.page.locator(
            f'.jp-OutputArea-output[data-mime-type="{mime}"]'
        ).all_inner_texts()


@dataclass(frozen=True)
class Lab:
    """A running JupyterLab or Notebook."""

    url: str
    token: str
    folder: Path
    settings: Path
    tree: str = "lab/tree"  # where it opens notebooks
    faults: tuple[str, ...] = ()  # what it complains of by itself, in an empty notebook, too

    def ask(self, path: str, method: str = "GET") -> Any:
        """Call the server's API."""
        request = urllib.request.Request(
            f"{self.url}/api/{path}",
            method=method,
            headers={"Authorization": f"token {self.token}"},
        )
        with urllib.request.urlopen(request, timeout=20) as answer:
            body = answer.read()
        return json.loads(body) if body else None

    def set(self, plugin: str, values: dict[str, Any]) -> None:
        """Write the settings of one of JupyterLab's plugins; the next page reads them."""
        file = self.settings / "@jupyterlab" / f"{plugin}.jupyterlab-settings"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(values))


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


def wait_for_server(lab: Lab, process: subprocess.Popen, log: Path) -> None:
    until = time.monotonic() + START
    while time.monotonic() < until:
        if process.poll() is not None:
            break
        try:
            lab.ask("status")
            return
        except (urllib.error.URLError, OSError):
            time.sleep(0.3)
    pytest.fail(f"the server did not start:\n{log.read_text()[-3000:]}")


@contextlib.contextmanager
def serve(
    base: Path, module: str, app: str, tree: str, faults: tuple[str, ...] = ()
) -> Iterator[Lab]:
    """Run a front end on a free port, with nothing from the user's own settings.

    Args:
        base: an empty folder.
        module: what Python runs.
        app: the name under which it takes its settings.
        tree: where it opens notebooks.
        faults: complaints of its own.
    """
    port, token = free_port(), secrets.token_hex(16)
    url = f"http://127.0.0.1:{port}"
    lab = Lab(url, token, base / "notebooks", base / "settings", tree, faults)
    lab.folder.mkdir()
    for plugin, values in SETTINGS.items():
        lab.set(plugin, values)
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join((str(ROOT), str(ROOT / "tests"))),
        "HF_HUB_OFFLINE": "1",
        "JUPYTER_CONFIG_DIR": str(base / "config"),
        "JUPYTER_DATA_DIR": str(base / "data"),
        "JUPYTER_RUNTIME_DIR": str(base / "runtime"),
        "IPYTHONDIR": str(base / "ipython"),
        "NO_PROXY": "127.0.0.1",
    }
    environment.pop("MPLBACKEND", None)
    log = base / "log"
    command = [
        *(sys.executable, "-m", module, "--no-browser", "--allow-root"),
        "--ServerApp.ip=127.0.0.1",
        f"--ServerApp.port={port}",
        "--ServerApp.port_retries=0",
        f"--ServerApp.root_dir={lab.folder}",
        f"--IdentityProvider.token={token}",
        f"--{app}.expose_app_in_browser=True",
        f"--{app}.user_settings_dir={lab.settings}",
        f"--{app}.workspaces_dir={base / 'workspaces'}",
    ]
    with log.open("w") as file:
        process = subprocess.Popen(
            command,
            env=environment,
            cwd=lab.folder,
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        wait_for_server(lab, process, log)
        yield lab
    finally:
        process.terminate()  # the server takes its kernels along
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait(10)


@pytest.fixture(scope="session")
def lab(chromium: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    """JupyterLab."""
    with serve(tmp_path_factory.mktemp("lab"), "jupyterlab", "LabApp", "lab/tree") as running:
        yield running


@pytest.fixture(scope="session")
def notebook7(chromium: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    """Notebook 7."""
    pytest.importorskip("notebook", reason="notebook is not installed: pip install notebook")
    base = tmp_path_factory.mktemp("notebook7")
    # Seen in 7.6.5, of its plugin for settings.
    faults = ("Cannot read properties of undefined (reading 'schema')",)
    with serve(base, "notebook", "JupyterNotebookApp", "notebooks", faults) as running:
        yield running


@pytest.fixture(params=["lab", "notebook7"])
def front_end(request: pytest.FixtureRequest) -> Lab:
    """Each of the front ends in turn; a test that takes it opens its notebooks there."""
    return request.getfixturevalue(request.param)


@pytest.fixture(scope="module")
def browser(chromium: str) -> Iterator[Any]:
    """A headless Chromium. It ends with the module, because playwright's event loop does not go
    together with tests that run one of their own."""
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    with sync_api.sync_playwright() as playwright:
        found = playwright.chromium.launch(executable_path=chromium, headless=True, args=FLAGS)
        yield found
        found.close()


@pytest.fixture
def run_notebook(request: pytest.FixtureRequest, browser: Any) -> Iterator[Callable[..., Page]]:
    """``run_notebook(path, theme="light", seconds=120) -> Page``: open a copy, run all its cells.

    It is JupyterLab's page, or the ``front_end``'s where a test takes that. The page is closed and
    its kernel shut down when the test ends.
    """
    chosen = "front_end" if "front_end" in request.fixturenames else "lab"
    lab = request.getfixturevalue(chosen)
    contexts = []

    def run(path: Path, *, theme: str = "light", seconds: float = 120, **context: Any) -> Page:
        copy = lab.folder / path.name
        shutil.copy(path, copy)
        lab.set("apputils-extension/themes", {"theme": f"JupyterLab {theme.title()}"})
        options = {"viewport": {"width": 1280, "height": 1000}, **context}
        contexts.append(browser.new_context(**options))
        page = Page(contexts[-1].new_page())
        page.set_default_timeout(20_000)

        def complain(said: str, page: Page = page) -> None:
            if said not in lab.faults:
                page.errors.append(said)

        page.on("pageerror", lambda error: complain(str(error)))
        page.on("console", lambda said: complain(said.text) if said.type == "error" else 0)
        page.on("request", lambda asked: page.hosts.add(urlparse(asked.url).hostname))
        page.goto(f"{lab.url}/{lab.tree}/{copy.name}?reset&token={lab.token}")
        page.run_all(seconds)
        return page

    yield run
    for context in contexts:
        context.close()
    for kernel in lab.ask("kernels"):
        lab.ask(f"kernels/{kernel['id']}", "DELETE")


@pytest.fixture
def open_file(browser: Any, tmp_path: Path) -> Iterator[Callable[..., Any]]:
    """``open_file(widget, page={}, **context)``: its exported page, offline.

    ``page`` are options of ``to_html``. Afterwards all pages must have been silent.
    """
    contexts, errors, asked = [], [], []

    def run(widget: Any, *, page: dict[str, Any] | None = None, **options: Any) -> Any:
        path = widget.to_html(tmp_path / f"{len(contexts)}.html", **(page or {}))
        contexts.append(browser.new_context(offline=True, **options))
        opened = contexts[-1].new_page()
        opened.set_default_timeout(10_000)
        opened.on("pageerror", lambda error: errors.append(str(error)))
        opened.on("console", lambda said: errors.append(said.text) if said.type == "error" else 0)
        opened.on("dialog", lambda dialog: (errors.append(dialog.message), dialog.dismiss()))
        opened.on("request", lambda one: asked.append(one.url))
        opened.goto(path.as_uri())
        opened.wait_for_selector("[data-drawn]")
        return opened

    yield run
    for context in contexts:
        context.close()
    assert errors == []
    assert [url for url in asked if not url.startswith(("file:", "data:", "blob:"))] == []


def notebook(folder: Path, *cells: str) -> Path:
    book = nbformat.v4.new_notebook(
        cells=[nbformat.v4.new_code_cell(cell) for cell in cells],
        metadata={"kernelspec": {"name": "python3", "display_name": "Python 3"}},
    )
    path = folder / "widgets.ipynb"
    nbformat.write(book, path)
    return path


@pytest.fixture
def open_page(run_notebook: Callable[..., Page], tmp_path: Path) -> Iterator[Callable[..., Page]]:
    """``open_page(*cells, **options)``; afterwards the page must have been silent and offline."""
    pages = []

    def run(*cells: str, **options: Any) -> Page:
        pages.append(run_notebook(notebook(tmp_path, *cells), **options))
        return pages[-1]

    yield run
    for page in pages:
        assert page.failed_cells() == []
        assert page.errors == []
        assert page.hosts <= {"127.0.0.1", None}  # None is a data: or blob: address
