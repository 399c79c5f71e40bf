"""Slow, obvious references: attention under a policy, written as loops over the definition."""

from __future__ import annotations

import torch
from transformers import AttentionInterface, AttentionMaskInterface, LlamaConfig, LlamaForCausalLM

from sinkviz.classroom import ClassroomConfig, ClassroomForCausalLM
from sinkviz.models import LM, untouched
from sinkviz.policies import Policy
from sinkviz.positions import alibi_slopes, t5_bucket

CLASSROOM = {
    "vocab_size": 61,
    "hidden_size": 48,
    "num_attention_heads": 3,
    "num_hidden_layers": 3,
    "intermediate_size": 64,
    "max_position_embeddings": 256,
    "initializer_range": 0.3,
}


def tiny_classroom(dtype: torch.dtype = torch.float64, **changes: object) -> LM:
    """Return a random classroom model with large weights, so that attention is far from even."""
    torch.manual_seed(0)
    model = ClassroomForCausalLM(ClassroomConfig(**{**CLASSROOM, **changes}))
    if changes.get("softmax") == "sink_logit":
        for layer in model.model.layers:
            torch.nn.init.normal_(layer.self_attn.sinks)
    if changes.get("position") == "t5":
        torch.nn.init.normal_(model.model.relative_bias.weight)
    return LM(model.to(dtype).eval(), None, "tiny")


def exact_rotary(model: torch.nn.Module) -> None:
    """Make transformers' rotary embedding compute its angles in float64, as ours does."""
    rotary = next(m for m in model.modules() if hasattr(m, "inv_freq"))

    def forward(x: torch.Tensor, position_ids: torch.Tensor) -> tuple:
        angle = position_ids[..., None].double() * rotary.inv_freq.double()
        angle = torch.cat((angle, angle), -1)
        return angle.cos().to(x.dtype), angle.sin().to(x.dtype)

    rotary.forward = forward


def tiny_llama(dtype: torch.dtype = torch.float64) -> LM:
    """Return a random grouped-query Llama."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=61, hidden_size=48, intermediate_size=64, num_hidden_layers=3,
        num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=256,
        initializer_range=0.3, bos_token_id=0, eos_token_id=None,
    )  # fmt: skip
    model = LlamaForCausalLM(config).to(dtype).eval()
    if dtype == torch.float64:
        exact_rotary(model)
    return LM(model, None, "tiny-llama")


def tiny(config_class: type, model_class: type, **options: object) -> LM:
    """Return a random model of any rotary family, in float64, with exact angles."""
    torch.manual_seed(0)
    config = config_class(
        vocab_size=61, hidden_size=48, intermediate_size=64, num_hidden_layers=2,
        num_attention_heads=4, max_position_embeddings=256, initializer_range=0.3,
        bos_token_id=0, eos_token_id=None, pad_token_id=None, **options,
    )  # fmt: skip
    model = model_class(config).double().eval()
    exact_rotary(model)
    return LM(model, None, config.model_type)


def rotate_pairs(x: torch.Tensor, position: int, frequencies: torch.Tensor) -> torch.Tensor:
    """Rotate one vector (head, dimension) by ``position`` tokens, complex numbers, half pairing."""
    half = len(frequencies)
    z = torch.complex(x[..., :half], x[..., half : 2 * half])
    z = z * torch.polar(torch.ones_like(frequencies), position * frequencies)
    return torch.cat((z.real, z.imag, x[..., 2 * half :]), -1)


def brute_force(lm: LM, ids: torch.Tensor, policy: Policy, frequencies=None) -> torch.Tensor:
    """Return the logits after every token: the whole text at once, a loop per query, no cache.

    Each query is rotated to its position within the cache, and so is each key it keeps; biases
    come from the distance within the cache. Shares no code with ``sinkviz.attention`` or caches.
    """
    config = lm.model.config

    def attend(module, query, key, value, attention_mask, scaling, s_aux=None, **kwargs):
        groups = query.shape[1] // key.shape[1]
        q, k, v = query[0].transpose(0, 1), key[0].transpose(0, 1), value[0].transpose(0, 1)
        k, v = k.repeat_interleave(groups, 1), v.repeat_interleave(groups, 1)
        if frequencies is not None:  # take the model's own rotations away again
            q = torch.stack([rotate_pairs(q[t], -t, frequencies) for t in range(len(q))])
            k = torch.stack([rotate_pairs(k[t], -t, frequencies) for t in range(len(k))])
        rows = []
        for t in range(len(q)):
            kept = policy.keep(t + 1)
            scores = []
            for rank, p in enumerate(kept):
                a, b = q[t], k[p]
                if frequencies is not None:
                    a = rotate_pairs(a, len(kept) - 1, frequencies)
                    b = rotate_pairs(b, rank, frequencies)
                one = (a * b).sum(-1) * scaling
                distance = len(kept) - 1 - rank
                if getattr(config, "position", None) == "alibi":
                    one = one - alibi_slopes(config.num_attention_heads).double() * distance
                if getattr(config, "position", None) == "t5":
                    bucket = t5_bucket(torch.tensor(distance))
                    one = one + lm.model.model.relative_bias.weight[bucket]
                scores.append(one)
            weights = torch.stack(scores).exp()  # (key, head); small models need no max trick
            total = weights.sum(0) + (0 if s_aux is None else s_aux.exp())
            rows.append(((weights / total)[..., None] * v[kept]).sum(0))
        return torch.stack(rows)[None], None

    AttentionInterface.register("brute_force", attend)
    AttentionMaskInterface.register("brute_force", lambda *args, **kwargs: None)
    with untouched(lm.model, "brute_force"):
        return lm.model(ids[None], use_cache=False).logits[0]


def brute_force_nll(lm: LM, ids: torch.Tensor, policy: Policy, frequencies=None) -> torch.Tensor:
    """Return the nll of every token but the first, nats."""
    if policy.recompute:
        with untouched(lm.model):
            rows = [
                lm.model(ids[policy.keep(n)][None], use_cache=False).logits[0, -1]
                for n in range(1, len(ids))
            ]
        logits = torch.stack(rows)
    else:
        logits = brute_force(lm, ids, policy, frequencies)[:-1]
    return -logits.log_softmax(-1).gather(1, ids[1:, None])[:, 0]


def frequencies_of(dimension: int, theta: float = 10_000.0) -> torch.Tensor:
    """Return rotary frequencies rounded to float32, as models store them, in float64."""
    exact = [theta ** (-2 * i / dimension) for i in range(dimension // 2)]
    return torch.tensor(exact, dtype=torch.float32).double()
