"""Tiny models of every family, whole and on all ranks of a group. Called by `Team.run`."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dropless.checkpoints.generated import GeneratedWeights
from dropless.checkpoints.writer import tiny_dbrx_config
from dropless.layers.weights import WeightFormat
from dropless.models.registry import load_model
from dropless.parallel.group import SOLO, Group
from tests.models.paged_run import PagedRun, PagedSequence
from tests.models.reference_models import LLAMA, MIXTRAL

EVEN = {"vocab_size": 132, "hidden_act": "silu"}
CONFIGS: dict[str, dict[str, Any]] = {
    "dbrx": tiny_dbrx_config(clip_qkv=0.1),
    "llama": LLAMA | EVEN | {"model_type": "llama"},
    "llama tied, with biases": LLAMA
    | EVEN
    | {
        "model_type": "llama",
        "tie_word_embeddings": True,
        "attention_bias": True,
        "mlp_bias": True,
    },
    "mixtral": MIXTRAL | EVEN | {"model_type": "mixtral"},
    "qwen2": LLAMA | EVEN | {"model_type": "qwen2"},
    "qwen2 of an odd vocabulary": LLAMA | {"model_type": "qwen2", "hidden_act": "silu"},
}
PROMPT = [(7 * i + 3) % 130 for i in range(40)]


def check_dbrx(group: Group) -> None:
    _check("dbrx", group)


def check_llama(group: Group) -> None:
    _check("llama", group)
    _check("llama", group, "fp16")
    _check("llama tied, with biases", group)


def check_mixtral(group: Group) -> None:
    _check("mixtral", group)


def check_qwen2(group: Group) -> None:
    _check("qwen2", group)
    _check("qwen2 of an odd vocabulary", group)


def _check(name: str, group: Group, quantization: WeightFormat = "none") -> None:
    expected = _logits(name, SOLO, quantization)
    assert expected.std() > 0.01
    torch.testing.assert_close(
        _logits(name, group, quantization), expected, rtol=1e-4, atol=2e-5 * float(expected.std())
    )


def _logits(name: str, group: Group, quantization: WeightFormat) -> Tensor:
    """[tokens, vocab] of the prompt, in a long step and single tokens."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "config.json").write_text(json.dumps(CONFIGS[name]))
        weights = GeneratedWeights(Path(folder))
    model = load_model(
        weights,
        dtype=torch.float32,
        device=torch.device("cpu"),
        group=group,
        quantization=quantization,
    )
    run = PagedRun(model)
    heads = group.slice_of(model.config.num_kv_heads, "key and value heads")[1]
    run.kv_caches = [
        (k[:, :, :heads].contiguous(), v[:, :, :heads].contiguous()) for k, v in run.kv_caches
    ]
    sequence = PagedSequence(PROMPT)
    logits = [run.step([(sequence, count)])[0] for count in (30, *[1] * 10)]
    return torch.cat(logits)
