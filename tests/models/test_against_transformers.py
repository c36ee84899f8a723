"""Every family's logits are transformers' in float32: in one pass, in chunks, and in a batch."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from dropless.checkpoints.open import open_checkpoint
from dropless.models.decoder import CausalLM
from dropless.models.registry import load_model
from tests.models.paged_run import batched, chunked, full_pass
from tests.models.reference_models import (
    LLAMA3_SCALING,
    edit_config,
    reference_logits,
    write_model,
)

CPU = torch.device("cpu")
TOLERANCE = 1e-4
SPREAD = 0.5  # the least standard deviation of logits under which the tolerance says anything
MATTERS = 1e-2

LENGTHS = (128, 1, 33, 8, 17)  # the first is all that most of the models below can hold

CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "dbrx": ("dbrx", {}),
    "dbrx-16-experts-top-4": ("dbrx", {"moe_num_experts": 16, "moe_top_k": 4, "n_layers": 3}),
    "dbrx-top-1": ("dbrx", {"moe_num_experts": 3, "moe_top_k": 1}),
    "dbrx-all-experts": ("dbrx", {"moe_num_experts": 4, "moe_top_k": 4}),
    "dbrx-clip-bites": ("dbrx", {"clip_qkv": 0.5}),
    "dbrx-one-kv-head-each": ("dbrx", {"kv_n_heads": 4, "rope_theta": 10000}),
    "dbrx-groups-of-4": ("dbrx", {"n_heads": 8, "kv_n_heads": 2, "clip_qkv": 1}),
    "dbrx-groups-of-6": ("dbrx", {"d_model": 96, "n_heads": 6, "kv_n_heads": 1}),
    "dbrx-odd-vocab": ("dbrx", {"vocab_size": 131, "ffn_hidden_size": 40}),
    "dbrx-p-2": ("dbrx", {"moe_normalize_expert_weights": 2.0}),
    "dbrx-p-none": ("dbrx", {"moe_normalize_expert_weights": None}),
    "llama": ("llama", {}),
    "llama-tied": ("llama", {"tie_word_embeddings": True}),
    "llama-biases": ("llama", {"attention_bias": True, "mlp_bias": True}),
    "llama-attention-bias": ("llama", {"attention_bias": True, "num_key_value_heads": 4}),
    "llama-mlp-bias": ("llama", {"mlp_bias": True, "num_key_value_heads": 1}),
    "llama-llama3-scaling": ("llama", {"rope_scaling": LLAMA3_SCALING}),
    "llama-linear-scaling": ("llama", {"rope_scaling": {"rope_type": "linear", "factor": 4.0}}),
    "llama-wide-heads": ("llama", {"head_dim": 20}),
    "llama-smollm2-heads": ("llama", {"num_attention_heads": 9, "num_key_value_heads": 3,
                                      "hidden_size": 72, "rope_theta": 100000.0}),
    "qwen2": ("qwen2", {}),
    "qwen2-tied": ("qwen2", {"tie_word_embeddings": True, "rms_norm_eps": 1e-6}),
    "qwen2-groups-of-7": ("qwen2", {"hidden_size": 56, "num_attention_heads": 7,
                                    "num_key_value_heads": 1, "rope_theta": 1e6}),
    "mixtral": ("mixtral", {}),
    "mixtral-8-experts": ("mixtral", {"num_local_experts": 8, "num_key_value_heads": 4}),
    "mixtral-tied": ("mixtral", {"tie_word_embeddings": True, "head_dim": 16}),
}  # fmt: skip


def load(folder: Path, **settings: Any) -> CausalLM:
    settings = {"dtype": torch.float32, "device": CPU} | settings
    return load_model(open_checkpoint(folder), **settings)


def prompts_for(model: CausalLM) -> list[list[int]]:
    rng = random.Random(model.config.vocab_size)
    return [[rng.randrange(model.config.vocab_size) for _ in range(n)] for n in LENGTHS]


def largest_difference(left: Tensor, right: Tensor) -> float:
    assert left.shape == right.shape
    return (left - right).abs().max().item()


@pytest.mark.parametrize("case", CASES)
def test_logits_are_those_of_transformers(case: str, tmp_path: Path) -> None:
    family, fields = CASES[case]
    write_model(tmp_path, family, **fields)
    model = load(tmp_path)
    assert model.config.family == family
    prompts = prompts_for(model)
    expected = [reference_logits(tmp_path, prompt) for prompt in prompts]
    assert expected[0].std() > SPREAD
    found = {
        "one pass": [full_pass(model, prompt) for prompt in prompts],
        "chunks": [chunked(model, prompt, seed) for seed, prompt in enumerate(prompts)],
        "batch": batched(model, prompts),
        "another batch": batched(model, prompts, seed=1),
    }
    for way, logits in found.items():
        for ours, theirs in zip(logits, expected, strict=True):
            assert ours.dtype == torch.float32
            assert largest_difference(ours, theirs) < TOLERANCE, way


def test_a_dbrx_that_transformers_saved(tmp_path: Path) -> None:
    """Its config.json spells out fields that the published one leaves to defaults."""
    from transformers import AutoModelForCausalLM

    write_model(tmp_path / "published", "dbrx", clip_qkv=0.5)
    AutoModelForCausalLM.from_pretrained(tmp_path / "published").save_pretrained(tmp_path / "saved")
    model = load(tmp_path / "published")
    prompt = prompts_for(model)[0]
    assert torch.equal(full_pass(load(tmp_path / "saved"), prompt), full_pass(model, prompt))


@pytest.mark.parametrize(
    ("case", "field", "value"),
    [
        ("dbrx-clip-bites", "attn_config.clip_qkv", 0.6),
        ("dbrx-clip-bites", "attn_config.clip_qkv", None),
        ("dbrx", "attn_config.rope_theta", 10000),
        ("dbrx", "ffn_config.moe_top_k", 1),
        ("dbrx", "ffn_config.moe_normalize_expert_weights", None),
        ("dbrx", "ffn_config.moe_normalize_expert_weights", 2.0),
        ("llama", "rope_theta", 500000.0),
        ("llama", "rms_norm_eps", 1e-2),
        ("llama-llama3-scaling", "rope_scaling.factor", 32.0),
        ("llama-llama3-scaling", "rope_scaling.original_max_position_embeddings", 64),
        ("llama-llama3-scaling", "rope_scaling.low_freq_factor", 0.5),
        ("llama-llama3-scaling", "rope_scaling.high_freq_factor", 8.0),
        ("llama-linear-scaling", "rope_scaling.factor", 2.0),
        ("llama-linear-scaling", "rope_scaling", None),
        ("qwen2", "rope_theta", 1e6),
        ("mixtral", "num_experts_per_tok", 1),
        ("mixtral", "rope_theta", 1e6),
    ],
)
def test_each_setting_moves_the_logits(
    case: str, field: str, value: object, tmp_path: Path
) -> None:
    """Were a setting not read, the agreement above could be luck."""
    family, fields = CASES[case]
    write_model(tmp_path, family, **fields)
    model = load(tmp_path)
    prompt = prompts_for(model)[0]
    before = full_pass(model, prompt)
    edit_config(tmp_path, field, value)
    after = full_pass(load(tmp_path), prompt)
    assert largest_difference(before, after) > MATTERS
