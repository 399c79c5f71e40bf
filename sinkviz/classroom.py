"""The classroom model: a decoder that a student can read in one sitting.

Pre-norm, SwiGLU, tied embeddings, no biases; with a choice of position scheme and of softmax. It
is an ordinary transformers model: registered with the Auto classes, through the attention
interface, with the usual caches. Knows nothing about policies, hooks or experiments.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    DynamicCache,
    GenerationMixin,
    PreTrainedConfig,
    PreTrainedModel,
)
from transformers.masking_utils import create_causal_mask
from transformers.modeling_outputs import BaseModelOutputWithPast, CausalLMOutputWithPast
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from sinkviz.attention import null_softmax
from sinkviz.positions import (
    alibi_bias,
    alibi_slopes,
    rotary_frequencies,
    rotate,
    sinusoidal_table,
    t5_bucket,
)

POSITIONS = ("rope", "alibi", "sinusoidal", "t5", "learned", "none")
SOFTMAXES = ("standard", "off_by_one", "sink_logit")
T5_BUCKETS = 32


class ClassroomConfig(PreTrainedConfig):
    """Sizes and choices of a classroom model.

    Args:
        position: one of ``rope alibi sinusoidal t5 learned none``.
        softmax: one of ``standard off_by_one sink_logit``.
        gated: multiply what each head puts out by a sigmoid of its own, a function of the token
            (Qiu et al. 2025, arXiv 2505.06708, one gate per head).
        n_sink_tokens: learnable sink tokens put first in every text, before ``<|begin|>``; their
            ids are the last ``n_sink_tokens`` of the vocabulary.
        max_position_embeddings: training length, tokens.

    The other fields have their usual transformers meaning.
    """

    model_type = "sinkviz_classroom"
    keys_to_ignore_at_inference = ["past_key_values"]

    vocab_size: int = 2048
    hidden_size: int = 192
    intermediate_size: int = 512
    num_hidden_layers: int = 6
    num_attention_heads: int = 6
    num_key_value_heads: int | None = None
    max_position_embeddings: int = 128
    position: str = "rope"
    softmax: str = "standard"
    gated: bool = False
    n_sink_tokens: int = 0
    rope_theta: float = 10_000.0
    rms_norm_eps: float = 1e-6
    initializer_range: float = 0.02
    use_cache: bool = True
    tie_word_embeddings: bool = True
    bos_token_id: int | None = 0
    eos_token_id: int | None = None
    pad_token_id: int | None = None

    def __post_init__(self, **kwargs: Any) -> None:
        for name, known in (("position", POSITIONS), ("softmax", SOFTMAXES)):
            if getattr(self, name) not in known:
                raise ValueError(f"{name}={getattr(self, name)!r} is none of {', '.join(known)}")
        if self.hidden_size % (2 * self.num_attention_heads):
            raise ValueError(
                f"hidden_size ({self.hidden_size}) must be an even multiple of "
                f"num_attention_heads ({self.num_attention_heads})"
            )
        self.num_key_value_heads = self.num_key_value_heads or self.num_attention_heads
        super().__post_init__(**kwargs)

    @property
    def head_dim(self) -> int:
        """Coordinates per head."""
        return self.hidden_size // self.num_attention_heads

    @property
    def sink_ids(self) -> range:
        """Ids of the learnable sink tokens."""
        return range(self.vocab_size - self.n_sink_tokens, self.vocab_size)


def eager_attention_forward(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float,
    s_aux: Tensor | None = None,
    **kwargs: Any,
) -> tuple[Tensor, Tensor]:
    """Attention as the textbook writes it; returns output and attention."""
    groups = query.shape[1] // key.shape[1]
    key, value = (x.repeat_interleave(groups, dim=1) for x in (key, value))
    scores = query @ key.transpose(-1, -2) * scaling
    if attention_mask is not None:
        scores = scores + attention_mask
    attention = null_softmax(scores, s_aux).to(query.dtype)
    return (attention @ value).transpose(1, 2).contiguous(), attention


class RMSNorm(nn.RMSNorm):
    """Root mean square norm (named so that transformers initialises it)."""


class ClassroomRotary(nn.Module):
    """Cosines and sines of the rotary angles at the given text positions."""

    def __init__(self, config: ClassroomConfig) -> None:
        super().__init__()
        self.config = config
        self.inv_freq = nn.Buffer(self.frequencies(), persistent=False)

    def frequencies(self) -> Tensor:
        """Return the rotary frequencies, radians per token."""
        return rotary_frequencies(self.config.head_dim, self.config.rope_theta)

    def forward(self, position_ids: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Return cosines and sines, (batch, 1, token, pair) each."""
        accumulate = torch.promote_types(torch.float32, dtype)
        angle = position_ids[:, None, :, None].to(accumulate) * self.inv_freq.to(accumulate)
        return angle.cos().to(dtype), angle.sin().to(dtype)


class ClassroomAttention(nn.Module):
    """Multi-head (or grouped-query) causal self-attention."""

    def __init__(self, config: ClassroomConfig, layer_idx: int) -> None:
        super().__init__()
        self.config, self.layer_idx = config, layer_idx
        self.head_dim, self.scaling = config.head_dim, config.head_dim**-0.5
        self.num_key_value_groups = config.num_attention_heads // config.num_key_value_heads
        self.is_causal = True
        key_size = config.num_key_value_heads * self.head_dim
        self.q_proj = nn.Linear(config.hidden_size, config.hidden_size, bias=False)
        self.k_proj = nn.Linear(config.hidden_size, key_size, bias=False)
        self.v_proj = nn.Linear(config.hidden_size, key_size, bias=False)
        self.o_proj = nn.Linear(config.hidden_size, config.hidden_size, bias=False)
        if config.softmax == "sink_logit":
            self.sinks = nn.Parameter(torch.zeros(config.num_attention_heads))
        if config.gated:
            self.gate = nn.Linear(config.hidden_size, config.num_attention_heads, bias=False)

    def null_logit(self) -> Tensor | None:
        """Return the logit per head that takes mass to nowhere, or None with standard softmax."""
        if self.config.softmax == "standard":
            return None
        if self.config.softmax == "sink_logit":
            return self.sinks
        return self.q_proj.weight.new_zeros(self.config.num_attention_heads)

    def forward(
        self,
        hidden: Tensor,
        mask: Tensor | None,
        rotation: tuple[Tensor, Tensor] | None,
        past_key_values: Any = None,
        **kwargs: Any,
    ) -> tuple[Tensor, Tensor | None]:
        """Return the output, and the attention where the implementation computes it."""
        shape = (*hidden.shape[:-1], -1, self.head_dim)
        query, key, value = (
            projection(hidden).view(shape).transpose(1, 2)
            for projection in (self.q_proj, self.k_proj, self.v_proj)
        )
        if rotation is not None:
            query, key = rotate(query, *rotation), rotate(key, *rotation)
        if past_key_values is not None:
            key, value = past_key_values.update(key, value, self.layer_idx)
        null_logit = self.null_logit()
        if null_logit is not None:
            kwargs["s_aux"] = null_logit
        attend = ALL_ATTENTION_FUNCTIONS.get_interface(
            self.config._attn_implementation, eager_attention_forward
        )
        output, attention = attend(
            self, query, key, value, mask, dropout=0.0, scaling=self.scaling, **kwargs
        )
        if self.config.gated:
            output = output * self.gate(hidden).sigmoid()[..., None]
        return self.o_proj(output.flatten(2)), attention


class ClassroomLayer(nn.Module):
    """One block: attention, then a gated feed-forward, each added to the residual stream."""

    def __init__(self, config: ClassroomConfig, layer_idx: int) -> None:
        super().__init__()
        self.input_norm = RMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.self_attn = ClassroomAttention(config, layer_idx)
        self.post_norm = RMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.gate_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.up_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.down_proj = nn.Linear(config.intermediate_size, config.hidden_size, bias=False)

    def forward(self, hidden: Tensor, **kwargs: Any) -> Tensor:
        """Return the residual stream after the block."""
        hidden = hidden + self.self_attn(self.input_norm(hidden), **kwargs)[0]
        inner = self.post_norm(hidden)
        gated = nn.functional.silu(self.gate_proj(inner)) * self.up_proj(inner)
        return hidden + self.down_proj(gated)


class ClassroomPreTrainedModel(PreTrainedModel):
    """What transformers must know to load, move and initialise the model."""

    config: ClassroomConfig
    config_class = ClassroomConfig
    base_model_prefix = "model"
    _no_split_modules = ["ClassroomLayer"]
    _supports_attention_backend = True

    @property
    def _supports_sdpa(self) -> bool:
        """Fused attention has no place for a null logit."""
        return self.config.softmax == "standard"

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, ClassroomRotary):
            module.inv_freq.copy_(module.frequencies())
        elif isinstance(module, ClassroomAttention) and hasattr(module, "sinks"):
            nn.init.zeros_(module.sinks)


class ClassroomModel(ClassroomPreTrainedModel):
    """Embeddings, blocks and the final norm."""

    def __init__(self, config: ClassroomConfig) -> None:
        super().__init__(config)
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        if config.position == "learned":
            self.embed_positions = nn.Embedding(config.max_position_embeddings, config.hidden_size)
        if config.position == "t5":
            self.relative_bias = nn.Embedding(T5_BUCKETS, config.num_attention_heads)
        if config.position == "rope":
            self.rotary_emb = ClassroomRotary(config)
        self.layers = nn.ModuleList(
            ClassroomLayer(config, index) for index in range(config.num_hidden_layers)
        )
        self.norm = RMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.post_init()

    def embed(self, input_ids: Tensor, position_ids: Tensor) -> Tensor:
        """Token vectors, plus position vectors where the scheme adds them."""
        hidden = self.embed_tokens(input_ids)
        if self.config.position == "learned":
            longest = self.config.max_position_embeddings
            if int(position_ids.max()) >= longest:
                raise ValueError(
                    f"learned positions end at {longest - 1}, got {int(position_ids.max())}; "
                    "a table of positions cannot extrapolate: shorten the text or use Recompute"
                )
            hidden = hidden + self.embed_positions(position_ids)
        if self.config.position == "sinusoidal":
            table = sinusoidal_table(position_ids, self.config.hidden_size)
            # Scaled to the size of the token vectors, which start at initializer_range.
            hidden = hidden + self.config.initializer_range * table.to(hidden)
        return hidden

    def score_bias(self, distance: Tensor) -> Tensor | None:
        """Bias of the scores for (batch, query, key) distances, (batch, head, query, key)."""
        if self.config.position == "alibi":
            slopes = alibi_slopes(self.config.num_attention_heads).to(distance.device)
            return alibi_bias(slopes, distance).transpose(0, 1)
        if self.config.position == "t5":
            return self.relative_bias(t5_bucket(distance, T5_BUCKETS)).movedim(-1, 1)
        return None

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Any = None,
        use_cache: bool | None = None,
        **kwargs: Any,
    ) -> BaseModelOutputWithPast:
        """Return the last hidden states; arguments as in any transformers decoder."""
        if past_key_values is None and use_cache:
            past_key_values = DynamicCache(config=self.config)
        seen = past_key_values.get_seq_length() if past_key_values is not None else 0
        length = input_ids.shape[1]
        if position_ids is None:
            position_ids = torch.arange(seen, seen + length, device=input_ids.device)[None]
        hidden = self.embed(input_ids, position_ids)
        mask = create_causal_mask(
            config=self.config,
            inputs_embeds=hidden,
            attention_mask=attention_mask,
            past_key_values=past_key_values,
            position_ids=position_ids,
        )
        if self.config.position in ("alibi", "t5"):
            mask = self.biased_mask(mask, past_key_values, position_ids, hidden.dtype)
        rotation = None
        if self.config.position == "rope":
            rotation = self.rotary_emb(position_ids, hidden.dtype)
        for layer in self.layers:
            hidden = layer(
                hidden,
                mask=mask,
                rotation=rotation,
                past_key_values=past_key_values,
                position_ids=position_ids,
                **kwargs,
            )
        return BaseModelOutputWithPast(
            last_hidden_state=self.norm(hidden), past_key_values=past_key_values
        )

    def biased_mask(
        self, mask: Tensor | None, cache: Any, position_ids: Tensor, dtype: torch.dtype
    ) -> Tensor:
        """The causal mask with the position bias added, as one float tensor.

        A cache that evicts or reorders keys says itself how far each returned key is from each
        query (``cache.distances``); with any other cache the keys lie at 0, 1, 2 ...
        """
        if hasattr(cache, "distances"):
            distance = cache.distances(position_ids)
        else:
            seen = cache.get_seq_length() if cache is not None else 0
            keys = torch.arange(seen + position_ids.shape[1], device=position_ids.device)
            distance = keys[None, seen:, None] - keys
        bias = self.score_bias(distance).to(dtype)
        visible = mask if mask is not None else (distance >= 0)[:, None]
        if visible.dtype == torch.bool:
            return bias.masked_fill(~visible, torch.finfo(dtype).min)
        return bias + visible


class ClassroomForCausalLM(ClassroomPreTrainedModel, GenerationMixin):
    """The classroom model with its (tied) output head."""

    _tied_weights_keys = {"lm_head.weight": "model.embed_tokens.weight"}

    def __init__(self, config: ClassroomConfig) -> None:
        super().__init__(config)
        self.model = ClassroomModel(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Any = None,
        use_cache: bool | None = None,
        labels: Tensor | None = None,
        logits_to_keep: int | Tensor = 0,
        **kwargs: Any,
    ) -> CausalLMOutputWithPast:
        """Return the logits of the next tokens; arguments as in any transformers causal LM."""
        output = self.model(
            input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            use_cache=use_cache,
            **kwargs,
        )
        keep = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        logits = self.lm_head(output.last_hidden_state[:, keep])
        loss = None
        if labels is not None:
            loss = self.loss_function(logits, labels, vocab_size=self.config.vocab_size)
        return CausalLMOutputWithPast(
            loss=loss, logits=logits, past_key_values=output.past_key_values
        )


AutoConfig.register(ClassroomConfig.model_type, ClassroomConfig)
AutoModelForCausalLM.register(ClassroomConfig, ClassroomForCausalLM)
