"""`dropless plan`: what a model needs on which GPUs and how fast it will be there."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, get_args

import typer

from dropless.errors import SettingsError

TRAFFIC = "Traffic"
ENGINE = "Engine settings, as of serve"
GPU = "Another kind of GPU, or better figures of a known one"


def plan(
    model: Annotated[
        str, typer.Argument(help="Folder, GGUF file, hub id, catalogue name, or a shape: dbrx.")
    ],
    gpu: Annotated[str, typer.Option(metavar="NAME", help="Kind of GPU: H100, H200 or another.")],
    count: Annotated[
        str, typer.Option(metavar="N,...", help="GPUs to split the model over.")
    ] = "1",
    quantization: Annotated[
        str | None,
        typer.Option(
            metavar="TYPE,...",
            help="none (bf16) or fp8 weights.",
            show_default="what the GPU can do",
        ),
    ] = None,
    parallel: Annotated[
        str | None,
        typer.Option(
            metavar="KIND,...",
            help="tensor: a part of each expert on each GPU; expert: whole experts.",
            show_default="both, of a mixture",
        ),
    ] = None,
    batch: Annotated[
        str | None,
        typer.Option(
            metavar="N,...",
            help="Users at once.",
            show_default="1,8,32,128,256",
            rich_help_panel=TRAFFIC,
        ),
    ] = None,
    input_len: Annotated[
        int,
        typer.Option(min=1, metavar="N", help="Tokens of a prompt.", rich_help_panel=TRAFFIC),
    ] = 512,
    output_len: Annotated[
        int,
        typer.Option(min=1, metavar="N", help="Tokens of an answer.", rich_help_panel=TRAFFIC),
    ] = 128,
    as_json: Annotated[bool, typer.Option("--json", help="Everything, for programs.")] = False,
    plot: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Draw it into this PNG, SVG or PDF.")
    ] = None,
    max_model_len: Annotated[
        int | None,
        typer.Option(metavar="N", help="Longest prompt plus answer.", rich_help_panel=ENGINE),
    ] = None,
    max_running_requests: Annotated[
        int | None,
        typer.Option(metavar="N", help="Requests computed together.", rich_help_panel=ENGINE),
    ] = None,
    step_token_budget: Annotated[
        int | None, typer.Option(metavar="N", help="Tokens per step.", rich_help_panel=ENGINE)
    ] = None,
    memory_fraction: Annotated[
        float | None,
        typer.Option(metavar="F", help="Share of the memory to use.", rich_help_panel=ENGINE),
    ] = None,
    memory_gib: Annotated[
        float | None,
        typer.Option(metavar="F", help="Free memory of each, GiB.", rich_help_panel=GPU),
    ] = None,
    bandwidth_tb_s: Annotated[
        float | None,
        typer.Option(metavar="F", help="Large copy, read plus written.", rich_help_panel=GPU),
    ] = None,
    tflops: Annotated[
        float | None,
        typer.Option(metavar="F", help="Matrix products in bfloat16.", rich_help_panel=GPU),
    ] = None,
    fp8_tflops: Annotated[
        float | None,
        typer.Option(metavar="F", help="Matrix products in fp8.", rich_help_panel=GPU),
    ] = None,
    link_gb_s: Annotated[
        float | None,
        typer.Option(metavar="F", help="Bus bandwidth of a large all-reduce.", rich_help_panel=GPU),
    ] = None,
    all_reduce_us: Annotated[
        float | None,
        typer.Option(metavar="F", help="Time of a small all-reduce.", rich_help_panel=GPU),
    ] = None,
) -> None:
    """Show whether a model fits on GPUs, and how fast it will be there.

    Needs neither the GPUs nor the weights. Memory is planned as the engine plans it; times come
    from measured ceilings of the GPU, and stand beside measured times where there are any.
    Exits with 1 if nothing fits.

    Examples:

        dropless plan dbrx --gpu H100 --count 8
        dropless plan dbrx --gpu H200 --count 1,2,4 --quantization fp8 --plot dbrx.png
        dropless plan dbrx --gpu H100 --count 8 --input-len 2000 --output-len 256 --json
        dropless plan ./my-model --gpu mine --memory-gib 46 --bandwidth-tb-s 0.8 --tflops 150
    """
    from rich.console import Console

    from dropless.bench.gpus import Precision, find_gpu
    from dropless.cli.plan_build import Parallelism, Question, build_report
    from dropless.cli.plan_plot import write_plot
    from dropless.cli.plan_report import document, tables

    ceilings = find_gpu(
        gpu,
        memory_gib=memory_gib,
        bandwidth_tb_s=bandwidth_tb_s,
        tflops=tflops,
        fp8_tflops=fp8_tflops,
        link_gb_s=link_gb_s,
        all_reduce_us=all_reduce_us,
    )
    settings = {
        "max_model_len": max_model_len,
        "max_running_requests": max_running_requests,
        "step_token_budget": step_token_budget,
        "memory_fraction": memory_fraction,
    }
    report = build_report(
        Question(
            model=model,
            gpu=ceilings,
            counts=_numbers("--count", count),
            quantizations=_choices("--quantization", quantization, get_args(Precision)),
            kinds=_choices("--parallel", parallel, get_args(Parallelism)),
            batches=[] if batch is None else _numbers("--batch", batch),
            input_tokens=input_len,
            output_tokens=output_len,
            settings={name: value for name, value in settings.items() if value is not None},
        )
    )
    if as_json:
        typer.echo(json.dumps(document(report), indent=2))
    else:
        Console(highlight=False).print(tables(report))
    if plot is not None:
        write_plot(plot, report)
    if not report.fits:
        raise typer.Exit(1)


def _numbers(option: str, text: str) -> list[int]:
    """Positive numbers, separated by commas, in order."""
    words = [word.strip() for word in text.split(",")]
    if not all(word.isascii() and word.isdigit() and int(word) for word in words):
        raise SettingsError(f"{option} is {text!r}; it must be one or more numbers, such as 1,2,4")
    return sorted({int(word) for word in words})


def _choices(option: str, text: str | None, possible: Sequence[Any]) -> list[Any]:
    """Some of `possible`, separated by commas; none where nothing is given."""
    words = [] if text is None else [word.strip() for word in text.split(",")]
    for word in words:
        if word not in possible:
            raise SettingsError(
                f"{option} is {text!r}; it must be {' or '.join(possible)}, or {','.join(possible)}"
            )
    return list(dict.fromkeys(words))
