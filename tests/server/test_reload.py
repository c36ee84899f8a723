"""A server of a configuration file: it is read again, and changed through the API, under load."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from tests.server.load import Load
from tests.server.server_process import ServerProcess
from tests.server.tiny_model import tiny_endpoint

HTTP = httpx.Client(timeout=60)
ASKED = {"prompt": "hi", "max_tokens": 120, "ignore_eos": True, "temperature": 0}


class FileServer:
    """A server process and its file."""

    def __init__(self, model: Path, folder: Path) -> None:
        self.file = folder / "dropless.yaml"
        self._model = model
        self._data = folder / "data"
        self.write(tiny_endpoint(str(model), "one"))
        self.process = ServerProcess(model, file=str(self.file)).wait_until_ready()

    def write(self, *endpoints: dict[str, Any], **sections: Any) -> None:
        document = {"data": str(self._data), "endpoints": list(endpoints), **sections}
        self.file.write_text(yaml.safe_dump(document))

    def endpoint(self, name: str, **engine: Any) -> dict[str, Any]:
        return tiny_endpoint(str(self._model), name, **engine)

    def call(self, method: str, path: str, body: Any = None) -> httpx.Response:
        return HTTP.request(method, f"{self.process.url}/api/2.0/{path}", json=body)

    def names(self) -> list[str]:
        listed = self.call("GET", "serving-endpoints").json()["endpoints"]
        return [endpoint["name"] for endpoint in listed]

    def answer(self, name: str) -> str:
        response = HTTP.post(f"{self.url(name)}", json=ASKED)
        assert response.status_code == 200, response.text
        text: str = response.json()["choices"][0]["text"]
        return text

    def url(self, name: str) -> str:
        return f"{self.process.url}/serving-endpoints/{name}/invocations"

    def says(self, text: str) -> None:
        """Waits until the log says it."""
        deadline = time.monotonic() + 60
        while text not in "".join(self.process.errors):
            assert time.monotonic() < deadline, "".join(self.process.errors)
            time.sleep(0.02)


@pytest.fixture(scope="module")
def server(model_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[FileServer]:
    started = FileServer(model_folder, tmp_path_factory.mktemp("server"))
    yield started
    started.process.close()


def test_streams_that_run_over_a_reload_end_well(server: FileServer) -> None:
    before = server.answer("one")
    with Load(server.url("one"), ASKED) as load:
        load.wait_for(6)
        server.write(server.endpoint("one", seed=1), server.endpoint("two"))
        server.process.signal(signal.SIGHUP)
        server.says("reloaded")
        load.wait_for(12)
    assert {(outcome.status, outcome.whole) for outcome in load.outcomes} == {(200, True)}
    assert server.answer("one") != before, "the new model must answer"
    assert server.answer("two") == before
    server.says("endpoint one: version 1 is gone")
    details = server.call("GET", "serving-endpoints/one").json()
    assert details["config"]["config_version"] == 2
    assert details["config"]["served_entities"][0]["engine"]["seed"] == 1


WRONG: dict[str, tuple[Callable[[FileServer], dict[str, Any]], str]] = {
    "a misspelt key": (
        lambda s: {**s.endpoint("one"), "traffic": 1},
        "endpoints[0].traffic is not known; did you mean 'traffic_config'?",
    ),
    "a model that is not there": (
        lambda _: {"name": "new", "served_entities": [{"model": "no-such-model"}]},
        "there is no model 'no-such-model'",
    ),
    "a model that does not load": (
        lambda s: s.endpoint("new", tensor_parallel_size=3),
        "cannot be shared evenly among 3 ranks",
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_file_changes_nothing_and_says_why(server: FileServer, name: str) -> None:
    make, why = WRONG[name]
    before = server.names(), server.answer("one")
    server.write(make(server))
    response = server.call("POST", "config/reload")
    assert response.status_code in (400, 404)
    assert response.json().keys() == {"error_code", "message"}
    assert why in response.json()["message"]
    assert (server.names(), server.answer("one")) == before
    if name == "a misspelt key":
        server.process.signal(signal.SIGHUP)
        server.says("nothing has changed: " + str(server.file))


def test_a_reload_says_what_it_did_and_what_needs_a_restart(server: FileServer) -> None:
    server.write(server.endpoint("one", seed=1), server={"port": 9})
    told = server.call("POST", "config/reload").json()
    expected = {"added": [], "changed": [], "removed": ["two"], "needs_restart": ["server"]}
    assert told == expected
    assert server.names() == ["one"]
    assert HTTP.post(server.url("two"), json=ASKED).status_code == 404


def test_endpoints_made_through_the_api_live_beside_those_of_the_file(server: FileServer) -> None:
    model = server.endpoint("x")["served_entities"][0]
    entity = {"entity_name": model["model"], "engine": {**model["engine"], "seed": 1}}
    config = {"served_entities": [{**entity, "name": "m", "workload_size": "Small"}]}
    made = server.call("POST", "serving-endpoints", {"name": "made", "config": config}).json()
    assert made["state"] == {"ready": "READY", "config_update": "NOT_UPDATING"}, "shares an engine"
    assert made["config"]["config_version"] == 1
    assert made["config"]["traffic_config"] == {
        "routes": [{"served_entity_name": "m", "traffic_percentage": 100}]
    }
    assert server.answer("made") == server.answer("one")
    again = server.call("POST", "serving-endpoints", {"name": "made", "config": config})
    assert (again.status_code, again.json()["error_code"]) == (409, "RESOURCE_CONFLICT")
    assert server.names() == ["one", "made"]

    config["system_prompt"] = "Be brief."
    put = server.call("PUT", "serving-endpoints/made/config", config).json()
    assert (put["config"]["config_version"], put["config"]["system_prompt"]) == (2, "Be brief.")
    gateway = {"fallback_config": {"enabled": False}}
    told = server.call("PUT", "serving-endpoints/made/ai-gateway", gateway).json()
    assert told["fallback_config"] == {"enabled": False}
    got = server.call("GET", "serving-endpoints/made").json()
    assert (got["config"]["config_version"], got["config"]["system_prompt"]) == (3, "Be brief.")
    assert got["ai_gateway"]["fallback_config"] == {"enabled": False}

    assert server.call("POST", "config/reload").status_code == 200
    assert server.names() == ["one", "made"], "a reload leaves them alone"
    server.write(server.endpoint("one", seed=1), server.endpoint("made"))
    response = server.call("POST", "config/reload")
    assert "made through the API" in response.json()["message"]
    server.write(server.endpoint("one", seed=1))


def test_an_endpoint_of_the_file_is_changed_in_the_file(server: FileServer) -> None:
    config = {"served_entities": [{"entity_name": "x"}]}
    for method, path, body in (
        ("PUT", "serving-endpoints/one/config", config),
        ("PUT", "serving-endpoints/one/ai-gateway", {}),
        ("DELETE", "serving-endpoints/one", None),
    ):
        response = server.call(method, path, body)
        assert response.status_code == 409
        assert f"described in {server.file}" in response.json()["message"]


@pytest.mark.parametrize(
    ("method", "path", "body", "status", "says"),
    [
        ("POST", "serving-endpoints", {"name": "n"}, 400, "config is missing"),
        ("POST", "serving-endpoints", [1], 400, "must be a JSON object"),
        (
            "POST",
            "serving-endpoints",
            {"name": "n", "config": {"served_entities": [{"entity_name": "no-model"}]}},
            404,
            "there is no model 'no-model'",
        ),
        (
            "POST",
            "serving-endpoints",
            {"name": "n", "config": {"served_entities": []}},
            400,
            "served_entities",
        ),
        (
            "POST",
            "serving-endpoints",
            {
                "name": "n",
                "config": {"served_entities": [{"entity_name": "x", "engine": {"thread": 1}}]},
            },
            400,
            "did you mean 'threads'?",
        ),
        ("PUT", "serving-endpoints/made/ai-gateway", {"guard": 1}, 400, "ai_gateway.guard is not"),
        ("PUT", "serving-endpoints/none/config", {"served_entities": []}, 404, "'none'"),
        ("GET", "serving-endpoints/none", None, 404, "'none'"),
        ("DELETE", "serving-endpoints/none", None, 404, "'none'"),
    ],
)
def test_wrong_management_calls_are_told_why(
    server: FileServer, method: str, path: str, body: Any, status: int, says: str
) -> None:
    response = server.call(method, path, body)
    assert response.status_code == status, response.text
    assert response.json().keys() == {"error_code", "message"}
    assert says in response.json()["message"]


def test_a_restart_finds_what_the_api_made_and_a_drain_loses_no_request(
    server: FileServer, model_folder: Path
) -> None:
    with Load(server.url("made"), ASKED) as load:
        load.wait_for(6)
        told = time.monotonic()
        server.process.signal(signal.SIGTERM)
        health = HTTP.get(f"{server.process.url}/health")
        assert server.process.wait(30) == 0
        time.sleep(0.2)
    assert (health.status_code, health.json()["state"]) == (503, "draining")
    answered = [outcome for outcome in load.outcomes if outcome.status]
    assert {(outcome.status, outcome.whole) for outcome in answered} == {(200, True), (503, True)}
    assert any(o.sent < told < o.ended for o in answered if o.status == 200)
    refused = [outcome for outcome in answered if outcome.status == 503]
    assert {outcome.headers["retry-after"] for outcome in refused} == {"1"}
    assert {outcome.headers["connection"] for outcome in refused} == {"close"}
    lost = [outcome for outcome in load.outcomes if not outcome.status]
    assert all(outcome.sent > told for outcome in lost), "these found nobody any more"

    server.process = ServerProcess(model_folder, file=str(server.file)).wait_until_ready()
    assert server.names() == ["one", "made"]
    assert server.answer("made") == server.answer("one")
    assert server.call("DELETE", "serving-endpoints/made").json() == {}
    assert server.names() == ["one"]
