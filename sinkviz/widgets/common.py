"""What the widgets share: their sources put together, a picture where there is no kernel."""

from __future__ import annotations

import asyncio
import base64
import io
import threading
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anywidget
import numpy as np
import traitlets
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties, findfont, get_font

from sinkviz.files import write_whole
from sinkviz.style import COLOURS, small_png
from sinkviz.widgets.page import page

HERE = Path(__file__).parent
PNG_DPI = 90
PAGE_AT_MOST = 20  # megabytes of a page of its own, where nothing else is asked for


def module(*names: str) -> str:
    """Return the ES module of a widget: the shared functions, then its own files in order.

    Comments and indentation stay behind, because every notebook saves the module with its widget.
    """
    files = [HERE / f"{name}.js" for name in ("common", *names)]
    lines = (line.strip() for file in files for line in file.read_text("utf-8").splitlines())
    return "\n".join(line for line in lines if line and not line.startswith("//"))


def style_sheet(*names: str) -> str:
    """Return the style sheet of a widget: role colours, the shared rules, then its own files."""
    colours = "".join(f"--sinkviz-{role}: {colour}; " for role, colour in COLOURS.items())
    files = [HERE / f"{name}.css" for name in ("common", *names)]
    rules = [file.read_text(encoding="utf-8") for file in files]
    return "\n".join((f".sinkviz {{ {colours}}}", *rules))


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

    def page_state(self) -> dict[str, Any]:
        """Return what a page without a kernel has to know: here, every trait of the widget.

        A widget that asks its kernel for more adds the answers under names of its own. In a page
        ``model.get("offline")`` is true.
        """
        ours = set(self.traits(sync=True)) - set(anywidget.AnyWidget.class_traits(sync=True))
        state = self.get_state([name for name in ours if not name.startswith("_")])
        return {name: state[name] for name in sorted(state)}

    def to_html(
        self,
        path: str | Path,
        *,
        title: str | None = None,
        most_mb: float = PAGE_AT_MOST,
        **options: Any,
    ) -> Path:
        """Write the widget as it stands to one file that needs no kernel and no network.

        Args:
            path: the file.
            title: of the page; the widget's repr where not given.
            most_mb: largest file to write, megabytes.
            options: of the widget's own ``page_state``: how much of it goes along.

        Returns:
            The path.

        Raises:
            ValueError: the file would be larger.
            OSError: it cannot be written; nothing is left behind.
        """
        state = self.page_state(**options)
        text = page(self._esm, self._css, state, title or repr(self), self.picture())
        data = text.encode("utf-8", "replace")
        if len(data) > most_mb * 1e6:
            raise ValueError(
                f"the page would take {len(data) / 1e6:.0f} MB, more than {most_mb:g}; "
                "show less of it, or raise most_mb"
            )
        write_whole(Path(path), lambda partial: partial.write_bytes(data))
        return Path(path)

    def picture(self) -> str | None:
        """Return the static twin as a small PNG, base64; None where there is nothing to draw."""
        # A figure of its own, unknown to pyplot, so that a notebook does not show it twice.
        figure, file = Figure(figsize=(9.5, 5), layout="constrained"), io.BytesIO()
        try:
            self.draw(figure)
        except ValueError:  # nothing to draw yet
            return None
        with warnings.catch_warnings():
            # Boxes stand for what the font lacks; whoever shows a widget can do nothing about it.
            warnings.filterwarnings("ignore", r"Glyph \d+ .* missing from font")
            figure.savefig(file, format="png", dpi=PNG_DPI)
        return base64.b64encode(small_png(file.getvalue())).decode()

    def _repr_mimebundle_(self, **kwargs: Any) -> tuple[dict[str, Any], dict[str, Any]]:
        data, metadata = super()._repr_mimebundle_(**kwargs)
        if (png := self.picture()) is not None:
            data["image/png"] = png
        return data, metadata
