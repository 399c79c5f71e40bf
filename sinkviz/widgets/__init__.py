"""Widgets for notebooks; they need a running kernel, and leave a picture where there is none."""

from sinkviz.widgets.alibi_fan import AlibiFan
from sinkviz.widgets.attention_explorer import AttentionExplorer
from sinkviz.widgets.cache_player import CachePlayer
from sinkviz.widgets.position_lab import PositionLab
from sinkviz.widgets.side_by_side import SideBySide
from sinkviz.widgets.sink_birth import SinkBirth
from sinkviz.widgets.sink_slider import SinkSlider
from sinkviz.widgets.softmax_bench import SoftmaxBench

__all__ = [
    "AlibiFan",
    "AttentionExplorer",
    "CachePlayer",
    "PositionLab",
    "SideBySide",
    "SinkBirth",
    "SinkSlider",
    "SoftmaxBench",
]
