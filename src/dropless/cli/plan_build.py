"""From what is asked of `dropless plan` to its report."""

from __future__ import annotations

from collections.abc import Iterator, Sequence, Set
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch

from dropless.bench.gpus import Gpu, Precision, find_efficiency
from dropless.bench.measured import Comparison, measurements
from dropless.bench.predictions import Traffic, predict
from dropless.bench.roofline import Layout
from dropless.cli.plan_layouts import PlannedLayout, Planner, formats, layouts
from dropless.cli.plan_model import measured_model, open_model
from dropless.cli.plan_notes import notes
from dropless.cli.plan_report import LayoutReport, Report
from dropless.engine.config import EngineConfig
from dropless.engine.memory import GPU_TOKEN_BUDGETS
from dropless.errors import SettingsError
from dropless.models.config import ModelConfig
from dropless.models.registry import parse_config, weight_bytes

Parallelism = Literal["tensor", "expert"]

_BATCHES = (1, 8, 32, 128, 256)


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """What to plan. No quantizations or kinds of parallelism: all that GPU and model have. No
    batches: some that the engine computes together."""

    model: str
    gpu: Gpu
    counts: Sequence[int]
    quantizations: Sequence[Precision]
    kinds: Sequence[Parallelism]
    batches: Sequence[int]
    input_tokens: int
    output_tokens: int
    settings: dict[str, Any]  # fields of `EngineConfig` that are given


def build_report(question: Question) -> Report:
    """
    Raises:
        SettingsError: settings that contradict each other or the model.
        CheckpointError, ModelNotFoundError, DownloadError: as `open_model`.
    """
    checkpoint, name = open_model(question.model)
    model = parse_config(checkpoint.config)
    config = EngineConfig(
        model_path=checkpoint.path, model_id=name, device="cuda", **question.settings
    )
    traffic = _traffic(question, config, model)
    gpu = question.gpu
    planner = Planner(checkpoint, gpu, traffic.input_tokens + traffic.output_tokens, config)
    planned = [planner.plan(layout) for layout in _layouts(question, model)]
    most = config.max_running_requests
    batches = question.batches or [batch for batch in _BATCHES if batch <= most]
    reports = [_layout_report(model, each, gpu, traffic, batches) for each in planned]
    precisions = {each.layout.quantization for each in planned}
    return Report(
        model=name,
        num_parameters=weight_bytes(checkpoint, dtype=torch.bfloat16) // torch.bfloat16.itemsize,
        num_layers=model.num_layers,
        gpu=gpu,
        traffic=traffic,
        layouts=reports,
        alternatives=[] if all(each.fits for each in planned) else planner.alternatives(),
        comparisons=list(_comparisons(model, gpu, precisions)),
        notes=notes(gpu, model.num_layers, reports, batches),
    )


def _traffic(question: Question, config: EngineConfig, model: ModelConfig) -> Traffic:
    """
    Raises:
        SettingsError: requests that are too long, or too many at once.
    """
    length = question.input_tokens + question.output_tokens
    longest = config.max_model_len or model.max_position_embeddings
    if length > longest:
        raise SettingsError(
            f"{question.input_tokens} tokens in and {question.output_tokens} out are {length}, and"
            f" a context has {longest} at most; lower --input-len or --output-len"
        )
    most = config.max_running_requests
    if any(batch > most for batch in question.batches):
        raise SettingsError(
            f"a batch of {max(question.batches)} is more than the {most} requests that are computed"
            " together; raise --max-running-requests"
        )
    budget = config.step_token_budget or GPU_TOKEN_BUDGETS[0]
    return Traffic(question.input_tokens, question.output_tokens, budget)


def _layouts(question: Question, model: ModelConfig) -> list[Layout]:
    """
    Raises:
        SettingsError: heads or experts cannot be shared evenly.
    """
    kinds = question.kinds or (("tensor", "expert") if model.num_experts > 1 else ("tensor",))
    _check_shares(question.counts, "key and value heads", model.num_kv_heads)
    if "expert" in kinds and model.num_experts > 1:
        _check_shares(question.counts, "experts (--parallel expert)", model.num_experts)
    return layouts(
        question.counts,
        question.quantizations or formats(question.gpu),
        [kind == "expert" for kind in kinds],
    )


def _check_shares(counts: Sequence[int], what: str, number: int) -> None:
    for count in counts:
        if number % count:
            fitting = ", ".join(str(n) for n in range(1, number + 1) if number % n == 0)
            raise SettingsError(
                f"--count {count}: {number} {what} cannot be shared evenly by {count} GPUs;"
                f" use one of {fitting}"
            )


def _layout_report(
    model: ModelConfig,
    planned: PlannedLayout,
    gpu: Gpu,
    traffic: Traffic,
    batches: Sequence[int],
) -> LayoutReport:
    efficiency = find_efficiency(gpu, planned.layout.quantization)
    if planned.memory is not None:  # where memory is short, steps are smaller
        traffic = replace(traffic, step_token_budget=planned.memory.step_token_budget)
    predictions = [
        predict(model, planned.layout, gpu, efficiency, traffic, batch)
        for batch in batches
        if batch <= planned.users
    ]
    return LayoutReport(planned, efficiency, predictions)


def _comparisons(model: ModelConfig, gpu: Gpu, precisions: Set[Precision]) -> Iterator[Comparison]:
    """What was measured of this model on this GPU, with as many layers as were there."""
    for row in measurements():
        if row.gpu != gpu.name or row.quantization not in precisions:
            continue
        part = measured_model(row)
        if part != replace(model, num_layers=row.layers):
            continue
        efficiency = find_efficiency(gpu, row.quantization)
        yield Comparison(row, predict(part, row.layout, gpu, efficiency, row.traffic, row.batch))
