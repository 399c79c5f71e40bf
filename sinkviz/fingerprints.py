"""A fingerprint of a model's weights, from a few values of each: to tell models of one size apart.

Knows nothing about what the weights are for.
"""

from __future__ import annotations

import hashlib

import torch
from torch import nn

SAMPLED = 256  # values per parameter: no pass over the whole of a large model


def weights_of(model: nn.Module) -> str | None:
    """Return a fingerprint of a model's weights, the same on any device.

    It sees all that training or merging changes, as these change every value; it does not see a
    change of a single one between the samples.

    Args:
        model: any module.

    Returns:
        Sixteen hexadecimal digits, or None where some weights are out of reach (on the ``meta``
        device, as accelerate offloads them).

    Example:
        >>> one, other = nn.Linear(3, 2), nn.Linear(3, 2)
        >>> weights_of(one) == weights_of(one), weights_of(one) == weights_of(other)
        (True, False)
    """
    digest = hashlib.sha256()
    sampled: dict[torch.device, dict[str, torch.Tensor]] = {}
    for name, weight in sorted(model.named_parameters()):
        if weight.device.type == "meta":
            return None
        digest.update(f"{name} {tuple(weight.shape)} {weight.dtype};".encode())
        n_sampled = min(SAMPLED, weight.numel())
        rank = torch.arange(n_sampled, device=weight.device)
        place = rank * (weight.numel() - 1) // max(1, n_sampled - 1)
        # Not flattened: where it is not contiguous, that would copy all of it.
        found = weight.detach()[torch.unravel_index(place, weight.shape)].reshape(-1)
        sampled.setdefault(weight.device, {})[name] = found.view(torch.uint8)
    values: dict[str, torch.Tensor] = {}
    for found in sampled.values():  # one transfer per device
        parts = torch.cat([*found.values()]).cpu().split([len(part) for part in found.values()])
        values.update(zip(found, parts, strict=True))
    for name in sorted(values):
        digest.update(values[name].numpy().tobytes())
    return digest.hexdigest()[:16]
