"""Widgets for notebooks; they need a running kernel, and leave a picture where there is none."""

from sinkviz.widgets.side_by_side import SideBySide
from sinkviz.widgets.sink_slider import SinkSlider

__all__ = ["SideBySide", "SinkSlider"]
