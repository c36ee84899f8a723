"""What users will see: time to first token, time per token and throughput, batch by batch."""

from __future__ import annotations

from dataclasses import dataclass

from dropless.bench.gpus import Efficiency, Gpu
from dropless.bench.roofline import (
    Layout,
    Shape,
    Tokens,
    decode_seconds,
    limit_seconds,
    prefill_seconds,
    prefill_steps,
    step_work,
)


@dataclass(frozen=True, slots=True)
class Traffic:
    """Requests that are all alike."""

    input_tokens: int
    output_tokens: int
    step_token_budget: int

    @property
    def context(self) -> float:
        """Of a sequence in the middle of its answer, tokens."""
        return self.input_tokens + self.output_tokens / 2


@dataclass(frozen=True, slots=True)
class Prediction:
    """Of `batch` requests that begin and run together."""

    batch: int
    limit_ms: float  # of a decode step
    tpot_ms: float  # time per output token: a decode step
    ttft_ms: float  # until the last of the prompts is computed
    prefill_tokens_per_s: float

    input_tokens: int
    output_tokens: int

    @property
    def user_tokens_per_s(self) -> float:
        """While the answers are written."""
        return 1e3 / self.tpot_ms

    @property
    def decode_tokens_per_s(self) -> float:
        """Of all users, while the answers are written."""
        return self.batch * self.user_tokens_per_s

    @property
    def total_tokens_per_s(self) -> float:
        """Output tokens of all users, the time of their prompts included."""
        whole_ms = self.ttft_ms + (self.output_tokens - 1) * self.tpot_ms
        return 1e3 * self.batch * self.output_tokens / whole_ms


def predict(
    shape: Shape,
    layout: Layout,
    gpu: Gpu,
    efficiency: Efficiency,
    traffic: Traffic,
    batch: int,
) -> Prediction:
    """Of `batch` users. `efficiency` is that of this GPU and this precision, or the nearest."""
    decode = step_work(shape, layout, Tokens.decode(batch, traffic.context))
    steps = prefill_steps(batch, traffic.input_tokens, traffic.step_token_budget)
    prefill_s = sum(
        prefill_seconds(step_work(shape, layout, tokens), gpu, efficiency, shape.num_layers)
        for tokens in steps
    )
    return Prediction(
        batch=batch,
        limit_ms=1e3 * limit_seconds(decode, gpu),
        tpot_ms=1e3 * decode_seconds(decode, gpu, efficiency, shape.num_layers),
        ttft_ms=1e3 * prefill_s,
        prefill_tokens_per_s=batch * traffic.input_tokens / prefill_s,
        input_tokens=traffic.input_tokens,
        output_tokens=traffic.output_tokens,
    )
