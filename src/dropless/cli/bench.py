"""`dropless bench`: measure a server, or the engine in this process."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from dropless.cli.engine_options import engine_options
from dropless.errors import SettingsError

WORKLOAD = "Workload"
OUTPUT = "Results"


@engine_options
def bench(
    model: Annotated[
        str | None,
        typer.Argument(help="Model to run offline, or the name sent to the server (default: its)."),
    ] = None,
    url: Annotated[
        str | None, typer.Option(metavar="URL", help="The OpenAI-compatible server to drive.")
    ] = None,
    offline: Annotated[bool, typer.Option("--offline", help="Run the engine in here.")] = False,
    api_key: Annotated[str | None, typer.Option(metavar="KEY", help="Sent to the server.")] = None,
    api: Annotated[
        Literal["completions", "chat"], typer.Option(metavar="API", help="completions or chat.")
    ] = "completions",
    timeout: Annotated[float, typer.Option(metavar="S", help="Seconds per request.")] = 600.0,
    requests: Annotated[
        int | None,
        typer.Option(
            min=1, metavar="N", help="How many; default 32, or the trace.", rich_help_panel=WORKLOAD
        ),
    ] = None,
    arrival: Annotated[
        Literal["closed", "fixed", "poisson"] | None,
        typer.Option(
            metavar="KIND",
            help="closed: users who wait for each answer; fixed, poisson: --rate a second.",
            show_default="poisson with --rate, else closed",
            rich_help_panel=WORKLOAD,
        ),
    ] = None,
    concurrency: Annotated[
        int | None,
        typer.Option(
            min=1,
            metavar="N",
            help="Users of a closed loop; else most in flight.",
            rich_help_panel=WORKLOAD,
        ),
    ] = None,
    rate: Annotated[
        float | None,
        typer.Option(metavar="F", help="Requests per second.", rich_help_panel=WORKLOAD),
    ] = None,
    input_len: Annotated[
        str,
        typer.Option(
            metavar="LENGTHS",
            help="400, 100:800 or lognormal:400:0.8, tokens.",
            rich_help_panel=WORKLOAD,
        ),
    ] = "400",
    output_len: Annotated[
        str,
        typer.Option(
            metavar="LENGTHS", help="Likewise, tokens per answer.", rich_help_panel=WORKLOAD
        ),
    ] = "64",
    prompts: Annotated[
        Literal["words", "ids"],
        typer.Option(
            metavar="KIND",
            help="words, or ids: exactly as many token ids.",
            rich_help_panel=WORKLOAD,
        ),
    ] = "words",
    trace: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="CSV: TIMESTAMP,ContextTokens,GeneratedTokens (Azure's traces).",
            rich_help_panel=WORKLOAD,
        ),
    ] = None,
    scale: Annotated[
        float,
        typer.Option(
            metavar="F", help="Play the trace this many times as fast.", rich_help_panel=WORKLOAD
        ),
    ] = 1.0,
    clip: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            help="Cut the trace's requests to this many tokens.",
            rich_help_panel=WORKLOAD,
        ),
    ] = None,
    workload_seed: Annotated[
        int,
        typer.Option(
            metavar="N", help="The same seed sends the same requests.", rich_help_panel=WORKLOAD
        ),
    ] = 0,
    slo: Annotated[
        str | None,
        typer.Option(
            metavar="LIMITS", help="Service level, ms: ttft=450,tpot=40.", rich_help_panel=OUTPUT
        ),
    ] = None,
    json_file: Annotated[
        Path | None,
        typer.Option(
            "--json", metavar="FILE", help="Write all figures here.", rich_help_panel=OUTPUT
        ),
    ] = None,
    plot: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="Draw latencies into this PNG, SVG or PDF.", rich_help_panel=OUTPUT
        ),
    ] = None,
    *,
    engine: dict[str, Any],
) -> None:
    """Measure a server, or the engine in this process.

    Reports TTFT, TPOT, ITL, end to end, throughput and goodput under a service level.

    Examples:

        dropless bench --url http://127.0.0.1:8000 --requests 64 --concurrency 16
        dropless bench --url http://127.0.0.1:8000 --rate 4 --slo ttft=450,tpot=40
        dropless bench --offline --input-len 100:800 --json run.json
        dropless bench --url http://127.0.0.1:8000 --trace azure.csv --plot run.png
    """
    from rich.console import Console

    from dropless.bench import metrics, report, workload
    from dropless.cli.bench_drivers import drive_engine, drive_server

    if (url is None) == (not offline):
        raise SettingsError("give either --url of a server, or --offline for the engine in here")
    level = None if slo is None else metrics.ServiceLevel.parse(slo)
    shared: dict[str, Any] = {"concurrency": concurrency, "prompts": prompts, "seed": workload_seed}
    if trace is not None:
        sizes: dict[str, Any] = {"requests": requests, "scale": scale, "clip": clip}
        planned = workload.trace_workload(trace, **sizes, **shared)
    else:
        default_arrival = "closed" if rate is None else "poisson"
        sizes = {"requests": requests or 32, "arrival": arrival or default_arrival, "rate": rate}
        planned = workload.make_workload(
            input_lengths=workload.Lengths.parse(input_len),
            output_lengths=workload.Lengths.parse(output_len),
            **sizes,
            **shared,
        )
    if url is not None:
        records = drive_server(planned, url, model, api, api_key, timeout)
    else:
        records = drive_engine(planned, model, engine)
    summary = metrics.summarize(records, level)
    Console().print(report.tables(summary, level))
    if json_file is not None:
        lengths = {"trace": trace} if trace else {"input_len": input_len, "output_len": output_len}
        target = {"url": url, "api": api} if url else {"engine": engine}
        settings = {"model": model, **target, **lengths, **sizes, **shared, "slo": slo}
        report.write_json(json_file, summary, records, settings)
    if plot is not None:
        report.write_plot(plot, summary, records)
    if not summary.completed:
        raise typer.Exit(1)
