"""Part serving: the steps of DBRX and of dense models, and a closed loop that checks them."""

from __future__ import annotations

import random
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict
from multiprocessing import get_context

from dropless.bench.study.closed_loop import ClosedLoop, OutOfTimeError
from dropless.bench.study.data import Point, Results, machine
from dropless.bench.study.models import TITLES, config_of, engine_of
from dropless.bench.study.progress import say
from dropless.bench.study.settings import Options
from dropless.bench.study.steps import measure_steps
from dropless.engine.engine import Engine
from dropless.models.registry import parse_config

PART = "serving"
CHECK = "closed loop"  # the kind of the point that no step is
CHECK_EVERY_S = 0.25  # between its users


def run(options: Options) -> None:
    """Measures each model in a process of its own, so that its GPUs' memory is free for the next.

    Raises:
        DroplessError: a model does not fit, or its results are of another machine.
    """
    for model in options.models:
        if options.is_late:
            say(f"{TITLES[model]}: no time left")
            continue
        with ProcessPoolExecutor(1, get_context("spawn")) as pool:
            pool.submit(_measure, model, options).result()


def _measure(model: str, options: Options) -> None:
    scale = options.scale
    about = {
        "part": PART,
        "model": model,
        "on": options.on,
        "ranks": options.ranks,
        "input_tokens": scale.input_tokens,
        "output_tokens": scale.output_tokens,
        "step_token_budget": scale.step_token_budget,
        **machine(scale.device, 1 if options.on == "slice" else options.ranks),
    }
    results = Results(options.data / f"{PART}-{options.on}{options.ranks}-{model}.json", about)
    users = sorted({*results.users, *options.users})
    if results.is_complete and users == results.users:
        say(f"{TITLES[model]}: measured before, see {results.path}")
        return
    say(f"{TITLES[model]}: loading")
    began = time.monotonic()
    with engine_of(model, options) as (engine, room, load_seconds):
        say(f"{TITLES[model]}: loaded in {load_seconds:.1f} s; {room}")
        results.note("load_seconds", load_seconds)
        results.note("room", asdict(room))
        results.note("users", users)
        vocab_size = parse_config(config_of(model, tiny=scale.is_tiny)).vocab_size
        if options.on == "slice":
            vocab_size //= options.ranks
        rows = room.max_running_requests
        for point in measure_steps(engine, rows, vocab_size, options):
            if not results.has(kind=point["kind"], decodes=point["decodes"]):
                results.add(point)
            say(_step_line(point))
        if options.is_late or not _check(engine, vocab_size, options, results):
            say(f"{TITLES[model]}: time is up before all is measured")
        else:
            results.complete()
    say(f"{TITLES[model]}: {time.monotonic() - began:.0f} s in all, kept in {results.path}")


def _check(engine: Engine, vocab_size: int, options: Options, results: Results) -> bool:
    """A closed loop that is really run, to be compared with its replay. False if time is up."""
    if results.has(kind=CHECK):
        return True
    scale, numbers = options.scale, random.Random(1)
    loop = ClosedLoop(
        engine,
        prompt=lambda: numbers.choices(range(vocab_size), k=scale.input_tokens),
        output_tokens=scale.output_tokens,
        clock=time.perf_counter,
        is_late=lambda: options.is_late,
    )
    try:
        loop.grow(scale.checked_users, CHECK_EVERY_S)
        window = loop.observe(scale.checked_users)
    except OutOfTimeError:
        return False
    results.add({"kind": CHECK, "every_s": CHECK_EVERY_S, **asdict(window)})
    say(
        f"  closed loop of {window.users}: {window.output_tokens_per_s:.1f} output tok/s,"
        f" TPOT {window.tpot.mean:.1f} ms, TTFT {window.ttft.mean:.1f} ms"
    )
    return True


def _step_line(point: Point) -> str:
    return (
        f"  {point['decodes']:4d} rows, {point['prompt_tokens']:5d} prompt tokens"
        f" ({point['kind']}): {point['ms']:8.2f} ms"
    )
