"""One HTML file about a model: where its attention goes, and what a cache may forget.

Needs no network and no other file. Also saves single figures. Knows how to arrange; measures and
draws nothing itself.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure

from sinkviz.capturing import capture
from sinkviz.experiments import forgetting_from, four_methods, measure, tidy, x_plus_y
from sinkviz.files import write_whole
from sinkviz.metrics import SINK_EPSILON
from sinkviz.models import LM, Text
from sinkviz.plots import plot_attention, plot_mass, plot_nll, plot_sink_map, plot_sink_sizes
from sinkviz.policies import Policy
from sinkviz.records import StreamRun

SHOWN_TOKENS = 32

STYLE = """
body { font: 17px/1.5 system-ui, sans-serif; color: #222; background: #fff; max-width: 58rem;
       margin: 2rem auto; padding: 0 1rem; }
h1, h2 { line-height: 1.2; } h2 { margin-top: 2.5rem; }
img { max-width: 100%; height: auto; } figure { margin: 1rem 0; }
figcaption, .note { color: #555; font-size: 0.9rem; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: 0.3rem 0.9rem; text-align: right; border-bottom: 1px solid #ddd; }
th:first-child, td:first-child { text-align: left; }
code { overflow-wrap: anywhere; }
@media print { h2 { break-after: avoid; } figure, table { break-inside: avoid; } }
"""


def write_report(
    lm: LM,
    text: Text,
    path: str | Path,
    *,
    policies: Sequence[Policy] | None = None,
    progress: bool = False,
) -> Path:
    """Measure a model on a text and write what was found as one HTML file.

    Args:
        lm: the language model.
        text: text or ids, best several thousand tokens long; attention is shown for the first
            training length of it (at most 1,024 tokens), predictions for all.
        path: of the file; written whole or not at all.
        policies: what the cliff compares; by default the paper's four methods with a cache of half
            the training length.
        progress: show progress bars.

    Returns:
        The path.

    Raises:
        ValueError: the text is shorter than the cache, so that nothing would be evicted.
        OSError: the file cannot be written.
    """
    ids = lm.encode(text)
    half = min((lm.train_length or 128) // 2, len(ids) // 4)
    policies = list(policies or four_methods(max(half, 2)))
    sizes = [policy.cache_size for policy in policies if policy.cache_size]
    size = min(sizes, default=max(half, 2))
    if size + 2 > len(ids):
        raise ValueError(
            f"the text has {len(ids)} tokens and the cache {size}: nothing would be evicted; "
            "give a longer text or a smaller cache"
        )
    # Beyond its training length a model's attention shows how it fails, not how it works.
    shown = ids[: min(lm.train_length or 1024, 1024)]
    trace = capture(lm, shown, keep="statistics", progress=progress)
    layer, head = np.unravel_index(trace.received[..., 0].argmax(), trace.received.shape[:2])
    strongest = capture(lm, ids[:SHOWN_TOKENS], keep=[(int(layer), int(head))])
    runs = measure(lm, ids, policies, progress=progress)
    sweep = measure(lm, ids, x_plus_y(size), progress=progress)
    start = forgetting_from(runs)
    body = [
        f"<h1>Attention sinks of {escape(lm.name)}</h1>",
        f"<p>{escape(repr(lm))}. Read: {len(ids):,} tokens.</p>",
        "<h2>Where attention goes</h2>",
        _picture(
            _drawn(plot_sink_map, trace),
            f"Attention that the first token receives, per layer and head, mean over the first "
            f"{len(trace.tokens):,} tokens. {trace.sink_rate:.0%} of heads give it more than "
            f"{SINK_EPSILON}.",
        ),
        _picture(
            _drawn(plot_attention, strongest, layer=int(layer), head=int(head)),
            f"The head with the strongest sink (layer {layer}, head {head}) on the first "
            f"{len(strongest.tokens)} tokens: each row is a query.",
        ),
        _picture(
            _drawn(plot_mass, trace, over="layers"),
            "How attention divides among the first tokens, the recent ones and the rest.",
        ),
        "<h2>What a cache may forget</h2>",
        _picture(
            _drawn(plot_nll, runs, train_length=lm.train_length),
            "How surprising each token is (nll), under each cache policy.",
        ),
        _table(tidy(runs, start)),
        "<h2>How many first tokens it takes</h2>",
        _picture(
            _drawn(plot_sink_sizes, [*sweep, *runs]),
            f"Perplexity after eviction of caches of {size} tokens that keep 0, 1, 2, 4, 8 of the "
            "first tokens.",
        ),
        _table(tidy(sweep)),
        "<p class=note>policy a+b keeps the first a and the most recent b tokens. nll in nats per "
        "token; <em>forgetting</em>: from the token on at which every limited cache has evicted; "
        "<em>drift</em>: last quarter minus second quarter.</p>",
        "<h2>How this was made</h2>",
        f"<p class=note><code>{escape(str(runs[0].provenance))}</code></p>",
    ]
    page = (
        f'<!doctype html><html lang="en"><meta charset="utf-8">'
        f'<meta name="viewport" content="width=device-width">'
        f"<title>Attention sinks of {escape(lm.name)}</title><style>{STYLE}</style>"
        + "\n".join(body)
        + "</html>\n"
    )
    path = Path(path)
    write_whole(path, lambda partial: partial.write_text(page, encoding="utf-8"))
    return path


def save_nll_figure(
    runs: Sequence[StreamRun], path: str | Path, *, train_length: int | None = None
) -> Path:
    """Write the nll along a text, one curve per run, as a picture.

    Args:
        runs: of the same text.
        path: its ending chooses the format: .png, .svg, .pdf.
        train_length: training length of the model, tokens.

    Returns:
        The path.

    Raises:
        ValueError: the ending names no format.
    """
    return save_figure(_drawn(plot_nll, runs, train_length=train_length), path)


def save_figure(figure: Figure, path: str | Path) -> Path:
    """Write a figure as a picture, whole or not at all, and close it; return the path.

    Args:
        figure: the figure.
        path: its ending chooses the format: .png, .svg, .pdf.

    Raises:
        ValueError: the ending names no format.
    """
    path = Path(path)
    try:
        write_whole(path, lambda partial: figure.savefig(partial, format=path.suffix[1:], dpi=160))
    finally:
        plt.close(figure)
    return path


def _drawn(plot: Any, *data: Any, **options: Any) -> Figure:
    figure, ax = plt.subplots(figsize=(8.5, 4.6), layout="constrained")
    plot(*data, ax=ax, **options)
    return figure


def _picture(figure: Figure, caption: str) -> str:
    """Return a figure as an inline picture; a PNG, because token text then stays a picture."""
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=150, facecolor="white")
    plt.close(figure)
    data = base64.b64encode(file.getvalue()).decode()
    return (
        f'<figure><img alt="{escape(caption)}" src="data:image/png;base64,{data}">'
        f"<figcaption>{escape(caption)}</figcaption></figure>"
    )


def _table(rows: list[dict[str, Any]]) -> str:
    def cell(value: Any) -> str:
        if value is None:
            return "–"
        return f"{value:,.3f}" if isinstance(value, float) else escape(str(value))

    names = [name for name in rows[0] if name != "seconds"]
    head = "".join(f"<th>{escape(name.replace('_', ' '))}</th>" for name in names)
    lines = [f"<tr>{''.join(f'<td>{cell(row[n])}</td>' for n in names)}</tr>" for row in rows]
    return f"<table><tr>{head}</tr>{''.join(lines)}</table>"
