"""docs/study/README.md from the data: every figure on it was measured, what was not is missing."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from dropless.bench.study import capacity, dbrx_dense, pictures, published, ranks_compared
from dropless.bench.study.findings import (
    DENSE,
    Curve,
    curves,
    published_speed_up,
    speed_up,
)
from dropless.bench.study.models import MODELS, TITLES
from dropless.bench.study.records import Record, read

PAGE, DATA, NOTES = "README.md", "data", "notes"
_INTERACTIVE_MS = 30.0
_PLACES = {
    "slice": "One of eight ranks",
    "whole": "Whole models",
}

_HEAD = """# The study

What a dropless mixture of experts gains, measured. `dropless study` makes this page, its pictures
and the files in [data](data); nothing here was typed in, save for the notes on why, which are in
[notes](notes). Terms: TTFT is the time to the first token, TPOT the time per output token after it;
MBU and MFU are the shares of a GPU's measured copy bandwidth and matrix rate that are used
([how each is counted](#how-it-is-measured)).

    dropless study --list                       parts and what they need
    dropless study --part dbrx-dense --on slice measure one, then draw everything anew
    dropless study --draw                       draw from the data alone, without a GPU
"""

_DENSE_INTRO = """## DBRX against dense models

DBRX has 132B parameters, of which a token uses 36B. Beside it stand a dense model of 132B with
DBRX's depth, width and heads and one feed-forward layer as wide as 16 experts, and Llama2-70B's
shape. All weights are generated, which changes no speed save for how even the routing is. The
dense model has RMSNorm and no clipping of q, k and v; that is all that differs beside the experts.
"""

_CAPACITY_INTRO = """## Dropless against fixed capacity

A layer of fixed capacity gives every expert the same number of places: the factor times what even
routing would need. Tokens beyond are dropped, which changes the answer; places that stay empty are
computed all the same. The dropless layer computes every pair of a token and its expert, and no
other. Routing follows Zipf's law: exponent 0 is even, at 1 the first expert is chosen most.
"""

_PARALLEL_INTRO = """## Tensor against expert parallel

Tensor parallel: both GPUs have half of the width of every expert, and always the same work. Expert
parallel: each has half of the experts, whole, in larger products; the busier one decides.
"""

_METHOD = """## How it is measured

- **Users.** Each sends a prompt of random tokens, waits for the whole answer and sends the next.
  They come one after another, as often as the caption says. When the last has come and all answers
  begun by then have ended, a window is measured until every user has had an answer, or three times
  the shortest window at most. The load is the engine's own, without HTTP. Greedy, every answer
  equally long, prefix cache off.
- **Sums between ranks.** A slice computes what one of eight GPUs does and exchanges nothing. After
  each step the clock is put forward by two sums a layer, of the step's tokens, at the cost that
  benchmarks/all_reduce.py measured between two GPUs; for eight, the bytes of the six further ranks
  are added at the measured speed of the link.
- **MBU** = (bytes of the parameters that a step reads + keys and values) / mean TPOT / copy
  bandwidth. **MFU** = operations of all prompt and output tokens / time / rate of large bf16
  products. Both of one GPU, against ceilings measured on it
  (`src/dropless/bench/gpus.json`), with even routing.
- **Layers.** Alone, called in a row; the median of rounds.
- **Published figures** are Databricks' for eight H100s with 16-bit weights. That its nine points
  from 1 to 200 users lie at 1, 2, 4 ... 128, 200 is our reading of the picture.
"""


def draw(folder: Path) -> list[Path]:
    """Writes the pictures and the page from `folder`/data; returns what was written.

    Raises:
        SettingsError: matplotlib is missing, or a file is no data of the study.
    """
    written: list[Path] = []
    text = [_HEAD, *_dbrx_dense(folder, written)]
    text += _single(folder, written, capacity.PART, _CAPACITY_INTRO, _capacity)
    text += _single(folder, written, ranks_compared.PART, _PARALLEL_INTRO, _parallel)
    page = folder / PAGE
    page.parent.mkdir(parents=True, exist_ok=True)
    page.write_text("\n".join([*text, _METHOD]))
    return [*written, page]


def _dbrx_dense(folder: Path, written: list[Path]) -> list[str]:
    records = read(folder / DATA, dbrx_dense.PART)
    text = [_DENSE_INTRO]
    for on, title in _PLACES.items():
        text.append(f"### {title}\n")
        found = curves(records, on)
        if not found:
            text.append(_missing(f"--part {dbrx_dense.PART} --on {on}"))
            continue
        path = folder / f"{dbrx_dense.PART}-{on}.svg"
        pictures.draw_serving(records, on, path)
        written.append(path)
        caption = pictures.serving_caption(pictures.records_of(records, on)[-1])
        text += [f"![{title}: DBRX and dense models]({path.name})\n", f"{caption}\n"]
        text += [_missing(f"{TITLES[m]} here") for m in MODELS if m not in found]
        text += [_points_table(found), _ratio_table(found), _summary_table(found)]
        text.append(_why(folder, f"{dbrx_dense.PART}-{on}"))
    return text


def _points_table(found: dict[str, Curve]) -> str:
    rows = [
        (
            TITLES[curve.model],
            point["users"],
            f"{point['output_tokens_per_s']:,.0f}",
            f"{point['total_tokens_per_s']:,.0f}",
            _latency(point["tpot"]),
            _latency(point["ttft"]),
            _percent(point["mbu"]),
            _percent(point["mfu"]),
            f"{point['sums_share']:.0%}" if curve.newest["sums"] else "measured within",
        )
        for curve in (found[model] for model in MODELS if model in found)
        for point in curve.points
    ]
    heads = (
        "model", "users", "output tok/s", "with prompts", "TPOT mean / p50 / p99, ms",
        "TTFT mean / p50 / p99, ms", "MBU", "MFU", "time in sums",
    )  # fmt: skip
    return table(heads, rows)


def _ratio_table(found: dict[str, Curve]) -> str:
    """Speed-up over the dense model beside the published one."""
    if DENSE not in found:
        return _missing("the speed-up, which needs the dense model,")
    others = [model for model in published.SPEED_UPS if model in found]
    ratios = {model: speed_up(found[model], found[DENSE]) for model in others}
    users = sorted({count for by_users in ratios.values() for count in by_users})
    heads = ["users"]
    for model in others:
        heads += [f"{TITLES[model]} / dense 132B", "published"]
    rows = []
    for count in users:
        row: list[object] = [count]
        for model in others:
            ratio = ratios[model].get(count)
            row += [
                "not measured" if ratio is None else f"{ratio:.2f}",
                f"{published_speed_up(model, count):.2f}",
            ]
        rows.append(row)
    return table(heads, rows)


def _summary_table(found: dict[str, Curve]) -> str:
    """DBRX's advantage in the three cases of the published summary."""
    if "dbrx" not in found:
        return ""
    dbrx = found["dbrx"]
    rows = []
    for model in MODELS[1:]:
        if model not in found:
            continue
        other = found[model]
        most = max((p["users"] for p in dbrx.points if other.rate(p["users"])), default=None)
        mine, theirs = dbrx.rate_within(_INTERACTIVE_MS), other.rate_within(_INTERACTIVE_MS)
        rows += [
            (
                f"most output tok/s below {_INTERACTIVE_MS:g} ms a token, over {TITLES[model]}",
                f"{mine / theirs:.2f}" if mine and theirs else "no point of both is that fast",
                f"{published.INTERACTIVE[model]:g}",
            ),
            (
                f"speed of one user, over {TITLES[model]}",
                _ratio(dbrx, other, 1),
                f"{published.FEW_USERS[model]:g}",
            ),
            (
                f"output tok/s of {most or 'many'} users, over {TITLES[model]}",
                "not measured" if most is None else _ratio(dbrx, other, most),
                f"{published.LARGE_BATCHES[model]:g}",
            ),
        ]
    return table(("DBRX's advantage", "measured", "published"), rows) if rows else ""


def _ratio(curve: Curve, other: Curve, users: int) -> str:
    mine, theirs = curve.rate(users), other.rate(users)
    return f"{mine / theirs:.2f}" if mine and theirs else "not measured"


def _single(
    folder: Path,
    written: list[Path],
    part: str,
    intro: str,
    describe: Callable[[Record, Path], list[str]],
) -> list[str]:
    """A part of which the newest measurement counts."""
    records = read(folder / DATA, part)
    if not records:
        return [intro, _missing(f"--part {part}")]
    path = folder / f"{part}.svg"
    described = describe(records[-1], path)
    written.append(path)
    return [intro, f"![{part}]({path.name})\n", *described, _why(folder, part)]


def _capacity(record: Record, path: Path) -> list[str]:
    pictures.draw_capacity(record, path)
    times = {
        (row["tokens"], row["exponent"]): row["us"] for row in record["rows"] if not row["factor"]
    }
    rows = []
    for row in record["rows"]:
        if row["factor"]:
            ours = times[row["tokens"], row["exponent"]]
            rows.append(
                (
                    row["tokens"],
                    f"{row['exponent']:g}",
                    f"{row['factor']:g}",
                    f"{row['dropped']:.1%}",
                    f"{row['tokens_hurt']:.1%}",
                    f"{row['wasted']:.1%}",
                    f"{row['us']:,.0f}",
                    f"{ours:,.0f}",
                    f"{row['us'] / ours:.2f}",
                )
            )
    heads = (
        "tokens", "exponent", "factor", "pairs dropped", "tokens hurt", "places wasted",
        "fixed, us", "dropless, us", "fixed / dropless",
    )  # fmt: skip
    return [f"{pictures.capacity_caption(record)}\n", table(heads, rows)]


def _parallel(record: Record, path: Path) -> list[str]:
    pictures.draw_parallel(record, path)
    rows = [
        (
            row["tokens"],
            f"{row['share']:.1%}",
            f"{row['tensor']:,.0f}",
            f"{row['expert']:,.0f}",
            "expert" if row["expert"] < row["tensor"] else "tensor",
        )
        for row in record["rows"]
    ]
    heads = ("tokens", "pairs on one rank", "tensor parallel, us", "expert parallel, us", "faster")
    return [f"{pictures.parallel_caption(record)}\n", table(heads, rows)]


def table(heads: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """In Markdown, with a blank line behind it."""
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines) + "\n"


def _why(folder: Path, name: str) -> str:
    note = folder / NOTES / f"{name}.md"
    if note.is_file():
        return f"**Why.** {note.read_text().strip()}\n"
    return f"**Why** is not written yet (notes/{name}.md).\n"


def _missing(what: str) -> str:
    return f"**Not measured yet:** {what}\n"


def _latency(found: dict[str, float] | None) -> str:
    return " / ".join(f"{found[name]:.1f}" for name in ("mean", "p50", "p99")) if found else "-"


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{share:.0%}"
