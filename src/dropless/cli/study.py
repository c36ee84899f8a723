"""`dropless study`: measures the parts of docs/study, and makes its pictures and page."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from dropless.errors import SettingsError

MEASURING = "Measuring"
DEFAULT_OUT = Path("docs/study")
_RANKS = {"slice": 8, "whole": 2}


def study(
    part: Annotated[
        list[str] | None,
        typer.Option(
            "--part", metavar="NAME", help="Measure it; may be repeated.", show_default=False
        ),
    ] = None,
    list_parts: Annotated[
        bool, typer.Option("--list", help="Show the parts and what they need.")
    ] = False,
    draw: Annotated[
        bool, typer.Option("--draw", help="Only draw what was measured before.")
    ] = False,
    out: Annotated[
        Path, typer.Option(metavar="FOLDER", help="Where page, pictures and data/ are.")
    ] = DEFAULT_OUT,
    minutes: Annotated[
        float, typer.Option(metavar="F", help="Begin no measurement after that.")
    ] = 8.0,
    on: Annotated[
        Literal["slice", "whole"],
        typer.Option(
            help="slice: one rank's part on one GPU; whole: on as many GPUs as ranks.",
            rich_help_panel=MEASURING,
        ),
    ] = "slice",
    ranks: Annotated[
        int | None,
        typer.Option(
            min=1,
            metavar="N",
            help="That share the model.",
            show_default="8 of a slice, 2 whole",
            rich_help_panel=MEASURING,
        ),
    ] = None,
    models: Annotated[
        str, typer.Option(metavar="NAME,...", help="To compare.", rich_help_panel=MEASURING)
    ] = "dbrx,dense-132b,llama2-70b",
    users: Annotated[
        str, typer.Option(metavar="N,...", help="At once.", rich_help_panel=MEASURING)
    ] = "1,2,5,10,20,50,100,200",
    input_len: Annotated[
        int, typer.Option(min=1, metavar="N", help="Tokens of a prompt.", rich_help_panel=MEASURING)
    ] = 2000,
    output_len: Annotated[
        int,
        typer.Option(min=2, metavar="N", help="Tokens of an answer.", rich_help_panel=MEASURING),
    ] = 256,
    user_every: Annotated[
        float,
        typer.Option(
            min=0.0, metavar="S", help="Seconds between new users.", rich_help_panel=MEASURING
        ),
    ] = 1.0,
    window: Annotated[
        float,
        typer.Option(
            min=0.01, metavar="S", help="Least seconds of a point.", rich_help_panel=MEASURING
        ),
    ] = 8.0,
    all_reduce: Annotated[
        Path,
        typer.Option(
            metavar="FILE", help="What sums between GPUs cost.", rich_help_panel=MEASURING
        ),
    ] = Path("benchmarks/results/all_reduce.json"),
    memory_fraction: Annotated[
        float,
        typer.Option(metavar="F", help="Of a GPU, for whole models.", rich_help_panel=MEASURING),
    ] = 0.96,
    tiny: Annotated[
        bool,
        typer.Option(
            "--tiny", help="Small shapes on the CPU, to try it out.", rich_help_panel=MEASURING
        ),
    ] = False,
) -> None:
    """Measure what a mixture of experts gains, and draw it.

    Each measurement is kept in a file of its own under FOLDER/data; page and pictures are made from
    all of them, so that parts can be measured on different days and machines.

    Examples:

        dropless study --list
        dropless study --part dbrx-dense --on slice --models dbrx
        dropless study --part capacity --part parallel --minutes 5
        dropless study --draw
    """
    from dropless.bench.study.models import MODELS
    from dropless.bench.study.options import Options
    from dropless.bench.study.page import DATA
    from dropless.bench.study.page import draw as draw_study
    from dropless.bench.study.parts import PARTS

    if list_parts:
        for each in PARTS.values():
            typer.echo(f"{each.name:12} {each.title} (needs {each.needs})")
        return
    if draw == bool(part):
        raise SettingsError("give either --part NAME to measure, or --draw; --list shows the parts")
    if tiny and out == DEFAULT_OUT:
        raise SettingsError("figures of tiny shapes would mix with real ones; give --out FOLDER")
    wanted = [_one_of("--part", name, tuple(PARTS)) for name in part or ()]
    options = Options(
        on=on,
        ranks=ranks or _RANKS[on],
        tiny=tiny,
        models=tuple(_one_of("--models", name, MODELS) for name in models.split(",")),
        users=_numbers(users),
        input_tokens=input_len,
        output_tokens=output_len,
        user_every_s=user_every,
        window_s=window,
        all_reduce=all_reduce,
        memory_fraction=memory_fraction,
        minutes=minutes,
        say=_say,
    )
    for name in wanted:
        _say(PARTS[name].title)
        PARTS[name].run(options, out / DATA)
    for path in draw_study(out):
        _say(f"wrote {path}")


def _say(line: str) -> None:
    print(line, flush=True)  # a run that is cut off has told how far it came


def _one_of(option: str, name: str, possible: tuple[str, ...]) -> str:
    if name not in possible:
        raise SettingsError(f"{option} is {name!r}; it must be {' or '.join(possible)}")
    return name


def _numbers(text: str) -> tuple[int, ...]:
    words = text.split(",")
    if not all(word.isascii() and word.isdigit() and int(word) for word in words):
        raise SettingsError(f"--users is {text!r}; it must be numbers such as 1,10,100")
    return tuple(sorted({int(word) for word in words}))
