"""Plots: arrays in, Axes out; knows nothing about models.

``plot_x`` draws in one Axes and touches nothing else, ``grid_x`` owns its figure. Every figure
works on light and on dark paper, and no rcParam is changed.
"""

from sinkviz.plots.alibi import grid_alibi, plot_alibi
from sinkviz.plots.attention import grid_attention, plot_attention
from sinkviz.plots.chat import grid_chat
from sinkviz.plots.runs import plot_nll, plot_sink_sizes
from sinkviz.plots.shares import plot_mass, plot_sink_map
from sinkviz.plots.visibility import grid_visibility, plot_visibility

__all__ = [
    "grid_alibi",
    "grid_attention",
    "grid_chat",
    "grid_visibility",
    "plot_alibi",
    "plot_attention",
    "plot_mass",
    "plot_nll",
    "plot_sink_map",
    "plot_sink_sizes",
    "plot_visibility",
]
