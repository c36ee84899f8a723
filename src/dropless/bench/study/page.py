"""docs/study/README.md from the data: every figure on it was measured, what was not is missing."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from dropless.bench.metrics import Distribution
from dropless.bench.study import capacity, parallel, pictures, published, serving
from dropless.bench.study.data import Document, read_all
from dropless.bench.study.findings import (
    INTERACTIVE_MS,
    Curve,
    Place,
    places,
    published_speed_up,
    speed_up,
)
from dropless.bench.study.models import DENSE, MODELS, TITLES
from dropless.bench.study.progress import say
from dropless.bench.study.settings import FULL
from dropless.bench.study.sums import SumCost

PAGE, DATA = "README.md", "data"

_HEAD = """# The study

What a dropless mixture of experts gains, measured. `dropless study` makes this page, its pictures
and the files in [data](data); no figure was typed in, save for the published ones. TTFT is the time
to the first token, TPOT the time per output token after it; MBU and MFU are the shares of a GPU's
measured copy bandwidth and matrix rate that are used ([how](#how-it-is-measured)).

    dropless study                              measure all that this machine can, then draw
    dropless study serving --on slice           measure one part
    dropless study draw                         draw from the data alone, without a GPU
"""

_SERVING = """## DBRX against dense models

DBRX has 132B parameters, of which a token uses 36B. Beside it stand a dense model of 132B with
DBRX's depth, width and heads and one feed-forward layer as wide as 16 experts, and Llama2-70B's
shape. All weights are generated, which changes no speed save for how even the routing is. The
dense model has RMSNorm and no clipping of q, k and v; that is all that differs beside the experts.
"""

_REASONS = """Why: a decode step is bound by what it reads. One token reads 4 of 16 experts, a few
tokens nearly all of them, and then a step of DBRX reads as much as one of the dense model. A prompt
is bound by arithmetic, of which DBRX needs little more than a quarter at any number of users. The
advantage at a point lies between that of the decode step and that of the prompt, by the time that
each takes:
"""

_EQUAL_WITHIN = 0.02  # of two times: what repeats differ by

_CAPACITY = """## Dropless against fixed capacity

A layer of fixed capacity gives every expert the same number of places: the factor times what even
routing would need. Tokens beyond are dropped, which changes the answer; places that stay empty are
computed all the same. The dropless layer computes every pair of a token and its expert, and no
other. Routing follows Zipf's law: exponent 0 is even, at 1 the first expert is chosen most.
"""

_PARALLEL = """## Tensor against expert parallel

Tensor parallel: both GPUs have half of the width of every expert, and always the same work. Expert
parallel: each has half of the experts, whole, in larger products; the busier one decides. With one
token, whose experts seldom fall evenly on both, the busier one reads more than half of them. From
about 32 tokens to a few hundred every expert is read once whatever the plan. Beyond, arithmetic
counts, and who has more pairs has more of it. With all pairs on one rank only half of the experts
are hit: tensor parallel shares them, expert parallel leaves one GPU idle.
"""

_METHOD = """## How it is measured

- **Steps.** The engine runs real requests of random tokens, greedy, prefix cache off, without HTTP.
  With each number of rows in the middle of their answers, {decode_steps} decode steps are timed,
  then steps that have a short prompt, a user's prompt or as much as the step's budget holds beside
  the rows; prompts alone too.
- **Users.** Each sends a prompt, waits for the whole answer and sends the next. One comes every
  second until all are there. This closed loop is a replay: the engine's own scheduler and cache
  bookkeeping decide every step, and a step takes as long as those of its kind took when measured,
  on straight lines between the measured ones. When the last user has come and all answers begun by
  then have ended, two answers a user are watched. A short closed loop that was really run stands
  beside its replay.
- **Sums between ranks.** A slice computes what one of several GPUs does and exchanges nothing. To
  each step two sums a layer are added, of the step's tokens, at the cost that
  benchmarks/all_reduce.py measured between two GPUs; for more ranks, the bytes of the further ones
  are added at the speed of the link.
- **MBU** = (bytes of the parameters that a decode step of all rows reads + keys and values) / mean
  TPOT / copy bandwidth. **MFU** = operations of all prompt and output tokens / time / rate of large
  bf16 products. Both of one GPU, against ceilings measured on it
  (`src/dropless/bench/gpus.json`), with even routing.
- **Layers.** Alone, called in a row; the median of rounds.
- **Published figures** are Databricks' for eight H100s with 16-bit weights. That its nine points
  from 1 to 200 users lie at 1, 2, 4 ... 128, 200 is our reading of the picture.
"""


def draw(folder: Path, all_reduce: Path) -> list[Path]:
    """Writes the pictures and the page from `folder`/data; returns what was written. `all_reduce`
    has the results of benchmarks/all_reduce.py, which slices need.

    Raises:
        SettingsError: matplotlib is missing, or a file is no data of the study.
    """
    written: list[Path] = []
    text = [_HEAD, _SERVING, *_places(folder, all_reduce, written), _CAPACITY]
    text += _layer(folder, capacity.PART, _capacity, written)
    text.append(_PARALLEL)
    text += _layer(folder, parallel.PART, _parallel, written)
    text.append(_METHOD.format(decode_steps=FULL.decode_steps))
    page = folder / PAGE
    page.parent.mkdir(parents=True, exist_ok=True)
    page.write_text("\n".join(text))
    return [*written, page]


def _places(folder: Path, all_reduce: Path, written: list[Path]) -> list[str]:
    documents = read_all(folder / DATA, serving.PART)
    slices = {d["about"]["ranks"] for d in documents if d["about"]["on"] == "slice"}
    found = places(documents, {ranks: SumCost.read(all_reduce, ranks) for ranks in slices})
    if not found:
        return [_missing(serving.PART)]
    text = []
    for place in found:
        path = folder / f"{serving.PART}-{place.name}.png"
        for curve in place.curves.values():
            say(f"replaying {place.name} {TITLES[curve.model]}")
            _ = curve.windows
        pictures.draw_serving(place, path)
        written.append(path)
        text += [
            f"### {_title(place)}\n",
            f"![{_title(place)}: DBRX and dense models]({path.name})\n",
            f"{pictures.serving_caption(place)}\n",
            *(_missing(f"{TITLES[m]} here") for m in MODELS if m not in place.curves),
            *(_room(curve) for curve in place.curves.values()),
            _points_table(place),
            _ratio_table(place.curves),
            _summary_table(place.curves),
            _reasons(place.curves),
            "What the steps take, in ms:\n",
            _steps_table(place.curves),
            *(_weak_points(curve) for curve in place.curves.values()),
            _check_table(place.curves),
        ]
    return text


def _title(place: Place) -> str:
    if place.on == "slice":
        return f"One of {place.ranks} ranks"
    return f"Whole models on {place.ranks} GPUs"


def _room(curve: Curve) -> str:
    """Says so if not all users can run at once."""
    room, most = curve.room, max(curve.windows)
    if room.max_running_requests >= most:
        return ""
    return (
        f"**{TITLES[curve.model]}**: beside its weights the cache holds"
        f" {room.max_running_requests} requests of this length at once. More users wait for their"
        " turn, which their TTFT shows.\n"
    )


def _points_table(place: Place) -> str:
    rows = []
    for curve in place.curves.values():
        for users, window in curve.windows.items():
            used = curve.utilisation(users)
            rows.append(
                (
                    TITLES[curve.model],
                    users,
                    f"{window.output_tokens_per_s:,.0f}",
                    f"{window.total_tokens_per_s:,.0f}",
                    _latency(window.tpot),
                    _latency(window.ttft),
                    *(("-", "-") if used is None else (f"{share:.0%}" for share in used)),
                )
            )
    heads = (
        "model", "users", "output tok/s", "with prompts", "TPOT mean / p50 / p99, ms",
        "TTFT mean / p50 / p99, ms", "MBU", "MFU",
    )  # fmt: skip
    return table(heads, rows)


def _ratio_table(found: dict[str, Curve]) -> str:
    """Speed-up over the dense model beside the published one."""
    if DENSE not in found:
        return _missing("the speed-up, which needs the dense model,")
    others = [model for model in published.SPEED_UPS if model in found]
    ratios = {model: speed_up(found[model], found[DENSE]) for model in others}
    heads = ["users"]
    for model in others:
        heads += [f"{TITLES[model]} / dense 132B", "published"]
    rows = []
    for users in found[DENSE].windows:
        row: list[object] = [users]
        for model in others:
            ratio = ratios[model].get(users)
            row += [
                "not measured" if ratio is None else f"{ratio:.2f}",
                f"{published_speed_up(model, users):.2f}",
            ]
        rows.append(row)
    return table(heads, rows)


def _summary_table(found: dict[str, Curve]) -> str:
    """DBRX's advantage in the three cases of the published summary."""
    dbrx, rows = found.get("dbrx"), []
    for model in MODELS[1:]:
        if dbrx is None or model not in found:
            continue
        other = found[model]
        common = dbrx.windows.keys() & other.windows.keys()
        mine, theirs = dbrx.rate_within(INTERACTIVE_MS), other.rate_within(INTERACTIVE_MS)
        rows.append(
            (
                f"most output tok/s at {INTERACTIVE_MS:g} ms a token or less, over {TITLES[model]}",
                f"{mine / theirs:.2f}" if mine and theirs else _who_is_fast(mine, theirs),
                f"{published.INTERACTIVE[model]:g}",
            )
        )
        cases = {min(common): published.FEW_USERS, max(common): published.LARGE_BATCHES}
        rows += [
            (
                f"output tok/s of {users} user{'s' * (users > 1)}, over {TITLES[model]}",
                f"{speed_up(dbrx, other)[users]:.2f}",
                f"{claims[model]:g}",
            )
            for users, claims in cases.items()
        ]
    return table(("DBRX's advantage", "measured", "published"), rows) if rows else ""


def _who_is_fast(mine: float | None, theirs: float | None) -> str:
    if mine or theirs:
        return f"only {'DBRX' if mine else 'the other'} is ever that fast"
    return "neither is ever that fast"


def _reasons(found: dict[str, Curve]) -> str:
    """What DBRX's advantage over the dense model is made of, users by users."""
    if "dbrx" not in found or DENSE not in found:
        return ""
    dbrx, dense = found["dbrx"], found[DENSE]
    prompt = dbrx.document["about"]["input_tokens"]
    rows = []
    for users, ratio in speed_up(dbrx, dense).items():
        batch = min(users, dbrx.room.max_running_requests, dense.room.max_running_requests)
        decode = dense.step_ms(batch, 0) / dbrx.step_ms(batch, 0)
        prompts = [c.step_ms(batch, prompt) - c.step_ms(batch, 0) for c in (dense, dbrx)]
        rows.append(
            (
                users,
                f"{dbrx.experts_read(users):.1f} of {dbrx.shape.num_experts}",
                f"{decode:.2f}",
                f"{prompts[0] / prompts[1]:.2f}",
                f"{dbrx.prompt_share(users):.0%} / {dense.prompt_share(users):.0%}",
                f"{ratio:.2f}",
            )
        )
    heads = (
        "users", "experts that a step reads", "decode step, dense / DBRX",
        "a prompt beside it, dense / DBRX", "time in prompts, DBRX / dense", "DBRX / dense",
    )  # fmt: skip
    return f"{_REASONS}\n{table(heads, rows)}"


def _steps_table(found: dict[str, Curve]) -> str:
    """The steps that the closed loops are made of, at row counts that all models were measured
    with."""
    first = next(iter(found.values()))
    prompt = first.document["about"]["input_tokens"]
    most = min(curve.room.max_running_requests for curve in found.values())
    counts = [count for count in first.windows if count <= most]
    kinds = [(f"{count} row{'s' * (count > 1)}", count, 0) for count in counts]
    kinds += [
        (f"a prompt of {prompt} {'alone' if rows == 0 else f'beside {rows} rows'}", rows, prompt)
        for rows in (0, counts[-1])
    ]
    heads = ["step", *(TITLES[model] for model in found)]
    others = [model for model in found if "dbrx" in found and model != "dbrx"]
    heads += [f"{TITLES[model]} / DBRX" for model in others]
    rows = []
    for name, decodes, tokens in kinds:
        ms = {model: curve.step_ms(decodes, tokens) for model, curve in found.items()}
        ratios = [f"{ms[model] / ms['dbrx']:.2f}" for model in others]
        rows.append([name, *(f"{ms[model]:.2f}" for model in found), *ratios])
    return table(heads, rows)


def _weak_points(curve: Curve) -> str:
    """Says where a step takes longer than one of more rows."""
    counts = [count for count in curve.windows if count <= curve.room.max_running_requests]
    weak = [a for a, b in pairwise(counts) if curve.step_ms(a, 0) > 1.02 * curve.step_ms(b, 0)]
    if not weak:
        return ""
    return (
        f"**{TITLES[curve.model]}** takes longer for a step of {' or '.join(map(str, weak))} rows"
        " than for one of more: there it is the engine's kernels that are slow, and a comparison at"
        " as many users favours the others.\n"
    )


def _check_table(found: dict[str, Curve]) -> str:
    """The closed loops that were really run beside their replays, without added sums."""
    rows = []
    for curve in found.values():
        if curve.check is None:
            continue
        run, again = curve.check
        tpot, ttft = run["tpot"]["mean"], run["ttft"]["mean"]
        rate = run["output_tokens_per_s"]
        rows.append(
            (
                TITLES[curve.model],
                run["users"],
                f"{rate:,.1f} / {again.output_tokens_per_s:,.1f}",
                f"{again.output_tokens_per_s / rate - 1:+.1%}",
                f"{tpot:.1f} / {again.tpot.mean:.1f}",
                f"{ttft:.0f} / {again.ttft.mean:.0f}",
            )
        )
    if not rows:
        return _missing("closed loops beside their replays")
    heads = (
        "run / replayed", "users", "output tok/s", "replay differs by", "mean TPOT, ms",
        "mean TTFT, ms",
    )  # fmt: skip
    return table(heads, rows)


def _layer(
    folder: Path, part: str, describe: Callable[[Document, Path], list[str]], written: list[Path]
) -> list[str]:
    """A part that is one file of data and one picture."""
    documents = read_all(folder / DATA, part)
    if not documents:
        return [_missing(part)]
    path = folder / f"{part}.png"
    text = describe(documents[0], path)
    written.append(path)
    return [f"![{part}]({path.name})\n", *text]


def _capacity(document: Document, path: Path) -> list[str]:
    pictures.draw_capacity(document, path)
    points = document["points"]
    ours = {(p["tokens"], p["exponent"]): p["us"] for p in points if p["factor"] is None}
    rows = [
        (
            point["tokens"],
            f"{point['exponent']:g}",
            f"{point['factor']:g}",
            f"{point['dropped']:.1%}",
            f"{point['hurt']:.1%}",
            f"{point['wasted']:.1%}",
            f"{point['us']:,.0f}",
            f"{ours[point['tokens'], point['exponent']]:,.0f}",
            f"{point['us'] / ours[point['tokens'], point['exponent']]:.2f}",
        )
        for point in points
        if point["factor"] is not None
    ]
    heads = (
        "tokens", "exponent", "factor", "pairs dropped", "tokens that lose a pair",
        "places wasted", "fixed, us", "dropless, us", "fixed / dropless",
    )  # fmt: skip
    return [f"{pictures.capacity_caption(document)}\n", table(heads, rows)]


def _parallel(document: Document, path: Path) -> list[str]:
    pictures.draw_parallel(document, path)
    points = document["points"]
    rows = [
        (
            point["tokens"],
            f"{point['share']:.1%}",
            f"{point['tensor']:,.0f}",
            f"{point['expert']:,.0f}",
            f"{point['expert'] / point['tensor']:.2f}",
        )
        for point in points
    ]
    heads = (
        "tokens", "pairs on one rank", "tensor parallel, us", "expert parallel, us",
        "expert / tensor",
    )  # fmt: skip
    return [
        f"{pictures.parallel_caption(document)}\n",
        f"{_winners(points)}\n",
        table(heads, rows),
    ]


def _winners(points: Sequence[dict[str, Any]]) -> str:
    """For each routing, the numbers of tokens with which one plan is faster than the other."""
    lines = []
    for share in sorted({point["share"] for point in points}):
        ratios = {p["tokens"]: p["expert"] / p["tensor"] for p in points if p["share"] == share}
        equal = [n for n, ratio in ratios.items() if abs(ratio - 1) <= _EQUAL_WITHIN]
        for name, wins in (
            ("expert parallel is faster", [n for n in ratios if ratios[n] < 1 and n not in equal]),
            ("both take the same time", equal),
            ("tensor parallel is faster", [n for n in ratios if ratios[n] > 1 and n not in equal]),
        ):
            if wins:
                numbers = ", ".join(f"{n:,}" for n in wins)
                lines.append(
                    f"- {share:.1%} of the pairs on one rank: {name} with {numbers} tokens."
                )
    return "\n".join(lines)


def table(heads: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """In Markdown, with a blank line behind it."""
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines) + "\n"


def _missing(what: str) -> str:
    return f"**Not measured yet:** {what}\n"


def _latency(found: Distribution) -> str:
    return f"{found.mean:.1f} / {found.p50:.1f} / {found.p99:.1f}"
