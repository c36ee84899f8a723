"""`dropless generate`: a file of prompts, offline."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dropless.cli.engine_options import engine_options
from dropless.errors import DroplessError

if TYPE_CHECKING:
    from dropless.cli.batch_file import BatchFile

# Engine settings that can change an answer; others may differ when a job is taken up again.
ANSWER_SETTINGS = ("dtype", "quantization", "tokenizer_path", "weights", "seed")


@engine_options
def generate(
    file: Annotated[Path, typer.Argument(help="One JSON object a line.", dir_okay=False)],
    model: Annotated[
        str | None,
        typer.Option(metavar="MODEL", help="Folder, GGUF file, hub id or catalogue name."),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Results; default: FILE with .answers.jsonl."),
    ] = None,
    max_tokens: Annotated[
        int, typer.Option(min=1, metavar="N", help="Longest answer, in tokens.")
    ] = 256,
    temperature: Annotated[
        float, typer.Option(min=0, max=2, metavar="F", help="0 is greedy.")
    ] = 0.0,
    top_p: Annotated[
        float, typer.Option(min=0, max=1, metavar="F", help="Nucleus sampling.")
    ] = 1.0,
    sampling_seed: Annotated[
        int | None, typer.Option("--seed", metavar="N", help="Repeatable sampling.")
    ] = None,
    *,
    engine: dict[str, Any],
) -> None:
    r"""Answer a file of prompts, offline.

    A line is the body of an OpenAI request, with an optional "id":

        {"id": 1, "prompt": "Once upon a time", "max_tokens": 20}
        {"id": 2, "messages": \[{"role": "user", "content": "Hi"}]}

    Results come in input order; a bad line gets a result with an "error".
    Killed, the same command goes on where it was.

    Examples:

        dropless generate questions.jsonl
        dropless generate questions.jsonl --out answers.jsonl --max-tokens 64
        dropless generate questions.jsonl --model ./model.gguf --temperature 0.8
    """
    from dropless.cli.batch_file import BatchFile

    sampling: dict[str, Any] = {
        "max_tokens": max_tokens,
        "temperature": temperature,
        "top_p": top_p,
    }
    if sampling_seed is not None:
        sampling["seed"] = sampling_seed
    results = out or file.with_name(file.stem + ".answers.jsonl")
    answering = {name: engine[name] for name in ANSWER_SETTINGS if name in engine}
    batch = BatchFile(file, results, {"model": model, "sampling": sampling, **answering})
    try:
        asyncio.run(_answer_all(batch, model, engine, sampling))
        batch.finish()
    except (KeyboardInterrupt, DroplessError):
        if batch.done:
            typer.echo(
                f"Stopped: {batch.done} of {batch.total} results are kept in {batch.partial_path}; "
                "the same command goes on from there.",
                err=True,
            )
        raise
    finally:
        batch.close()
    typer.echo(f"{batch.done} results in {results}")


async def _answer_all(
    batch: BatchFile, model: str | None, settings: dict[str, Any], sampling: dict[str, Any]
) -> None:
    """Start an engine and work through the batch under a progress bar."""
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
    )

    from dropless.cli.batch_run import Result, run_batch
    from dropless.cli.local_engine import start_local_engine

    if batch.done == batch.total:
        return
    engine = await start_local_engine(model, settings)
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[tokens]} tokens"),
    )
    tokens = failed = 0
    try:
        with Progress(*columns, console=Console(stderr=True), refresh_per_second=4) as progress:
            task = progress.add_task(
                engine.ready.model_id, total=batch.total, completed=batch.done, tokens=0
            )

            def show(result: Result) -> None:
                nonlocal tokens, failed
                tokens += result.get("completion_tokens", 0)
                failed += "error" in result
                note = f" ({failed} with an error)" if failed else ""
                progress.update(
                    task, advance=1, tokens=tokens, description=engine.ready.model_id + note
                )

            await run_batch(engine, batch, sampling, show)
    finally:
        await engine.client.stop()
