"""The roofline: DBRX's bytes and operations by hand, its limits as published with the benchmarks,
and that more work never takes less time."""

from __future__ import annotations

from dataclasses import replace

import pytest
from benchmarks.roofline_data import compare, fit
from hypothesis import given
from hypothesis import strategies as st

from dropless.bench.gpus import Efficiency, Gpu, Precision, find_efficiency, find_gpu, known_gpus
from dropless.bench.measured import Measurement, measurements
from dropless.bench.predictions import Traffic, predict
from dropless.bench.roofline import (
    Layout,
    Tokens,
    decode_seconds,
    ideal_seconds,
    limit_seconds,
    prefill_steps,
    step_work,
)
from dropless.checkpoints.catalogue import shapes
from dropless.checkpoints.folder import read_config
from dropless.cli.plan_model import measured_model
from dropless.errors import SettingsError
from dropless.models.config import ModelConfig
from dropless.models.registry import parse_config

DBRX = parse_config(read_config(shapes()["dbrx"]))
DENSE = parse_config(read_config(shapes()["llama2-70b"]))
H100, H200 = find_gpu("H100"), find_gpu("H200")
EXPERT = 3 * 6144 * 10752
ATTENTION = 6144 * (8192 + 6144)
HALFWAY = 512 + 128 / 2


def test_what_one_token_reads_and_computes_by_hand() -> None:
    work = step_work(DBRX, Layout(1), Tokens.decode(1, HALFWAY))
    parts = work.parts
    assert parts["attention"].num_bytes == 40 * 2 * ATTENTION
    assert parts["experts"].num_bytes == pytest.approx(40 * 2 * 4 * EXPERT)
    assert parts["cache"].num_bytes == 40 * 2 * 2 * 1024 * HALFWAY
    assert parts["head"].num_bytes == 2 * 100352 * 6144
    active = 40 * (ATTENTION + 4 * EXPERT + 16 * 6144) + 100352 * 6144
    assert active == pytest.approx(36.47e9 - 100352 * 6144, rel=1e-3)
    weights = sum(part.operations for name, part in parts.items() if name != "cache")
    assert weights == pytest.approx(2 * active)
    assert parts["cache"].operations == 40 * 4 * 6144 * HALFWAY
    assert work.num_bytes == pytest.approx(2 * active + parts["cache"].num_bytes)


def test_a_dense_model_has_one_expert_and_no_router() -> None:
    parts = step_work(DENSE, Layout(1), Tokens.decode(7, 100)).parts
    assert parts["experts"].num_bytes == 80 * 2 * 3 * 8192 * 28672
    assert parts["router"].num_bytes == 0


@pytest.mark.parametrize(
    ("gpu", "layout", "layers", "limits_ms"),
    [
        (H200, Layout(2), 40, {1: 8.3, 8: 27.5, 32: 30.6, 128: 32.0}),
        (H200, Layout(1, "fp8"), 40, {1: 8.5, 8: 27.8, 32: 30.8}),
        (H100, Layout(1), 8, {1: 5.1, 8: 16.1, 64: 18.3, 256: 19.5}),
        (H100, Layout(8), 40, {1: 3.0, 8: 10.0, 32: 11.0, 128: 11.6, 256: 12.3}),
        (H100, Layout(8, "fp8"), 40, {1: 1.55, 8: 5.0, 32: 5.5, 128: 6.1, 256: 6.8}),
    ],
    ids=str,
)
def test_limits_of_dbrx(gpu: Gpu, layout: Layout, layers: int, limits_ms: dict[int, float]) -> None:
    shape = replace(DBRX, num_layers=layers)
    for batch, limit_ms in limits_ms.items():
        work = step_work(shape, layout, Tokens.decode(batch, HALFWAY))
        assert 1e3 * limit_seconds(work, gpu) == pytest.approx(limit_ms, rel=0.05), batch


def test_all_reduces_take_their_latency_and_their_bytes() -> None:
    gpu = replace(H100, all_reduce_us=10.0, link_gb_s=300.0)
    tokens = Tokens.decode(32, 600)
    work = step_work(DBRX, Layout(2), tokens)
    numbers = 80 * 2 * 32 * 6144 + 32 * 100352  # an all-reduce moves each twice, logits go once
    link_seconds = 2 * numbers / 2 / 300e9
    assert ideal_seconds(work, gpu).exchanging == pytest.approx(81 * 10e-6 + link_seconds)
    for layout in (Layout(1), Layout(2, has_collectives=False)):
        assert ideal_seconds(step_work(DBRX, layout, tokens), gpu).exchanging == 0


def test_the_busiest_of_two_expert_parallel_ranks() -> None:
    """Four of 16 experts by one token: 4 and 0, 3 and 1 or 2 and 2 of each rank's eight."""
    expected = (4 * 140 + 3 * 896 + 2 * 784) / 1820
    part = step_work(DBRX, Layout(2, expert_parallel=True), Tokens.decode(1, 1)).parts["experts"]
    assert part.num_bytes == pytest.approx(40 * 2 * EXPERT * expected, rel=0.05)
    many = step_work(DBRX, Layout(2, expert_parallel=True), Tokens.decode(4096, 1))
    even = step_work(DBRX, Layout(2), Tokens.decode(4096, 1))
    assert many.parts["experts"].num_bytes == even.parts["experts"].num_bytes
    ratio = many.parts["experts"].operations / even.parts["experts"].operations
    assert 1.0 < ratio < 1.05


precisions = st.sampled_from(["none", "fp8"])
counts = st.sampled_from([1, 2, 4, 8])
models = st.sampled_from([DBRX, DENSE])


@given(
    model=models,
    count=counts,
    precision=precisions,
    batch=st.integers(1, 512),
    context=st.integers(1, 32768),
    more=st.integers(1, 100),
    faster=st.floats(1.0, 4.0),
)
def test_more_work_never_takes_less_time(
    model: ModelConfig,
    count: int,
    precision: Precision,
    batch: int,
    context: int,
    more: int,
    faster: float,
) -> None:
    layout, efficiency = Layout(count, precision), find_efficiency(H100, precision)

    def seconds(batch: int, context: int, gpu: Gpu = H100) -> float:
        work = step_work(model, layout, Tokens.decode(batch, context))
        predicted = decode_seconds(work, gpu, efficiency, model.num_layers)
        assert limit_seconds(work, gpu) <= predicted
        return predicted

    base = seconds(batch, context)
    assert seconds(batch + more, context) > base
    assert seconds(batch, context + more) > base
    better = replace(
        H100,
        bandwidth_tb_s=H100.bandwidth_tb_s * faster,
        bf16_tflops=H100.bf16_tflops * faster,
    )
    assert seconds(batch, context, better) <= base


@given(
    prompts=st.integers(1, 40),
    length=st.integers(1, 3000),
    budget=st.sampled_from([256, 1000, 8192]),
)
def test_prefill_steps_cover_every_prompt_once(prompts: int, length: int, budget: int) -> None:
    steps = list(prefill_steps(prompts, length, budget))
    assert sum(step.count for step in steps) == prompts * length
    assert all(0 < step.count <= budget for step in steps)
    assert all(step.count == budget for step in steps[:-1])
    assert sum(step.attended for step in steps) == prompts * length * (length + 1) // 2
    assert sum(step.sampled for step in steps) == prompts


def test_throughput_follows_from_the_times() -> None:
    traffic = Traffic(512, 128, 8192)
    found = predict(DBRX, Layout(8), H100, find_efficiency(H100, "none"), traffic, 16)
    assert found.prefill_tokens_per_s == pytest.approx(16 * 512 / found.ttft_ms * 1e3)
    assert found.decode_tokens_per_s == pytest.approx(16 * found.user_tokens_per_s)
    whole_s = (found.ttft_ms + 127 * found.tpot_ms) / 1e3
    assert found.total_tokens_per_s == pytest.approx(16 * 128 / whole_s)


@pytest.mark.parametrize(
    "row", measurements(), ids=lambda row: f"{row.gpu} {row.layout} {row.batch}"
)
def test_predictions_are_within_15_percent_of_what_was_measured(row: Measurement) -> None:
    """After new measurements: `python benchmarks/roofline_data.py` fits the efficiencies anew."""
    found = compare(row, find_efficiency(find_gpu(row.gpu), row.quantization))
    assert abs(found.step_deviation) <= 0.15
    assert abs(found.prefill_deviation) <= 0.15


def test_the_fit_finds_the_efficiency_that_made_the_measurements() -> None:
    truth = Efficiency(
        gpu="H100",
        quantization="none",
        bandwidth_share=0.9,
        decode_matrix_share=0.5,
        prefill_matrix_share=0.8,
        decode_layer_us=20.0,
        prefill_layer_us=150.0,
        step_us=300.0,
        rows=0,
        layers=(),
        source="",
    )
    rows = []
    for count, layers in ((1, 8), (8, 40)):
        for batch in (1, 8, 64, 256):
            row = Measurement(
                model="dbrx", layers=layers, gpu="H100", count=count, slice_only=count > 1,
                expert_parallel=False, quantization="none", batch=batch, input_tokens=512,
                output_tokens=128, step_token_budget=8192, step_ms=0, prefill_tokens_per_s=0,
                source="",
            )  # fmt: skip
            made = predict(measured_model(row), row.layout, H100, truth, row.traffic, batch)
            rows.append(
                replace(row, step_ms=made.tpot_ms, prefill_tokens_per_s=made.prefill_tokens_per_s)
            )
    found = fit(H100, rows)
    assert found.bandwidth_share == pytest.approx(0.9, rel=0.01)
    assert found.decode_matrix_share == pytest.approx(0.5, rel=0.01)
    assert found.prefill_matrix_share == pytest.approx(0.8, rel=0.01)
    assert found.decode_layer_us == pytest.approx(20.0, abs=0.5)
    assert found.prefill_layer_us == pytest.approx(150.0, abs=2)
    assert found.step_us == pytest.approx(300.0, abs=5)
    assert found.layers == (8, 40)


def test_efficiencies_are_shares() -> None:
    for gpu in known_gpus().values():
        for precision in ("none", "fp8"):
            found = find_efficiency(gpu, precision)
            shares = found.bandwidth_share, found.decode_matrix_share, found.prefill_matrix_share
            assert all(0 < share <= 1 for share in shares)
            assert min(found.decode_layer_us, found.prefill_layer_us, found.step_us) >= 0


def test_a_gpu_is_found_in_any_case_or_described() -> None:
    assert find_gpu("h100") == H100
    better = find_gpu("H100", fp8_tflops=1500.0)
    assert (better.fp8_tflops, better.bf16_tflops) == (1500.0, H100.bf16_tflops)
    assert better.source.startswith("fp8_tflops as given")
    other = find_gpu("X", memory_gib=40, bandwidth_tb_s=1.0, tflops=100.0)
    assert other.operations_per_s("fp8") == other.operations_per_s("none") == 1e14
    with pytest.raises(SettingsError, match=r"known are H100, H200.*--memory-gib"):
        find_gpu("X", memory_gib=40, tflops=100.0)
    with pytest.raises(SettingsError, match="bf16_tflops of GPU X is 0"):
        find_gpu("X", memory_gib=40, bandwidth_tb_s=1.0, tflops=0)
