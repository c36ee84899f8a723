"""Mixtral: Llama with a mixture of experts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dropless.layers.linear import Rows
from dropless.layers.moe import Expert, MoE
from dropless.layers.norm import RMSNorm
from dropless.layers.weights import Weights
from dropless.models.config import Fields, llama_like
from dropless.models.decoder import CausalLM
from dropless.models.llama import LlamaConfig, build_llama_like


def parse_config(content: Mapping[str, Any]) -> LlamaConfig:
    """Mixtral's config.json.

    Raises:
        ConfigError: a field is missing, wrong or contradicts another; sliding-window attention.
    """
    fields = Fields("mixtral", content)
    if fields.has("sliding_window"):
        window, length = fields.integer("sliding_window"), fields.integer("max_position_embeddings")
        if window < length:
            raise fields.error("sliding_window", f"is {window}; sliding windows are not supported")
    return LlamaConfig(
        **llama_like("mixtral", fields),
        num_experts=fields.integer("num_local_experts"),
        top_k=fields.integer("num_experts_per_tok"),
        rms_norm_eps=fields.real("rms_norm_eps"),
        qkv_bias=False,
        out_bias=False,
    )


def build(config: LlamaConfig, weights: Weights) -> CausalLM:
    """The model with its weights read."""
    return build_llama_like(
        config,
        weights,
        lambda norm, prefix: _moe(config, weights, norm, f"{prefix}.block_sparse_moe"),
    )


def _moe(config: LlamaConfig, weights: Weights, norm: RMSNorm, prefix: str) -> MoE:
    """w1 is the gate, w3 the up and w2 the down matrix of each expert, all [out, in]."""
    width = config.ffn_width

    def expert(index: int) -> Expert:
        own = f"{prefix}.experts.{index}"
        gate, up = Rows(f"{own}.w1.weight", width), Rows(f"{own}.w3.weight", width)
        return Expert(gate, up, down=f"{own}.w2.weight")

    return MoE(
        weights,
        norm,
        f"{prefix}.gate.weight",
        [expert(index) for index in range(config.num_experts)],
        config.hidden_size,
        width,
        top_k=config.top_k,
        norm_p=1.0,
    )
