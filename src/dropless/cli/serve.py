"""`dropless serve`: the OpenAI-compatible server."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dropless.cli.engine_options import engine_options

if TYPE_CHECKING:
    from dropless.server.configuration.settings import Configuration

DEFAULT_HOST = "127.0.0.1"
DEFAULT_PORT = 8000


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
    ] = DEFAULT_HOST,
    port: Annotated[
        int, typer.Option(min=0, max=65535, metavar="N", help="0: any free one.")
    ] = DEFAULT_PORT,
    insecure_open: Annotated[
        bool,
        typer.Option(
            "--insecure-open",
            help="Let everybody in who reaches a public address, while there are no tokens.",
        ),
    ] = False,
    config: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="A YAML file that says everything, in place of options."),
    ] = None,
    *,
    engine: dict[str, Any],
) -> None:
    """Serve models over HTTP, as OpenAI's API.

    Ctrl-C lets requests in flight finish and stops; Ctrl-C again stops at once.

    Examples:

        dropless serve
        dropless serve qwen2.5-coder-0.5b-instruct --port 9000
        dropless serve ./model.gguf --threads 2 --max-model-len 4096
        dropless serve databricks/dbrx-instruct --tensor-parallel-size 8
        dropless serve --deterministic  # no answer depends on the other requests
        dropless serve --host 0.0.0.0  # for others; make tokens first: dropless tokens --help
        dropless serve --config dropless.yaml  # several models, and all else that a file can say
    """
    from dropless.cli.find_model import resolve_model
    from dropless.errors import SettingsError
    from dropless.server.configuration.loading import load
    from dropless.server.identity.gatekeeper import check_exposure
    from dropless.server.listener import listen
    from dropless.server.serve import serve as serve_http

    if config is None:
        configuration = from_options(model, host, port, engine, insecure_open=insecure_open)
    elif (
        model is None
        and not (engine or insecure_open)
        and (host, port) == (DEFAULT_HOST, DEFAULT_PORT)
    ):
        configuration = load(config)
    else:
        raise SettingsError(f"--config takes no model and no other options; put them into {config}")
    # A port in use, or a server open to everybody, is told before anything is fetched.
    listener = listen(configuration.server.host, configuration.server.port)
    check_exposure(configuration.identity, configuration.data, listener.getsockname()[0])
    for endpoint in configuration.endpoints:
        for entity in endpoint.served_entities:
            resolve_model(entity.model, allow_shapes=entity.engine.weights == "random")
    serve_http(configuration, listener, config)


def from_options(
    model: str | None,
    host: str,
    port: int,
    engine: dict[str, Any],
    *,
    insecure_open: bool = False,
) -> Configuration:
    """One endpoint with this model and nothing else."""
    from dropless.checkpoints.catalogue import default_model
    from dropless.cli.find_model import client_name
    from dropless.server.configuration.endpoint_settings import (
        EndpointSettings,
        EngineSettings,
        ServedEntitySettings,
    )
    from dropless.server.configuration.settings import Configuration, ServerSettings
    from dropless.server.identity.settings import IdentitySettings

    spec = default_model().name if model is None else model
    name = client_name(spec)
    entity = ServedEntitySettings(model=spec, name=name, engine=EngineSettings(**engine))
    return Configuration(
        server=ServerSettings(host=host, port=port),
        identity=IdentitySettings(open=insecure_open),
        endpoints=(EndpointSettings(name=name, served_entities=(entity,)),),
    )
