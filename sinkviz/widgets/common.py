"""What the widgets share: their sources put together, a picture where there is no kernel."""

from __future__ import annotations

import asyncio
import base64
import io
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anywidget
import numpy as np
import traitlets
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties, findfont, get_font
from PIL import Image

from sinkviz.style import COLOURS

HERE = Path(__file__).parent
PNG_DPI = 90
PNG_COLOURS = 64


def module(*names: str) -> str:
    """Return the ES module of a widget: the shared functions, then its own files in order."""
    files = [HERE / f"{name}.js" for name in ("common", *names)]
    return "\n".join(file.read_text(encoding="utf-8") for file in files)


def style_sheet() -> str:
    """Return the style sheet of all widgets, headed by the colours of the roles."""
    colours = "".join(f"--sinkviz-{role}: {colour}; " for role, colour in COLOURS.items())
    return f".sinkviz {{ {colours}}}\n" + (HERE / "common.css").read_text(encoding="utf-8")


def as_bytes(values: Any) -> bytes:
    """Return numbers as the little-endian float32 that the front end reads."""
    return np.asarray(values, dtype="<f4").tobytes()


def finite(value: float) -> float | None:
    """Return a number, or None for infinity and NaN, which JSON does not know."""
    return float(value) if np.isfinite(value) else None


def sentence(error: BaseException) -> str:
    """Return an error as a sentence for the person in front of the widget."""
    said = str(error).strip() or type(error).__name__
    return said if said.endswith((".", "!", "?")) else f"{said}."


def drawable(text: str) -> str:
    """Return a text with a question mark for what matplotlib's font cannot draw."""
    font = get_font(findfont(FontProperties()))
    return "".join(c if font.get_char_index(ord(c)) else "?" for c in text)


class Widget(anywidget.AnyWidget):
    """A widget with a static twin, a stable repr and a place to say what went wrong.

    Where no kernel answers (GitHub, a PDF, a page), readers see the twin as a picture.
    """

    _css = style_sheet()
    error = traitlets.Unicode().tag(sync=True)

    def __init__(self, **traits: Any) -> None:
        self._home_thread = threading.get_ident()
        try:
            self._home: asyncio.AbstractEventLoop | None = asyncio.get_running_loop()
        except RuntimeError:
            self._home = None
        super().__init__(**traits)

    def at_home(self, act: Callable[[], None]) -> None:
        """Call ``act`` in the thread that made the widget: now, or as soon as that one is free.

        JupyterLab may deliver messages in a thread of their own (a subshell), beside a running
        cell. A model that is measured is not made for two threads at a time.
        """
        if self._home is None or threading.get_ident() == self._home_thread:
            act()
        else:
            self._home.call_soon_threadsafe(act)

    def draw(self, figure: Figure) -> None:
        """Draw the static twin into an empty figure."""
        raise NotImplementedError

    def _repr_mimebundle_(self, **kwargs: Any) -> tuple[dict[str, Any], dict[str, Any]]:
        data, metadata = super()._repr_mimebundle_(**kwargs)
        # A figure of its own, unknown to pyplot, so that a notebook does not show it twice.
        figure, file = Figure(figsize=(9.5, 5), layout="constrained"), io.BytesIO()
        try:
            self.draw(figure)
        except ValueError:  # nothing to draw yet
            return data, metadata
        figure.savefig(file, format="png", dpi=PNG_DPI)
        with Image.open(file) as image, io.BytesIO() as small:
            image.convert("RGB").quantize(PNG_COLOURS).save(small, format="png", optimize=True)
            data["image/png"] = base64.b64encode(small.getvalue()).decode()
        return data, metadata
