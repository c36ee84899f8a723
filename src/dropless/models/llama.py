"""Llama and what is shaped like it: SmolLM2, Llama 2 and 3."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from dropless.layers.attention import Attention
from dropless.layers.embedding import Embedding, OutputHead
from dropless.layers.linear import RowParallelLinear, Rows, column_parallel
from dropless.layers.mlp import GatedMLP
from dropless.layers.norm import RMSNorm
from dropless.layers.rotary import rotary_table
from dropless.layers.weights import Weights
from dropless.models.config import Fields, ModelConfig, llama_like
from dropless.models.decoder import Block, CausalLM, FeedForward


@dataclass(frozen=True, slots=True, kw_only=True)
class LlamaConfig(ModelConfig):
    rms_norm_eps: float
    qkv_bias: bool
    out_bias: bool
    mlp_bias: bool = False


def parse_config(content: Mapping[str, Any]) -> LlamaConfig:
    """Llama's config.json. Fields younger than Llama 2 that say what is usual may be absent: a
    checkpoint that has biases all the same is refused when its tensors are read.

    Raises:
        ConfigError: a field is missing, wrong or contradicts another.
    """
    fields = Fields("llama", content)
    bias = fields.flag("attention_bias", absent=False)
    return LlamaConfig(
        **llama_like("llama", fields),
        rms_norm_eps=fields.real("rms_norm_eps"),
        qkv_bias=bias,
        out_bias=bias,
        mlp_bias=fields.flag("mlp_bias", absent=False),
    )


def build(config: LlamaConfig, weights: Weights) -> CausalLM:
    """The model with its weights read."""

    def ffn(norm: RMSNorm, prefix: str) -> FeedForward:
        return GatedMLP(
            weights,
            norm,
            config.hidden_size,
            config.ffn_width,
            gate=f"{prefix}.mlp.gate_proj.weight",
            up=f"{prefix}.mlp.up_proj.weight",
            down=f"{prefix}.mlp.down_proj.weight",
            bias=config.mlp_bias,
        )

    return build_llama_like(config, weights, ffn)


def build_llama_like(
    config: LlamaConfig, weights: Weights, ffn: Callable[[RMSNorm, str], FeedForward]
) -> CausalLM:
    """A model that differs from Llama in its feed-forward layers at most; `ffn` makes that of the
    block whose tensors' names begin with its second argument, from the norm before it."""
    table = rotary_table(
        config.head_dim,
        config.max_position_embeddings,
        config.rope_theta,
        config.rope_scaling,
        device=weights.device,
    )
    embedding = Embedding(
        weights, "model.embed_tokens.weight", config.vocab_size, config.hidden_size
    )

    def block(layer: int) -> Block:
        prefix = f"model.layers.{layer}"
        return Block(
            _attention(config, weights, layer),
            ffn(_norm(config, weights, f"{prefix}.post_attention_layernorm"), prefix),
        )

    return CausalLM(
        config,
        table,
        embedding,
        [block(layer) for layer in range(config.num_layers)],
        _norm(config, weights, "model.norm"),
        OutputHead(
            weights,
            "lm_head.weight",
            config.vocab_size,
            config.hidden_size,
            tied_to=embedding if config.tie_word_embeddings else None,
        ),
    )


def _norm(config: LlamaConfig, weights: Weights, name: str) -> RMSNorm:
    return RMSNorm(weights, f"{name}.weight", config.hidden_size, config.rms_norm_eps)


def _attention(config: LlamaConfig, weights: Weights, layer: int) -> Attention:
    prefix = f"model.layers.{layer}.self_attn"
    q_size = config.num_heads * config.head_dim
    kv_size = config.num_kv_heads * config.head_dim
    qkv = [
        Rows(f"{prefix}.q_proj.weight", q_size),
        Rows(f"{prefix}.k_proj.weight", kv_size),
        Rows(f"{prefix}.v_proj.weight", kv_size),
    ]
    return Attention(
        _norm(config, weights, f"model.layers.{layer}.input_layernorm"),
        column_parallel(weights, config.hidden_size, qkv, bias=config.qkv_bias),
        RowParallelLinear(
            weights, f"{prefix}.o_proj.weight", q_size, config.hidden_size, bias=config.out_bias
        ),
        layer=layer,
        num_heads=config.num_heads,
        num_kv_heads=config.num_kv_heads,
        head_dim=config.head_dim,
        weights=weights,
    )
