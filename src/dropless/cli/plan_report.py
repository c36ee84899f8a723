"""A plan as tables and as JSON."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from dropless.bench.gpus import Efficiency, Gpu
from dropless.bench.measured import Comparison
from dropless.bench.predictions import Prediction, Traffic
from dropless.cli.plan_layouts import PlannedLayout

_GIB = 2**30
TOLERANCE = 0.15  # a prediction further off than this is marked


@dataclass(frozen=True, slots=True)
class LayoutReport:
    """A layout, how near the engine comes to the ceilings there, and what is predicted."""

    planned: PlannedLayout
    efficiency: Efficiency
    predictions: Sequence[Prediction]  # empty where it does not fit


@dataclass(frozen=True, slots=True)
class Report:
    """Everything that `dropless plan` says."""

    model: str
    num_parameters: int
    num_layers: int
    gpu: Gpu
    traffic: Traffic
    layouts: Sequence[LayoutReport]
    alternatives: Sequence[PlannedLayout]  # that would fit, where something does not
    comparisons: Sequence[Comparison]  # of the model on this GPU, whole or in part
    notes: Sequence[str]

    @property
    def fits(self) -> bool:
        """Whether any layout does."""
        return any(layout.planned.fits for layout in self.layouts)

    def measured(self, layout: LayoutReport, batch: int) -> Comparison | None:
        """What was measured of exactly this."""
        for found in self.comparisons:
            row = found.measured
            same_layout = row.layout == layout.planned.layout and row.layers == self.num_layers
            if same_layout and row.batch == batch and row.traffic == self.traffic:
                return found
        return None


def tables(report: Report) -> Group:
    """What to print."""
    asked_for = [layout.planned for layout in report.layouts]
    parts: list[RenderableType] = [_headline(report), Text()]
    parts.append(_memory_table("memory of each GPU, GiB", asked_for))
    for planned in asked_for:
        if not planned.fits:
            parts += [Text(), Text(f"{planned.layout}: {planned.refusal}", style="red")]
    if report.alternatives:
        parts += [Text(), _memory_table("what would fit, likewise", report.alternatives)]
    if report.fits:
        parts += [Text(), _speed_table(report)]
    if report.comparisons:
        parts += [Text(), _measured_table(report)]
    sources = dict.fromkeys(found.measured.source for found in report.comparisons)
    measured = [f"Measured: {'; '.join(sources)}."] if sources else []
    parts += [Text(), *(Text(f"- {note}") for note in [*report.notes, *measured])]
    return Group(*parts)


def document(report: Report) -> dict[str, Any]:
    """All of it as JSON: bytes, ms, tokens a second."""
    return {
        "model": report.model,
        "parameters": report.num_parameters,
        "layers": report.num_layers,
        "gpu": asdict(report.gpu),
        "traffic": asdict(report.traffic),
        "fits": report.fits,
        "layouts": [
            {
                **_planned(layout.planned),
                "efficiency": asdict(layout.efficiency),
                "predictions": [_predicted(report, layout, p) for p in layout.predictions],
            }
            for layout in report.layouts
        ],
        "alternatives": [_planned(planned) for planned in report.alternatives],
        "measured": [
            {
                **asdict(found.measured),
                "predicted_step_ms": found.predicted.tpot_ms,
                "step_deviation": found.step_deviation,
                "predicted_prefill_tokens_per_s": found.predicted.prefill_tokens_per_s,
                "prefill_deviation": found.prefill_deviation,
            }
            for found in report.comparisons
        ],
        "notes": list(report.notes),
    }


def _planned(planned: PlannedLayout) -> dict[str, Any]:
    layout, memory = planned.layout, planned.memory
    sizes = {}
    if memory is not None:
        sizes = {
            "weight_bytes": memory.weight_bytes,
            "kv_cache_bytes": memory.kv_cache_bytes,
            "workspace_bytes": memory.workspace_bytes,
            "limit_bytes": memory.limit_bytes,
            "max_model_len": memory.max_model_len,
            "step_token_budget": memory.step_token_budget,
        }
    return {
        "count": layout.count,
        "quantization": layout.quantization,
        "expert_parallel": layout.expert_parallel,
        "fits": planned.fits,
        "refusal": planned.refusal or None,
        "change": planned.change or None,
        "users": planned.users,
        "memory_of_each_gpu": sizes or None,
    }


def _predicted(report: Report, layout: LayoutReport, predicted: Prediction) -> dict[str, Any]:
    found = report.measured(layout, predicted.batch)
    return {
        "batch": predicted.batch,
        "limit_ms": predicted.limit_ms,
        "tpot_ms": predicted.tpot_ms,
        "ttft_ms": predicted.ttft_ms,
        "prefill_tokens_per_s": predicted.prefill_tokens_per_s,
        "user_tokens_per_s": predicted.user_tokens_per_s,
        "decode_tokens_per_s": predicted.decode_tokens_per_s,
        "total_tokens_per_s": predicted.total_tokens_per_s,
        "measured_tpot_ms": None if found is None else found.measured.step_ms,
    }


def _headline(report: Report) -> Text:
    gpu = report.gpu

    def ceiling(value: float | None, unit: str, missing: str) -> str:
        return missing if value is None else f"{value:g} {unit}"

    ceilings = [
        f"{gpu.memory_gib:g} GiB",
        f"{gpu.bandwidth_tb_s:g} TB/s",
        f"bf16 {gpu.bf16_tflops:g} TFLOP/s",
        f"fp8 {ceiling(gpu.fp8_tflops, 'TFLOP/s', 'not known')}",
        f"all-reduce {ceiling(gpu.link_gb_s, 'GB/s', 'not known')}",
    ]
    return Text.assemble(
        (report.model, "bold"),
        f", {_billions(report.num_parameters)} parameters, on ",
        (gpu.name, "bold"),
        f": {', '.join(ceilings)}",
    )


def _billions(count: int) -> str:
    return f"{count / 1e9:.1f} B" if count >= 1e9 else f"{count / 1e6:.0f} M"


def _memory_table(title: str, layouts: Sequence[PlannedLayout]) -> Table:
    table = _table(title)
    for heading in ("weights", "cache", "workspace", "of", "longest context", "users in cache"):
        table.add_column(heading, justify="right")
    for planned in layouts:
        table.add_row(*_memory_row(planned))
    return table


def _memory_row(planned: PlannedLayout) -> list[str]:
    name = ", ".join(filter(None, (str(planned.layout), planned.change)))
    memory = planned.memory
    if memory is None:
        return [name, *[""] * 5, "[red]does not fit[/]"]
    sizes = (memory.weight_bytes, memory.kv_cache_bytes, memory.workspace_bytes, memory.limit_bytes)
    users = f"{planned.users:,}" if planned.fits else "[red]none[/]"
    return [name, *(f"{size / _GIB:.1f}" for size in sizes), f"{memory.max_model_len:,}", users]


def _speed_table(report: Report) -> Table:
    traffic = report.traffic
    table = _table(
        f"predicted, {traffic.input_tokens:,} tokens in and {traffic.output_tokens:,} out"
    )
    for heading in (
        "users",
        "TTFT ms",
        "TPOT ms",
        "limit ms",
        "tok/s a user",
        "tok/s all users",
        "with prompts",
        "prefill tok/s",
    ):
        table.add_column(heading, justify="right")
    measured = {
        (layout.planned.layout, predicted.batch): report.measured(layout, predicted.batch)
        for layout in report.layouts
        for predicted in layout.predictions
    }
    if any(measured.values()):
        table.add_column("measured TPOT ms", justify="right")
    for layout in report.layouts:
        for i, predicted in enumerate(layout.predictions):
            found = measured[layout.planned.layout, predicted.batch]
            table.add_row(
                str(layout.planned.layout) if i == 0 else "",
                str(predicted.batch),
                f"{predicted.ttft_ms:,.0f}",
                f"{predicted.tpot_ms:.2f}",
                f"{predicted.limit_ms:.2f}",
                f"{predicted.user_tokens_per_s:,.0f}",
                f"{predicted.decode_tokens_per_s:,.0f}",
                f"{predicted.total_tokens_per_s:,.0f}",
                f"{predicted.prefill_tokens_per_s:,.0f}",
                *([_measured(found)] if found else []),
            )
    return table


def _measured(found: Comparison) -> str:
    return f"{found.measured.step_ms:.2f} {_deviation(found.step_deviation)}"


def _measured_table(report: Report) -> Table:
    table = _table("measured on this GPU, and how far the prediction of the same case is off")
    for heading in ("layers", "users", "step ms", "predicted", "", "prefill", "predicted", ""):
        table.add_column(heading, justify="right")
    for found in report.comparisons:
        row = found.measured
        table.add_row(
            f"{row.layout}{' one rank' if row.slice_only else ''}",
            str(row.layers),
            str(row.batch),
            f"{row.step_ms:.2f}",
            f"{found.predicted.tpot_ms:.2f}",
            _deviation(found.step_deviation),
            f"{row.prefill_tokens_per_s:,.0f}",
            f"{found.predicted.prefill_tokens_per_s:,.0f}",
            _deviation(found.prefill_deviation),
        )
    return table


def _deviation(share: float) -> str:
    color = "green" if abs(share) <= TOLERANCE else "red"
    return f"[{color}]{share:+.0%}[/]"


def _table(title: str) -> Table:
    table = Table(title=title, title_justify="left", box=None, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column("", no_wrap=True)
    return table
