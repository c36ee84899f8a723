"""A run's figures as a table, as JSON and as a picture."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Group
from rich.table import Table
from rich.text import Text

from dropless.bench.metrics import Distribution, RequestRecord, ServiceLevel, Summary
from dropless.errors import SettingsError

LATENCIES = (
    ("TTFT", "ttft"),
    ("TPOT", "tpot"),
    ("ITL", "itl"),
    ("end to end", "end_to_end"),
)


def tables(summary: Summary, level: ServiceLevel | None = None) -> Group:
    """What to print at the end of a run: throughput, latencies, errors."""
    parts: list[Table | Text] = [_throughput_table(summary, level), _latency_table(summary)]
    for message, count in summary.errors.items():
        parts.append(Text(f"{count} failed: {message}", style="red"))
    return Group(*parts)


def _throughput_table(summary: Summary, level: ServiceLevel | None) -> Table:
    table = Table(show_header=False, box=None, pad_edge=False)
    table.add_column(style="bold")
    table.add_column(justify="right")
    failed = f", [red]{summary.failed} failed[/]" if summary.failed else ""
    table.add_row("requests", f"{summary.completed} completed{failed}")
    table.add_row("duration", f"{summary.duration_s:.2f} s")
    table.add_row("requests/s", f"{summary.request_throughput:.2f}")
    table.add_row("input tokens/s", f"{summary.input_throughput:.1f}")
    table.add_row("output tokens/s", f"{summary.output_throughput:.1f}")
    if level is not None and summary.goodput is not None and summary.attainment is not None:
        table.add_row(
            "goodput",
            f"{summary.goodput:.2f} requests/s, {summary.attainment:.1%} within {_limits(level)}",
        )
    return table


def _latency_table(summary: Summary) -> Table:
    table = Table(title="latency in ms", title_justify="left")
    table.add_column("")
    for heading in ("mean", "p50", "p90", "p95", "p99", "max"):
        table.add_column(heading, justify="right")
    for name, attribute in LATENCIES:
        found: Distribution | None = getattr(summary, attribute)
        if found is not None:
            values = (found.mean, found.p50, found.p90, found.p95, found.p99, found.max)
            table.add_row(name, *(f"{value:.1f}" for value in values))
    return table


def _limits(level: ServiceLevel) -> str:
    limits = {"TTFT": level.ttft_ms, "TPOT": level.tpot_ms, "end to end": level.e2e_ms}
    return ", ".join(f"{name} {limit:g} ms" for name, limit in limits.items() if limit is not None)


def write_json(
    path: Path, summary: Summary, records: Sequence[RequestRecord], settings: Mapping[str, Any]
) -> None:
    """Settings, summary (latencies in ms) and every request (times in s from the start).

    Raises:
        SettingsError: the file cannot be written.
    """
    document = {
        "settings": dict(settings),
        "summary": asdict(summary),
        "requests": [asdict(record) for record in records],
    }
    try:
        path.write_text(json.dumps(document, indent=1, default=str) + "\n")
    except OSError as error:
        raise SettingsError(f"cannot write {path}: {error}") from error


def write_plot(path: Path, summary: Summary, records: Sequence[RequestRecord]) -> None:
    """Latency over time beside its cumulative distribution, as PNG, SVG or PDF by the suffix.

    Raises:
        SettingsError: matplotlib is not installed, or the file cannot be written.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise SettingsError("plots need matplotlib: pip install 'dropless[plot]'") from error

    figure = Figure(figsize=(11, 4.2), layout="constrained")
    over_time, spread = figure.subplots(1, 2)
    done = [record for record in records if record.error is None]
    for name, starts_and_values in (
        ("TTFT", [(r.start_s, r.ttft_s) for r in done]),
        ("end to end", [(r.start_s, r.end_to_end_s) for r in done]),
    ):
        known = [(at, value * 1000) for at, value in starts_and_values if value is not None]
        over_time.scatter([at for at, _ in known], [ms for _, ms in known], s=8, label=name)
    for failed in (record for record in records if record.error is not None):
        over_time.axvline(failed.start_s, color="red", linewidth=0.5)
    for name, values in (
        ("TTFT", [r.ttft_s for r in done]),
        ("TPOT", [r.tpot_s for r in done]),
        ("end to end", [r.end_to_end_s for r in done]),
    ):
        ordered = sorted(value * 1000 for value in values if value is not None)
        shares = [(i + 1) / len(ordered) for i in range(len(ordered))]
        spread.step(ordered, shares, where="post", label=name)
    over_time.set(xlabel="start of the request, s", ylabel="ms", title="Latency over time")
    spread.set(xlabel="ms", ylabel="share of requests", xscale="log", title="Distribution")
    for axes in (over_time, spread):
        axes.grid(alpha=0.3)
        axes.legend()
    failures = f", {summary.failed} failed (red)" if summary.failed else ""
    figure.suptitle(
        f"{summary.completed} requests, {summary.output_throughput:.1f} output tokens/s{failures}"
    )
    try:
        figure.savefig(path, dpi=130)
    except (OSError, ValueError) as error:
        raise SettingsError(f"cannot write the plot {path}: {error}") from error
