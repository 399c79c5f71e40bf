"""What a sink is: the token or its place, and what it looks like inside."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from sinkviz.capturing import capture
from sinkviz.experiments.probing import change_and_error, nll_of_ends, probes, shares_of
from sinkviz.experiments.running import Cell, Experiment, Row, Setting
from sinkviz.experiments.sinks_claims import (
    CHANGES,
    COPIED,
    COPIES,
    EDITS,
    FAR,
    FORBIDDEN,
    IN_FRONT,
    INSIDE_CLAIMS,
    MOVED,
    NEWLINE,
    PLAIN,
    POSITION_CLAIMS,
    REMOVED,
    SWAPPED,
    WORD,
    ZEROED,
)
from sinkviz.interventions import (
    forbid,
    move_first,
    prepend,
    remove_first,
    repeat_first,
    replace_first,
    zero_value,
)
from sinkviz.interventions.routes import goes_through_interface
from sinkviz.metrics import ROLES, SINK_EPSILON
from sinkviz.models import LM, untouched
from sinkviz.plots.inside import grid_inside
from sinkviz.plots.moved import grid_moved_mass
from sinkviz.records import Trace


def edited(ids: Tensor, edit: str, newline: int) -> tuple[Tensor, list[int]]:
    """Return an edited text, and where else than at position 0 its first token stands now.

    Args:
        ids: the text.
        edit: one of ``EDITS``.
        newline: id of a newline.
    """
    word = [int(ids[len(ids) // 2])]
    return {
        PLAIN: lambda: (ids, []),
        NEWLINE: lambda: (replace_first(ids, [newline]), []),
        WORD: lambda: (replace_first(ids, word), []),
        REMOVED: lambda: (remove_first(ids), []),
        IN_FRONT: lambda: (prepend(ids, word), [1]),
        SWAPPED: lambda: (move_first(ids, 1), [1]),
        MOVED: lambda: (move_first(ids, FAR), [FAR]),
        COPIED: lambda: (repeat_first(ids, COPIES), [*range(1, COPIES)]),
    }[edit]()


def _edit_cells(setting: Setting) -> list[Cell]:
    return [{"model": name, "edit": edit} for name in setting.models for edit in EDITS]


def _measure_edit(setting: Setting, cell: Cell) -> list[Row]:
    lm = setting.models[cell["model"]]
    texts = probes(setting, lm, 4 if setting.quick else 32, room=COPIES)
    newline = lm.tokenizer("\n", add_special_tokens=False)["input_ids"][-1]
    others = [edited(ids, cell["edit"], newline)[0] for ids in texts]
    _, stands = edited(texts[0], cell["edit"], newline)
    n_last = len(texts[0]) // 2
    traces = capture(lm, others, keep="maps", statistics=("received",))
    places = {"position_0": [0], "first_token": stands}
    shares = [shares_of(trace, places, n_last) for trace in traces]
    mean = {name: float(np.mean([one[name] for one in shares])) for name in shares[0]}
    received = np.mean([trace.received[..., [0, *stands]] for trace in traces], axis=0)
    is_sink = received > SINK_EPSILON
    before, after = (nll_of_ends(lm, some, n_last) for some in (texts, others))
    change, error = change_and_error(after, before)
    return [
        {
            "model": cell["model"],
            "edit": cell["edit"],
            # Whether the token at position 0 is still the one that was there.
            "first_stays": cell["edit"] in (PLAIN, COPIED),
            **mean,
            "sink_rate": float(is_sink[..., 0].mean()),
            "token_sink_rate": float(is_sink[..., 1:].any(-1).mean()) if stands else None,
            "nll": float(after.mean()),
            "nll_change": change,
            "nll_error": error,
            "n_texts": len(texts),
        }
    ]


TOKEN_OR_POSITION = Experiment(
    name="token_or_position",
    question="Does the sink belong to the first token, or to the first position?",
    cells=_edit_cells,
    measure=_measure_edit,
    draw=grid_moved_mass,
    claims=POSITION_CLAIMS,
)

# Inside ------------------------------------------------------------------------------------------

RECENT = 16  # tokens


def _change_cells(setting: Setting) -> list[Cell]:
    return [
        {"model": name, "change": change}
        for name, lm in setting.models.items()
        for change in CHANGES
        # The others compute their attention where no key can be hidden from a query.
        if FORBIDDEN not in change or all(map(goes_through_interface, lm.attention_modules))
    ]


def _changed(lm: LM, change: str, other: int) -> contextlib.AbstractContextManager[None]:
    """Return the context of a change: of the first token or, as a control, of another one."""
    position = 0 if change.startswith("first") else other
    if change.endswith(ZEROED):
        return zero_value(lm, position)
    return forbid(lm, position) if change.endswith(FORBIDDEN) else contextlib.nullcontext()


def _measure_change(setting: Setting, cell: Cell) -> list[Row]:
    lm, change = setting.models[cell["model"]], cell["change"]
    texts = probes(setting, lm, 4 if setting.quick else 32)
    n_last, other = len(texts[0]) // 2, len(texts[0]) // 4
    before = nll_of_ends(lm, texts, n_last)
    with _changed(lm, change, other):
        after = nll_of_ends(lm, texts, n_last)
        traces = capture(
            lm,
            texts,
            keep="statistics",
            statistics=("received", "mass", "norms"),
            n_sink=1,
            n_recent=RECENT,
        )
    mean, error = change_and_error(after, before)
    found = [("nll", "all", after.mean()), ("nll change", "all", mean), ("nll error", "all", error)]
    rows = [(None, *one) for one in found]
    mass = np.mean([trace.mass[:, :, -n_last:].mean((1, 2)) for trace in traces], axis=0)
    received = np.mean([trace.received.mean(1) for trace in traces], axis=0)
    for layer, (shares, keys) in enumerate(zip(mass, received, strict=True)):
        rows += [(layer, "attention", *one) for one in zip(ROLES, shares, strict=True)]
        rows.append((layer, "received", "first", keys[0]))
        rows.append((layer, "received", "next three", keys[1:4].sum()))
    if change == "none":
        rows += _norms(traces) + _activations(lm, texts)
    names = ("layer", "quantity", "of", "value")
    said = {"model": cell["model"], "change": change}
    return [said | dict(zip(names, (*row[:3], float(row[3])), strict=True)) for row in rows]


def _norms(traces: Sequence[Trace]) -> list[tuple]:
    """Return the first token's norms and the median of the rest, means over heads and texts."""
    rows: list[tuple] = []
    for kind in ("value", "key", "residual"):
        norms = np.array([getattr(trace, f"{kind}_norm") for trace in traces], dtype=float)
        norms = norms if kind == "residual" else norms.mean(2)
        for layer, each in enumerate(norms.swapaxes(0, 1)):
            rows.append((layer, f"{kind} norm", "first", each[:, 0].mean()))
            rows.append((layer, f"{kind} norm", "rest", np.median(each[:, 1:], -1).mean()))
    return rows


def _activations(lm: LM, texts: Sequence[Tensor]) -> list[tuple]:
    """Return the largest coordinate of the residual stream after each layer, and the median one.

    Source: Sun et al. 2024, arXiv 2402.17762, section 2 (massive activations).
    """
    paths = {module: path for path, module in lm.model.named_modules()}
    blocks = [lm.model.get_submodule(paths[m].rpartition(".")[0]) for m in lm.attention_modules]
    found: list[list[np.ndarray]] = [[] for _ in blocks]

    def hook(layer: int) -> Callable[..., None]:
        def take(module: nn.Module, args: Any, output: Any) -> None:
            size = (output[0] if isinstance(output, tuple) else output)[0].abs().float()
            of = (size[0].max(), size[1:].amax(-1).median(), size.median())
            found[layer].append(torch.stack(of).cpu().numpy())

        return take

    handles = [block.register_forward_hook(hook(layer)) for layer, block in enumerate(blocks)]
    try:
        for ids in texts:
            with untouched(lm.model):
                lm.model(ids[None], use_cache=False, logits_to_keep=1)
    finally:
        for handle in handles:
            handle.remove()
    rows: list[tuple] = []
    for layer, each in enumerate(found):
        first, rest, median = np.mean(each, axis=0)
        rows.append((layer, "largest activation", "first", first))
        rows.append((layer, "largest activation", "rest", rest))
        rows.append((layer, "median activation", "all", median))
    return rows


INSIDE_A_SINK = Experiment(
    name="inside_a_sink",
    question="What does a sink look like inside, and what does the model lose without it?",
    cells=_change_cells,
    measure=_measure_change,
    draw=grid_inside,
    claims=INSIDE_CLAIMS,
)
