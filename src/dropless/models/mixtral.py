"""Mixtral: Llama with a mixture of experts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from dropless.layers.moe import MoE
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
        config, weights, lambda prefix: _moe(config, weights, f"{prefix}.block_sparse_moe")
    )


def _moe(config: LlamaConfig, weights: Weights, prefix: str) -> MoE:
    """w1 is the gate, w3 the up and w2 the down matrix of each expert, all [out, in]."""
    hidden, width = config.hidden_size, config.ffn_width
    own_width = weights.group.slice_of(width, f"{prefix}: the experts' width")[1]
    router = weights.matrix(f"{prefix}.gate.weight", (config.num_experts, hidden), weights.dtype)
    gate_up = router.new_empty(config.num_experts, 2 * own_width, hidden)
    down = router.new_empty(config.num_experts, hidden, own_width)
    for expert in range(config.num_experts):

        def read(name: str, shape: tuple[int, int], dim: int, expert: int = expert) -> torch.Tensor:
            full_name = f"{prefix}.experts.{expert}.{name}.weight"
            return weights.matrix_part(full_name, shape, dim, weights.dtype)

        gate_up[expert, :own_width] = read("w1", (width, hidden), 0)
        gate_up[expert, own_width:] = read("w3", (width, hidden), 0)
        down[expert] = read("w2", (hidden, width), 1)
    return MoE(router, gate_up, down, top_k=config.top_k, norm_p=1.0, group=weights.group)
