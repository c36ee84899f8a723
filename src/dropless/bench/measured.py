"""What was measured of Dropless on GPUs, from measured.json: one row a case."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from dropless.bench.gpus import Precision
from dropless.bench.predictions import Prediction, Traffic
from dropless.bench.roofline import Layout

MEASURED = Path(__file__).with_name("measured.json")


@dataclass(frozen=True, slots=True, kw_only=True)
class Measurement:
    """A model of generated weights under requests that are all alike: prompts of `input_tokens`,
    computed together, then decode steps."""

    model: str  # a published shape (`dropless.checkpoints.catalogue.shapes`)
    layers: int  # of the model's, from the first
    gpu: str
    count: int  # ranks that the model is split over
    slice_only: bool  # one rank's part on one GPU, without its collectives
    expert_parallel: bool
    quantization: Precision
    batch: int
    input_tokens: int
    output_tokens: int
    step_token_budget: int
    step_ms: float
    prefill_tokens_per_s: float
    source: str

    @property
    def layout(self) -> Layout:
        return Layout(
            self.count, self.quantization, self.expert_parallel, has_collectives=not self.slice_only
        )

    @property
    def traffic(self) -> Traffic:
        return Traffic(self.input_tokens, self.output_tokens, self.step_token_budget)


@dataclass(frozen=True, slots=True)
class Comparison:
    """A measurement beside what is predicted of the same case. Deviations are of the prediction
    from the measurement, as a share of it."""

    measured: Measurement
    predicted: Prediction

    @property
    def step_deviation(self) -> float:
        return self.predicted.tpot_ms / self.measured.step_ms - 1.0

    @property
    def prefill_deviation(self) -> float:
        return self.predicted.prefill_tokens_per_s / self.measured.prefill_tokens_per_s - 1.0


@cache
def measurements() -> tuple[Measurement, ...]:
    """All rows."""
    rows = json.loads(MEASURED.read_text(encoding="utf-8"))
    return tuple(Measurement(**row) for row in rows)
