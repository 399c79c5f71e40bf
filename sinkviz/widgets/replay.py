"""A recorded run as a page without a kernel knows it; ``replay.js`` makes the lanes of it.

Knows nothing about widgets.
"""

from __future__ import annotations

import math
from typing import Any

from sinkviz.widgets.common import as_bytes
from sinkviz.widgets.lanes import TAIL, LaneRecord
from sinkviz.widgets.recording import Recording
from sinkviz.widgets.token_labels import prose


def pages_of(recording: Recording, before: int) -> list[dict[str, Any]]:
    """Return what a page must know of each lane: its text, and its numbers after every step.

    Args:
        recording: the run.
        before: steps that are left out; the text that a lane shows at that moment comes along.

    Returns:
        Per lane: ``first``, text position of its first token; from there on ``tokens``, ``nll``
        and ``gone``, the step at which each is evicted (-1: never); ``head``, the sinks; and
        ``series``, the numbers of ``LaneRecord.now`` from step ``before`` on, NaN for what is not
        known. All numbers are float32.
    """
    begun = recording.begin()
    series: list[list[dict[str, float | None]]] = [[] for _ in begun.lanes]
    for steps in [None, *begun.steps]:
        for index, (lane, rows) in enumerate(zip(begun.lanes, series, strict=True)):
            if steps is not None:
                lane.add(steps[index])
            if lane.predicted >= before:
                rows.append(lane.now())
    spelled = recording.texts(begun.lanes)
    return [
        _page_of(lane, texts, rows, before)
        for lane, texts, rows in zip(begun.lanes, spelled, series, strict=True)
    ]


def _page_of(
    lane: LaneRecord, texts: tuple[str, ...], rows: list[dict[str, float | None]], before: int
) -> dict[str, Any]:
    first = max(0, lane.start + before - TAIL)
    return {
        "first": first,
        "head": lane.head,
        "tokens": [prose(text) for text in texts[first:]],
        "nll": as_bytes(lane.nll[first:]),
        "gone": as_bytes(lane.gone[first:]),
        "series": {
            name: as_bytes([math.nan if row[name] is None else row[name] for row in rows])
            for name in rows[0]
        },
    }
