"""A server for a benchmark: `dropless serve --config` in a process of its own."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import psutil

from dropless.server.identity.principal import Grant, Permission
from dropless.server.identity.store import IdentityStore


@contextmanager
def served(document: dict[str, Any], folder: Path) -> Iterator[tuple[str, psutil.Process]]:
    """Its address and its process, until it serves and while it does. `document` is the content of
    the configuration; data and file are in `folder`, the port is any that is free if none is
    given."""
    folder.mkdir(parents=True, exist_ok=True)
    settings = {"data": str(folder / "data"), **document}
    settings["server"] = {"port": 0, **document.get("server", {})}
    file = folder / "dropless.yaml"
    file.write_text(json.dumps(settings))
    process = subprocess.Popen(
        [sys.executable, "-m", "dropless.cli.main", "serve", "--config", str(file)],
        stdout=subprocess.PIPE,
        stderr=(folder / "server.log").open("a"),
        text=True,
    )
    try:
        assert process.stdout is not None
        found = (word for line in process.stdout for word in line.split() if "http://" in word)
        url = next(found, None)
        if url is None:
            raise SystemExit(f"the server did not start; see {folder / 'server.log'}")
        yield url.rstrip(".,/"), psutil.Process(process.pid)
    finally:
        process.terminate()
        process.wait()


def tokens_of(folder: Path, *users: str, may: Permission = "CAN_QUERY") -> dict[str, str]:
    """Makes these users in the store that a server with its data in `folder` reads, each with a
    token that may do this on all endpoints."""
    data = folder / "data"
    data.mkdir(parents=True, exist_ok=True)
    tokens = {}
    with closing(IdentityStore(f"sqlite:///{data / 'identity.db'}")) as store:
        for user in users:
            store.accounts.create(user, grants=[Grant(may)])
            tokens[user] = store.tokens.create(user, created_by="benchmark")[0].value
    return tokens
