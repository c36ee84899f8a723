"""GGUF tensor names and layouts translated to the published (Hugging Face) ones."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from dropless.checkpoints.gguf_header import GGUFTensor
from dropless.errors import CheckpointError


@dataclass(frozen=True, slots=True)
class TensorSource:
    """Where a published tensor is found: a GGUF tensor and what was done to its layout."""

    tensor: GGUFTensor
    shape: tuple[int, ...]  # as published
    expert: int | None = None  # only this one of the merged experts
    rope_heads: int | None = None  # rows were interleaved within each of so many heads
    transposed: bool = False  # each expert matrix is stored transposed


_TOP_LEVEL = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
}
_BLOCK = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
    "ffn_gate_inp": "block_sparse_moe.gate",
}
_MIXTRAL_EXPERTS = {"ffn_gate_exps": "w1", "ffn_down_exps": "w2", "ffn_up_exps": "w3"}
_ROPE_HEADS = {"attn_q": "num_attention_heads", "attn_k": "num_key_value_heads"}
_DBRX_TOP_LEVEL = {
    "token_embd.weight": "transformer.wte.weight",
    "output_norm.weight": "transformer.norm_f.weight",
    "output.weight": "lm_head.weight",
}
_DBRX_BLOCK = {
    "attn_norm.weight": "norm_attn_norm.norm_1.weight",
    "attn_qkv.weight": "norm_attn_norm.attn.Wqkv.weight",
    "attn_output.weight": "norm_attn_norm.attn.out_proj.weight",
    "attn_output_norm.weight": "norm_attn_norm.norm_2.weight",
    "ffn_gate_inp.weight": "ffn.router.layer.weight",
    "ffn_gate_exps.weight": "ffn.experts.mlp.w1",
    "ffn_up_exps.weight": "ffn.experts.mlp.v1",
    "ffn_down_exps.weight": "ffn.experts.mlp.w2",
}
# Derived from the configuration, which carries them already.
_IGNORED = ("rope_freqs.weight",)


def published_tensors(
    architecture: str, config: Mapping[str, Any], tensors: Mapping[str, GGUFTensor]
) -> dict[str, TensorSource]:
    """The file's tensors under their published names.

    Raises:
        CheckpointError: a tensor that the architecture does not know: leaving it out would give
            another model.
    """
    sources: dict[str, TensorSource] = {}
    for name, tensor in tensors.items():
        if name in _IGNORED:
            continue
        translated = (
            _dbrx_tensor(name, tensor)
            if architecture == "dbrx"
            else _llama_tensor(architecture, name, tensor, config)
        )
        if not translated:
            raise CheckpointError(
                f"{tensor.file} holds the tensor {name}, which the architecture {architecture} is"
                " not known to have; the file belongs to a variant that is not supported"
            )
        sources.update(translated)
    return sources


def _split_block(name: str) -> tuple[int, str] | None:
    """'blk.7.attn_q.weight' -> (7, 'attn_q.weight')."""
    prefix, _, rest = name.partition(".")
    number, _, rest = rest.partition(".")
    return (int(number), rest) if prefix == "blk" and number.isdecimal() and rest else None


def _llama_tensor(
    architecture: str, name: str, tensor: GGUFTensor, config: Mapping[str, Any]
) -> dict[str, TensorSource]:
    if name in _TOP_LEVEL:
        return {_TOP_LEVEL[name]: TensorSource(tensor, tensor.shape)}
    block = _split_block(name)
    if block is None:
        return {}
    layer, rest = block
    part, _, suffix = rest.rpartition(".")
    if part in _MIXTRAL_EXPERTS and suffix == "weight" and len(tensor.shape) == 3:
        matrix = _MIXTRAL_EXPERTS[part]
        prefix = f"model.layers.{layer}.block_sparse_moe.experts"
        return {
            f"{prefix}.{expert}.{matrix}.weight": TensorSource(
                tensor, tensor.shape[1:], expert=expert
            )
            for expert in range(tensor.shape[0])
        }
    if part not in _BLOCK or suffix not in ("weight", "bias"):
        return {}
    reordered = architecture == "llama" and part in _ROPE_HEADS
    rope_heads = _rope_heads(name, part, tensor, config) if reordered else None
    source = TensorSource(tensor, tensor.shape, rope_heads=rope_heads)
    return {f"model.layers.{layer}.{_BLOCK[part]}.{suffix}": source}


def _rope_heads(name: str, part: str, tensor: GGUFTensor, config: Mapping[str, Any]) -> int:
    """How many heads the rows of a q or k tensor belong to."""
    heads, head_dim = int(config[_ROPE_HEADS[part]]), int(config["head_dim"])
    if tensor.shape[0] != heads * head_dim or head_dim % 2:
        raise CheckpointError(
            f"tensor {name} in {tensor.file} has {tensor.shape[0]} rows, the metadata says {heads}"
            f" heads of {head_dim}; the file contradicts itself"
        )
    return heads


def _dbrx_tensor(name: str, tensor: GGUFTensor) -> dict[str, TensorSource]:
    if name in _DBRX_TOP_LEVEL:
        return {_DBRX_TOP_LEVEL[name]: TensorSource(tensor, tensor.shape)}
    block = _split_block(name)
    if block is None or block[1] not in _DBRX_BLOCK:
        return {}
    layer, rest = block
    published = f"transformer.blocks.{layer}.{_DBRX_BLOCK[rest]}"
    if len(tensor.shape) != 3:
        return {published: TensorSource(tensor, tensor.shape)}
    experts, rows, columns = tensor.shape
    if rest == "ffn_down_exps.weight":  # [experts, hidden, width]; published [in, out]
        shape = (experts * columns, rows)
        return {published: TensorSource(tensor, shape, transposed=True)}
    return {published: TensorSource(tensor, (experts * rows, columns))}
