"""`dropless chat`: talk to a model in the terminal."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from dropless.cli.engine_options import engine_options


@engine_options
def chat(
    model: Annotated[
        str | None,
        typer.Argument(
            help="Folder, GGUF file, hub id or catalogue name; default: the catalogue's."
        ),
    ] = None,
    url: Annotated[
        str | None,
        typer.Option(
            metavar="URL", help="Talk to this running server instead of starting an engine."
        ),
    ] = None,
    api_key: Annotated[
        str | None, typer.Option(metavar="KEY", help="Sent to the server given by --url.")
    ] = None,
    system: Annotated[
        str | None, typer.Option(metavar="TEXT", help="System prompt to begin with.")
    ] = None,
    temperature: Annotated[
        float, typer.Option(min=0, max=2, metavar="F", help="0 is greedy.")
    ] = 0.7,
    top_p: Annotated[
        float, typer.Option(min=0, max=1, metavar="F", help="Nucleus sampling.")
    ] = 0.95,
    max_tokens: Annotated[
        int | None,
        typer.Option(
            min=1,
            metavar="N",
            help="Longest answer, in tokens; default: to the end of the model's context.",
        ),
    ] = None,
    sampling_seed: Annotated[
        int | None, typer.Option("--seed", metavar="N", help="Repeatable answers.")
    ] = None,
    *,
    engine: dict[str, Any],
) -> None:
    """Talk to a model in the terminal.

    Type /help inside for what it understands. Ctrl-C stops an answer, twice leaves.

    Examples:

        dropless chat
        dropless chat qwen2.5-coder-0.5b-instruct --temperature 0
        dropless chat ./model.gguf --system "Answer in one sentence."
        dropless chat --url http://127.0.0.1:8000
    """
    import readline  # noqa: F401  (gives `input` line editing and a history)

    from dropless.cli.chat_backends import EngineBackend, ServerBackend
    from dropless.cli.chat_session import ChatSession

    backend = ServerBackend(url, model, api_key) if url else EngineBackend(model, engine)
    given = {
        "temperature": temperature,
        "top_p": top_p,
        "max_tokens": max_tokens,
        "seed": sampling_seed,
    }
    sampling = {name: value for name, value in given.items() if value is not None}
    ChatSession(backend, sampling, system).run()
