"""Tiny models of every family, whole and on all ranks of a group. Called by `Team.run`."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dropless.checkpoints.checkpoint import Read
from dropless.checkpoints.generated import GeneratedWeights
from dropless.checkpoints.writer import tiny_dbrx_config
from dropless.engine.expert_load import ExpertLoad
from dropless.layers.weights import WeightFormat
from dropless.models.decoder import CausalLM
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
    _check("dbrx", group, expert_parallel=True)


def check_llama(group: Group) -> None:
    _check("llama", group)
    _check("llama", group, "fp16")
    _check("llama tied, with biases", group)


def check_mixtral(group: Group) -> None:
    _check("mixtral", group)
    _check("mixtral", group, expert_parallel=True)


def check_qwen2(group: Group) -> None:
    _check("qwen2", group)
    _check("qwen2 of an odd vocabulary", group)


def check_all_tokens_to_experts_of_the_last_rank(group: Group) -> None:
    _check("mixtral", group, expert_parallel=True, make=LastExperts)


def check_fp8(group: Group) -> None:
    """Each rank quantises its own part of a token, so that ranks round otherwise than one does."""
    for name in ("dbrx", "mixtral", "llama"):
        expected = _logits(name, SOLO)
        for expert_parallel in (False, True) if name != "llama" else (False,):
            found = _logits(name, group, "fp8", expert_parallel)
            errors = (found - expected).norm(dim=1) / expected.norm(dim=1)
            assert 1e-3 < errors.median() < 0.03  # measured: 0.015 to 0.017


def check_expert_load(group: Group) -> None:
    """Each rank sees the choices of all tokens, whichever ranks' experts they go to."""
    expected = _expert_counts(SOLO, expert_parallel=False)
    assert min(map(min, expected)) > 0
    for expert_parallel in (False, True):
        assert _expert_counts(group, expert_parallel=expert_parallel) == expected


def _expert_counts(group: Group, *, expert_parallel: bool) -> list[list[int]]:
    model = _model("dbrx", group, "none", expert_parallel, GeneratedWeights)
    load = ExpertLoad(model, len(PROMPT), torch.device("cpu"), interval_s=0.0)
    for step in _steps(model, group):
        load.note_step(len(step))
    return load.counts


class LastExperts(GeneratedWeights):
    """A model of four experts whose tokens all choose the last two. The others are NaN."""

    def read_into(self, what: Read, out: Tensor) -> None:
        super().read_into(what, out)
        if what.name == "model.embed_tokens.weight":
            out[:, 0] = 1.0  # much, beside 0.02 elsewhere: positive after each norm
        elif what.name.endswith("gate.weight"):
            out[2:, 0] = 1.0
        elif ".experts.0." in what.name or ".experts.1." in what.name:
            out.fill_(torch.nan)


def _check(
    name: str,
    group: Group,
    quantization: WeightFormat = "none",
    *,
    expert_parallel: bool = False,
    make: type[GeneratedWeights] = GeneratedWeights,
) -> None:
    expected = _logits(name, SOLO, quantization, make=make)
    assert expected.std() > 0.01
    found = _logits(name, group, quantization, expert_parallel, make)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=2e-5 * float(expected.std()))


def _logits(
    name: str,
    group: Group,
    quantization: WeightFormat = "none",
    expert_parallel: bool = False,
    make: type[GeneratedWeights] = GeneratedWeights,
) -> Tensor:
    """[tokens, vocab] of the prompt."""
    model = _model(name, group, quantization, expert_parallel, make)
    return torch.cat(list(_steps(model, group)))


def _model(
    name: str,
    group: Group,
    quantization: WeightFormat,
    expert_parallel: bool,
    make: type[GeneratedWeights],
) -> CausalLM:
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "config.json").write_text(json.dumps(CONFIGS[name]))
        weights = make(Path(folder))
    return load_model(
        weights,
        dtype=torch.float32,
        device=torch.device("cpu"),
        group=group,
        quantization=quantization,
        expert_parallel=expert_parallel,
    )


def _steps(model: CausalLM, group: Group) -> Iterator[Tensor]:
    """Logits [tokens, vocab] of the prompt, in a long step and single tokens."""
    run = PagedRun(model)
    heads = group.slice_of(model.config.num_kv_heads, "key and value heads")[1]
    run.kv_caches = [
        (k[:, :, :heads].contiguous(), v[:, :, :heads].contiguous()) for k, v in run.kv_caches
    ]
    sequence = PagedSequence(PROMPT)
    for count in (30, *[1] * 10):
        yield run.step([(sequence, count)])[0]
