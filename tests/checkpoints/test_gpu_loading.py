"""Loading onto a GPU, by way of pinned buffers, gives what loading on a CPU gives."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from dropless.checkpoints import read_ahead
from dropless.checkpoints.open import open_checkpoint
from dropless.checkpoints.writer import write_tiny_dbrx
from dropless.errors import CheckpointError
from dropless.layers.weights import WeightFormat
from dropless.models.registry import load_model
from dropless.ops.fp8 import FP8
from tests.models.held import held

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]

ROUTER = "transformer.blocks.1.ffn.router.layer.weight"


def load(folder: Path, device: str, quantization: WeightFormat) -> dict[str, Tensor]:
    model = load_model(
        open_checkpoint(folder),
        dtype=torch.bfloat16,
        device=torch.device(device),
        quantization=quantization,
    )
    tensors = {path: tensor for path, tensor in held(model).items() if isinstance(tensor, Tensor)}
    assert {tensor.device.type for tensor in tensors.values()} == {device}
    return tensors


@pytest.mark.parametrize("part_elements", [1000, read_ahead._PART_ELEMENTS])
@pytest.mark.parametrize("stored", [torch.bfloat16, torch.float32], ids=["bfloat16", "float32"])
@pytest.mark.parametrize("quantization", ["none", "fp8"])
def test_every_tensor_is_that_of_a_load_on_the_cpu(
    quantization: WeightFormat,
    stored: torch.dtype,
    part_elements: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """In parts of 1000 elements each buffer is used again several times."""
    write_tiny_dbrx(tmp_path, dtype=stored)
    monkeypatch.setattr(read_ahead, "_PART_ELEMENTS", part_elements)
    expected, found = (load(tmp_path, device, quantization) for device in ("cpu", "cuda"))
    assert found.keys() == expected.keys()
    for path, tensor in expected.items():
        on_gpu = found[path].cpu()
        assert (on_gpu.shape, on_gpu.dtype) == (tensor.shape, tensor.dtype), path
        if tensor.dtype == torch.bfloat16:
            assert torch.equal(on_gpu, tensor), path
        elif tensor.dtype == torch.float32:  # scales; a GPU divides with a multiplication
            torch.testing.assert_close(on_gpu, tensor, rtol=1e-6, atol=0, msg=path)
        else:  # so that a few numbers between two of 8 bits may go the other way
            assert tensor.dtype == FP8
            steps = (on_gpu.view(torch.uint8).int() - tensor.view(torch.uint8).int()).abs()
            assert steps.max() <= 1, path
            assert steps.float().mean() < 1e-3, path


def test_a_number_that_is_not_finite_is_named(tmp_path: Path) -> None:
    write_tiny_dbrx(tmp_path, shards=1)
    file = tmp_path / "model.safetensors"
    tensors = load_file(file)
    tensors[ROUTER][2, 3] = float("nan")
    save_file(tensors, file, metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=f"tensor {ROUTER} of .* holds NaN"):
        load(tmp_path, "cuda", "none")
