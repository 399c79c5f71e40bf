"""Plots: arrays in, Axes out; knows nothing about models.

``plot_x`` draws in one Axes and touches nothing else, ``grid_x`` owns its figure. Every figure
works on light and on dark paper, and no rcParam is changed.
"""

from sinkviz.plots.alibi import grid_alibi, plot_alibi, plot_alibi_bias, plot_alibi_slopes
from sinkviz.plots.attention import plot_attention
from sinkviz.plots.birth import grid_birth, plot_birth, plot_birth_layers
from sinkviz.plots.chat import grid_chat
from sinkviz.plots.costs import plot_costs
from sinkviz.plots.entropies import plot_entropy
from sinkviz.plots.inside import grid_inside, plot_changed_mass, plot_first_and_rest
from sinkviz.plots.lengths import plot_lengths
from sinkviz.plots.methods import (
    grid_four_methods,
    plot_cache_sizes,
    plot_first_tokens,
    plot_method_costs,
    plot_nll_bins,
)
from sinkviz.plots.mosaic import grid_attention
from sinkviz.plots.moved import grid_moved_mass, plot_moved_mass
from sinkviz.plots.norms import grid_norms, plot_norms, plot_value_norms
from sinkviz.plots.recall import grid_limits, grid_recall, plot_forgetting, plot_recall
from sinkviz.plots.received import plot_received, plot_received_map
from sinkviz.plots.retrained import grid_retrained
from sinkviz.plots.rotary import grid_rotary, plot_rotary
from sinkviz.plots.runs import plot_nll, plot_sink_sizes
from sinkviz.plots.scores import grid_scores, plot_score_map, plot_scores
from sinkviz.plots.shares import plot_mass, plot_sink_map
from sinkviz.plots.sink_table import grid_sink_table, plot_sink_shares, plot_sink_table
from sinkviz.plots.softmax import grid_softmax, plot_softmax
from sinkviz.plots.steps import grid_mass_steps, plot_mass_steps
from sinkviz.plots.visibility import grid_visibility, plot_visibility

__all__ = [
    "grid_alibi",
    "grid_attention",
    "grid_birth",
    "grid_chat",
    "grid_four_methods",
    "grid_inside",
    "grid_limits",
    "grid_mass_steps",
    "grid_moved_mass",
    "grid_norms",
    "grid_recall",
    "grid_retrained",
    "grid_rotary",
    "grid_scores",
    "grid_sink_table",
    "grid_softmax",
    "grid_visibility",
    "plot_alibi",
    "plot_alibi_bias",
    "plot_alibi_slopes",
    "plot_attention",
    "plot_birth",
    "plot_birth_layers",
    "plot_cache_sizes",
    "plot_changed_mass",
    "plot_costs",
    "plot_entropy",
    "plot_first_and_rest",
    "plot_first_tokens",
    "plot_forgetting",
    "plot_lengths",
    "plot_mass",
    "plot_mass_steps",
    "plot_method_costs",
    "plot_moved_mass",
    "plot_nll",
    "plot_nll_bins",
    "plot_norms",
    "plot_recall",
    "plot_received",
    "plot_received_map",
    "plot_rotary",
    "plot_score_map",
    "plot_scores",
    "plot_sink_map",
    "plot_sink_shares",
    "plot_sink_sizes",
    "plot_sink_table",
    "plot_softmax",
    "plot_value_norms",
    "plot_visibility",
]
