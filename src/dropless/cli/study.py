"""`dropless study`: measures the parts of docs/study, and makes its pictures and page."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated, Literal

import typer

from dropless.errors import SettingsError

PARTS = ("serving", "capacity", "parallel", "draw")
DEFAULT_OUT = Path("docs/study")
_RANKS = {"slice": 8, "whole": 2}


def study(
    parts: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[serving|capacity|parallel|draw]...",
            help="What to do; nothing named: all that this machine can.",
        ),
    ] = None,
    on: Annotated[
        Literal["slice", "whole"],
        typer.Option(
            help="serving: one rank's part on one GPU, or all on as many GPUs as ranks.",
        ),
    ] = "slice",
    ranks: Annotated[
        int | None,
        typer.Option(
            min=1,
            metavar="N",
            help="serving: that share the model.",
            show_default="8 of a slice, 2 whole",
        ),
    ] = None,
    models: Annotated[
        str, typer.Option(metavar="NAME,...", help="serving: those to compare.")
    ] = "dbrx,dense-132b,llama2-70b",
    users: Annotated[
        str | None,
        typer.Option(
            metavar="N,...",
            help="serving: at once.",
            show_default="1,2,4,8,16,32,64,128,200",
        ),
    ] = None,
    seconds: Annotated[
        float, typer.Option(metavar="F", help="Begin no measurement after that, in each part.")
    ] = 600.0,
    out: Annotated[
        Path, typer.Option(metavar="FOLDER", help="Where page, pictures and data/ are.")
    ] = DEFAULT_OUT,
    all_reduce: Annotated[
        Path,
        typer.Option(
            metavar="FILE",
            help="draw: what sums between GPUs cost, as benchmarks/all_reduce.py found.",
        ),
    ] = Path("benchmarks/results/all_reduce.json"),
    tiny: Annotated[
        bool, typer.Option("--tiny", help="Small shapes on the CPU, to try it out.")
    ] = False,
) -> None:
    """Measure what a mixture of experts gains, and draw it.

    serving: DBRX against dense models, under 1 to 200 users; one GPU, or with --on whole GPUs with
    270 GB together. capacity: dropless against fixed capacity; one GPU. parallel: tensor against
    expert parallel; two GPUs. draw: page and pictures, without a GPU.

    Each measurement has a file of its own in FOLDER/data, written with every point: parts can be
    measured on different days and machines, and one that was cut off goes on where it ended.

    Examples:

        dropless study serving capacity
        dropless study serving --on whole --models dbrx --seconds 120
        dropless study draw
    """
    from dropless.bench.study import capacity, page, parallel, serving
    from dropless.bench.study.models import MODELS
    from dropless.bench.study.progress import say
    from dropless.bench.study.settings import FULL, TINY, Options

    wanted = [_one_of("a part", name, PARTS) for name in parts or PARTS]
    if tiny and out == DEFAULT_OUT:
        raise SettingsError("figures of tiny shapes would mix with real ones; give --out FOLDER")
    scale = TINY if tiny else FULL
    names = tuple(_one_of("--models", name, MODELS) for name in models.split(","))
    counts = _numbers(users) if users is not None else scale.users
    measure = {part.PART: part.run for part in (serving, capacity, parallel)}
    for part in wanted:
        say(part)
        if part == "draw":
            for path in page.draw(out, all_reduce):
                say(f"wrote {path}")
            continue
        options = Options(
            scale=scale,
            on=on,
            ranks=ranks or _RANKS[on],
            models=names,
            users=counts,
            data=out / page.DATA,
            deadline=time.monotonic() + seconds,
        )
        try:
            measure[part](options)
        except SettingsError as error:
            if parts:
                raise
            say(f"{part} is left out: {error}")


def _one_of(option: str, name: str, possible: tuple[str, ...]) -> str:
    if name not in possible:
        raise SettingsError(f"{option} is {name!r}; it must be {' or '.join(possible)}")
    return name


def _numbers(text: str) -> tuple[int, ...]:
    words = text.split(",")
    if not all(word.isascii() and word.isdigit() and int(word) for word in words):
        raise SettingsError(f"--users is {text!r}; it must be numbers such as 1,10,100")
    return tuple(sorted({int(word) for word in words}))
