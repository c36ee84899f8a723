"""Generated weights: deterministic, sliceable, of a sensible scale; the shapes that come along."""

from __future__ import annotations

import json

import pytest
import torch

from dropless.checkpoints.catalogue import shapes
from dropless.checkpoints.open import open_checkpoint

CPU = torch.device("cpu")
BIG = (4096, 2048)  # beyond what is made whole


def read(checkpoint, name="w", shape=(64, 32), dtype=torch.float32, **part):
    return checkpoint.read(name, shape, dtype=dtype, device=CPU, **part)


@pytest.fixture
def weights():
    return open_checkpoint(shapes()["dbrx"], "random", seed=3)


@pytest.mark.parametrize("shape", [(64, 32), BIG])
def test_same_seed_and_name_same_numbers(weights, shape) -> None:
    again = open_checkpoint(shapes()["dbrx"], "random", seed=3)
    other = open_checkpoint(shapes()["dbrx"], "random", seed=4)
    assert torch.equal(read(weights, shape=shape), read(again, shape=shape))
    assert not torch.equal(read(weights, shape=shape), read(other, shape=shape))
    assert not torch.equal(read(weights, shape=shape), read(weights, "v", shape=shape))


@pytest.mark.parametrize("dim", [0, 1, 2])
def test_slices_of_small_tensors_are_slices_of_the_whole(weights, dim) -> None:
    whole = read(weights, shape=(8, 16, 4))
    part = read(weights, shape=(8, 16, 4), dim=dim, start=1, length=2)
    assert torch.equal(part, whole.narrow(dim, 1, 2))
    assert part.is_contiguous()
    half = read(weights, shape=(8, 16, 4), dim=dim, start=1, length=2, dtype=torch.bfloat16)
    assert torch.equal(half, part.bfloat16())


def test_slices_of_large_tensors_differ_by_where_they_start(weights) -> None:
    first = read(weights, shape=BIG, dim=0, start=0, length=64)
    second = read(weights, shape=BIG, dim=0, start=64, length=64)
    assert first.shape == second.shape == (64, 2048)
    assert not torch.equal(first, second)


def test_scale(weights) -> None:
    matrix, norm = read(weights, shape=(512, 512)), read(weights, "norm.weight", (4096,))
    assert abs(matrix.mean()) < 1e-3
    assert 0.0195 < matrix.std() < 0.0205
    assert 0.99 < norm.mean() < 1.01
    assert abs(read(weights, "q_proj.bias", (4096,)).mean()) < 0.01


def test_shapes_hold_complete_configurations() -> None:
    assert set(shapes()) == {
        "dbrx",
        "dense-132b",
        "llama2-70b",
        "mixtral-8x7b",
        "qwen2.5-coder-0.5b",
        "smollm2-135m",
    }
    for folder in shapes().values():
        checkpoint = open_checkpoint(folder, "random")
        assert checkpoint.config == json.loads((folder / "config.json").read_text())
        assert checkpoint.names() == []
        assert not checkpoint.quantized
        assert checkpoint.eos_token_ids


def test_tied_embeddings_have_no_output_matrix() -> None:
    assert not open_checkpoint(shapes()["smollm2-135m"], "random").has("lm_head.weight")
    assert open_checkpoint(shapes()["dbrx"], "random").has("lm_head.weight")


@pytest.mark.parametrize(
    ("name", "billions"),
    [("dbrx", 131.6), ("dense-132b", 131.6), ("llama2-70b", 68.98), ("mixtral-8x7b", 46.70)],
)
def test_shapes_have_the_published_size(name, billions) -> None:
    from transformers import AutoConfig, AutoModelForCausalLM

    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(shapes()[name]))
    assert sum(p.numel() for p in model.parameters()) / 1e9 == pytest.approx(billions, abs=0.01)
