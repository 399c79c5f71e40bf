"""Colours: readable on white, apart for every eye, never the only channel."""

import io
import itertools

import matplotlib.pyplot as plt
import numpy as np
import pytest
from matplotlib.colors import to_rgb
from PIL import Image

from sinkviz import style
from sinkviz.metrics import ROLES
from sinkviz.policies import H2O, TOVA, Dense, Recompute, SinkWindow, Window

# Dichromats' view of linear RGB: Machado, Oliveira, Fernandes 2009, table 1, severity 1.0.
VISION = {
    "usual": np.eye(3),
    "protanopia": [
        [0.152286, 1.052583, -0.204868],
        [0.114503, 0.786281, 0.099216],
        [-0.003882, -0.048116, 1.051998],
    ],
    "deuteranopia": [
        [0.367322, 0.860646, -0.227968],
        [0.280085, 0.672501, 0.047413],
        [-0.011820, 0.042940, 0.968881],
    ],
    "tritanopia": [
        [1.255528, -0.076749, -0.178779],
        [-0.078411, 0.930809, 0.147602],
        [0.004733, 0.691367, 0.303900],
    ],
}
TO_XYZ = np.array(
    [
        [0.4124564, 0.3575761, 0.1804375],
        [0.2126729, 0.7151522, 0.0721750],
        [0.0193339, 0.1191920, 0.9503041],
    ]
)
POLICIES = [Dense(), Window(8), SinkWindow(2, 6), Recompute(8)]


def seen(colour, vision):
    """Return a colour as somebody sees it, in CIELAB: 2.3 is a just noticeable difference."""
    rgb = np.array(to_rgb(colour))
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    xyz = TO_XYZ @ (np.array(VISION[vision]) @ linear).clip(0, 1) / TO_XYZ.sum(1)
    x, y, z = np.where(xyz > 0.008856, np.cbrt(xyz), 7.787 * xyz + 16 / 116)
    return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])


@pytest.fixture(params=["default", "dark_background"])
def ax(request):
    with plt.style.context(request.param):
        yield plt.figure().add_subplot()
    plt.close("all")


def test_main_colours_are_the_house_colours():
    assert style.COLOURS == {
        "sink": "#D55E00",
        "recent": "#0072B2",
        "evicted": "#949494",
        "dense": "#222222",
    }


@pytest.mark.parametrize("name", style.COLOURS)
def test_colours_are_readable_on_white(name):
    assert style.contrast(style.COLOURS[name], "white") >= 3


@pytest.mark.parametrize("vision", VISION)
def test_colours_stay_apart_for_every_eye(vision):
    for one, other in itertools.combinations(style.COLOURS.values(), 2):
        assert np.linalg.norm(seen(one, vision) - seen(other, vision)) > 30, (one, other)


def test_policies_differ_in_colour_dash_and_marker_and_are_readable(ax):
    styles = style.policy_styles(POLICIES, ax)
    assert len({one["color"] for one in styles}) == 4
    assert len({one["marker"] for one in styles}) == 4
    assert len({str(one["linestyle"]) for one in styles}) >= 3
    assert styles[0]["linestyle"] != "-", "the reference is dashed"
    for one in styles:
        assert style.contrast(one["color"], style.paper(ax)) >= 3


@pytest.mark.parametrize("policy", POLICIES)
def test_further_policies_of_a_kind_keep_the_colour_and_change_dash_and_marker(ax, policy):
    styles = style.policy_styles([policy] * 5, ax)
    assert len({one["color"] for one in styles}) == 1
    assert len({str(one["linestyle"]) for one in styles}) == 5
    assert len({one["marker"] for one in styles}) == 5


def test_policies_of_no_kind_are_not_taken_for_the_reference(ax):
    dense, *others = style.policy_styles([Dense(), H2O(), TOVA(), H2O(8, 8), TOVA(8)], ax)
    for one in others:
        assert one["color"] == dense["color"] and one["linestyle"] != dense["linestyle"]


def test_every_role_of_the_mass_has_a_look_and_looks_differ(ax):
    looks = [style.role_style(role, ax) for role in ROLES]
    assert len({(str(look["facecolor"]), look["hatch"]) for look in looks}) == len(ROLES)
    for role, look in zip(ROLES, looks, strict=True):
        visible = look["edgecolor"] if role == "null" else look["facecolor"]
        assert style.contrast(visible, style.paper(ax)) >= 3, role
    assert style.role_style("null", ax)["hatch"]


def test_masked_is_hatched_grey_and_never_white(ax):
    look = style.role_style("masked", ax)
    red, green, blue = to_rgb(look["facecolor"])
    assert look["hatch"] and red == pytest.approx(green) == pytest.approx(blue)
    assert red < 0.9


def test_unknown_role_lists_the_known(ax):
    with pytest.raises(ValueError, match="no role 'sinks'; known are sink, recent"):
        style.role_style("sinks", ax)


def test_attention_map_is_monotone_and_far_from_the_background_at_its_end(ax):
    colours = style.attention_map(ax)(np.linspace(0, 1, 64))
    light = [style.luminance(colour[:3]) for colour in colours]
    steps = np.diff(light)
    assert (steps > 0).all() or (steps < 0).all()
    assert style.contrast(colours[-1][:3], style.paper(ax)) > 10


def test_difference_norm_is_centred_on_zero():
    for norm in (style.bias_norm(8.0), style.bias_norm(8.0, linear=0.1)):
        assert norm(0.0) == pytest.approx(0.5)
        assert norm(-3.0) + norm(3.0) == pytest.approx(1.0)


def test_transparent_paper_is_told_by_the_lettering():
    with plt.style.context("dark_background"):
        figure, axes = plt.subplots()
        figure.patch.set_alpha(0)
        axes.patch.set_alpha(0)
        assert style.is_dark(axes)
    plt.close("all")


def test_import_changes_no_setting():
    import importlib

    before = dict(plt.rcParams)
    importlib.reload(style)
    assert dict(plt.rcParams) == before


def test_small_pictures_keep_the_colours_of_small_marks():
    pixels = np.random.default_rng(0).integers(0, 40, (120, 120, 3), dtype=np.uint8)
    pixels[60:62, 60:62] = 213, 94, 0
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, format="png")
    small = style.small_png(file.getvalue())
    with Image.open(io.BytesIO(small)) as image:
        assert image.mode == "P" and image.size == (120, 120)
        shown = np.asarray(image.convert("RGB")).astype(int)
    assert len(small) < len(file.getvalue()) / 2
    assert np.abs(shown - pixels).max() <= 12 and np.abs(shown[60, 60] - (213, 94, 0)).max() <= 2
