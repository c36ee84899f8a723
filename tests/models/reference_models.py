"""Tiny random checkpoints of every family, written by transformers, and its logits for them."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dropless.checkpoints.writer import write_tiny_dbrx

LLAMA: dict[str, Any] = {
    "vocab_size": 131,
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "tie_word_embeddings": False,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
MIXTRAL: dict[str, Any] = LLAMA | {
    "num_local_experts": 4,
    "num_experts_per_tok": 2,
    "sliding_window": None,
}
LLAMA3_SCALING = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}


def write_model(folder: Path, family: str, **fields: Any) -> None:
    """Write a random checkpoint of `family` with these fields of its config replaced."""
    if family == "dbrx":
        write_dbrx(folder, **fields)
    else:
        _write_with_transformers(folder, family, fields)


def write_dbrx(folder: Path, **fields: Any) -> None:
    """The published layout, from our own writer. The published config names no
    moe_normalize_expert_weights; here it can be given."""
    absent = object()
    p = fields.pop("moe_normalize_expert_weights", absent)
    write_tiny_dbrx(folder, **fields)
    if p is not absent:
        edit_config(folder, "ffn_config.moe_normalize_expert_weights", p)


def edit_config(folder: Path, field: str, value: object) -> None:
    """Replace one field of a folder's config.json; a dot leads into a nested object."""
    path = folder / "config.json"
    config = json.loads(path.read_text())
    *outer, last = field.split(".")
    place = config
    for name in outer:
        place = place[name]
    place[last] = value
    path.write_text(json.dumps(config))


def reference_logits(folder: Path, token_ids: list[int]) -> Tensor:
    """transformers' logits [tokens, vocab] in float32, the whole sequence at once, uncached."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(
        folder, attn_implementation="eager", dtype=torch.float32
    )
    with torch.no_grad():
        return model(torch.tensor([token_ids]), use_cache=False).logits[0]


def _write_with_transformers(folder: Path, family: str, fields: dict[str, Any]) -> None:
    import transformers

    prefix = family.capitalize()
    config_class = getattr(transformers, f"{prefix}Config")
    base = MIXTRAL if family == "mixtral" else LLAMA
    model = getattr(transformers, f"{prefix}ForCausalLM")(config_class(**(base | fields)))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            _randomize(name, parameter, generator)
    model.save_pretrained(folder)


def _randomize(name: str, parameter: Tensor, generator: torch.Generator) -> None:
    """Weights under which every part of a block moves the logits, biases and norms too."""
    if name.endswith(".bias"):
        parameter.normal_(0.0, 0.5, generator=generator)
    elif parameter.dim() == 1:
        parameter.normal_(1.0, 0.2, generator=generator)
    elif "embed" in name:
        parameter.normal_(0.0, 0.3, generator=generator)
    else:
        parameter.normal_(0.0, 1.5 / math.sqrt(parameter.shape[1]), generator=generator)
