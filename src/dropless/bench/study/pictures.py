"""The study's pictures, the same for the same data."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from dropless.bench.study import published
from dropless.bench.study.data import Document, origin
from dropless.bench.study.findings import INTERACTIVE_MS, USER_EVERY_S, Curve, Place, speed_up
from dropless.bench.study.models import DENSE, MODELS, TITLES
from dropless.errors import SettingsError

# Okabe and Ito's colours, which colour-blind readers tell apart; markers and dashes say it again.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
MARKERS = "osD^vP"
_DPI = 110


def new_figure(width: float, height: float, columns: int) -> tuple[Any, Any]:
    """A figure and its axes in a row.

    Raises:
        SettingsError: matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise SettingsError("pictures need matplotlib: pip install 'dropless[plot]'") from error
    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, figure.subplots(1, columns, squeeze=False)[0]


def save(figure: Any, path: Path, caption: str) -> None:
    """With the caption below."""
    lines = textwrap.fill(caption, int(13 * figure.get_figwidth()))
    figure.supxlabel(lines, fontsize=8, color="#444444")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=_DPI)


def _name_ticks(axis: Any, values: Iterable[float]) -> None:
    """Of a logarithmic axis, the measured values themselves."""
    ticks = sorted(set(values))
    axis.set_ticks(ticks, labels=[f"{tick:g}" for tick in ticks], fontsize=8)
    axis.set_ticks([], minor=True)


def serving_caption(place: Place) -> str:
    """How the points of a picture or table were made."""
    curve = next(iter(place.curves.values()))
    about = curve.document["about"]
    split = (
        f"one of {place.ranks} tensor-parallel ranks' slice on one GPU, with the measured cost of"
        f" the sums between ranks added to every step ({curve.sums.source})"
        if curve.sums is not None
        else f"whole models, tensor parallel {place.ranks}"
    )
    return (
        f"{origin(curve.document)}. {split[0].upper()}{split[1:]}. Steps measured, the closed loop"
        f" replayed from them: {about['input_tokens']} tokens in, {about['output_tokens']} out, a"
        f" new user every {USER_EVERY_S:g} s, generated weights."
    )


def draw_serving(place: Place, path: Path) -> None:
    """Output tokens a second against time per token, and speed-up against users."""
    found = place.curves
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
    speed.axvline(INTERACTIVE_MS, color="#888888", linewidth=0.8, linestyle="--")
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
    save(figure, path, serving_caption(place))


def _draw_speed(axes: Any, curve: Curve, style: dict[str, str]) -> None:
    windows = curve.windows.values()
    rates = [window.output_tokens_per_s for window in windows]
    axes.plot([w.tpot.mean for w in windows], rates, **style, label=TITLES[curve.model])
    for window in windows:
        axes.annotate(
            f"{window.users}", (window.tpot.mean, window.output_tokens_per_s), xytext=(4, -9),
            textcoords="offset points", fontsize=7, color=style["color"],
        )  # fmt: skip


def draw_capacity(document: Document, path: Path) -> None:
    """Dropped and wasted by capacity factor, and time by tokens."""
    points = document["points"]
    largest = max(point["tokens"] for point in points)
    exponents = sorted({point["exponent"] for point in points})
    figure, (dropped, wasted, times) = new_figure(14, 4.8, 3)
    for i, exponent in enumerate(exponents):
        fixed = [
            point
            for point in points
            if point["tokens"] == largest and point["exponent"] == exponent and point["factor"]
        ]
        style = {"color": COLOURS[i], "marker": MARKERS[i], "label": f"Zipf exponent {exponent:g}"}
        factors = [point["factor"] for point in fixed]
        dropped.plot(factors, [100 * point["dropped"] for point in fixed], **style)
        wasted.plot(factors, [100 * point["wasted"] for point in fixed], **style)
    for axes, what in ((dropped, "pairs dropped, %"), (wasted, "places of experts wasted, %")):
        axes.axhline(0, color="black", linewidth=1.2, linestyle="--", label="dropless")
        axes.set(xlabel="capacity factor", ylabel=what, title=f"{largest} tokens", ylim=(-3, None))
    most_skewed = [point for point in points if point["exponent"] == exponents[-1]]
    factors = sorted({point["factor"] for point in most_skewed if point["factor"]})
    for i, factor in enumerate([None, *factors]):
        line = [point for point in most_skewed if point["factor"] == factor]
        times.plot(
            [point["tokens"] for point in line], [point["us"] / 1e3 for point in line],
            color=COLOURS[i], marker=MARKERS[i],
            label="dropless" if factor is None else f"capacity {factor:g}",
        )  # fmt: skip
    times.set(
        xlabel="tokens", ylabel="time of a layer, ms", xscale="log", yscale="log",
        title=f"Zipf exponent {exponents[-1]:g}",
    )  # fmt: skip
    _name_ticks(times.xaxis, (point["tokens"] for point in most_skewed))
    for axes in (dropped, wasted, times):
        axes.grid(alpha=0.3)
        axes.legend(fontsize=8)
    save(figure, path, capacity_caption(document))


def capacity_caption(document: Document) -> str:
    about = document["about"]
    return (
        f"{origin(document)}. One layer of DBRX, one of {about['ranks']} ranks' part:"
        f" {about['experts']} experts, {about['top_k']} a token, hidden {about['hidden']}, width"
        f" {about['width']} of each; router outside, made-up routing. Fixed capacity as batched"
        " PyTorch products."
    )


def draw_parallel(document: Document, path: Path) -> None:
    """Time of expert over tensor parallel, by tokens and routing."""
    points = document["points"]
    figure, (ratio,) = new_figure(7.5, 5, 1)
    for i, share in enumerate(sorted({point["share"] for point in points})):
        line = [point for point in points if point["share"] == share]
        ratio.plot(
            [point["tokens"] for point in line],
            [point["expert"] / point["tensor"] for point in line],
            color=COLOURS[i], marker=MARKERS[i],
            label=f"{share:.1%} of the pairs on one rank",
        )  # fmt: skip
    ratio.axhline(1, color="black", linewidth=1)
    ratio.set(
        xlabel="tokens of a step", ylabel="time, expert / tensor parallel", xscale="log",
        ylim=(0, None), title="Below 1 expert parallel is faster",
    )  # fmt: skip
    _name_ticks(ratio.xaxis, (point["tokens"] for point in points))
    ratio.grid(alpha=0.3)
    ratio.legend(fontsize=8)
    save(figure, path, parallel_caption(document))


def parallel_caption(document: Document) -> str:
    return (
        f"{origin(document)}. Experts of one layer of DBRX on two ranks, the sum over ranks"
        " included, router outside, made-up routing; the slower rank's time."
    )
