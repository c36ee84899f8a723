"""DBRX: 16 fine-grained experts of which each token reaches 4, LayerNorm, clipped q, k and v."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from dropless.layers.attention import Attention
from dropless.layers.embedding import Embedding, OutputHead
from dropless.layers.linear import RowParallelLinear, Rows, column_parallel
from dropless.layers.moe import Expert, MoE
from dropless.layers.norm import LayerNorm
from dropless.layers.rotary import rotary_table
from dropless.layers.weights import Weights
from dropless.models.config import Fields, ModelConfig
from dropless.models.decoder import Block, CausalLM

NORM_EPS = 1e-5  # fixed by the architecture, not in the configuration


@dataclass(frozen=True, slots=True, kw_only=True)
class DbrxConfig(ModelConfig):
    clip_qkv: float | None
    norm_p: float | None  # the norm that a token's expert weights are divided by


def parse_config(content: Mapping[str, Any]) -> DbrxConfig:
    """The published config.json, with its nested attn_config and ffn_config.

    Raises:
        ConfigError: a field is missing, wrong or contradicts another.
    """
    fields = Fields("dbrx", content)
    attention, ffn = fields.nested("attn_config"), fields.nested("ffn_config")
    hidden_size, num_heads = fields.integer("d_model"), fields.integer("n_heads")
    if hidden_size % num_heads:
        raise fields.error("d_model", f"is {hidden_size}, no multiple of n_heads {num_heads}")
    if ffn.has("ffn_act_fn"):
        ffn.nested("ffn_act_fn").expect("name", "silu")
    # The published files leave moe_normalize_expert_weights out, which means 1; null means none.
    norm_p: float | None = 1.0
    if "moe_normalize_expert_weights" in ffn:
        norm_p = ffn.real_or_null("moe_normalize_expert_weights")
    return DbrxConfig(
        family="dbrx",
        vocab_size=fields.integer("vocab_size"),
        hidden_size=hidden_size,
        num_layers=fields.integer("n_layers"),
        num_heads=num_heads,
        num_kv_heads=attention.integer("kv_n_heads"),
        head_dim=hidden_size // num_heads,
        max_position_embeddings=fields.integer("max_seq_len"),
        rope_theta=attention.real("rope_theta"),
        rope_scaling=None,
        tie_word_embeddings=fields.flag("tie_word_embeddings"),
        ffn_width=ffn.integer("ffn_hidden_size"),
        num_experts=ffn.integer("moe_num_experts"),
        top_k=ffn.integer("moe_top_k"),
        clip_qkv=attention.real_or_null("clip_qkv"),
        norm_p=norm_p,
    )


def build(config: DbrxConfig, weights: Weights) -> CausalLM:
    """The model with its weights read."""
    table = rotary_table(
        config.head_dim,
        config.max_position_embeddings,
        config.rope_theta,
        device=weights.device,
    )
    embedding = Embedding(weights, "transformer.wte.weight", config.vocab_size, config.hidden_size)
    return CausalLM(
        config,
        table,
        embedding,
        [_block(config, weights, layer) for layer in range(config.num_layers)],
        LayerNorm(weights, "transformer.norm_f.weight", config.hidden_size, NORM_EPS),
        OutputHead(
            weights,
            "lm_head.weight",
            config.vocab_size,
            config.hidden_size,
            tied_to=embedding if config.tie_word_embeddings else None,
        ),
    )


def _block(config: DbrxConfig, weights: Weights, layer: int) -> Block:
    prefix = f"transformer.blocks.{layer}"
    norms = f"{prefix}.norm_attn_norm"
    hidden = config.hidden_size
    q_size = config.num_heads * config.head_dim
    kv_size = config.num_kv_heads * config.head_dim
    merged, rows = f"{norms}.attn.Wqkv.weight", q_size + 2 * kv_size
    qkv = [
        Rows(merged, q_size, 0, rows),
        Rows(merged, kv_size, q_size, rows),
        Rows(merged, kv_size, q_size + kv_size, rows),
    ]
    return Block(
        Attention(
            LayerNorm(weights, f"{norms}.norm_1.weight", hidden, NORM_EPS),
            column_parallel(weights, hidden, qkv),
            RowParallelLinear(weights, f"{norms}.attn.out_proj.weight", q_size, hidden),
            layer=layer,
            num_heads=config.num_heads,
            num_kv_heads=config.num_kv_heads,
            head_dim=config.head_dim,
            weights=weights,
            clip=config.clip_qkv,
        ),
        _moe(
            config,
            weights,
            LayerNorm(weights, f"{norms}.norm_2.weight", hidden, NORM_EPS),
            f"{prefix}.ffn",
        ),
    )


def _moe(config: DbrxConfig, weights: Weights, norm: LayerNorm, prefix: str) -> MoE:
    """w1 is the gate and v1 the up matrix of all experts, one below the other; w2 is down, stored
    [in, out]."""
    width = config.ffn_width

    def rows(name: str, expert: int) -> Rows:
        stored = config.num_experts * width
        return Rows(f"{prefix}.experts.mlp.{name}", width, expert * width, stored)

    return MoE(
        weights,
        norm,
        f"{prefix}.router.layer.weight",
        [Expert(rows("w1", i), rows("v1", i), rows("w2", i)) for i in range(config.num_experts)],
        config.hidden_size,
        width,
        top_k=config.top_k,
        norm_p=config.norm_p,
    )
