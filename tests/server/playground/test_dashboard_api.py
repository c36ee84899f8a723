"""The JSON behind the dashboard: over HTTP as anybody, and who may see what."""

from __future__ import annotations

import json
import time
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from pydantic import ValidationError
from starlette.exceptions import HTTPException
from starlette.testclient import TestClient
from starlette.types import Receive, Scope, Send

from dropless.server.call import Call
from dropless.server.errors import error_response
from dropless.server.identity.principal import LOCAL, Grant, Principal
from dropless.server.live_numbers import LiveNumbers
from dropless.server.playground.dashboard import Dashboard
from dropless.server.playground.shapes import EndpointState, ServedExperts
from tests.server.server_process import ServerProcess
from tests.server.tiny_model import MODEL_ID

BASE = "/api/2.0/dashboard"


def test_numbers_of_real_requests(server: ServerProcess) -> None:
    with httpx.Client(base_url=server.url) as http:
        before = http.get(f"{BASE}/live").json()
        body = {"model": MODEL_ID, "messages": [{"role": "user", "content": "Hi"}]}
        for _ in range(3):
            http.post("/v1/chat/completions", json={**body, "max_tokens": 4}).raise_for_status()
        assert http.post("/v1/chat/completions", json={**body, "n": 9}).status_code == 400
        deadline = time.monotonic() + 5
        while True:
            live = http.get(f"{BASE}/live", params={"since": before["time"]}).json()
            answered = sum(sample["tokens_out_per_s"] for sample in live["samples"])
            if answered >= 11:  # 12 tokens, in samples that are about a second long
                break
            assert time.monotonic() < deadline, live
            time.sleep(0.2)
        assert all(sample["time"] > before["time"] for sample in live["samples"])
        grown = live["totals"]["generated_tokens"] - before["totals"]["generated_tokens"]
        assert grown == 12
        counts = [each["latencies"]["5m"]["ttft_ms"]["count"] for each in (before, live)]
        assert counts[1] - counts[0] == 3
        assert live["latencies"]["5m"]["e2e_ms"]["p50"] > 0
        [endpoint] = live["endpoints"]
        assert (endpoint["name"], endpoint["state"]) == (MODEL_ID, "READY")
        [served] = endpoint["served_entities"]
        assert (served["state"], served["traffic_percentage"]) == ("serving", 100)
        assert served["ready"]["max_model_len"] == 2048

        usage = http.get(f"{BASE}/usage").json()
        [user] = usage["users"]
        assert user["name"] == "local"
        assert user["failed"] >= 1
        assert usage["statuses"]["200"] >= 3
        assert http.get(f"{BASE}/expert-load").json() == {"served_entities": []}


@pytest.mark.parametrize(
    ("path", "says"),
    [
        ("live?since=soon", "since is \"soon\""),
        ("live?since=inf", "since is \"inf\""),
        ("live?after=1", "after"),
        ("rows?limit=0", "limit"),
        ("rows?limit=201", "limit"),
        ("rows?status=abc", "status"),
        ("rows?until=x", "until"),
        ("rows?sql=drop", "sql"),
    ],
)  # fmt: skip
def test_wrong_queries_are_named(path: str, says: str) -> None:
    response = client(LOCAL).get(f"{BASE}/{path}")
    assert response.status_code == 400
    assert response.json()["error_code"] == "INVALID_PARAMETER_VALUE"
    assert says in response.json()["message"]


class Table:
    """Three rows of two users, and what it was asked for."""

    def __init__(self) -> None:
        self.asked: dict[str, Any] = {}
        self.rows = {
            f"req-{i}": {"databricks_request_id": f"req-{i}", "requester": who, "endpoint": "dbrx"}
            for i, who in enumerate(("ada", "grace", "ada"))
        }

    async def search(self, **asked: Any) -> dict[str, Any]:
        self.asked = asked
        found = [r for r in self.rows.values() if asked["requester"] in (None, r["requester"])]
        return {"rows": found, "cursor": None}

    async def row(self, databricks_request_id: str) -> dict[str, Any] | None:
        return self.rows.get(databricks_request_id)


def client(principal: Principal, table: Table | None = None) -> TestClient:
    numbers = LiveNumbers()
    for name in ("ada", "grace"):
        call = Call("req-1", time.time(), "chat", Principal(name), "dbrx")
        call.end_time, call.status_code = time.time(), 200
        numbers.began(call)
        numbers.ended(call)
    endpoints = [EndpointState(name, "READY", []) for name in ("dbrx", "secret")]
    experts = [ServedExperts(e.name, e.name, 1, 60.0, [[1]], [[1]]) for e in endpoints]
    app = FastAPI()
    dashboard = Dashboard(numbers, lambda: endpoints, lambda: experts, table or Table())
    app.include_router(dashboard.router())
    for kind in (ValidationError, HTTPException):
        app.add_exception_handler(kind, error_response)

    async def asked_by(scope: Scope, receive: Receive, send: Send) -> None:
        scope["principal"] = principal
        await app(scope, receive, send)

    return TestClient(asked_by)


ADA = Principal("ada", grants=(Grant("CAN_QUERY", "dbrx"),))
MANAGER = Principal("bob", grants=(Grant("CAN_MANAGE", "dbrx"),))


def test_a_user_sees_what_is_theirs() -> None:
    table = Table()
    http = client(ADA, table)
    live = http.get(f"{BASE}/live").json()
    assert [endpoint["name"] for endpoint in live["endpoints"]] == ["dbrx"]
    experts = http.get(f"{BASE}/expert-load").json()["served_entities"]
    assert [served["endpoint"] for served in experts] == ["dbrx"]
    usage = http.get(f"{BASE}/usage").json()
    assert [user["name"] for user in usage["users"]] == ["ada"]
    assert (usage["everybody"], usage["statuses"]) == (False, {})
    for query in ("", "?requester=grace", "?endpoint=dbrx", "?endpoint=dbrx&requester=grace"):
        rows = http.get(f"{BASE}/rows{query}").json()["rows"]
        assert [row["databricks_request_id"] for row in rows] == ["req-0", "req-2"]
    assert http.get(f"{BASE}/rows/req-0").status_code == 200
    assert http.get(f"{BASE}/rows/req-1").status_code == 404
    assert http.get(f"{BASE}/rows/req-9").status_code == 404


def test_who_manages_sees_all_of_it() -> None:
    table = Table()
    admin = client(LOCAL, table)
    assert len(admin.get(f"{BASE}/usage").json()["users"]) == 2
    assert len(admin.get(f"{BASE}/rows").json()["rows"]) == 3
    query = "?endpoint=dbrx&text=a%25b&status=4xx&since=1&until=2&cursor=c&limit=7"
    admin.get(f"{BASE}/rows{query}").raise_for_status()
    assert table.asked == {
        "endpoint": "dbrx", "text": "a%b", "requester": None, "status": "4xx",
        "since": 1.0, "until": 2.0, "cursor": "c", "limit": 7,
    }  # fmt: skip
    manager = client(MANAGER, table)
    assert manager.get(f"{BASE}/rows").json()["rows"] == []  # on others than dbrx not theirs
    assert len(manager.get(f"{BASE}/rows?endpoint=dbrx").json()["rows"]) == 3
    assert manager.get(f"{BASE}/rows/req-1").status_code == 200


def test_without_a_table_the_answer_says_how_to_have_one(server: ServerProcess) -> None:
    response = httpx.get(f"{server.url}{BASE}/rows")
    assert response.status_code == 404
    assert "inference_table_config" in json.loads(response.content)["message"]
