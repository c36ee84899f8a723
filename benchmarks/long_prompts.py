"""Long prompts beside short chats: what they cost each other, with and without pacing.

    python benchmarks/long_prompts.py --slice-of 8                 one rank's part of DBRX's eight
    python benchmarks/long_prompts.py --quantization fp8           the whole on one H200
    python benchmarks/long_prompts.py --ranks 2                    the whole on two
    python benchmarks/long_prompts.py --tiny --long-tokens 6000    a tiny DBRX, on a CPU as well

Generated weights, greedy, prefix cache off, through the offline engine. Chats are closed-loop
users: a prompt of 200 random tokens, 64 to 192 tokens out, again as soon as it is answered. First
they are alone for a while; then long prompts come, each when the one before has its first token
(`--long-users`: so many at once). For each number of chats and each of `--slowdowns` (the setting
long_prompt_slowdown; 100: no pacing) it prints the chats' times per output token alone and beside
long prompts, of answers that lie wholly in one of both times, and when long prompts and chats had
their first token. A long prompt without any chats stands first. TPOT = (last token - first) /
(tokens - 1). Acceptance: mean TPOT beside / alone is at most 1.2 with the default slowdown. Writes
results/long_prompts.json beside this script.
"""

from __future__ import annotations

import argparse
import itertools
import json
import random
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch

from dropless.bench.slice_engine import slice_engine
from dropless.checkpoints.resolve import resolve
from dropless.checkpoints.writer import tiny_dbrx_config
from dropless.engine import long_prompts
from dropless.engine.build import build_engine
from dropless.engine.config import EngineConfig
from dropless.engine.engine import Engine
from dropless.engine.long_prompts import LongPrompts
from dropless.engine.messages import EngineRequest
from dropless.engine.sampling_params import SamplingParams

RESULTS = Path(__file__).parent / "results"
CHAT_PROMPT, CHAT_OUTPUT, LONG_OUTPUT = 200, 128, 4
SLICE_BUDGET = 8192  # for a slice nothing is planned
VOCABULARY = 500  # of prompts; every part of every model has as many


@contextmanager
def made_engine(
    arguments: argparse.Namespace, folder: Path, rows: int, slowdown: float
) -> Iterator[Engine]:
    max_len = arguments.long_tokens + LONG_OUTPUT
    if arguments.slice_of > 1:
        tokens = rows * 2 * (CHAT_PROMPT + CHAT_OUTPUT) + (arguments.long_users + 1) * max_len
        with slice_engine(
            folder,
            arguments.slice_of,
            quantization=arguments.quantization,
            max_model_len=max_len,
            max_running_requests=rows,
            cache_tokens=tokens,
            step_token_budget=arguments.budget or SLICE_BUDGET,
            long_prompts=LongPrompts(slowdown=slowdown),
        ) as (engine, _):
            yield engine
        return
    config = EngineConfig(
        model_path=folder,
        weights="random",
        device=arguments.device,
        quantization=arguments.quantization,
        tensor_parallel_size=arguments.ranks,
        max_running_requests=rows,
        max_model_len=max_len,
        step_token_budget=arguments.budget,
        long_prompt_slowdown=slowdown,
        prefix_caching=False,
    )
    engine, _ = build_engine(config, lambda *_: None)
    try:
        yield engine
    finally:
        engine.close()


@dataclass(slots=True)
class Answer:
    """Times of one request's tokens, as they left the engine; seconds."""

    is_long: bool
    asked_at: float
    token_times: list[float] = field(default_factory=list)

    @property
    def ttft(self) -> float:
        return self.token_times[0] - self.asked_at

    @property
    def tpot(self) -> float:
        return (self.token_times[-1] - self.token_times[0]) / (len(self.token_times) - 1)


class Traffic:
    """Closed-loop users of an engine."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._numbers = itertools.count()
        self._live: dict[str, Answer] = {}
        self.finished: list[Answer] = []
        self.chats = 0  # users, as many of which ask again when they are answered

    def ask(self, num_prompt: int, output: int, *, is_long: bool = False) -> Answer:
        name = str(next(self._numbers))
        prompt = [random.randrange(VOCABULARY) for _ in range(num_prompt)]
        params = SamplingParams(temperature=0.0, max_tokens=output, ignore_eos=True)
        answer = self._live[name] = Answer(is_long, time.perf_counter())
        self._engine.add_request(EngineRequest(name, prompt, params))
        return answer

    def step(self) -> None:
        chatting = sum(not answer.is_long for answer in self._live.values())
        for _ in range(self.chats - chatting):
            self.ask(CHAT_PROMPT, random.randint(CHAT_OUTPUT // 2, CHAT_OUTPUT * 3 // 2))
        deltas = self._engine.step()
        now = time.perf_counter()
        for delta in deltas:
            assert delta.error is None, delta.error
            self._live[delta.request_id].token_times += [now] * len(delta.new_token_ids)
            if delta.finish_reason is not None:
                self.finished.append(self._live.pop(delta.request_id))

    def drain(self) -> None:
        self.chats = 0
        while self._engine.has_work():
            self.step()

    def long_prompts(self, count: int, at_once: int, num_tokens: int) -> list[Answer]:
        """Until each has its first token."""
        asked: list[Answer] = []
        while True:
            waiting = sum(not answer.token_times for answer in asked)
            for _ in range(min(at_once - waiting, count - len(asked))):
                asked.append(self.ask(num_tokens, LONG_OUTPUT, is_long=True))
                waiting += 1
            if not waiting:
                return asked
            self.step()


def chats_between(traffic: Traffic, begin: float, end: float) -> list[Answer]:
    return [
        answer
        for answer in traffic.finished
        if not answer.is_long and begin <= answer.asked_at and answer.token_times[-1] <= end
    ]


def spread(seconds: Sequence[float]) -> dict[str, float]:
    """In ms."""
    values = np.array(seconds) * 1e3
    p50, p99 = np.percentile(values, [50, 99])
    return {"mean": float(values.mean()), "p50": float(p50), "p99": float(p99)}


def gaps(answers: Sequence[Answer]) -> list[float]:
    return [gap for answer in answers for gap in np.diff(answer.token_times).tolist()]


def measure(
    engine: Engine, arguments: argparse.Namespace, chats: int, slowdown: float
) -> dict[str, Any]:
    traffic = Traffic(engine)
    traffic.chats = chats
    while len(traffic.finished) < 2 * chats:  # all is compiled, and users are out of step
        traffic.step()
    begin = time.perf_counter()
    before = len(traffic.finished)
    while len(traffic.finished) < before + arguments.answers * chats:
        traffic.step()
    middle = time.perf_counter()
    longs = traffic.long_prompts(arguments.longs, arguments.long_users, arguments.long_tokens)
    end = time.perf_counter()
    traffic.drain()
    alone, beside = chats_between(traffic, begin, middle), chats_between(traffic, middle, end)
    row: dict[str, Any] = {"chats": chats, "slowdown": slowdown}
    row["long_ttft_s"] = [long.ttft for long in longs]
    for name, answers in (("alone", alone), ("beside", beside)):
        row[name] = {"answers": len(answers)}
        if answers:
            row[name] |= {
                "tpot_ms": spread([answer.tpot for answer in answers]),
                "ttft_ms": spread([answer.ttft for answer in answers]),
                "gap_ms": spread(gaps(answers)),
            }
    if alone and beside:
        row["tpot_ratio"] = {
            name: row["beside"]["tpot_ms"][name] / value
            for name, value in row["alone"]["tpot_ms"].items()
        }
    return row


def describe(row: dict[str, Any]) -> str:
    longs = ", ".join(f"{seconds:.2f}" for seconds in row["long_ttft_s"])
    lines = [
        f"{row['chats']} chats, slowdown {row['slowdown']:g}: long prompts' TTFT {longs} s",
    ]
    for name in ("alone", "beside"):
        part = row[name]
        if part["answers"]:
            figures = "; ".join(
                f"{key.removesuffix('_ms').upper()} mean {part[key]['mean']:.2f},"
                f" p50 {part[key]['p50']:.2f}, p99 {part[key]['p99']:.2f} ms"
                for key in ("tpot_ms", "gap_ms", "ttft_ms")
            )
            lines.append(f"  {name:6s} {part['answers']:4d} answers: {figures}")
        else:
            lines.append(f"  {name:6s} no answer lies wholly in this time")
    if "tpot_ratio" in row:
        ratios = ", ".join(f"{name} {value:.3f}" for name, value in row["tpot_ratio"].items())
        lines.append(f"  TPOT beside / alone: {ratios}")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--layers", type=int, default=40)
    parser.add_argument("--ranks", type=int, default=1, help="GPUs that share the model")
    parser.add_argument("--slice-of", type=int, default=1, help="ranks of which one is computed")
    parser.add_argument("--quantization", default="none", choices=["none", "fp8"])
    parser.add_argument("--device", default="auto", choices=["auto", "cpu", "cuda"])
    parser.add_argument("--tiny", action="store_true", help="a DBRX of two small layers")
    parser.add_argument("--budget", type=int, help="the setting step_token_budget")
    parser.add_argument("--chats", default="8,32")
    parser.add_argument("--slowdowns", default=f"{long_prompts.DEFAULT.slowdown:g},100")
    parser.add_argument("--answers", type=int, default=3, help="of each chat, alone")
    parser.add_argument("--longs", type=int, default=3, help="long prompts in all")
    parser.add_argument("--long-users", type=int, default=1, help="long prompts at once")
    parser.add_argument("--long-tokens", type=int, default=32_000)
    parser.add_argument("--out", type=Path, default=RESULTS / "long_prompts.json")
    arguments = parser.parse_args()
    numbers = [int(number) for number in arguments.chats.split(",")]
    slowdowns = [float(slowdown) for slowdown in arguments.slowdowns.split(",")]
    if arguments.tiny:
        model = tiny_dbrx_config(max_seq_len=arguments.long_tokens + LONG_OUTPUT)
    else:
        model = json.loads((resolve("dbrx", allow_shapes=True) / "config.json").read_text())
        model["n_layers"] = arguments.layers
    rows = max(numbers) + arguments.long_users + 1
    measured: list[dict[str, Any]] = []
    without_chats: list[float] = []
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "config.json").write_text(json.dumps(model))
        for slowdown in slowdowns:
            with made_engine(arguments, Path(folder), rows, slowdown) as engine:
                for _ in range(2):  # the first compiles
                    traffic = Traffic(engine)
                    [alone] = traffic.long_prompts(1, 1, arguments.long_tokens)
                    traffic.drain()
                without_chats.append(alone.ttft)
                print(f"a long prompt without chats: TTFT {alone.ttft:.2f} s", flush=True)
                for chats in numbers:
                    measured.append(measure(engine, arguments, chats, slowdown))
                    print(describe(measured[-1]), flush=True)
    on_gpu = arguments.device != "cpu" and torch.cuda.is_available()
    document = {
        "device": torch.cuda.get_device_name() if on_gpu else "CPU",
        "torch": torch.__version__,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "settings": {name: str(value) for name, value in vars(arguments).items() if name != "out"},
        "long_ttft_without_chats_s": without_chats,
        "rows": measured,
    }
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps(document, indent=1) + "\n")


if __name__ == "__main__":
    main()
