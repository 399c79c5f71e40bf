"""Measurements of our own speed, as ratios against baselines in the same run.

Machines are shared and noisy, so the sides take turns, and a row gives medians: of the times, and
of the ratios within each turn. Run them with ``sinkviz bench NAME``; what they say, and what they
said on one machine, is in ``docs/BENCHMARKS.md``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from sinkviz.bench.capture import bench_capture
from sinkviz.bench.decode import bench_cache, bench_decode
from sinkviz.bench.endless import bench_soak, bench_stream
from sinkviz.bench.measure import setting
from sinkviz.bench.reading import bench_score, bench_slider
from sinkviz.bench.widgets import bench_widgets

__all__ = ["BENCHES", "setting"]

BENCHES: dict[str, Callable[..., Iterator[dict[str, Any]]]] = {
    "cache": bench_cache,
    "capture": bench_capture,
    "decode": bench_decode,
    "score": bench_score,
    "slider": bench_slider,
    "soak": bench_soak,
    "stream": bench_stream,
    "widgets": bench_widgets,
}
