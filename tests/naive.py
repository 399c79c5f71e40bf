"""Decoding under a policy as its definition reads, for every family: slow, and obviously right.

The cache keeps the key of every token of the text with the model's rotation taken away. At each
step it looks up ``policy.keep(n)``, rotates those keys to the positions that the definition gives
them, and returns them in text order. Shares no code with ``sinkviz.caches`` or ``attention``.

Native sliding layers (next to full ones) keep their own window whatever the policy is.
"""

from __future__ import annotations

import torch
from torch import Tensor
from transformers import Cache
from transformers.cache_utils import CacheLayerMixin
from zoo import table_frequencies

from sinkviz.models import LM, untouched
from sinkviz.policies import Policy

INTERLEAVED = {"gptj", "codegen", "cohere", "cohere2"}
ABSOLUTE = {"gpt2", "opt"}
ALIBI = {"mpt", "bloom"}


def naive_logits(lm: LM, ids: Tensor, policy: Policy, *, text_positions: bool = False) -> Tensor:
    """Return the logits after every token, (token, vocab).

    Args:
        lm: the model, best in float64 (``zoo.zoo_model``).
        ids: token ids of the text.
        policy: any; each window of ``Recompute`` is a text of its own, whatever the positions.
        text_positions: keys and queries are rotated to their positions in the text, instead of
            their ranks among the kept keys.

    Raises:
        ValueError: position vectors are baked into the keys, so that these cannot move.
        NotImplementedError: the model computes ALiBi from ranks, and nothing else can be asked.
    """
    with untouched(lm.model):
        if policy.recompute:
            windows = (ids[policy.keep(n)] for n in range(1, len(ids) + 1))
            rows = [lm.model(window[None], use_cache=False).logits[0, -1] for window in windows]
            return torch.stack(rows)
        cache = NaiveCache(lm.model, policy, text_positions)
        rows = []
        for token in ids:
            position = cache.expect_next()
            out = lm.model(
                token[None, None],
                position_ids=torch.tensor([[position]]),
                past_key_values=cache,
                use_cache=True,
            )
            rows.append(out.logits[0, -1])
    return torch.stack(rows)


class NaiveCache(Cache):
    """All keys of the text; call ``expect_next`` before each token, and feed it where it says."""

    def __init__(self, model: torch.nn.Module, policy: Policy, text_positions: bool) -> None:
        config = model.config
        kind, scheme = config.model_type, getattr(config, "position", None)
        absolute = kind in ABSOLUTE or scheme in ("learned", "sinusoidal")
        if absolute and policy.cache_size is not None and not text_positions:
            raise ValueError(f"{kind} has baked its positions into the keys; they cannot move")
        ranked = kind in ALIBI or (kind == "falcon" and config.alibi)
        if ranked and policy.n_sink and text_positions:
            raise NotImplementedError(f"{kind} counts keys: its biases know no gap in the text")
        self.policy, self.text_positions = policy, text_positions
        self.n = 0  # tokens of the text so far, the one being fed included
        self.kept: list[int] = []
        layers = [NaiveLayer(self, model, index) for index in range(config.num_hidden_layers)]
        super().__init__(layers=layers)

    def expect_next(self) -> int:
        """Count one more token, and return the position id to feed it at."""
        self.n += 1
        self.kept = self.policy.keep(self.n)
        return self.position

    @property
    def position(self) -> int:
        """Position id of the token being fed."""
        return self.n - 1 if self.text_positions else len(self.kept) - 1

    def distances(self, position_ids: Tensor) -> Tensor:
        """Return query position minus key position, (batch, query, key), for the classroom."""
        keys = self.kept if self.text_positions else range(len(self.kept))
        return position_ids[..., None] - torch.tensor(list(keys))


class NaiveLayer(CacheLayerMixin):
    """Keys (without rotation) and values of one layer, a list of (batch, head, 1, dimension)."""

    def __init__(self, cache: NaiveCache, model: torch.nn.Module, index: int) -> None:
        super().__init__()
        self.cache = cache
        self.window = native_window(model, index)
        self.frequencies = frequencies_of_layer(model, index)
        self.interleaved = model.config.model_type in INTERLEAVED
        self.is_sliding = self.window is not None
        self.all_keys: list[Tensor] = []
        self.all_values: list[Tensor] = []

    @property
    def returned(self) -> list[int]:
        """Text positions of the keys that this layer returns at this step."""
        if self.window is None:
            return self.cache.kept
        return list(range(max(0, self.cache.n - self.window), self.cache.n))

    @property
    def positions(self) -> list[int]:
        """Positions to rotate those keys to; the query is at ``cache.position``."""
        if self.window is not None or self.cache.text_positions:
            return [self.cache.position - (self.cache.n - 1 - key) for key in self.returned]
        return list(range(len(self.returned)))

    def rotate(self, x: Tensor, positions: list[int]) -> Tensor:
        """Rotate keys, (batch, head, key, dimension), one position each, as complex numbers."""
        if self.frequencies is None:
            return x
        n = len(self.frequencies)
        turned, rest = x[..., : 2 * n], x[..., 2 * n :]
        pairs = turned.unflatten(-1, (n, 2) if self.interleaved else (2, n))
        real, imaginary = pairs.unbind(-1 if self.interleaved else -2)
        angle = torch.tensor(positions)[:, None] * self.frequencies
        z = torch.complex(real, imaginary) * torch.exp(1j * angle)
        pairs = torch.stack((z.real, z.imag), -1 if self.interleaved else -2)
        return torch.cat((pairs.flatten(-2), rest), -1)

    def update(self, key_states: Tensor, value_states: Tensor, *args, **kwargs):
        """Keep the new key and value, and return those of this step, (batch, head, key, dim)."""
        if key_states.shape[2] != 1:
            raise ValueError("the naive cache takes one token at a time")
        self.all_keys.append(self.rotate(key_states, [-self.cache.position]))
        self.all_values.append(value_states)
        keys = torch.cat([self.all_keys[key] for key in self.returned], 2)
        values = torch.cat([self.all_values[key] for key in self.returned], 2)
        return self.rotate(keys, self.positions), values

    # What the masks (and the ALiBi of MPT, BLOOM and Falcon) are made of. The query is the last of
    # the kept tokens, and every returned key ends with it: nothing is in its future, and a native
    # sliding mask finds nothing to cut.

    def get_seq_length(self) -> int:
        """Kept tokens before this one."""
        return len(self.cache.kept) - 1

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Number of returned keys, and the slot of the first so that the last is the query's."""
        n = len(self.returned)
        return n, len(self.cache.kept) - n

    def get_max_length(self) -> int:
        """No bound."""
        return -1

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Nothing to prepare."""


def native_window(model: torch.nn.Module, index: int) -> int | None:
    """Return the size of a layer's own sliding window, in a model that also has full layers."""
    types = getattr(model.config, "layer_types", None) or ()
    if "full_attention" not in types or types[index] != "sliding_attention":
        return None
    return model.config.sliding_window


def frequencies_of_layer(model: torch.nn.Module, index: int) -> Tensor | None:
    """Return the rotary frequencies of one layer in float64, or None where it does not rotate."""
    config = model.config
    types = getattr(config, "layer_types", None)
    if config.model_type in ("gptj", "codegen"):
        return table_frequencies(config.rotary_dim)
    if config.model_type == "falcon" and config.alibi:  # it has a rotary module all the same
        return None
    if config.model_type == "smollm3" and not config.no_rope_layers[index]:
        return None
    if config.model_type == "cohere2" and types[index] == "full_attention":
        return None
    for module in model.modules():
        for name in ("inv_freq", f"{types[index]}_inv_freq" if types else "inv_freq"):
            if hasattr(module, name):
                return getattr(module, name).double()
    return None
