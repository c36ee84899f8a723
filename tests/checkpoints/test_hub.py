"""Hub ids, fetched by the real client from a small hub on this machine."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

COMMIT = "0" * 40
FILES = {
    "config.json": b'{"model_type": "llama"}',
    "model.safetensors": b"weights",
    "pytorch_model.bin": b"pickle",
}
CONFIG_ONLY = """
import sys
from dropless.cli.plan_model import open_model
try:
    checkpoint, name = open_model(sys.argv[1])
    print(name, checkpoint.config["model_type"], *sorted(p.name for p in checkpoint.path.iterdir()))
except Exception as error:
    print(type(error).__name__, error)
"""
SCRIPT = """
import sys
from dropless.checkpoints.resolve import resolve
try:
    path = resolve(sys.argv[1])
    print("found", *sorted(p.name for p in path.iterdir()))
except Exception as error:
    print(type(error).__name__, error)
"""


class SmallHub(BaseHTTPRequestHandler):
    """One model, `good/model`; one that asks for permission, `gated/model`; no other."""

    def do_GET(self) -> None:
        self.answer(with_body=True)

    def do_HEAD(self) -> None:
        self.answer(with_body=False)

    def answer(self, with_body: bool) -> None:
        name = self.path.rsplit("/", 1)[-1]
        if self.path.startswith("/api/models/good/model/revision/"):
            siblings = [{"rfilename": file} for file in FILES]
            body = json.dumps({"id": "good/model", "sha": COMMIT, "siblings": siblings}).encode()
            self.reply(200, body, with_body)
        elif self.path.startswith("/good/model/resolve/") and name in FILES:
            headers = {"X-Repo-Commit": COMMIT, "ETag": f'"{name}"'}
            self.reply(200, FILES[name], with_body, headers)
        elif "gated/model" in self.path:
            self.reply(403, b"{}", with_body, {"X-Error-Code": "GatedRepo"})
        else:
            self.reply(404, b"{}", with_body, {"X-Error-Code": "RepoNotFound"})

    def reply(
        self, status: int, body: bytes, with_body: bool, headers: dict[str, str] | None = None
    ) -> None:
        self.send_response(status)
        for key, value in (headers or {}).items():
            self.send_header(key, value)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Content-Type", "application/json")
        self.end_headers()
        if with_body:
            self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Silence."""


@pytest.fixture(scope="module")
def hub() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), SmallHub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def resolve_with_hub(address: str, spec: str, home: Path, script: str = SCRIPT) -> str:
    """What `resolve` says in a process whose hub is at `address` (it is fixed at import)."""
    environment = {**os.environ, "HF_ENDPOINT": address, "HF_HOME": str(home), "NO_PROXY": "*"}
    environment.pop("HF_HUB_OFFLINE", None)
    result = subprocess.run(
        [sys.executable, "-c", script, spec],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    return result.stdout


def test_a_hub_model_is_fetched_without_its_pickles(hub, tmp_path) -> None:
    said = resolve_with_hub(hub, "good/model", tmp_path)
    assert said.split() == ["found", "config.json", "model.safetensors"]


def test_of_a_hub_model_that_is_planned_only_the_configuration_is_fetched(hub, tmp_path) -> None:
    said = resolve_with_hub(hub, "good/model", tmp_path, CONFIG_ONLY)
    assert said.split() == ["good/model", "llama", "config.json"]


def test_an_unknown_hub_model(hub, tmp_path) -> None:
    said = resolve_with_hub(hub, "no/model", tmp_path)
    assert said.startswith("ModelNotFoundError the hub has no model no/model")


def test_a_gated_hub_model(hub, tmp_path) -> None:
    said = resolve_with_hub(hub, "gated/model", tmp_path)
    assert said.startswith("ModelNotFoundError gated/model is gated: accept its terms")


def test_no_network(tmp_path) -> None:
    said = resolve_with_hub("http://127.0.0.1:9", "good/model", tmp_path)
    assert said.startswith("DownloadError good/model is not in the hub's cache")


def test_a_model_fetched_before_needs_no_network(hub, tmp_path) -> None:
    resolve_with_hub(hub, "good/model", tmp_path)
    said = resolve_with_hub("http://127.0.0.1:9", "good/model", tmp_path)
    assert said.split() == ["found", "config.json", "model.safetensors"]
