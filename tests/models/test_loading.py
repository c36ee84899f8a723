"""Weights and configuration must belong together; each tensor is read once and none is ignored."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from dropless.checkpoints.open import open_checkpoint
from dropless.errors import CheckpointError, ConfigError
from dropless.models.decoder import CausalLM
from dropless.models.registry import load_model
from tests.models.paged_run import full_pass
from tests.models.reference_models import edit_config, reference_logits, write_model

PROMPT = [5, 17, 99, 3, 64, 128, 7]


def load(folder: Path) -> CausalLM:
    return load_model(open_checkpoint(folder), dtype=torch.float32, device=torch.device("cpu"))


def rewrite(folder: Path, add: dict[str, Tensor] | None = None, drop: str | None = None) -> None:
    """Add tensors to a folder's single file, or take one away."""
    path = folder / "model.safetensors"
    tensors = load_file(path) | (add or {})
    tensors.pop(drop or "", None)
    save_file(tensors, path, metadata={"format": "pt"})


@pytest.mark.parametrize(
    ("family", "name"),
    [
        ("llama", "model.embed_tokens.weight"),
        ("llama", "model.norm.weight"),
        ("llama", "lm_head.weight"),
        ("llama", "model.layers.1.self_attn.k_proj.weight"),
        ("qwen2", "model.layers.0.self_attn.v_proj.bias"),
        ("mixtral", "model.layers.1.block_sparse_moe.experts.3.w2.weight"),
        ("mixtral", "model.layers.0.block_sparse_moe.gate.weight"),
    ],
)
def test_a_missing_tensor_is_named(family: str, name: str, tmp_path: Path) -> None:
    write_model(tmp_path, family)
    rewrite(tmp_path, drop=name)
    with pytest.raises(CheckpointError, match=name.replace(".", r"\.")):
        load(tmp_path)


@pytest.mark.parametrize(
    ("family", "name"),
    [
        ("llama", "model.layers.0.self_attn.q_norm.weight"),
        ("llama", "model.layers.2.input_layernorm.weight"),
        ("qwen2", "model.layers.0.self_attn.o_proj.bias"),
        ("mixtral", "model.layers.0.block_sparse_moe.experts.4.w1.weight"),
    ],
)
def test_a_tensor_that_no_layer_reads_is_refused(family: str, name: str, tmp_path: Path) -> None:
    write_model(tmp_path, family)
    rewrite(tmp_path, add={name: torch.ones(48)})
    with pytest.raises(CheckpointError, match=name.replace(".", r"\.")):
        load(tmp_path)


@pytest.mark.parametrize("field", ["attention_bias", "mlp_bias"])
def test_biases_that_the_configuration_denies_are_refused(field: str, tmp_path: Path) -> None:
    write_model(tmp_path, "llama", **{field: True})
    edit_config(tmp_path, field, False)
    with pytest.raises(CheckpointError, match=r"_proj\.bias"):
        load(tmp_path)


def test_tensors_that_say_nothing_new_are_passed_over(tmp_path: Path) -> None:
    write_model(tmp_path, "llama", tie_word_embeddings=True)
    expected = full_pass(load(tmp_path), PROMPT)
    rewrite(
        tmp_path,
        add={
            "model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(6),
            "lm_head.weight": torch.zeros(131, 48),
        },
    )
    assert torch.equal(full_pass(load(tmp_path), PROMPT), expected)
    assert (reference_logits(tmp_path, PROMPT) - expected).abs().max() < 1e-4


@pytest.mark.parametrize(
    ("family", "field", "value"),
    [
        ("dbrx", "vocab_size", 511),
        ("dbrx", "attn_config.kv_n_heads", 1),
        ("dbrx", "ffn_config.ffn_hidden_size", 48),
        ("dbrx", "ffn_config.moe_num_experts", 8),
        ("llama", "hidden_size", 96),
        ("llama", "intermediate_size", 81),
        ("llama", "head_dim", 24),
        ("mixtral", "num_local_experts", 5),
        ("qwen2", "num_hidden_layers", 3),
    ],
)
def test_a_configuration_of_another_size_is_refused(
    family: str, field: str, value: int, tmp_path: Path
) -> None:
    write_model(tmp_path, family)
    edit_config(tmp_path, field, value)
    with pytest.raises(CheckpointError, match=r"(has shape|holds no tensor)") as raised:
        load(tmp_path)
    assert not isinstance(raised.value, ConfigError)
