"""A plan as a picture: throughput against time per token, and what fills the memory."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from dropless.cli.plan_report import LayoutReport, Report
from dropless.errors import SettingsError

_GIB = 2**30
_SIZES = (
    ("weights", "weight_bytes"),
    ("workspace", "workspace_bytes"),
    ("KV cache", "kv_cache_bytes"),
)


def write_plot(path: Path, report: Report) -> None:
    """As PNG, SVG or PDF by the suffix.

    Raises:
        SettingsError: matplotlib is not installed, or the file cannot be written.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise SettingsError("plots need matplotlib: pip install 'dropless[plot]'") from error

    figure = Figure(figsize=(12, 4.8), layout="constrained")
    speed, memory = figure.subplots(1, 2, width_ratios=(3, 2))
    for layout in report.layouts:
        if layout.predictions:
            _draw_speed(speed, report, layout)
    speed.set(
        xlabel="time per output token, ms",
        ylabel="output tokens/s of all users, decoding",
        title=f"{report.traffic.input_tokens:,} tokens in, {report.traffic.output_tokens:,} out",
        yscale="log",
    )
    speed.grid(alpha=0.3)
    if report.fits:
        speed.legend()
    _draw_memory(memory, report)
    figure.suptitle(f"{report.model} on {report.gpu.name}: predicted (×: measured)")
    try:
        figure.savefig(path, dpi=130)
    except (OSError, ValueError) as error:
        raise SettingsError(f"cannot write the plot {path}: {error}") from error


def _draw_speed(axes: Any, report: Report, layout: LayoutReport) -> None:
    """A line over batch sizes, with each size beside its point."""
    points = [(p.tpot_ms, p.decode_tokens_per_s) for p in layout.predictions]
    (line,) = axes.plot(*zip(*points, strict=True), marker="o", label=str(layout.planned.layout))
    for predicted, point in zip(layout.predictions, points, strict=True):
        axes.annotate(
            f"{predicted.batch}",
            point,
            xytext=(5, -10),
            textcoords="offset points",
            color=line.get_color(),
            fontsize=8,
        )
        found = report.measured(layout, predicted.batch)
        if found is not None:
            step_ms = found.measured.step_ms
            axes.plot(step_ms, 1e3 * predicted.batch / step_ms, "x", color=line.get_color())


def _draw_memory(axes: Any, report: Report) -> None:
    """A bar a layout; the line is what may be used. One that does not fit has no bar."""
    plans = [layout.planned for layout in report.layouts]
    names = [str(planned.layout) for planned in plans]
    left = [0.0] * len(plans)
    for kind, field in _SIZES:
        sizes = [getattr(planned.memory, field, 0) / _GIB for planned in plans]
        axes.barh(names, sizes, left=left, label=kind)
        left = [a + b for a, b in zip(left, sizes, strict=True)]
    for planned, name in zip(plans, names, strict=True):
        if planned.memory is None:
            axes.annotate(" does not fit", (0, name), va="center", color="red")
    limit = next((planned.memory.limit_bytes for planned in plans if planned.memory), None)
    if limit is not None:
        axes.axvline(limit / _GIB, color="black", linewidth=1, linestyle="--", label="may be used")
        axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.14), ncols=4, fontsize=8)
    axes.invert_yaxis()
    axes.set(xlabel="GiB of each GPU", title="Memory")
