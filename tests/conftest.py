"""What every test stands on: no display, no network, checked shapes, nothing skipped unseen."""

from __future__ import annotations

import os
import shutil
import signal
from pathlib import Path

os.environ["MPLBACKEND"] = "Agg"
os.environ["HF_HUB_OFFLINE"] = "1"

# Started by a script in the background, a run ignores Ctrl-C, and so would the programs it tests.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

import jaxtyping
import pytest
import torch

ROOT = Path(__file__).parent.parent

# Shapes and types of every call into the package are checked in tests, and only there. This must
# come before anything imports sinkviz. classroom.py is left out: it writes no shapes, and
# jaxtyping's check of dataclasses does not know the further keywords that a config accepts.
ROOMS = sorted({path.relative_to(ROOT).with_suffix("") for path in ROOT.glob("sinkviz/*")})
HOOKED = [".".join(room.parts) for room in ROOMS if room.name not in ("__init__", "classroom")]
# An int is welcome where a float is: that is what is_pep484_tower means.
CHECKER = "beartype.beartype(conf=beartype.BeartypeConf(is_pep484_tower=True))"
jaxtyping.install_import_hook(HOOKED, CHECKER)

# What tests import is no test; --doctest-modules would import it before pytest could rewrite it.
collect_ignore = ["browser.py", "naive.py", "reference.py", "zoo.py"]

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")


@pytest.fixture(scope="session")
def chromium() -> str:
    """Path of a Chromium; ``CHROMIUM`` names one that is not on the PATH."""
    found = os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, BROWSERS)), None)
    if found is None:
        pytest.skip("no Chromium here (looked for CHROMIUM and on PATH); on Debian: chromium")
    return found


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    no_cuda = pytest.mark.skip(reason="no CUDA device here")
    for item in items:
        if item.path.suffix == ".ipynb":
            item.add_marker(pytest.mark.notebooks)
        if item.get_closest_marker("cuda") and not torch.cuda.is_available():
            item.add_marker(no_cuda)


def forbidden_skips(config: pytest.Config) -> list:
    """Reports of skipped tests that CI must run: all but those marked ``cuda``."""
    if os.environ.get("SINKVIZ_CI") != "1":
        return []
    terminal = config.pluginmanager.get_plugin("terminalreporter")
    return [r for r in terminal.stats.get("skipped", []) if "cuda" not in r.keywords]


def pytest_sessionfinish(session: pytest.Session) -> None:
    if forbidden_skips(session.config) and session.exitstatus == pytest.ExitCode.OK:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(terminalreporter, config: pytest.Config) -> None:
    skipped = forbidden_skips(config)
    if skipped:
        terminalreporter.section("skipped, but CI must run it", red=True)
        for report in skipped:
            reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else report.longrepr
            terminalreporter.write_line(f"{report.nodeid}: {reason}", red=True)
