"""Position schemes as plain functions of positions and distances.

Rotary angles and rotations, ALiBi slopes and biases, sinusoidal tables and T5 buckets. Knows
nothing about models, caches or policies: tensors in, tensors out.
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Float, Int
from torch import Tensor


def alibi_slopes(n_heads: int) -> Float[Tensor, " head"]:
    """Return the ALiBi slope of every head, a geometric sequence that ends at 2**-8.

    For a power of two the slopes are ``2**(-8 i / n_heads)`` for i = 1 .. n_heads. For any other
    number the list of the closest smaller power of two is extended with every second slope of
    the next larger one.

    Args:
        n_heads: number of heads, at least 1.

    Returns:
        Slopes in (0, 1), nats of bias per token of distance.

    Raises:
        ValueError: ``n_heads`` is below 1.

    Source: Press et al. 2021, arXiv 2108.12409, section 3 and the authors' reference code.

    Example:
        >>> alibi_slopes(4)
        tensor([0.2500, 0.0625, 0.0156, 0.0039])
    """
    if n_heads < 1:
        raise ValueError(f"n_heads must be at least 1, got {n_heads}")
    power = 2 ** math.floor(math.log2(n_heads))
    slopes = [2.0 ** (-8.0 * (i + 1) / power) for i in range(power)]
    extra = [2.0 ** (-4.0 * (2 * i + 1) / power) for i in range(n_heads - power)]
    return torch.tensor(slopes + extra)


def alibi_bias(
    slopes: Float[Tensor, " head"], distance: Int[Tensor, " *query_key"]
) -> Float[Tensor, " head *query_key"]:
    """Return the ALiBi bias: minus slope times distance.

    Args:
        slopes: one slope per head, nats per token.
        distance: query position minus key position, tokens.

    Returns:
        Bias to add to the scores, nats, at most 0 for keys in the past.

    Source: Press et al. 2021, arXiv 2108.12409, equation in section 3.

    Example:
        >>> alibi_bias(torch.tensor([0.5]), torch.tensor([[2, 1, 0]]))
        tensor([[[-1.0000, -0.5000, -0.0000]]])
    """
    return -slopes.view(-1, *[1] * distance.ndim) * distance


def rotary_frequencies(dimension: int, theta: float = 10_000.0) -> Float[Tensor, " pair"]:
    """Return the rotary frequencies ``theta ** (-2 i / dimension)``, radians per token.

    Args:
        dimension: number of rotated coordinates, even.
        theta: base of the geometric sequence; a larger one gives slower rotations.

    Returns:
        Frequencies, fastest first, radians per token.

    Raises:
        ValueError: ``dimension`` is odd.

    Source: Su et al. 2021, arXiv 2104.09864, section 3.2.

    Example:
        >>> rotary_frequencies(4)
        tensor([1.0000, 0.0100])
    """
    if dimension % 2:
        raise ValueError(f"rotary positions need an even number of coordinates, got {dimension}")
    # Written as the reference models do, so that the rounding is theirs too.
    return 1.0 / theta ** (torch.arange(0, dimension, 2, dtype=torch.float32) / dimension)


def rotate(
    x: Float[Tensor, "*batch dimension"],
    cos: Float[Tensor, "*#batch pair"],
    sin: Float[Tensor, "*#batch pair"],
    *,
    interleaved: bool = False,
) -> Float[Tensor, "*batch dimension"]:
    """Rotate the first ``2 * pair`` coordinates of ``x`` by the given angles.

    Coordinate i is paired with coordinate i + pair ("half", as in Llama), or 2 i with 2 i + 1
    ("interleaved", as in GPT-J). Coordinates past the rotated ones pass through unchanged
    (partial rotary, as in GPT-NeoX).

    Args:
        x: queries or keys.
        cos: cosine of each pair's angle, broadcastable against ``x``.
        sin: sine of each pair's angle.
        interleaved: how coordinates are paired.

    Returns:
        The rotated tensor, in the dtype of ``x``.

    Source: Su et al. 2021, arXiv 2104.09864, equation 34.

    Example:
        >>> quarter = torch.tensor([torch.pi / 2])
        >>> rotate(torch.tensor([1.0, 0.0, 7.0]), quarter.cos(), quarter.sin()).round()
        tensor([-0.,  1.,  7.])
    """
    pairs = cos.shape[-1]
    if torch.compiler.is_compiling() and not interleaved:
        # A compiler writes each coordinate once; in-place writes it would undo and redo.
        first, second, rest = x.split((pairs, pairs, x.shape[-1] - 2 * pairs), -1)
        turned = first * cos - second * sin, second * cos + first * sin
        return torch.cat((*(part.to(x.dtype) for part in turned), rest), dim=-1)
    both = cos.repeat_interleave(2, -1) if interleaved else torch.cat((cos, cos), -1)
    turned, rest = x[..., : 2 * pairs] * both, x[..., 2 * pairs :]
    for out, other, sign in zip(
        halves(turned, pairs, interleaved),
        reversed(halves(x, pairs, interleaved)),
        (-1, 1),
        strict=True,
    ):
        out.addcmul_(other, sin, value=sign)
    turned = turned.to(x.dtype)
    return torch.cat((turned, rest), dim=-1) if rest.shape[-1] else turned


def rotation_by(
    delta: Int[Tensor, " *shape"] | int, frequencies: Float[Tensor, " pair"]
) -> tuple[Float[Tensor, "*shape pair"], Float[Tensor, "*shape pair"]]:
    """Return cosine and sine of the rotation by ``delta`` tokens, exact at any distance.

    The angle is reduced modulo a full turn in float64, so that four million tokens are as exact
    as four; in float32 the angle itself would already be off by a quarter of a radian there.

    Args:
        delta: tokens to rotate by, of either sign.
        frequencies: rotary frequencies, radians per token.

    Returns:
        ``(cos, sin)`` in float64 where the frequencies are, otherwise in float32.

    Example:
        >>> cos, sin = rotation_by(2, torch.tensor([torch.pi / 4]))
        >>> sin.round()
        tensor([1.])
    """
    if not isinstance(delta, Tensor):
        delta = torch.tensor(delta)
    angle = delta.to(frequencies.device, torch.float64)[..., None] * frequencies.double()
    angle = torch.remainder(angle, 2 * math.pi)
    dtype = torch.float64 if frequencies.dtype == torch.float64 else torch.float32
    return angle.cos().to(dtype), angle.sin().to(dtype)


def halves(
    x: Float[Tensor, "*batch dimension"], pairs: int, interleaved: bool
) -> tuple[Float[Tensor, "*batch pair"], Float[Tensor, "*batch pair"]]:
    """Return views of the first and the second coordinates of every rotary pair.

    Args:
        x: queries or keys.
        pairs: how many pairs are rotated.
        interleaved: how coordinates are paired, see ``rotate``.

    Example:
        >>> first, second = halves(torch.arange(6.0), 2, interleaved=False)
        >>> first, second
        (tensor([0., 1.]), tensor([2., 3.]))
    """
    if interleaved:
        return x[..., 0 : 2 * pairs : 2], x[..., 1 : 2 * pairs : 2]
    return x[..., :pairs], x[..., pairs : 2 * pairs]


def sinusoidal_table(
    positions: Int[Tensor, " *shape"], dimension: int, theta: float = 10_000.0
) -> Float[Tensor, "*shape dimension"]:
    """Return the sinusoidal position vectors, sines first, then cosines.

    Args:
        positions: text positions, tokens.
        dimension: length of each vector, even.
        theta: base of the wavelengths.

    Returns:
        Vectors with entries in [-1, 1].

    Source: Vaswani et al. 2017, arXiv 1706.03762, section 3.5 (pairs grouped, not interleaved).

    Example:
        >>> sinusoidal_table(torch.tensor([0]), 4)
        tensor([[0., 0., 1., 1.]])
    """
    angle = positions[..., None] * rotary_frequencies(dimension, theta).to(positions.device)
    return torch.cat((angle.sin(), angle.cos()), dim=-1)


def t5_bucket(
    distance: Int[Tensor, " *shape"], n_buckets: int = 32, max_distance: int = 128
) -> Int[Tensor, " *shape"]:
    """Return the T5 bucket of each distance: exact when short, logarithmic when long.

    Args:
        distance: query position minus key position, tokens; the future counts as 0.
        n_buckets: number of buckets.
        max_distance: distance from which all share the last bucket.

    Returns:
        Bucket indices in [0, n_buckets).

    Source: Raffel et al. 2020, arXiv 1910.10683, section 2.1 (causal form).

    Example:
        >>> t5_bucket(torch.tensor([0, 3, 16, 60, 5000]))
        tensor([ 0,  3, 16, 26, 31])
    """
    distance = distance.clamp(min=0)
    exact = n_buckets // 2
    ratio = torch.log(distance.clamp(min=1) / exact) / math.log(max_distance / exact)
    far = exact + (ratio * (n_buckets - exact)).long()
    return torch.where(distance < exact, distance, far.clamp(max=n_buckets - 1))
