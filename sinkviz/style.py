"""One look for every figure: roles and policies -> colours, quantities -> colour maps and norms.

Colour never stands alone: a hatch, a dash or a marker says the same. Knows nothing about models
and changes no rcParams; what depends on the background is read from the Axes drawn into.
"""

from __future__ import annotations

import io
import re
from collections import Counter
from collections.abc import Iterable
from typing import Any

import seaborn  # registers its colour maps, changes no setting
from matplotlib.axes import Axes
from matplotlib.colors import Colormap, Normalize, PowerNorm, SymLogNorm, to_rgb
from PIL import Image

from sinkviz.metrics import ROLES
from sinkviz.policies import Dense, Policy, Recompute, SinkWindow, Window

COLOURS = {"sink": "#D55E00", "recent": "#0072B2", "evicted": "#949494", "dense": "#222222"}
INK_ON_DARK = "#E8E8E8"

# Further curves of one kind keep their colour and change dash and marker.
SOLID, DASHED, DOTTED = "-", (0, (5, 2)), (0, (1, 1))
DASH_DOT, DASH_DOT_DOT = (0, (4, 1.5, 1, 1.5)), (0, (4, 1, 1, 1, 1, 1))
DASHES = (SOLID, DASHED, DOTTED, DASH_DOT, DASH_DOT_DOT)
MARKERS = ("o", "s", "^", "D", "v")

# Bottom to top as in the text, what goes nowhere last.
STACK = ("sink", "middle", "recent", "self", "null")
assert set(STACK) == set(ROLES)

ATTENTION_SCALE = "square-root scale"
ATTENTION_TICKS = (0.0, 0.01, 0.05, 0.1, 0.2, 0.3, 0.5, 0.7, 1.0)
LOG_SCALE = "log scale"


def luminance(colour: Any) -> float:
    """Return the relative luminance of a colour, 0 (black) to 1 (white).

    Source: WCAG 2.2, definition of relative luminance.

    Example:
        >>> luminance("white"), luminance("black")
        (1.0, 0.0)
    """
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in to_rgb(colour)]
    return round(sum(w * c for w, c in zip((0.2126, 0.7152, 0.0722), linear, strict=True)), 9)


def contrast(one: Any, other: Any) -> float:
    """Return the contrast ratio of two colours, 1 (equal) to 21 (black on white).

    Source: WCAG 2.2, definition of contrast ratio.

    Example:
        >>> contrast("white", "black")
        21.0
    """
    dark, light = sorted((luminance(one), luminance(other)))
    return (light + 0.05) / (dark + 0.05)


def paper(ax: Axes) -> tuple[float, float, float]:
    """Return the background of an Axes as (red, green, blue), each in [0, 1].

    Where Axes and figure are transparent (some slides), the lettering tells light from dark.
    """
    for face in (ax.get_facecolor(), ax.figure.get_facecolor()):
        if face[3] > 0.5:
            return to_rgb(face)
    return to_rgb("white" if luminance(ax.xaxis.label.get_color()) < 0.5 else "black")


def is_dark(ax: Axes) -> bool:
    """Return whether the background of an Axes is dark: white contrasts more with it than black."""
    return luminance(paper(ax)) < 0.18


def ink(ax: Axes) -> str:
    """Return the colour of references and lettering: ``#222222``, or its light twin on dark."""
    return INK_ON_DARK if is_dark(ax) else COLOURS["dense"]


def faint(ax: Axes, strength: float = 0.12) -> tuple[float, float, float]:
    """Return a grey that is ``strength`` (0 to 1) of the way from the background to the ink."""
    pairs = zip(paper(ax), to_rgb(ink(ax)), strict=True)
    return tuple(back + strength * (front - back) for back, front in pairs)


def role_style(role: str, ax: Axes) -> dict[str, Any]:
    """Return how a patch of a role is filled and hatched, as keywords of a matplotlib patch.

    Args:
        role: ``sink recent middle self null``; ``evicted``; ``masked`` (no such attention); or
            ``future``.
        ax: where it is drawn; the background decides some of the greys.

    Raises:
        ValueError: no such role.
    """
    back = paper(ax)
    looks = {
        "sink": (COLOURS["sink"], "", back),
        "recent": (COLOURS["recent"], "", back),
        # The own key is part of the recent ones, and the middle is what a SinkWindow evicts.
        "self": (COLOURS["recent"], "....", back),
        "middle": (COLOURS["evicted"], "////", back),
        "null": (back, "xxx", faint(ax, 0.7)),
        "evicted": (faint(ax, 0.16), "////", COLOURS["evicted"]),
        "masked": (faint(ax, 0.16), "////", faint(ax, 0.36)),
        "future": (faint(ax, 0.1), "", back),
    }
    if role not in looks:
        raise ValueError(f"no role {role!r}; known are {', '.join(looks)}")
    face, hatch, edge = looks[role]
    return {"facecolor": face, "hatch": hatch, "edgecolor": edge, "linewidth": 0}


def policy_name(policy: Policy) -> str:
    """Return the short name of a policy in legends and titles.

    Example:
        >>> policy_name(SinkWindow(4, 60)), policy_name(Recompute(64)), policy_name(Dense())
        ('SinkWindow 4+60', 'Recompute 64', 'Dense')
    """
    kind = type(policy).__name__
    if isinstance(policy, Dense):
        return kind
    return f"{kind} {re.split('[ :]', str(policy), maxsplit=1)[-1]}"


def line_scale(ax: Axes) -> float:
    """Return the factor, 0.6 to 1, by which lines are thinner in narrow Axes.

    What is a line on a slide would be a beam in the column of a paper.
    """
    return min(1.0, max(0.6, float(ax.get_window_extent().width) * 72 / ax.figure.dpi / 400))


def line_look(
    colour: Any, dash: Any, marker: str, width: float, scale: float = 1.0
) -> dict[str, Any]:
    """Return keywords of ``Axes.plot`` for a curve with markers; ``scale`` is of ``line_scale``."""
    return {
        "color": colour,
        "linestyle": dash,
        "marker": marker,
        "linewidth": width * scale,
        "markersize": 5.5 * scale,
    }


def policy_styles(policies: Iterable[Policy], ax: Axes) -> list[dict[str, Any]]:
    """Return how the curve of each policy is drawn, as keywords of ``Axes.plot``.

    The four kinds differ in colour, dash and marker. Further policies of a kind keep the colour.
    All others share the ink and a marker of their own: a fifth hue would not stay apart.

    Args:
        policies: in the order of the curves.
        ax: where they are drawn; on dark paper the reference is light.
    """
    looks = {
        Dense: (ink(ax), DASHED, "D", 1.6, 2.4),
        Window: (COLOURS["evicted"], SOLID, "x", 2.0, 2.3),
        SinkWindow: (COLOURS["sink"], SOLID, "o", 2.4, 2.5),
        # Above SinkWindow, whose curve it meets: the solid one shows through the gaps.
        Recompute: (COLOURS["recent"], DASH_DOT, "s", 1.8, 2.6),
    }
    other = (ink(ax), SOLID, "^", 1.6, 2.45)
    scale = line_scale(ax)
    seen: Counter[type | None] = Counter()
    styles = []
    for policy in policies:
        kind = type(policy) if type(policy) in looks else None
        colour, dash, marker, width, order = looks.get(kind, other)
        nth = seen[kind]
        seen[kind] += 1
        dashes = [dash, *(one for one in DASHES if one != dash)]
        if kind is None:  # that dash in this ink is the reference
            dashes.sort(key=lambda one: one == DASHED)
        markers = [marker, *(one for one in MARKERS if one != marker)]
        dash, marker = dashes[nth % len(dashes)], markers[nth % len(markers)]
        styles.append(line_look(colour, dash, marker, width, scale) | {"zorder": order})
    return styles


def attention_map(ax: Axes) -> Colormap:
    """Return the colour map of attention, of monotone lightness.

    Little attention is near the background and much is far from it: ``rocket``, from light to
    dark on light paper and from dark to light on dark.
    """
    return seaborn.color_palette("rocket" if is_dark(ax) else "rocket_r", as_cmap=True)


def attention_norm() -> Normalize:
    """Return the norm that all attention shares: the square root of the share, from 0 to 1.

    A sink saturates a linear scale. On this one a weight of 0.01 is a tenth of the way up.

    Example:
        >>> [round(float(attention_norm()(share)), 2) for share in (0, 0.01, 0.25, 1)]
        [0.0, 0.1, 0.5, 1.0]
    """
    return PowerNorm(gamma=0.5, vmin=0, vmax=1)


def bias_map(ax: Axes) -> Colormap:
    """Return the diverging colour map of biases and differences.

    Negative is blue, positive red, and zero near the background.
    """
    return seaborn.color_palette("icefire" if is_dark(ax) else "vlag", as_cmap=True)


def bias_norm(largest: float, linear: float | None = None) -> Normalize:
    """Return the norm of biases and differences, centred on 0.

    Args:
        largest: largest absolute value to show, above 0; in the unit of the data.
        linear: absolute value below which the scale is linear and above which it is logarithmic;
            linear throughout where not given.

    Example:
        >>> float(bias_norm(3.0)(0.0))
        0.5
    """
    if linear is None:
        return Normalize(vmin=-largest, vmax=largest)
    return SymLogNorm(linthresh=linear, vmin=-largest, vmax=largest, base=2)


def small_png(png: bytes) -> bytes:
    """Return a PNG with a palette of 256 colours: the same to the eye, in a third of the bytes.

    Colours are chosen to cover what is there, not by how much of it: a small orange mark stays
    orange, and a colour bar has no bands.
    """
    with Image.open(io.BytesIO(png)) as image, io.BytesIO() as file:
        few = image.convert("RGB").quantize(
            256, Image.Quantize.MAXCOVERAGE, kmeans=1, dither=Image.Dither.NONE
        )
        few.save(file, format="png", optimize=True)
        return file.getvalue()
