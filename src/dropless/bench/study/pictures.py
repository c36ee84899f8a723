"""The study's pictures, as SVG that is the same for the same data."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from dropless.bench.study import published
from dropless.bench.study.findings import DENSE, Curve, curves, speed_up
from dropless.bench.study.models import MODELS, TITLES
from dropless.bench.study.records import Record, origin
from dropless.errors import SettingsError

# Okabe and Ito's colours, which colour-blind readers tell apart; markers and dashes say it again.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
MARKERS = "osD^vP"


def new_figure(width: float, height: float, columns: int) -> tuple[Any, Any]:
    """A figure and its axes in a row.

    Raises:
        SettingsError: matplotlib is not installed.
    """
    try:
        import matplotlib
        from matplotlib.figure import Figure
    except ImportError as error:
        raise SettingsError("pictures need matplotlib: pip install 'dropless[plot]'") from error
    matplotlib.rcParams["svg.hashsalt"] = "dropless"
    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, figure.subplots(1, columns, squeeze=False)[0]


def save(figure: Any, path: Path, caption: str) -> None:
    """With the caption below."""
    lines = textwrap.fill(caption, int(13 * figure.get_figwidth()))
    figure.supxlabel(lines, fontsize=8, color="#444444")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, metadata={"Date": None})


def _name_ticks(axis: Any, values: Iterable[float]) -> None:
    """Of a logarithmic axis, the measured values themselves."""
    ticks = sorted(set(values))
    axis.set_ticks(ticks, labels=[f"{tick:g}" for tick in ticks], fontsize=8)
    axis.set_ticks([], minor=True)


def serving_caption(record: Record) -> str:
    """How the points of a picture or table were made."""
    split = (
        f"one of {record['ranks']} tensor-parallel ranks' slice on one GPU, with the cost of the"
        f" sums between ranks added to every step ({record['sums']['source']})"
        if record["sums"]
        else f"whole models, tensor parallel {record['ranks']}"
    )
    return (
        f"{origin(record)}. {split[0].upper()}{split[1:]}. {record['input_tokens']} tokens in,"
        f" {record['output_tokens']} out, closed-loop users, a new one every"
        f" {record['user_every_s']:g} s, generated weights."
    )


def draw_serving(records: Sequence[Record], on: str, path: Path) -> None:
    """Output tokens a second against time per token, and speed-up against users."""
    found = curves(records, on)
    figure, (speed, ratio) = new_figure(12, 5.4, 2)
    for i, model in enumerate(MODELS):
        style = {"color": COLOURS[i], "marker": MARKERS[i]}
        if model in found:
            _draw_speed(speed, found[model], style)
        speed.plot(
            100, published.AT_100_MS[model], mfc="none", linestyle="none", markersize=9, **style,
            label=f"{TITLES[model]}, published at 100 ms",
        )  # fmt: skip
        if model in published.SPEED_UPS:
            ratio.plot(
                published.USERS, published.SPEED_UPS[model], color=COLOURS[i], linestyle=":",
                label=f"{TITLES[model]}, published",
            )  # fmt: skip
            if model in found and DENSE in found:
                ratios = speed_up(found[model], found[DENSE])
                ratio.plot(*zip(*ratios.items(), strict=True), **style, label=TITLES[model])
    speed.axvline(30, color="#888888", linewidth=0.8, linestyle="--")
    speed.set(
        xlabel="time per output token (mean TPOT), ms",
        ylabel="output tokens/s of all users",
        xscale="log",
        yscale="log",
        title="Throughput against time per token (labels: users)",
    )
    ratio.axhline(1, color=COLOURS[1], linewidth=0.8)
    ratio.set(
        xlabel="concurrent users",
        ylabel="output tokens/s over that of dense 132B",
        xscale="log",
        title="Speed-up over a dense model of 132B",
        ylim=(0, None),
    )
    _name_ticks(ratio.xaxis, published.USERS)
    for axes in (speed, ratio):
        axes.grid(alpha=0.3, which="both")
        axes.legend(fontsize=8)
    save(figure, path, serving_caption(records_of(records, on)[-1]))


def records_of(records: Sequence[Record], on: str) -> list[Record]:
    return [record for record in records if record["on"] == on]


def _draw_speed(axes: Any, curve: Curve, style: dict[str, str]) -> None:
    points = [
        (p["tpot"]["mean"], p["output_tokens_per_s"], p["users"]) for p in curve.points if p["tpot"]
    ]
    axes.plot([p[0] for p in points], [p[1] for p in points], **style, label=TITLES[curve.model])
    for tpot, rate, users in points:
        axes.annotate(
            f"{users}", (tpot, rate), xytext=(4, -9), textcoords="offset points", fontsize=7,
            color=style["color"],
        )  # fmt: skip


def draw_capacity(record: Record, path: Path) -> None:
    """Dropped, wasted and time, by capacity factor or tokens."""
    rows = record["rows"]
    largest = max(row["tokens"] for row in rows)
    exponents = sorted({row["exponent"] for row in rows})
    figure, (dropped, wasted, times) = new_figure(14, 4.8, 3)
    for i, exponent in enumerate(exponents):
        fixed = [
            row
            for row in rows
            if row["tokens"] == largest and row["exponent"] == exponent and row["factor"]
        ]
        style = {"color": COLOURS[i], "marker": MARKERS[i], "label": f"Zipf exponent {exponent:g}"}
        factors = [row["factor"] for row in fixed]
        dropped.plot(factors, [100 * row["dropped"] for row in fixed], **style)
        wasted.plot(factors, [100 * row["wasted"] for row in fixed], **style)
    for axes, what in ((dropped, "pairs dropped, %"), (wasted, "places of experts wasted, %")):
        axes.axhline(0, color="black", linewidth=1.2, linestyle="--", label="dropless")
        axes.set(xlabel="capacity factor", ylabel=what, title=f"{largest} tokens", ylim=(-3, None))
    for i, factor in enumerate([None, *sorted({row["factor"] for row in rows if row["factor"]})]):
        line = [r for r in rows if r["factor"] == factor and r["exponent"] == exponents[-1]]
        times.plot(
            [row["tokens"] for row in line], [row["us"] / 1e3 for row in line], color=COLOURS[i],
            marker=MARKERS[i], label="dropless" if factor is None else f"capacity {factor:g}",
        )  # fmt: skip
    times.set(
        xlabel="tokens", ylabel="time of a layer, ms", xscale="log", yscale="log",
        title=f"Zipf exponent {exponents[-1]:g}",
    )  # fmt: skip
    _name_ticks(times.xaxis, (row["tokens"] for row in rows))
    for axes in (dropped, wasted, times):
        axes.grid(alpha=0.3)
        axes.legend(fontsize=8)
    save(figure, path, capacity_caption(record))


def capacity_caption(record: Record) -> str:
    return (
        f"{origin(record)}. One layer of {record['experts']} experts, {record['top_k']} a token,"
        f" hidden {record['hidden']}, width {record['width']} of each expert, router outside,"
        " made-up routing; fixed capacity as batched PyTorch products."
    )


def draw_parallel(record: Record, path: Path) -> None:
    """Time of expert over tensor parallel, by tokens and routing."""
    figure, (ratio,) = new_figure(7.5, 5, 1)
    for i, share in enumerate(sorted({row["share"] for row in record["rows"]})):
        line = [row for row in record["rows"] if row["share"] == share]
        ratio.plot(
            [row["tokens"] for row in line],
            [row["expert"] / row["tensor"] for row in line],
            color=COLOURS[i], marker=MARKERS[i],
            label=f"{share:.1%} of the pairs on one rank",
        )  # fmt: skip
    ratio.axhline(1, color="black", linewidth=1)
    ratio.set(
        xlabel="tokens of a step", ylabel="time, expert / tensor parallel", xscale="log",
        ylim=(0, None), title="Below 1 expert parallel is faster",
    )  # fmt: skip
    _name_ticks(ratio.xaxis, (row["tokens"] for row in record["rows"]))
    ratio.grid(alpha=0.3)
    ratio.legend(fontsize=8)
    save(figure, path, parallel_caption(record))


def parallel_caption(record: Record) -> str:
    return (
        f"{origin(record)}. Experts of one layer of DBRX on two ranks, the sum over ranks included,"
        " router outside, made-up routing; the slower rank's time."
    )
