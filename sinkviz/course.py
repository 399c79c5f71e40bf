"""Where the notebooks are, and how a reader gets a copy of their own.

In a checkout they lie beside the package and are opened in place; in an installed package they
lie inside it and are copied out. Also starts JupyterLab on them. Knows nothing about models.
"""

from __future__ import annotations

import filecmp
import os
import shutil
import subprocess
import sys
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

FIRST = "00_start_here.ipynb"


def notebooks_folder() -> Path:
    """Return the folder of the course, inside the installed package or beside it in a checkout.

    Raises:
        FileNotFoundError: the package was installed without its notebooks.
    """
    package = Path(__file__).parent
    for folder in (package / "notebooks", package.parent / "notebooks"):
        if folder.is_dir():
            return folder
    raise FileNotFoundError("this installation has no notebooks; install sinkviz again with pip")


def is_checkout() -> bool:
    """Return whether the course lies beside the package, where it may be edited in place."""
    return not notebooks_folder().is_relative_to(Path(__file__).parent)


@dataclass(frozen=True)
class Copied:
    """What ``copy_course`` did, as paths relative to the folder.

    Attributes:
        new: files that were not there.
        changed: files that differ from the course's own; kept unless they were to be replaced.
    """

    new: list[Path] = field(default_factory=list)
    changed: list[Path] = field(default_factory=list)


def copy_course(folder: str | Path, *, replace: bool = False) -> Copied:
    """Copy the notebooks into ``folder``; a file that differs there is kept.

    Args:
        folder: made where it does not exist.
        replace: put the course's own file in the place of one that differs.

    Returns:
        Which files were new, and which differed.

    Raises:
        OSError: the folder cannot be written.
    """
    source, folder = notebooks_folder(), Path(folder)
    done = Copied()
    for path in sorted(source.rglob("*.ipynb")):
        name = path.relative_to(source)
        if any(part.startswith(".") for part in name.parts):
            continue
        target = folder / name
        if not target.exists():
            done.new.append(name)
        elif not filecmp.cmp(path, target, shallow=False):
            done.changed.append(name)
            if not replace:
                continue
        else:
            continue
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, target)
    return done


def serve(folder: str | Path, *, port: int, browser: bool, options: Iterable[str] = ()) -> int:
    """Become JupyterLab on the first notebook in ``folder``.

    JupyterLab neither asks for news nor looks for updates (``lab_settings/overrides.json``), unless
    the user's own settings say so.

    Args:
        folder: with the notebooks.
        port: to serve on; JupyterLab takes the next free one where it is in use.
        browser: open one.
        options: further options for JupyterLab.

    Returns:
        JupyterLab's exit code, on systems where a process cannot become another one.
    """
    command = [sys.executable, "-m", "jupyterlab", str(Path(folder) / FIRST)]
    settings = Path(__file__).parent / "lab_settings"
    command += [f"--ServerApp.port={port}", f"--LabApp.app_settings_dir={settings}"]
    command += [] if browser else ["--no-browser"]
    if hasattr(os, "geteuid") and os.geteuid() == 0:
        # Containers run as root. Jupyter listens to this machine only, and asks for its token.
        command.append("--allow-root")
    command += options
    if os.name == "posix":
        os.execv(sys.executable, command)
    return subprocess.call(command)
