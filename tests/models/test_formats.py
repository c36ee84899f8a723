"""Number formats: bfloat16 and fp16 weights stay close to float32; what they take is counted."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from dropless.checkpoints.open import open_checkpoint
from dropless.models.decoder import CausalLM
from dropless.models.registry import WeightFormat, load_model, weight_bytes
from tests.models.paged_run import full_pass
from tests.models.reference_models import write_model

CPU = torch.device("cpu")
FAMILIES = ("dbrx", "llama", "qwen2", "mixtral")
PROMPT = [(7 * i * i + 3) % 131 for i in range(40)]


@pytest.fixture(params=FAMILIES)
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    write_model(tmp_path, request.param)
    return tmp_path


def load(
    folder: Path, dtype: torch.dtype = torch.float32, quantization: WeightFormat = "none"
) -> CausalLM:
    return load_model(open_checkpoint(folder), dtype=dtype, device=CPU, quantization=quantization)


def relative_error(found: Tensor, expected: Tensor) -> float:
    return ((found - expected).norm() / expected.norm()).item()


def test_bfloat16_is_close(folder: Path) -> None:
    expected = full_pass(load(folder), PROMPT)
    model = load(folder, torch.bfloat16)
    logits = full_pass(model, PROMPT, torch.bfloat16)
    assert logits.dtype == torch.float32
    errors = (logits - expected).norm(dim=1) / expected.norm(dim=1)
    assert 1e-3 < errors.median() < 0.03
    # Where two experts of a token are near a tie, rounding may choose the other one.
    assert (errors > 0.06).sum() <= (2 if model.config.num_experts > 1 else 0)


def test_fp16_weights_are_closer(folder: Path) -> None:
    expected = full_pass(load(folder), PROMPT)
    logits = full_pass(load(folder, quantization="fp16"), PROMPT)
    assert 1e-6 < relative_error(logits, expected) < 5e-3


@pytest.mark.parametrize(
    ("dtype", "quantization"),
    [(torch.float32, "none"), (torch.float32, "fp16"), (torch.bfloat16, "none")],
)
@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("family", FAMILIES)
def test_weight_bytes_are_known_before_loading(
    family: str, tied: bool, dtype: torch.dtype, quantization: WeightFormat, tmp_path: Path
) -> None:
    write_model(tmp_path, family, tie_word_embeddings=tied, vocab_size=200)
    checkpoint = open_checkpoint(tmp_path)
    held: list[int] = []
    load_model(checkpoint, dtype=dtype, device=CPU, quantization=quantization, on_read=held.append)
    assert held == sorted(held)
    assert held[-1] == weight_bytes(checkpoint, dtype=dtype, quantization=quantization)


@pytest.mark.parametrize("family", ["llama", "qwen2"])
def test_fp16_weights_take_half(family: str, tmp_path: Path) -> None:
    write_model(tmp_path, family, hidden_size=512, intermediate_size=1024)
    checkpoint = open_checkpoint(tmp_path)
    full = weight_bytes(checkpoint, dtype=torch.float32)
    half = weight_bytes(checkpoint, dtype=torch.float32, quantization="fp16")
    assert half / full == pytest.approx(0.5, abs=0.01)
