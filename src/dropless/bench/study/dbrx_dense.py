"""Part dbrx-dense: DBRX beside dense models under 1 to 200 users who come one after another."""

from __future__ import annotations

import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from dropless.bench.study.closed_loop import ClosedLoop, Window
from dropless.bench.study.models import TITLES, config_of, engine_of
from dropless.bench.study.options import Options
from dropless.bench.study.records import append, machine
from dropless.bench.study.sums import SumCost
from dropless.bench.study.utilisation import gpu_named, mbu, mfu
from dropless.engine.engine import Engine
from dropless.models.config import ModelConfig
from dropless.models.registry import parse_config

PART = "dbrx-dense"


class _Clock:
    """The wall's, and ahead of it by what sums between ranks would have taken."""

    def __init__(self, sums: SumCost | None, config: ModelConfig) -> None:
        self.added_s = 0.0
        self._sums = sums
        self._config = config

    def __call__(self) -> float:
        return time.perf_counter() + self.added_s

    def on_step(self, num_tokens: int) -> None:
        """A step of one rank of several was computed."""
        if self._sums is not None:
            hidden, layers = self._config.hidden_size, self._config.num_layers
            self.added_s += self._sums.step_seconds(num_tokens, hidden, layers)


def run(options: Options, folder: Path) -> None:
    """Measures each model; its points are kept as soon as they are known.

    Raises:
        DroplessError: a model does not fit, or the cost of sums is not known.
    """
    sums = SumCost.read(options.all_reduce, options.ranks) if options.on == "slice" else None
    for model in options.models:
        if time.monotonic() > options.deadline:
            options.say(f"{TITLES[model]}: no time left; run it again with --models {model}")
            continue
        _measure(model, options, sums, folder)


def _measure(model: str, options: Options, sums: SumCost | None, folder: Path) -> None:
    config = parse_config(config_of(model, tiny=options.tiny))
    clock = _Clock(sums, config)
    options.say(f"{TITLES[model]}: loading")
    with engine_of(model, options, clock.on_step) as (engine, load_seconds):
        options.say(f"{TITLES[model]}: loaded in {load_seconds:.1f} s")
        points = _points(engine, config, clock, options)
        del engine
    if not points:
        options.say(f"{TITLES[model]}: the time was too short for any point; give --minutes more")
        return
    case = f"{options.on}-{model}"
    record = {
        "machine": machine(options.device, 1 if options.on == "slice" else options.ranks),
        "on": options.on,
        "ranks": options.ranks,
        "model": model,
        "tiny": options.tiny,
        "input_tokens": options.input_tokens,
        "output_tokens": options.output_tokens,
        "user_every_s": options.user_every_s,
        "window_s": options.window_s,
        "load_seconds": load_seconds,
        "sums": None if sums is None else asdict(sums),
        "points": points,
    }
    options.say(f"{TITLES[model]}: kept in {append(folder, PART, case, record)}")


def _points(
    engine: Engine, config: ModelConfig, clock: _Clock, options: Options
) -> list[dict[str, Any]]:
    """One for each number of users that there is time for."""
    slices = options.ranks if options.on == "slice" else 1
    loop = ClosedLoop(
        engine,
        clock,
        input_tokens=options.input_tokens,
        output_tokens=options.output_tokens,
        vocab_size=config.vocab_size // slices,
    )

    def expired() -> bool:
        return time.monotonic() > options.deadline

    points: list[dict[str, Any]] = []
    for users in options.users:
        if not loop.grow(users, options.user_every_s, expired):
            break
        sums_before = clock.added_s
        window = loop.observe(options.window_s, expired)
        if window is None:
            break
        sums_s = clock.added_s - sums_before
        points.append(_point(window, config, options, sums_s))
        options.say(_line(points[-1]))
    left = [str(users) for users in options.users[len(points) :]]
    if left:
        options.say(f"no time left for {', '.join(left)} users")
    return points


def _point(window: Window, config: ModelConfig, options: Options, sums_s: float) -> dict[str, Any]:
    gpu = None if options.tiny else gpu_named(torch.cuda.get_device_name())
    context = options.input_tokens + options.output_tokens / 2
    return {
        **asdict(window),
        "sums_ms_a_step": 1e3 * sums_s / window.steps,
        "sums_share": sums_s / window.seconds,
        "mbu": None if gpu is None else mbu(window, config, options.ranks, context, gpu),
        "mfu": None
        if gpu is None
        else mfu(window, config, options.ranks, options.input_tokens, context, gpu),
    }


def _line(point: dict[str, Any]) -> str:
    latencies = [
        f"{name.upper()} {point[name]['mean']:.1f} ms" for name in ("tpot", "ttft") if point[name]
    ]
    shares = [f"{name.upper()} {point[name]:.0%}" for name in ("mbu", "mfu") if point[name]]
    rate = f"  {point['users']:4d} users: {point['output_tokens_per_s']:8.1f} tok/s"
    return ", ".join([rate, *latencies, *shares])
