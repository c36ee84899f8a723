"""Numbers of 8 bits: the rule of rounding, awkward rows, pieces, and products in float64."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from dropless.ops import fp8
from dropless.ops.fp8 import Fp8Tensor, quantize_channels, quantize_tokens
from dropless.ops.linear import linear


def error(got: Tensor, expected: Tensor) -> float:
    return ((got.double() - expected).norm() / expected.norm()).item()


@given(
    seed=st.integers(0, 1000),
    columns=st.integers(1, 70),
    exponents=st.lists(st.integers(-44, 37), min_size=1, max_size=5),
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
)
@settings(max_examples=60, deadline=None)
def test_each_number_is_within_half_a_step(
    seed: int, columns: int, exponents: list[int], dtype: torch.dtype
) -> None:
    sizes = torch.tensor([10.0**exponent for exponent in exponents])[:, None]
    generator = torch.Generator().manual_seed(seed)
    x = (torch.randn(len(exponents), columns, generator=generator) * sizes).to(dtype)
    values, scales = quantize_tokens(x)
    assert values.dtype == torch.float8_e4m3fn
    assert scales.dtype == torch.float32
    assert scales.isfinite().all()
    wide, scale = x.double(), scales.double()[:, None]
    distance = (values.double() * scale - wide).abs()
    half_a_step = torch.maximum(wide.abs() * 2**-4, scale * 2**-10)
    assert (distance <= half_a_step * (1 + 1e-6)).all()
    whole_range = x.abs().amax(-1) > 1e-35
    assert (values.float().abs().amax(-1)[whole_range] == 448).all()


def test_zeros_stay_zeros_and_what_is_not_finite_is_never_hidden() -> None:
    torch.manual_seed(0)
    x, weight = torch.randn(5, 40), torch.randn(24, 40)
    x[1] = 0.0
    x[2, 7] = float("nan")
    x[3, 0] = -float("inf")
    weight[4] = 0.0
    weight[5, 39] = float("nan")
    weight[6, 1] = float("inf")
    y = linear.reference(x, quantize_channels(weight))
    assert (y[1, :5] == 0).all()
    assert (y[[0, 1, 4], 4] == 0).all()
    expected = torch.zeros(5, 24, dtype=torch.bool)
    expected[[2, 3]] = True
    expected[:, [5, 6]] = True
    assert torch.equal(y.isnan(), expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("with_bias", [False, True])
def test_a_product_is_that_of_the_quantised_numbers(dtype: torch.dtype, with_bias: bool) -> None:
    torch.manual_seed(1)
    x = torch.randn(33, 512).to(dtype)
    weight = torch.randn(128, 512).to(dtype) * 0.02
    bias = torch.randn(128).to(dtype) if with_bias else None
    quantized = quantize_channels(weight)
    values, scales = quantize_tokens(x)
    expected = (values.double() * scales.double()[:, None]) @ quantized.float().double().T
    exact = x.double() @ weight.double().T
    if bias is not None:
        expected, exact = expected + bias, exact + bias
    got = linear.reference(x, quantized, bias)
    assert got.dtype == dtype
    assert error(got, expected) < (1e-6 if dtype == torch.float32 else 3e-3)
    assert 0.01 < error(got, exact) < 0.045  # measured: 0.037, of which the weights' is 0.026


def test_tokens_near_the_largest_float_do_not_overflow_on_the_way() -> None:
    torch.manual_seed(2)
    x = torch.randn(3, 512).clamp(-3, 3) * 1e38
    weight = torch.randn(16, 512) * 0.02
    exact = x.double() @ weight.double().T
    assert error(linear.reference(x, quantize_channels(weight)), exact) < 0.045


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("shape", [(7, 30), (3, 11, 30)])
def test_pieces_make_what_the_whole_does(
    shape: tuple[int, ...], transposed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    weight = torch.randn(shape)
    if transposed:
        weight = weight.transpose(-2, -1)
    whole = quantize_channels(weight)
    monkeypatch.setattr(fp8, "_PIECE_ELEMENTS", 200)
    pieces = quantize_channels(weight)
    assert pieces.values.is_contiguous()
    assert torch.equal(pieces.values.float(), whole.values.float())
    assert torch.equal(pieces.scales, whole.scales)
    assert error(whole.float(), weight.double()) < 0.03


def test_parts_are_views_and_bytes_are_counted() -> None:
    whole = Fp8Tensor.empty((3, 6, 8), torch.device("cpu"))
    assert (whole.shape, whole.nbytes) == ((3, 6, 8), 3 * 6 * 8 + 4 * 3 * 6)
    fp8.quantize_into(whole[1][2:5], torch.ones(3, 8))
    assert torch.equal(whole.float()[1, 2:5], torch.ones(3, 8))
    meta = quantize_channels(torch.empty(3, 6, 8, device="meta"))
    assert (meta.device.type, meta.nbytes) == ("meta", whole.nbytes)
