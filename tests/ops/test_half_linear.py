from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from dropless.errors import CheckpointError
from dropless.ops import half_linear as half_linear_module
from dropless.ops.half_linear import PackedHalf, half_linear, pack_half

SHAPES = [(96, 64), (1, 576), (49, 513), (1536, 576)]


def plain(weight: torch.Tensor) -> PackedHalf:
    """What processors without FBGEMM get."""
    half = weight.half()
    return PackedHalf((weight.shape[0], weight.shape[1]), half.nbytes, blocks=None, plain=half)


@pytest.mark.parametrize("rows", [1, 3, 70])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("pack", [pack_half, plain])
def test_the_product_is_exact_but_for_the_weights_rounding(
    pack: type[PackedHalf], shape: tuple[int, int], rows: int
) -> None:
    torch.manual_seed(0)
    weight, x = torch.randn(shape), torch.randn(rows, shape[1])
    packed = pack(weight)
    expected = x.double() @ weight.half().double().T
    for version in (half_linear, half_linear.reference):
        got = version(x, packed)
        assert got.dtype == torch.float32
        assert ((got - expected).norm() / expected.norm()).item() < 1e-6


def test_packing_leaves_the_weight_as_it_was_and_keeps_its_float16_values() -> None:
    weight = torch.randn(49, 33, dtype=torch.bfloat16).T
    before = weight.clone()
    packed = pack_half(weight)
    assert torch.equal(weight, before)
    assert packed.shape == (33, 49)
    assert torch.equal(packed.unpack(), before.half().float())


@pytest.mark.parametrize("value", [65520.0, -1e6, float("inf"), float("nan")])
def test_what_float16_cannot_hold_is_refused(value: float) -> None:
    weight = torch.ones(4, 8)
    weight[2, 3] = value
    with pytest.raises(CheckpointError, match=r"shape \[4, 8\].*quantization"):
        pack_half(weight)


@pytest.mark.parametrize("has_fbgemm", [True, False])
def test_a_meta_weight_counts_the_bytes_of_a_real_one(
    has_fbgemm: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not has_fbgemm:
        monkeypatch.setattr(half_linear_module, "_has_fbgemm", lambda: False)
    for shape in SHAPES:
        real, meta = pack_half(torch.ones(shape)), pack_half(torch.ones(shape, device="meta"))
        assert (meta.shape, meta.nbytes) == (real.shape, real.nbytes)
        assert real.nbytes >= 2 * shape[0] * shape[1]
        assert half_linear(torch.ones(3, shape[1], device="meta"), meta).shape == (3, shape[0])
        assert (real.plain is None) == has_fbgemm


PACK_MANY = """
import torch
from dropless.ops.half_linear import pack_half

def resident():
    with open("/proc/self/statm") as statm:
        return int(statm.read().split()[1]) * 4096

weight = torch.randn(3072, 576)
pack_half(weight)
before = resident()
packed = [pack_half(weight) for _ in range(20)]
print(resident() - before, sum(one.nbytes for one in packed))
"""


def test_nbytes_is_what_packing_takes() -> None:
    # In a process of its own: memory that other tests have freed would be used again.
    output = subprocess.run(
        [sys.executable, "-c", PACK_MANY], check=True, capture_output=True, text=True
    ).stdout
    taken, counted = map(int, output.split())
    assert taken == pytest.approx(counted, rel=0.1)
