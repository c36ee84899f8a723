"""Writes checkpoints in the published layout: safetensors with an index, and tiny random DBRX."""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from dropless.checkpoints.safetensors_folder import INDEX_NAME, SINGLE_NAME
from dropless.errors import ConfigError

TINY_DBRX_CONFIG: dict[str, Any] = {
    "architectures": ["DbrxForCausalLM"],
    "model_type": "dbrx",
    "d_model": 64,
    "n_heads": 4,
    "n_layers": 2,
    "max_seq_len": 256,
    "vocab_size": 512,
    "attn_config": {"clip_qkv": 8, "kv_n_heads": 2, "rope_theta": 500000},
    "ffn_config": {"ffn_hidden_size": 96, "moe_num_experts": 4, "moe_top_k": 2},
    "tie_word_embeddings": False,
    "torch_dtype": "float32",
}


def write_safetensors_checkpoint(
    folder: Path, config: Mapping[str, Any], tensors: Mapping[str, torch.Tensor], shards: int = 1
) -> None:
    """Write config.json and the tensors into `folder` (made if absent).

    With one shard: model.safetensors. With more: model-0000i-of-0000n.safetensors, cut where the
    bytes are about even, and the index that says where each tensor is.
    """
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(dict(config), indent=2) + "\n", encoding="utf-8")
    if shards == 1:
        _save(folder / SINGLE_NAME, tensors)
        return
    weight_map = _assign_shards(tensors, shards)
    for file_name in dict.fromkeys(weight_map.values()):
        part = {name: tensors[name] for name, place in weight_map.items() if place == file_name}
        _save(folder / file_name, part)
    index = {
        "metadata": {"total_size": sum(tensor.nbytes for tensor in tensors.values())},
        "weight_map": weight_map,
    }
    (folder / INDEX_NAME).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


def write_tiny_dbrx(
    folder: Path,
    *,
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
    scale: float = 0.1,
    shards: int = 2,
    **shape: Any,
) -> dict[str, Any]:
    """Write a random DBRX checkpoint with the published names and layouts; returns its config.

    `shape` overrides fields of `TINY_DBRX_CONFIG`, also those nested in attn_config and
    ffn_config: `write_tiny_dbrx(folder, n_layers=3, moe_num_experts=8, clip_qkv=0.5)`. Matrices
    are normal with deviation `scale`, norm weights near 1.

    Raises:
        ConfigError: a field that the configuration does not have.
    """
    config = tiny_dbrx_config(**shape)
    config["torch_dtype"] = str(dtype).removeprefix("torch.")
    generator = torch.Generator().manual_seed(seed)
    tensors = {
        name: torch.empty(size)
        .normal_(1.0 if len(size) == 1 else 0.0, scale, generator=generator)
        .to(dtype)
        for name, size in dbrx_tensor_shapes(config).items()
    }
    write_safetensors_checkpoint(folder, config, tensors, shards)
    return config


def tiny_dbrx_config(**shape: Any) -> dict[str, Any]:
    """`TINY_DBRX_CONFIG` with fields replaced, nested ones by their own name.

    Raises:
        ConfigError: a field that the configuration does not have.
    """
    config = copy.deepcopy(TINY_DBRX_CONFIG)
    for key, value in shape.items():
        for part in (config, config["attn_config"], config["ffn_config"]):
            if key in part:
                part[key] = value
                break
        else:
            raise ConfigError(f"a DBRX configuration has no field {key}")
    return config


def dbrx_tensor_shapes(config: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """Name and shape of every tensor of a DBRX checkpoint (323 for the published model).

    w1 and v1 are [out, in] for each expert, w2 is [in, out]; all three are stored with the experts
    one below the other: [experts * width, d_model].
    """
    hidden, vocab = config["d_model"], config["vocab_size"]
    attention, ffn = config["attn_config"], config["ffn_config"]
    head_dim = hidden // config["n_heads"]
    qkv = hidden + 2 * attention["kv_n_heads"] * head_dim
    experts = ffn["moe_num_experts"]
    expert_rows = experts * ffn["ffn_hidden_size"]
    shapes: dict[str, tuple[int, ...]] = {"transformer.wte.weight": (vocab, hidden)}
    for layer in range(config["n_layers"]):
        block = f"transformer.blocks.{layer}"
        shapes |= {
            f"{block}.norm_attn_norm.norm_1.weight": (hidden,),
            f"{block}.norm_attn_norm.attn.Wqkv.weight": (qkv, hidden),
            f"{block}.norm_attn_norm.attn.out_proj.weight": (hidden, hidden),
            f"{block}.norm_attn_norm.norm_2.weight": (hidden,),
            f"{block}.ffn.router.layer.weight": (experts, hidden),
            f"{block}.ffn.experts.mlp.w1": (expert_rows, hidden),
            f"{block}.ffn.experts.mlp.v1": (expert_rows, hidden),
            f"{block}.ffn.experts.mlp.w2": (expert_rows, hidden),
        }
    shapes["transformer.norm_f.weight"] = (hidden,)
    shapes["lm_head.weight"] = (vocab, hidden)
    return shapes


def _save(path: Path, tensors: Mapping[str, torch.Tensor]) -> None:
    contiguous = {name: tensor.contiguous() for name, tensor in tensors.items()}
    save_file(contiguous, path, metadata={"format": "pt"})


def _assign_shards(tensors: Mapping[str, torch.Tensor], shards: int) -> dict[str, str]:
    """File name of each tensor: in order, each file about total / shards bytes."""
    total = sum(tensor.nbytes for tensor in tensors.values())
    done = 0
    weight_map = {}
    for name, tensor in tensors.items():
        shard = min(shards, done * shards // max(total, 1) + 1)
        weight_map[name] = f"model-{shard:05}-of-{shards:05}.safetensors"
        done += tensor.nbytes
    return weight_map
