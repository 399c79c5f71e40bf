"""The claims of the papers as named, seeded experiments: ``run("four_methods")``.

Each experiment is one module-level ``Experiment``: a grid of cells, what to measure in one, a
figure, and the claims that its table decides.
"""

from sinkviz.experiments.measuring import (
    SINKS,
    Sinks,
    first_token_sinks,
    forgetting_from,
    four_methods,
    measure,
    tidy,
    x_plus_y,
)
from sinkviz.experiments.running import (
    EXPERIMENTS,
    Claim,
    Experiment,
    Setting,
    experiment,
    load_table,
    run,
    save_table,
)

__all__ = [
    "EXPERIMENTS",
    "SINKS",
    "Claim",
    "Experiment",
    "Setting",
    "Sinks",
    "experiment",
    "first_token_sinks",
    "forgetting_from",
    "four_methods",
    "load_table",
    "measure",
    "run",
    "save_table",
    "tidy",
    "x_plus_y",
]
