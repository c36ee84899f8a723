"""The real application on a real socket, without a model: for what happens before one is asked."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import uvicorn
from fastapi import FastAPI

from dropless.server.app import create_app
from dropless.server.bounded_http import bounded_http
from dropless.server.call import Call
from dropless.server.configuration.settings import Configuration
from dropless.server.gateway import Gateway
from dropless.server.identity.gatekeeper import Gatekeeper
from dropless.server.identity.principal import Grant
from dropless.server.identity.store import IdentityStore
from dropless.server.listener import listen, url
from dropless.server.parts import Parts


class Watcher:
    """Keeps every call that ended."""

    def __init__(self) -> None:
        self.ended_calls: list[Call] = []

    def began(self, call: Call) -> None:
        assert call.status_code == 0

    def ended(self, call: Call) -> None:
        self.ended_calls.append(call)


@dataclass
class Door:
    url: str
    app: FastAPI
    data: Path
    gatekeeper: Gatekeeper
    watcher: Watcher
    client: httpx.Client

    @property
    def port(self) -> int:
        return int(self.url.rsplit(":", 1)[1])

    def ask(self, method: str, path: str, token: str | None = None, **more: Any) -> httpx.Response:
        headers = {**more.pop("headers", {})}
        if token is not None:
            headers["Authorization"] = f"Bearer {token}"
        cookies = more.pop("cookies", None)
        if cookies is not None:
            headers["Cookie"] = "; ".join(f"{name}={value}" for name, value in cookies.items())
        response = self.client.request(method, path, headers=headers, **more)
        self.client.cookies.clear()
        return response


@contextmanager
def standing(
    data: Path, address: str = "127.0.0.1", identity: Any = None, **server: Any
) -> Iterator[Door]:
    """`server` and `identity` are keys of these sections; `address` is what the server believes to
    listen on."""
    document = {"server": server, "data": data, "identity": identity or {}}
    configuration = Configuration.model_validate(document, strict=False)
    listener = listen("127.0.0.1", 0)
    parts = Parts(configuration, address, None)
    watcher = Watcher()
    limits = configuration.server.limits
    owner_of = parts.gatekeeper.secret.cache_owner
    parts.gateway = Gateway(parts.registry, limits, observers=[watcher], owner_of=owner_of)
    app = create_app(parts)
    http = bounded_http(limits)
    server_ = uvicorn.Server(
        uvicorn.Config(
            app, http=http, lifespan="off", log_config=None, ws="none", server_header=False
        )
    )

    async def serve() -> None:
        async with parts.open():
            await server_.serve(sockets=[listener])

    thread = threading.Thread(target=asyncio.run, args=(serve(),))
    thread.start()
    try:
        with httpx.Client(base_url=url(listener), timeout=20) as client:
            yield Door(url(listener), app, data, parts.gatekeeper, watcher, client)
    finally:
        server_.should_exit = True
        thread.join()
        listener.close()


@dataclass
class People:
    """Tokens of a store in a data folder: an administrator, one who may query `tiny` and
    `limited`, one who may only see, and a program."""

    store: IdentityStore
    admin: str
    bob: str
    carol: str
    robot: str


@contextmanager
def people(data: Path) -> Iterator[People]:
    store = IdentityStore(f"sqlite:///{data}/identity.db")
    store.accounts.create("admin", grants=[Grant("CAN_MANAGE")])
    query = [Grant("CAN_QUERY", "tiny"), Grant("CAN_QUERY", "limited")]
    store.accounts.create("bob", grants=query)
    store.accounts.create("carol", grants=[Grant("CAN_VIEW")])
    store.accounts.create("robot", "service_principal", grants=query)

    def token(name: str) -> str:
        return store.tokens.create(name, created_by="tests")[0].value

    yield People(store, token("admin"), token("bob"), token("carol"), token("robot"))
    store.close()
