"""Where files may be written, and how: whole or not at all.

Knows nothing about what they hold, and imports nothing that is slow to import.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any


def check_place(path: str | Path) -> None:
    """Raise ValueError where no file could be written, before anything is computed for it."""
    path = Path(path)
    if path.is_dir():
        raise ValueError(f"{path} is a folder; name a file in it")
    if not path.absolute().parent.is_dir():
        raise ValueError(f"there is no folder {path.parent}; make it first")


def write_whole(path: str | Path, write: Callable[[Path], Any]) -> None:
    """Call ``write(partial_path)``, then rename to ``path``: the file is whole or not there.

    Raises:
        OSError: the disk is full, or the folder is missing or read-only; nothing is left behind.
    """
    path = Path(path)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        write(partial)
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
