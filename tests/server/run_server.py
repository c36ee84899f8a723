"""The process of `ServerProcess`: `python -m tests.server.run_server FOLDER OPTIONS`. It imports no
more than a server does, for many of them start."""

from __future__ import annotations

import functools
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

from dropless.engine import client
from dropless.server.configuration.loading import load
from dropless.server.configuration.settings import Configuration
from dropless.server.endpoints import engines
from dropless.server.listener import listen, url
from dropless.server.serve import serve
from tests.server.tiny_model import tiny_endpoint


def main(folder: str, options: dict[str, Any]) -> None:
    builder = options.pop("builder", client.DEFAULT_BUILDER)
    engines.AsyncEngineClient = functools.partial(  # type: ignore[misc, assignment]
        client.AsyncEngineClient, builder=builder
    )
    listener = listen(options.pop("host", "127.0.0.1"), options.pop("port"))
    print(url(listener), flush=True)
    limits = options.pop("limits", {})
    file = options.pop("file", None)
    if file is not None:
        serve(load(Path(file)), listener, Path(file))
        return
    whole = options.pop("configuration", None)
    if whole is not None:
        serve(Configuration.model_validate_json(json.dumps(whole)), listener)
        return
    with tempfile.TemporaryDirectory() as data:  # never the one of whoever runs the tests
        document = {
            "server": {"limits": limits},
            "data": data,
            "endpoints": [tiny_endpoint(folder, **options)],
        }
        serve(Configuration.model_validate_json(json.dumps(document)), listener)


if __name__ == "__main__":
    main(sys.argv[1], json.loads(sys.argv[2]))
