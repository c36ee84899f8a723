"""Keep the data of `dropless plan` up to date with what was measured.

    python benchmarks/roofline_data.py --add benchmarks/results/dbrx_steps.json
    python benchmarks/roofline_data.py

Takes results of dbrx_steps.py into src/dropless/bench/measured.json (a case that is there already
is replaced), and fits src/dropless/bench/efficiencies.json to all of it: how near the engine comes
to each ceiling of each GPU in each number format. Prints every case with the prediction's
deviation, which must stay within 15 %.

The predicted time of a step is a sum (see `dropless.bench.roofline`), so the fit is linear: least
squares of the deviations, with no share above 1 and no fixed time below 0.
"""

from __future__ import annotations

import argparse
import itertools
import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np

from dropless.bench.gpus import EFFICIENCIES, Efficiency, Gpu, find_gpu, known_gpus
from dropless.bench.measured import MEASURED, Comparison, Measurement
from dropless.bench.predictions import predict
from dropless.bench.roofline import Tokens, ideal_seconds, prefill_steps, step_work
from dropless.cli.plan_model import measured_model

# Columns of the fit. The first three divide: shares of a ceiling, their inverse at least 1.
UNKNOWNS = (
    "reading",
    "decode products",
    "prefill products",
    "layer",
    "layer of a prefill, above that",  # no graph is slower than its kernels one by one
    "step",
)
SHARES = 3
LEAST = np.array([1.0] * SHARES + [0.0] * (len(UNKNOWNS) - SHARES))


def rows_of(path: Path) -> list[Measurement]:
    """The cases of one result of dbrx_steps.py."""
    document = json.loads(path.read_text())
    names = {gpu.device_name: gpu.name for gpu in known_gpus().values()}
    if document["gpu"] not in names:
        raise SystemExit(f"{path}: add the ceilings of {document['gpu']} to gpus.json first")
    if document.get("deterministic", False):
        raise SystemExit(f"{path}: was measured in deterministic mode, which plans know nothing of")
    slice_of = document.get("slice_of", 1)
    return [
        Measurement(
            model="dbrx",
            layers=document["layers"],
            gpu=names[document["gpu"]],
            count=max(slice_of, document.get("ranks", 1)),
            slice_only=slice_of > 1,
            expert_parallel=document.get("expert_parallel", False),
            quantization=document.get("quantization", "none"),
            batch=row["batch"],
            input_tokens=512,
            output_tokens=128,
            step_token_budget=8192,
            step_ms=round(row["step_ms"], 3),
            prefill_tokens_per_s=round(row["prefill_tokens_per_s"]),
            source=f"{path.name}, {document['date'][:10]}",
        )
        for row in document["rows"]
    ]


def merged(old: Iterable[Measurement], new: Iterable[Measurement]) -> list[Measurement]:
    """All cases once, the new ones in place of the old, in a fixed order."""

    def case(row: Measurement) -> Measurement:
        return replace(row, step_ms=0.0, prefill_tokens_per_s=0.0, source="")

    by_case = {case(row): row for row in [*old, *new]}
    return sorted(by_case.values(), key=lambda row: [str(v).zfill(6) for v in asdict(row).values()])


def fit(gpu: Gpu, rows: Sequence[Measurement]) -> Efficiency:
    """The efficiency that leaves the least squares of deviations over `rows`, all of one GPU and
    one number format."""
    coefficients, seconds = [], []
    for row in rows:
        shape = measured_model(row)
        tokens = [Tokens.decode(row.batch, row.traffic.context)]
        prefill = list(prefill_steps(row.batch, row.input_tokens, row.step_token_budget))
        for steps, is_prefill, taken in (
            (tokens, False, row.step_ms / 1e3),
            (prefill, True, row.batch * row.input_tokens / row.prefill_tokens_per_s),
        ):
            ideals = [ideal_seconds(step_work(shape, row.layout, step), gpu) for step in steps]
            line = np.zeros(len(UNKNOWNS))
            line[0] = sum(ideal.reading for ideal in ideals)
            line[2 if is_prefill else 1] = sum(ideal.computing for ideal in ideals)
            line[3] = len(steps) * row.layers
            line[4] = len(steps) * row.layers * is_prefill
            line[5] = len(steps)
            coefficients.append(line)
            seconds.append(taken - sum(ideal.exchanging for ideal in ideals))
    found = bounded_least_squares(np.array(coefficients), np.array(seconds))
    share, decode_share, prefill_share = (round(1 / float(x), 3) for x in found[:SHARES])
    layer_us, prefill_extra_us, step_us = (float(x) * 1e6 for x in found[SHARES:])
    return Efficiency(
        gpu=gpu.name,
        quantization=rows[0].quantization,
        bandwidth_share=share,
        decode_matrix_share=decode_share,
        prefill_matrix_share=prefill_share,
        decode_layer_us=round(layer_us, 1),
        prefill_layer_us=round(layer_us + prefill_extra_us, 1),
        step_us=round(step_us, 1),
        rows=len(rows),
        layers=tuple(sorted({row.layers for row in rows})),
        source="; ".join(sorted({row.source for row in rows})),
    )


def bounded_least_squares(coefficients: np.ndarray, seconds: np.ndarray) -> np.ndarray:
    """The x of least relative error with `coefficients @ x = seconds` and x >= LEAST: the best of
    all ways to hold some at their bound and solve for the others."""
    scaled = coefficients / seconds[:, None]
    wanted = 1.0 - scaled @ LEAST
    best, best_error = LEAST, float(wanted @ wanted)
    for free in itertools.product((False, True), repeat=len(UNKNOWNS)):
        columns = np.flatnonzero(free)
        if not len(columns) or np.linalg.matrix_rank(scaled[:, columns]) < len(columns):
            continue
        above = np.zeros(len(UNKNOWNS))
        above[columns] = np.linalg.lstsq(scaled[:, columns], wanted, rcond=None)[0]
        error = float(((scaled @ above - wanted) ** 2).sum())
        if above.min() >= 0 and error < best_error - 1e-12:
            best, best_error = LEAST + above, error
    return best


def compare(row: Measurement, efficiency: Efficiency) -> Comparison:
    model, gpu = measured_model(row), find_gpu(row.gpu)
    return Comparison(row, predict(model, row.layout, gpu, efficiency, row.traffic, row.batch))


def write(path: Path, entries: Iterable[Any]) -> None:
    """One entry a line, so that a difference shows what changed."""
    lines = ",\n".join(" " + json.dumps(asdict(entry)) for entry in entries)
    path.write_text(f"[\n{lines}\n]\n")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--add", type=Path, nargs="*", default=[], metavar="RESULT")
    arguments = parser.parse_args()
    old = [Measurement(**row) for row in json.loads(MEASURED.read_text())]
    rows = merged(old, itertools.chain.from_iterable(map(rows_of, arguments.add)))
    write(MEASURED, rows)
    efficiencies = []
    for (gpu, quantization), group in itertools.groupby(
        sorted(rows, key=lambda row: (row.gpu, row.quantization)),
        key=lambda row: (row.gpu, row.quantization),
    ):
        own = list(group)
        efficiencies.append(fit(find_gpu(gpu), own))
        print(f"{gpu}, quantization {quantization}: {efficiencies[-1]}")
        for row in own:
            found = compare(row, efficiencies[-1])
            print(
                f"  {row.layers} layers, {row.layout}, batch {row.batch:4d}:"
                f" step {row.step_ms:7.2f} ms ({found.step_deviation:+.0%}),"
                f" prefill {row.prefill_tokens_per_s:9,.0f} tok/s ({found.prefill_deviation:+.0%})"
            )
    write(EFFICIENCIES, efficiencies)


if __name__ == "__main__":
    main()
