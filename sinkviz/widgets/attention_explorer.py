"""All heads small, one head large, the text beside it: where attention goes, and what is left."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import seaborn
import traitlets
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from sinkviz.plots._parts import (
    MOST_TOKEN_TICKS,
    colour_bar,
    draw_cells,
    short,
    title,
    token_ticks,
)
from sinkviz.plots.attention import plot_attention
from sinkviz.plots.shares import plot_sink_map
from sinkviz.records import Trace
from sinkviz.style import ATTENTION_SCALE, ATTENTION_TICKS, attention_map, attention_norm
from sinkviz.widgets.common import Widget, as_bytes, drawable, module, sentence, style_sheet
from sinkviz.widgets.tiles import MapTiles, triangles
from sinkviz.widgets.token_labels import labels

# Cells of thumbnails that a notebook keeps, of all heads; of those that are sent to a page.
SAVED, SENT = 20_000, 1_500_000
# Cells along a side, at most: of such thumbnails, of the first large map, of a page's maps.
SAVED_SIDE, SENT_SIDE, OPENING_SIDE, PAGE_SIDE = 32, 48, 96, 256
SAVED_TEXT = 10_000  # bytes of tokens that a notebook keeps; a longer text is sent on demand
LEAST_SPAN = 8  # tokens across the closest view


class AttentionExplorer(Widget):
    """Walk through all heads of a trace, down to single tokens and without the sink.

    Small multiples show every layer and head. The chosen one is large, with the tokens on both
    axes; any window of it is read at full resolution from the kernel when it is looked at. A token
    under the pointer, or pinned, shows in the text what it reads or who reads it. With the sink's
    columns off, what is left of each query's attention is rescaled to one. Any token can be called
    a sink, here or in the page.

    Of a trace without whole maps the pooled ones are shown, and the caption tells their cells.

    Args:
        trace: whole maps, or statistics with pooled maps.
        layer: the head that is large at first; 0-based, negative from the end. The head with the
            strongest sink where not given.
        head: likewise; both or neither.
        sink_at: text position of the sink, 0-based, or of several.
        n_sink: tokens of each sink, from its position on; 1 where not given, and the trace's own
            number where it kept no whole maps.
        gamma: exponent of the colour scale, 0.2 to 1; 0.5 is the square root.

    Raises:
        IndexError: there is no such layer or head.
        ValueError: the trace holds no maps, a number is out of its range, or the sink is none that
            a trace without whole maps can tell apart.

    Example:
        >>> import sinkviz as sv
        >>> lm = sv.load("classroom-rope")  # doctest: +SKIP
        >>> sv.AttentionExplorer(sv.capture(lm, "Once upon a time"))  # doctest: +SKIP
    """

    _esm = module(
        *("map_store", "painting", "map_view", "map_moves", "head_grid", "token_line"),
        *("explorer_words", "attention_explorer"),
    )
    _css = style_sheet("attention_explorer")

    name = traitlets.Unicode(help="of the model").tag(sync=True)
    n_tokens = traitlets.Int().tag(sync=True)
    n_layers = traitlets.Int().tag(sync=True)
    n_heads = traitlets.Int().tag(sync=True)
    colours = traitlets.Bytes(help="256 x RGB, dark to light").tag(sync=True)
    shares = traitlets.Bytes(help="of the sinks, (layer, head) float32").tag(sync=True)
    settled = traitlets.Bool(help="the sinks are those of the capture").tag(sync=True)
    finest = traitlets.Bytes(help="tokens per smallest cell, likewise uint16; 0 no map").tag(
        sync=True
    )
    # A coarse picture of every head, so that a saved notebook shows something at once.
    thumbs = traitlets.Bytes(help="lower triangles, (layer, head, cell)").tag(sync=True)
    thumb_cell = traitlets.Int(help="tokens per cell of them").tag(sync=True)
    # While nobody answers yet: the head chosen at first, and the tokens if they are few.
    opening = traitlets.Dict(help="layer, head, tokens per cell, lower triangle").tag(sync=True)
    tokens = traitlets.Bytes(help="a line each").tag(sync=True)
    # The setting, from either side.
    layer = traitlets.Int().tag(sync=True)
    head = traitlets.Int().tag(sync=True)
    sinks = traitlets.List(traitlets.Int(), help="text positions, in order").tag(sync=True)
    show_sinks = traitlets.Bool(True, help="their columns are in the maps").tag(sync=True)
    gamma = traitlets.Float(0.5).tag(sync=True)
    token = traitlets.Int(None, allow_none=True, help="the pinned token").tag(sync=True)
    way = traitlets.Enum(["keys", "queries"], "keys", help="what it reads, or who reads it").tag(
        sync=True
    )
    view = traitlets.List(traitlets.Float(), help="first query, first key, span").tag(sync=True)

    def __init__(
        self,
        trace: Trace,
        *,
        layer: int | None = None,
        head: int | None = None,
        sink_at: int | Sequence[int] = 0,
        n_sink: int | None = None,
        gamma: float = 0.5,
    ) -> None:
        self._trace = trace
        self._tiles = MapTiles(trace)
        whole = trace.attention is not None and trace.heads is None
        if n_sink is None:
            n_sink = 1 if whole else trace.n_sink
        if n_sink < 1:
            raise ValueError(f"n_sink must be at least 1, got {n_sink}")
        first = [sink_at] if isinstance(sink_at, int) else sink_at
        sinks = self._tiles.sinks(at + i for at in first for i in range(n_sink))
        if (layer is None) != (head is None):
            raise ValueError("give layer and head, or neither")
        shares = self._tiles.shares(sinks)
        finest = [
            [self._tiles.finest(one, two) for two in range(trace.n_heads)]
            for one in range(trace.n_layers)
        ]
        if layer is None:
            # Whole maps first where only some were kept, then the strongest sink.
            known = np.nan_to_num(shares) - 2 * np.greater(finest, 1) - 4 * np.equal(finest, 0)
            layer, head = (int(n) for n in np.unravel_index(known.argmax(), known.shape))
        layer, head = self._there(layer, head)
        cell, thumbs = self._tiles.thumbnails(self._side(SAVED, SAVED_SIDE))
        opening_cell, opening = self._tiles.thumbnail(layer, head, OPENING_SIDE)
        text = labels(trace.tokens)
        palette = np.array(seaborn.color_palette("rocket", 256))
        super().__init__(
            name=trace.provenance.get("model", "?"),
            n_tokens=len(trace.tokens),
            n_layers=trace.n_layers,
            n_heads=trace.n_heads,
            sinks=list(sinks),
            settled=not whole,
            colours=(255 * palette).round().astype(np.uint8).tobytes(),
            shares=as_bytes(shares),
            finest=np.array(finest, "<u2").tobytes(),
            thumbs=triangles(thumbs),
            thumb_cell=cell,
            opening={
                "layer": layer,
                "head": head,
                "cell": opening_cell,
                "codes": triangles(opening),
            },
            tokens=text if len(text) <= SAVED_TEXT else b"",
        )
        self.layer, self.head, self.gamma = layer, head, gamma
        self.view = [0, 0, len(trace.tokens)]
        self.on_msg(self._on_message)

    def _side(self, n_bytes: int, most: int) -> int:
        """Return the side of thumbnails of which all heads take at most so many bytes."""
        n_maps = self._trace.n_layers * self._trace.n_heads
        return max(4, min(most, int((n_bytes / n_maps) ** 0.5)))

    def _there(self, layer: int, head: int) -> tuple[int, int]:
        trace = self._trace
        for name, index, n in (("layer", layer, trace.n_layers), ("head", head, trace.n_heads)):
            if not -n <= index < n:
                raise IndexError(f"{name} must be in 0..{n - 1}, got {index}")
        return layer % trace.n_layers, head % trace.n_heads

    @traitlets.validate("layer", "head", "token", "gamma")
    def _within(self, proposal: Any) -> Any:
        name, value = proposal["trait"].name, proposal["value"]
        least, most = {
            "layer": (0, self.n_layers - 1),
            "head": (0, self.n_heads - 1),
            "token": (0, self.n_tokens - 1),
            "gamma": (0.2, 1),
        }[name]
        if value is not None and not least <= value <= most:
            raise traitlets.TraitError(f"{name} must be in {least}..{most}, got {value}")
        return value

    @traitlets.validate("sinks")
    def _sinks_there(self, proposal: Any) -> list[int]:
        try:
            return list(self._tiles.sinks(proposal["value"]))
        except ValueError as error:
            raise traitlets.TraitError(str(error)) from None

    @traitlets.observe("sinks")
    def _count_anew(self, change: Any) -> None:
        self.shares = as_bytes(self._tiles.shares(tuple(self.sinks)))

    @traitlets.validate("view")
    def _view_within(self, proposal: Any) -> list[float]:
        view, n = proposal["value"], self.n_tokens
        if len(view) != 3:
            raise traitlets.TraitError(f"view must be [first query, first key, span], got {view}")
        span = float(np.clip(view[2], min(LEAST_SPAN, n), n))
        return [*(float(np.clip(first, 0, n - span)) for first in view[:2]), span]

    # What the front end asks for -----------------------------------------------------------------

    def _on_message(self, widget: Any, content: dict[str, Any], buffers: Any) -> None:
        answers = {
            "tiles": self._send_tiles,
            "line": self._send_line,
            "thumbs": self._send_thumbs,
            "tokens": self._send_tokens,
        }
        answer = answers.get(content.get("do"))
        if answer is None:
            return
        try:
            answer(content)
        except Exception as error:  # an exception would end in the server's log, unseen
            self.error = sentence(error)

    def _send_tiles(self, asked: dict[str, Any]) -> None:
        at = [asked[name] for name in ("layer", "head", "cell")]
        tiles = [self._tiles.tile(*at, *one, asked["without"]) for one in asked["tiles"]]
        shapes = [tile.shape for tile in tiles]
        self.send({**asked, "shapes": shapes}, [tile.tobytes() for tile in tiles])

    def _send_line(self, asked: dict[str, Any]) -> None:
        at = [asked[name] for name in ("layer", "head", "token", "way", "without")]
        cell, line = self._tiles.line(*at)
        self.send({**asked, "cell": cell}, [as_bytes(line)])

    def _send_thumbs(self, asked: dict[str, Any]) -> None:
        cell, thumbs = self._tiles.thumbnails(self._side(SENT, SENT_SIDE), asked["without"])
        self.send({**asked, "cell": cell}, [triangles(thumbs)])

    def _send_tokens(self, asked: dict[str, Any]) -> None:
        self.send(asked, [labels(self._trace.tokens)])

    # Without a kernel ----------------------------------------------------------------------------

    def page_state(self, side: int = PAGE_SIDE) -> dict[str, Any]:
        """Return what a page has to know: every map at ``side`` cells, with the sink and without.

        A text of at most ``side`` tokens is all there, cell by token.
        """
        state = super().page_state()
        cell, thumbs = self._tiles.thumbnails(side)
        _, rest = self._tiles.thumbnails(side, self.sinks)
        state |= {"thumbs": triangles(thumbs), "thumbs_rest": triangles(rest), "thumb_cell": cell}
        return state | {"tokens": labels(self._trace.tokens)}

    def figure(self) -> Figure:
        """Return the chosen head beside all heads' sinks, as a matplotlib figure of its own."""
        figure = plt.figure(figsize=(9.5, 4.6), layout="constrained")
        self.draw(figure)
        return figure

    def draw(self, figure: Figure) -> None:
        """Draw the chosen head beside all heads' sinks into an empty figure."""
        small, large = figure.subplots(1, 2, width_ratios=[2, 3])
        if np.isfinite(self._trace.received).all():
            plot_sink_map(self._trace, key=self.sinks[0], ax=small)
        else:
            small.set_visible(False)
        self._draw_map(large)

    def _draw_map(self, ax: Axes) -> None:
        layer, head, trace = self.layer, self.head, self._trace
        without = [] if self.show_sinks else self.sinks
        if self.n_tokens <= MOST_TOKEN_TICKS:  # only then tokens are written
            tokens = tuple(drawable(short(token)) for token in trace.tokens)
            trace = dataclasses.replace(trace, tokens=tokens)
        # The figure knows sinks at the beginning only.
        first = self.sinks == list(range(len(self.sinks)))
        if first and self._tiles.finest(layer, head) == 1:
            plot_attention(trace, layer=layer, head=head, hide=len(without), ax=ax)
            return
        cell, codes = self._tiles.thumbnail(layer, head, PAGE_SIDE, without)
        shares = np.ma.masked_less((codes.astype(float) - 1) / 254, 0) ** 2
        edge = cell * len(shares) - 0.5
        look = {"cmap": attention_map(ax), "norm": attention_norm()}
        image = draw_cells(ax, shares, extent=(-0.5, edge, edge, -0.5), **look)
        title(ax, f"layer {layer}, head {head}")
        what = "share of the attention" if cell == 1 else f"largest in {cell} x {cell} tokens"
        label = f"{what} ({ATTENTION_SCALE})"
        colour_bar(ax, image, label, ATTENTION_TICKS)
        token_ticks(ax.xaxis, trace.tokens, what="key")
        token_ticks(ax.yaxis, trace.tokens, what="query")

    def __repr__(self) -> str:
        trace = self._trace
        return (
            f"AttentionExplorer({self.name}: {self.n_tokens} tokens, {trace.n_layers} layers x "
            f"{trace.n_heads} heads)"
        )
