"""A server with users, limits and inference tables, as a company has it."""

from __future__ import annotations

import json
import shutil
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from dropless.checkpoints.writer import tiny_dbrx_config
from dropless.server.identity.principal import Grant
from dropless.server.identity.store import IdentityStore
from tests.server.server_process import ServerProcess
from tests.server.tiny_model import tiny_endpoint

USERS = {
    "root": [Grant("CAN_MANAGE")],
    "ada": [Grant("CAN_QUERY")],
    "bob": [Grant("CAN_MANAGE", "tiny")],
    "eve": [Grant("CAN_QUERY", "limited")],
}
ROWS_S = 10.0


@dataclass(frozen=True)
class Company:
    server: ServerProcess
    tokens: dict[str, str]  # by user

    def client(self, user: str) -> httpx.Client:
        headers = {"authorization": f"Bearer {self.tokens[user]}"}
        return httpx.Client(base_url=self.server.url, headers=headers, timeout=30)

    def ask(self, user: str, text: str, model: str = "tiny", **fields: Any) -> httpx.Response:
        body: dict[str, Any] = {"model": model, "max_tokens": 3, "ignore_eos": True}
        body["messages"] = [{"role": "user", "content": text}]
        with self.client(user) as client:
            return client.post("/v1/chat/completions", json={**body, **fields})

    def rows(self, user: str, **query: Any) -> list[dict[str, Any]]:
        with self.client(user) as client:
            response = client.get("/api/2.0/dashboard/rows", params=query)
        rows: list[dict[str, Any]] = response.raise_for_status().json()["rows"]
        return rows

    def wait_for_rows(self, count: int, **query: Any) -> list[dict[str, Any]]:
        deadline = time.monotonic() + ROWS_S
        while len(rows := self.rows("root", **query)) < count:
            assert time.monotonic() < deadline, rows
            time.sleep(0.1)
        return rows

    def wait_for_experts(self) -> None:
        """Until the server knows of the mixture's choices: it asks its engines every 2 s."""
        deadline = time.monotonic() + ROWS_S
        with self.client("root") as client:
            while not client.get("/api/2.0/dashboard/expert-load").json()["served_entities"]:
                assert time.monotonic() < deadline
                time.sleep(0.1)


def write_mixture(tiny: Path, folder: Path, **shape: int) -> Path:
    """A model of DBRX's kind with the tokenizer of the tiny one, for generated weights."""
    shutil.copytree(tiny, folder)
    shape = {"vocab_size": 512, "n_layers": 3, "moe_num_experts": 8, "moe_top_k": 2} | shape
    (folder / "config.json").write_text(json.dumps(tiny_dbrx_config(**shape)))
    return folder


def found(folder: Path, data: Path) -> Company:
    """`folder` has the tiny model, `data` is the server's, still empty."""
    store = IdentityStore(f"sqlite:///{data}/identity.db")
    tokens = {}
    for name, grants in USERS.items():
        store.accounts.create(name, grants=grants)
        tokens[name] = store.tokens.create(name, created_by="root")[0].value
    store.close()
    tiny, limited = (tiny_endpoint(str(folder), name) for name in ("tiny", "limited"))
    mixture = tiny_endpoint(str(write_mixture(folder, data / "mixture")), "mixture")
    tiny["inference_table_config"] = limited["inference_table_config"] = {"enabled": True}
    limited["rate_limits"] = [{"key": "user", "calls": 1}]
    configuration = {
        "data": str(data),
        "tables": {"flush_seconds": 0.2},
        "endpoints": [tiny, limited, mixture],
    }
    server = ServerProcess(folder, configuration=configuration)
    return Company(server.wait_until_ready(), tokens)
