"""A trace is a file, a table, labelled arrays and one side of a difference; no model is needed."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from sinkviz.differences import TraceDifference
from sinkviz.labelled import AXES
from sinkviz.metrics import ROLES, entropy, mass, received_attention
from sinkviz.records import Trace

LAYERS, HEADS, T = 2, 4, 6


def made(seed: int = 0, **changes: object) -> Trace:
    """A trace of random attention, every field of it filled in."""
    generator = torch.Generator().manual_seed(seed)
    scores = 2 * torch.randn(LAYERS, HEADS, T, T, generator=generator)
    hidden = torch.ones(T, T).triu(1).bool()
    whole = scores.masked_fill(hidden, -torch.inf).softmax(-1)

    def noise(*shape: int) -> np.ndarray:
        return torch.rand(*shape, generator=generator).numpy()

    shares = mass(whole, 1, 2)
    fields = {
        "tokens": tuple("abcdef"),
        "token_ids": np.arange(T),
        "received": received_attention(whole).numpy(),
        "mass": torch.stack([shares[role] for role in ROLES], -1).numpy(),
        "entropy": entropy(whole).numpy(),
        "attention": whole.numpy(),
        "n_sink": 1,
        "n_recent": 2,
        "provenance": {"model": f"made-{seed}"},
        "distance": noise(LAYERS, HEADS, 4),
        "distance_edges": (0, 1, 2, 4, 8),
        "pooled_mean": noise(LAYERS, HEADS, 3, 3),
        "pooled_max": noise(LAYERS, HEADS, 3, 3),
        "cell": 2,
        "queries": (2, 5),
        "top_keys": np.zeros((LAYERS, HEADS, 2, 1), dtype=np.int64),
        "top_attention": noise(LAYERS, HEADS, 2, 1),
        "key_norm": noise(LAYERS, 2, T),
        "value_norm": noise(LAYERS, 2, T),
        "residual_norm": noise(LAYERS, T),
        "scores": scores.masked_fill(hidden, torch.nan).numpy(),
    }
    return Trace(**fields | changes)


def of_heads(seed: int = 0) -> Trace:
    heads = ((1, 3), (0, 2))
    whole = made(seed).attention
    return made(seed, attention=np.stack([whole[pair] for pair in heads])[None], heads=heads)


# Files --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("trace", [made(), of_heads(), made(attention=None, scores=None)])
def test_a_file_brings_everything_back(trace, tmp_path):
    loaded = Trace.load(trace.save(tmp_path / "trace.safetensors"))
    assert repr(loaded) == repr(trace)
    for name in Trace.__dataclass_fields__:
        before, after = getattr(trace, name), getattr(loaded, name)
        if isinstance(before, np.ndarray):
            assert before.dtype == after.dtype and np.array_equal(before, after, equal_nan=True)
        else:
            assert before == after
    assert [path.name for path in tmp_path.iterdir()] == ["trace.safetensors"]


def test_loading_needs_no_model(tmp_path):
    path = made().save(tmp_path / "trace.safetensors")
    code = (
        "import sys; from sinkviz.records import Trace; "
        f"trace = Trace.load({str(path)!r}); trace.to_frame(); trace - trace; "
        "print(trace.sink_rate, [m for m in sys.modules if m in "
        "('sinkviz.models', 'sinkviz.classroom', 'sinkviz.capturing')])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.strip() == f"{made().sink_rate} []", done.stderr


def test_a_trace_is_one_line():
    assert repr(made()) == "Trace(made-0: 6 tokens, 2 layers x 4 heads, maps)"
    assert repr(made(attention=None)).endswith("2 layers x 4 heads, statistics)")
    assert repr(of_heads()).endswith("statistics and maps of 2 heads)")


# Tables -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", AXES)
def test_every_number_is_in_the_table_where_its_axes_say(name):
    trace = made()
    frame, array = trace.to_frame(name), getattr(trace, name)
    in_text = name in ("attention", "scores")
    assert len(frame) == (LAYERS * HEADS * T * (T + 1) // 2 if in_text else array.size)
    assert frame.columns[-1] == name
    for row in frame.sample(10, random_state=0).to_dict("records"):
        index = []
        for axis in AXES[name]:
            label = row[axis]
            if axis == "role":
                label = ROLES.index(label)
            elif axis == "distance_from":
                label = trace.distance_edges.index(label)
            elif axis == "asked_query":
                label = trace.queries.index(label)
            elif axis.endswith("_cell"):
                label = label // trace.cell
            index.append(label)
            if f"{axis}_token" in row:
                assert row[f"{axis}_token"] == trace.tokens[row[axis]]
        assert row[name] == array[tuple(index)]


def test_tables_answer_questions():
    trace = made()
    by_role = trace.to_frame("mass").groupby("role", observed=True)["mass"].mean()
    assert list(by_role.index) == list(ROLES)
    assert by_role["sink"] == pytest.approx(trace.mass_of("sink").mean())
    first = trace.to_frame().query("key == 0")
    assert (first["received"] > 0.3).mean() == pytest.approx(trace.sink_rate)
    assert not trace.to_frame("scores")["scores"].isna().any()


def test_maps_of_some_heads_name_their_heads():
    trace = of_heads()
    for layer, head in trace.heads:
        rows = trace.to_frame("attention").query(f"layer == {layer} and head == {head}")
        matrix = rows.pivot(index="query", columns="key", values="attention").fillna(0)
        assert np.array_equal(matrix.to_numpy(), trace.map(layer, head))


def test_fields_that_are_not_there_are_refused():
    with pytest.raises(ValueError, match="no field 'weights'; known are received, mass"):
        made().to_frame("weights")
    with pytest.raises(ValueError, match="this trace does not have 'scores'; there are received"):
        made(scores=None).to_frame("scores")


# Labelled arrays ----------------------------------------------------------------------------------


def test_without_xarray_it_says_what_to_do(monkeypatch):
    monkeypatch.setitem(sys.modules, "xarray", None)
    with pytest.raises(ImportError, match="pip install xarray; or take to_frame"):
        made().to_xarray()


@pytest.mark.parametrize("trace", [made(), of_heads()])
def test_labelled_arrays_fit_together(trace, monkeypatch):
    """Every field has its axes, and every axis one length and its labels (whatever xarray is)."""
    fake = SimpleNamespace(Dataset=lambda *given: given)
    monkeypatch.setitem(sys.modules, "xarray", fake)
    fields, coordinates, about = trace.to_xarray()
    assert about == {"model": "made-0", "n_sink": 1, "n_recent": 2}
    assert set(fields) == set(AXES)
    for name, (axes, array) in fields.items():
        assert len(axes) == array.ndim and len(set(axes)) == len(axes)
        for axis, size in zip(axes, array.shape, strict=True):
            if axis != "kept":
                assert len(coordinates[axis]) == size
        if name != "attention":
            assert np.array_equal(array, getattr(trace, name), equal_nan=True)
    assert list(coordinates["key_cell"]) == [0, 2, 4]
    assert list(coordinates["distance_from"]) == [0, 1, 2, 4]
    assert list(coordinates["asked_query"]) == [2, 5]
    if trace.heads is not None:
        assert fields["attention"][0] == ("kept", "query", "key")
        assert coordinates["kept_head"][1].tolist() == [3, 2]


# Differences --------------------------------------------------------------------------------------


def test_a_difference_is_number_by_number():
    one, other = made(0), made(1)
    found = one - other
    assert isinstance(found, TraceDifference)
    assert set(found.arrays) == set(AXES) - {"top_keys", "top_attention"}
    for name, array in found.arrays.items():
        expected = getattr(one, name) - getattr(other, name)
        assert np.array_equal(array, expected, equal_nan=True)
    assert np.array_equal(found.received, found.arrays["received"])
    most = found.largest()
    where = most["layer"], most["head"], most["key"]
    assert abs(found.received[where]) == np.abs(found.received).max()
    assert (
        found.to_frame("mass").groupby(["layer", "head", "query"])["mass"].sum().abs()
    ).max() < (1e-6)
    assert repr(found) == (
        f"TraceDifference(made-0 - made-1: 6 tokens, sink rate {other.sink_rate:.2f} -> "
        f"{one.sink_rate:.2f}, received at most {most['received']:+.2f} (layer {most['layer']}, "
        f"head {most['head']}, key {most['key']}))"
    )
    assert "\n" not in repr(found)


def test_a_trace_less_itself_is_zero():
    assert all(np.nanmax(np.abs(x)) == 0 for x in (made() - made()).arrays.values())


def test_only_what_both_have_is_compared():
    found = made() - made(1, attention=None, key_norm=None, cell=1)
    assert {"attention", "key_norm", "pooled_mean", "pooled_max"}.isdisjoint(found.arrays)
    assert "attention" not in (made() - of_heads()).arrays
    with pytest.raises(AttributeError, match="no 'attention' in this difference: not both"):
        found.attention  # noqa: B018
    with pytest.raises(AttributeError, match="no 'nonsense' in this difference$"):
        found.nonsense  # noqa: B018
    with pytest.raises(ValueError, match="not both traces have 'attention'; there are received"):
        found.to_frame("attention")
    unknown = made(received=np.full((LAYERS, HEADS, T), np.nan, dtype=np.float32))
    assert "of received, mass, entropy" in repr(unknown - made())
    with pytest.raises(ValueError, match="received has no numbers to compare"):
        (unknown - made()).largest()


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (replace(made(), token_ids=np.arange(1, T + 1)), r"different texts \(6 and 6 tokens\)"),
        (
            replace(made(), received=made().received[:1]),
            "models of 2 layers x 4 heads and 1 layers",
        ),
        (replace(made(), n_sink=2), "n_sink 1 and 2, so their roles differ; capture both with"),
    ],
)
def test_what_does_not_correspond_is_refused(other, message):
    with pytest.raises(ValueError, match=message):
        made() - other
    with pytest.raises(TypeError, match="unsupported operand"):
        made() - 1
