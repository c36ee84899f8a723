"""`dropless serve`: the OpenAI-compatible server."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from dropless.cli.engine_options import engine_options


@engine_options
def serve(
    model: Annotated[
        str | None,
        typer.Argument(
            help="Folder, GGUF file, hub id or catalogue name; default: the catalogue's."
        ),
    ] = None,
    host: Annotated[
        str, typer.Option(metavar="ADDRESS", help="Where to listen; 0.0.0.0: everywhere.")
    ] = "127.0.0.1",
    port: Annotated[
        int, typer.Option(min=0, max=65535, metavar="N", help="0: any free one.")
    ] = 8000,
    *,
    engine: dict[str, Any],
) -> None:
    """Serve a model over HTTP, as OpenAI's API.

    Ctrl-C lets requests in flight finish and stops; Ctrl-C again stops at once.

    Examples:

        dropless serve
        dropless serve qwen2.5-coder-0.5b-instruct --port 9000
        dropless serve ./model.gguf --threads 2 --max-model-len 4096
        dropless serve databricks/dbrx-instruct --tensor-parallel-size 8
        dropless serve --deterministic  # no answer depends on the other requests
    """
    from dropless.cli.find_model import resolve_model
    from dropless.engine.config import EngineConfig
    from dropless.server.listener import listen
    from dropless.server.serve import serve as serve_http

    listener = listen(host, port)  # a port in use is told before anything is fetched
    path, model_id = resolve_model(model, allow_shapes=engine.get("weights") == "random")
    serve_http(EngineConfig(model_path=path, model_id=model_id, **engine), listener)
