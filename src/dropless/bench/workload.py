"""What a benchmark sends: how many requests, how long, of what, and when."""

from __future__ import annotations

import csv
import random
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Literal

from dropless.errors import SettingsError

Arrival = Literal["closed", "fixed", "poisson", "trace"]
PromptKind = Literal["words", "ids"]

# Each is one token of the byte-pair vocabularies in use, with its leading space.
WORD_TEXT = (
    "the of and to in is that it was for on are as with his they at be this from have or by one "
    "had not but what all were when we there can an your which their said if do will each about "
    "how up out them then she many some so these would other into has more her two like him see "
    "time could no make than first been its who now people my made over did down only way find "
    "use may water long little very after words called just where most know get through back "
    "much before go good new write our used me man too any day same right look think also around "
    "another came come work three word must because does part even place well such here take why "
    "things help put years different away again off went old number great tell men say small"
)
WORDS = WORD_TEXT.split()
FIRST_ID, LAST_ID = 1000, 29_999  # ordinary tokens in every vocabulary of 32,000 or more


@dataclass(frozen=True, slots=True)
class PlannedRequest:
    """One request to send `due_s` seconds after the start (0 throughout a closed loop).

    `prompt` is text or token ids; `input_tokens` is the length aimed at, exact for ids.
    """

    index: int
    due_s: float
    prompt: str | list[int]
    input_tokens: int
    output_tokens: int


@dataclass(frozen=True, slots=True)
class Workload:
    """Requests in the order of `due_s`. At most `concurrency` are in flight; None: no limit.

    A closed loop is a workload whose requests are all due at once under a `concurrency`: each
    user sends the next as soon as one is answered, and its clock starts when it is sent.
    """

    arrival: Arrival
    requests: list[PlannedRequest]
    concurrency: int | None


@dataclass(frozen=True, slots=True)
class Lengths:
    """A distribution of token counts: `fixed` (a), `uniform` (a to b, both included) or
    `lognormal` (median a, sigma b of the logarithm)."""

    kind: Literal["fixed", "uniform", "lognormal"]
    a: float
    b: float = 0.0

    @classmethod
    def parse(cls, text: str) -> Lengths:
        """`400`, `100:800` (uniform) or `lognormal:400:0.8` (median and sigma).

        Raises:
            SettingsError: the text is none of these.
        """
        parts = text.split(":")
        try:
            if len(parts) == 1:
                lengths = cls("fixed", int(parts[0]))
            elif len(parts) == 2:
                lengths = cls("uniform", int(parts[0]), int(parts[1]))
            elif len(parts) == 3 and parts[0] == "lognormal":
                lengths = cls("lognormal", int(parts[1]), float(parts[2]))
            else:
                raise ValueError
            if lengths.a < 1 or (lengths.kind == "uniform" and lengths.b < lengths.a):
                raise ValueError
            if not 0 <= lengths.b < 10**7 or (lengths.kind == "lognormal" and lengths.b > 5):
                raise ValueError
        except ValueError:
            raise SettingsError(
                f"{text!r} is no length; write 400, or 100:800 for uniform lengths, or "
                "lognormal:400:0.8 for a median and a sigma"
            ) from None
        return lengths

    def draw(self, rng: random.Random, count: int) -> list[int]:
        """`count` lengths of at least 1. A lognormal one is cut at 16 times its median."""
        if self.kind == "fixed":
            return [int(self.a)] * count
        if self.kind == "uniform":
            return [rng.randint(int(self.a), int(self.b)) for _ in range(count)]
        drawn = (self.a * rng.lognormvariate(0.0, self.b) for _ in range(count))
        return [max(1, round(min(length, 16 * self.a))) for length in drawn]


def fixed_arrivals(count: int, rate: float) -> list[float]:
    """Due times in seconds, `rate` a second, evenly spaced, the first at 0."""
    return [i / rate for i in range(count)]


def poisson_arrivals(count: int, rate: float, rng: random.Random) -> list[float]:
    """Due times in seconds of a Poisson process: gaps are exponential with mean 1 / `rate`."""
    due, times = 0.0, []
    for _ in range(count):
        times.append(due)
        due += rng.expovariate(rate)
    return times


def synthetic_prompt(kind: PromptKind, length: int, rng: random.Random) -> str | list[int]:
    """A prompt of `length` random words (about as many tokens) or exactly as many token ids.

    Random, so that no two prompts share a prefix and no prefix cache can help.
    """
    if kind == "ids":
        return [rng.randint(FIRST_ID, LAST_ID) for _ in range(length)]
    return " ".join(rng.choices(WORDS, k=length))


def make_workload(
    *,
    requests: int,
    arrival: Arrival,
    rate: float | None = None,
    concurrency: int | None = None,
    input_lengths: Lengths,
    output_lengths: Lengths,
    prompts: PromptKind = "words",
    seed: int = 0,
) -> Workload:
    """A synthetic workload; the same arguments give the same requests.

    Raises:
        SettingsError: an open loop (fixed, poisson) without a rate, or numbers out of range.
    """
    if requests < 1 or (concurrency is not None and concurrency < 1):
        raise SettingsError("requests and concurrency must be at least 1")
    if arrival in ("fixed", "poisson") and (rate is None or rate <= 0):
        raise SettingsError(f"{arrival} arrivals need a rate above 0 (requests per second)")
    rng = random.Random(seed)
    if arrival == "fixed" and rate:
        due = fixed_arrivals(requests, rate)
    elif arrival == "poisson" and rate:
        due = poisson_arrivals(requests, rate, rng)
    else:
        due = [0.0] * requests
        concurrency = concurrency or 1
    inputs = input_lengths.draw(rng, requests)
    outputs = output_lengths.draw(rng, requests)
    return Workload(arrival, _planned(due, inputs, outputs, prompts, rng), concurrency)


def trace_workload(
    path: Path,
    *,
    requests: int | None = None,
    scale: float = 1.0,
    clip: int | None = None,
    concurrency: int | None = None,
    prompts: PromptKind = "words",
    seed: int = 0,
) -> Workload:
    """The first `requests` rows of a trace in the Azure LLM inference format, `scale` times as
    fast: a CSV file with the columns TIMESTAMP, ContextTokens and GeneratedTokens.

    `clip` cuts context and output so that together they are at most that many tokens; the
    output keeps at least one and at most half of it.

    Raises:
        SettingsError: the file cannot be read as such a trace, or an argument is out of range.
    """
    if scale <= 0 or (clip is not None and clip < 2) or (requests is not None and requests < 1):
        raise SettingsError("a trace needs scale > 0, clip >= 2 and at least 1 request")
    due, inputs, outputs = [], [], []
    try:
        with path.open(newline="") as file:
            for number, row in enumerate(csv.DictReader(file)):
                if requests is not None and number >= requests:
                    break
                due.append(datetime.fromisoformat(row["TIMESTAMP"]).timestamp())
                inputs.append(max(1, int(row["ContextTokens"])))
                outputs.append(max(1, int(row["GeneratedTokens"])))
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise SettingsError(
            f"{path} is no trace: {error!r} at row {len(outputs) + 1}; it must be a CSV file with "
            "the columns TIMESTAMP,ContextTokens,GeneratedTokens"
        ) from error
    if not due:
        raise SettingsError(f"{path} holds no requests")
    if clip is not None:
        outputs = [min(length, max(1, clip // 2)) for length in outputs]
        inputs = [min(i, clip - o) for i, o in zip(inputs, outputs, strict=True)]
    start = min(due)
    order = sorted(range(len(due)), key=lambda i: due[i])
    planned = _planned(
        [(due[i] - start) / scale for i in order],
        [inputs[i] for i in order],
        [outputs[i] for i in order],
        prompts,
        random.Random(seed),
    )
    return Workload("trace", planned, concurrency)


def _planned(
    due: Sequence[float],
    inputs: Sequence[int],
    outputs: Sequence[int],
    prompts: PromptKind,
    rng: random.Random,
) -> list[PlannedRequest]:
    return [
        PlannedRequest(i, at, synthetic_prompt(prompts, length, rng), length, output)
        for i, (at, length, output) in enumerate(zip(due, inputs, outputs, strict=True))
    ]
