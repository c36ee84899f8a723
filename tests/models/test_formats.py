"""Number formats: bfloat16, fp16 and fp8 stay close to float32; what weights take is counted."""

from __future__ import annotations

import subprocess
import sys
import weakref
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from torch import Tensor

from dropless.checkpoints import read_ahead
from dropless.checkpoints.checkpoint import Read
from dropless.checkpoints.generated import GeneratedWeights
from dropless.checkpoints.open import open_checkpoint
from dropless.models.decoder import CausalLM
from dropless.models.registry import WeightFormat, load_model, parse_config, weight_bytes
from tests.models.held import held
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


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def test_fp8_is_as_close_as_8_bits_can_be(dtype: torch.dtype, folder: Path) -> None:
    expected = full_pass(load(folder), PROMPT)
    logits = full_pass(load(folder, dtype, "fp8"), PROMPT, dtype)
    errors = (logits - expected).norm(dim=1) / expected.norm(dim=1)
    # Measured: 0.10 to 0.16, after two blocks of products that are each 0.037 off.
    assert 0.05 < errors.median() < 0.2
    assert (errors > 0.4).sum() <= (6 if load(folder).config.num_experts > 1 else 0)


@pytest.mark.parametrize(
    ("dtype", "quantization"),
    [
        (torch.float32, "none"),
        (torch.float32, "fp16"),
        (torch.bfloat16, "none"),
        (torch.bfloat16, "fp8"),
    ],
)
@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("family", FAMILIES)
def test_weight_bytes_are_known_before_loading(
    family: str, tied: bool, dtype: torch.dtype, quantization: WeightFormat, tmp_path: Path
) -> None:
    write_model(tmp_path, family, tie_word_embeddings=tied, vocab_size=200)
    checkpoint = open_checkpoint(tmp_path)
    model = load_model(checkpoint, dtype=dtype, device=CPU, quantization=quantization)
    places = {t.data_ptr() if isinstance(t, Tensor) else id(t): t for t in held(model).values()}
    in_all = sum(tensor.nbytes for tensor in places.values())
    assert in_all == weight_bytes(checkpoint, dtype=dtype, quantization=quantization)


@pytest.mark.parametrize("weights", ["checkpoint", "random"])
def test_loading_tells_how_far_it_is(
    folder: Path, weights: Literal["checkpoint", "random"], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(read_ahead, "_PART_ELEMENTS", 1000)
    shares: list[float] = []
    load_model(
        open_checkpoint(folder, weights),
        dtype=torch.bfloat16,
        device=CPU,
        quantization="fp8",
        on_read=shares.append,
    )
    steps = [after - before for before, after in pairwise([0.0, *shares])]
    assert min(steps) > 0
    assert shares[-1] == 1.0
    if weights == "checkpoint":
        assert max(steps) < 0.02, "large tensors move it more than once"


def test_counting_weight_bytes_brings_no_compiler_in(tmp_path: Path) -> None:
    """PyTorch's arithmetic on tensors without content imports its compiler, which takes seconds."""
    for family in FAMILIES:
        write_model(tmp_path / family, family)
    script = (
        "import sys, torch; from pathlib import Path\n"
        "from dropless.checkpoints.open import open_checkpoint\n"
        "from dropless.models.registry import weight_bytes\n"
        "for folder in Path(sys.argv[1]).iterdir():\n"
        "    for quantization in ('none', 'fp16', 'fp8'):\n"
        "        checkpoint = open_checkpoint(folder)\n"
        "        weight_bytes(checkpoint, dtype=torch.float32, quantization=quantization)\n"
        "sys.exit('torch._dynamo' in sys.modules)\n"
    )
    assert (
        subprocess.run([sys.executable, "-c", script, str(tmp_path)], check=False).returncode == 0
    )


@pytest.mark.parametrize("family", ["llama", "qwen2"])
def test_fp16_weights_take_half(family: str, tmp_path: Path) -> None:
    write_model(tmp_path, family, hidden_size=512, intermediate_size=1024)
    checkpoint = open_checkpoint(tmp_path)
    full = weight_bytes(checkpoint, dtype=torch.float32)
    half = weight_bytes(checkpoint, dtype=torch.float32, quantization="fp16")
    assert half / full == pytest.approx(0.5, abs=0.01)


@pytest.mark.parametrize("family", FAMILIES)
def test_fp8_weights_take_half_of_16_bits_but_for_embedding_and_head(
    family: str, tmp_path: Path
) -> None:
    write_model(tmp_path, family)
    checkpoint = open_checkpoint(tmp_path)
    config = parse_config(checkpoint.config)
    wide = weight_bytes(checkpoint, dtype=torch.bfloat16)
    narrow = weight_bytes(checkpoint, dtype=torch.bfloat16, quantization="fp8")
    kept = 2 * config.vocab_size * config.hidden_size * 2
    assert 0.5 < (narrow - kept) / (wide - kept) < 0.6  # scales of short rows, norms, routers


@pytest.mark.parametrize(("quantization", "most_alive"), [("none", 0), ("fp8", 1)])
@pytest.mark.parametrize("family", ["dbrx", "mixtral"])
def test_at_most_one_part_is_held_beside_the_weights(
    family: str, quantization: WeightFormat, most_alive: int, tmp_path: Path
) -> None:
    write_model(tmp_path, family)
    checkpoint = WatchedWeights(tmp_path)
    load_model(checkpoint, dtype=torch.bfloat16, device=CPU, quantization=quantization)
    config = parse_config(checkpoint.config)
    assert checkpoint.most_alive == most_alive
    assert checkpoint.largest <= config.hidden_size * max(config.ffn_width, config.hidden_size)


class WatchedWeights(GeneratedWeights):
    """Knows how many parts of merged matrices are alive at once, and how large they are."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.most_alive = self.largest = self._alive = 0

    def read(self, name: str, shape: tuple[int, ...], **cut: Any) -> Tensor:
        part = super().read(name, shape, **cut)
        if self._is_merged(name):
            self._alive += 1
            weakref.finalize(part, self._died)
            self.most_alive = max(self.most_alive, self._alive)
        return part

    def read_into(self, what: Read, out: Tensor) -> None:
        super().read_into(what, out)
        if self._is_merged(what.name):
            self.largest = max(self.largest, out.numel())

    def _is_merged(self, name: str) -> bool:
        return any(kind in name for kind in (".attn.", ".self_attn.", ".experts."))

    def _died(self) -> None:
        self._alive -= 1
