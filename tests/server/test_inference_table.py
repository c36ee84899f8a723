"""Every call of a real server has one row, whatever becomes of it and of the server."""

from __future__ import annotations

import asyncio
import json
import signal
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from dropless.tables.search import search
from dropless.tables.search_query import Search
from dropless.tables.session_writer import finish_left_sessions
from dropless.tables.spool_folder import sessions
from dropless.tables.sql import TableQueries
from dropless.tables.table_name import SERVED_ENTITIES, USAGE, TableName
from dropless.tables.table_store import TableStore
from tests.server.server_process import ServerProcess
from tests.server.test_faults import ASKED, post_raw
from tests.server.tiny_model import MODEL_ID, REFUSED, tiny_endpoint

StartServer = Callable[..., ServerProcess]

PAYLOAD = TableName("main", "default", "tiny_payload")
SAMPLED = TableName("ml", "logs", "half_payload")
ASK: Any = {
    "model": MODEL_ID,
    "messages": [{"role": "user", "content": "hi"}],
    "max_tokens": 4,
    "ignore_eos": True,  # a model of random weights may end at once
}
ROWS_S = 20.0


def configuration(folder: Path, data: Path) -> str:
    """The file of a server that has four endpoints and keeps its data in this folder."""
    tiny, half, counted = (tiny_endpoint(str(folder), name) for name in (MODEL_ID, "half", "count"))
    tiny["inference_table_config"] = {"enabled": True}
    tiny["usage_tracking_config"] = {"enabled": True}
    half["inference_table_config"] = {
        "catalog_name": "ml",
        "schema_name": "logs",
        "sampling_fraction": 0.5,
    }
    half["usage_tracking_config"] = {"enabled": True}
    counted["usage_tracking_config"] = {"enabled": True}
    document = {
        "data": str(data),
        "tables": {"flush_seconds": 0.2},
        "endpoints": [tiny, half, counted, tiny_endpoint(str(folder), "unlogged")],
    }
    file = data / "dropless.yaml"
    file.write_text(json.dumps(document))  # JSON is YAML
    return str(file)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("data")


@pytest.fixture(scope="module")
def logging_server(model_folder: Path, data: Path) -> Iterator[ServerProcess]:
    server = ServerProcess(model_folder, file=configuration(model_folder, data))
    yield server.wait_until_ready()
    server.close()


def post(server: ServerProcess, body: Any, path: str = "/v1/chat/completions") -> httpx.Response:
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    return httpx.post(f"{server.url}{path}", content=content, timeout=60)


def row_of(data: Path, response: httpx.Response, name: TableName = PAYLOAD) -> dict[str, Any]:
    """The row of the call, once it is in its table."""
    request_id = response.headers["x-request-id"]
    [row] = wait_for(
        data, name, f"SELECT * FROM \"{name}\" WHERE databricks_request_id = '{request_id}'", 1
    )
    return row


def wait_for(data: Path, name: TableName, sql: str, count: int) -> list[dict[str, Any]]:
    store = TableStore(str(data / "tables"))
    deadline = time.monotonic() + ROWS_S
    while True:
        if store.exists(name):
            result = TableQueries(store, [name]).select(sql)
            rows = [dict(zip(result.columns, row, strict=True)) for row in result]
            if len(rows) >= count:
                return rows
        assert time.monotonic() < deadline
        time.sleep(0.1)


def test_an_answered_call(logging_server: ServerProcess, data: Path) -> None:
    before = time.time()
    asked = {**ASK, "client_request_id": "mine", "usage_context": {"team": "red"}}
    response = post(logging_server, asked)
    store = TableStore(str(data / "tables"))
    deadline = time.monotonic() + 5
    while not (found := search(store, data / "spool", PAYLOAD, Search(text="hi"), 1)):
        assert time.monotonic() < deadline  # it shows as soon as its last byte is out
    assert found[0].databricks_request_id == response.headers["x-request-id"]
    row = row_of(data, response)
    assert row["status_code"] == 200
    assert before - 1 < row["request_time"].timestamp() < time.time() + 1
    assert row["request_date"] == row["request_time"].date()
    assert json.loads(row["request"]) == asked
    assert json.loads(row["response"]) == response.json()
    assert 0 < row["execution_duration_ms"] < 60_000
    assert (row["requester"], row["sampling_fraction"]) == ("local", 1.0)
    assert row["logging_error_codes"] == []
    usage = row_of(data, response, USAGE)
    assert usage["input_token_count"] == response.json()["usage"]["prompt_tokens"]
    assert usage["output_token_count"] == 4
    assert usage["served_entity_id"] == row["served_entity_id"]


def test_a_stream_is_stored_as_one_object(logging_server: ServerProcess, data: Path) -> None:
    response = post(logging_server, {**ASK, "stream": True, "seed": 1, "n": 2})
    deltas: dict[int, str] = {0: "", 1: ""}
    for line in response.text.splitlines():
        if line.startswith("data: {"):
            for choice in json.loads(line[6:])["choices"]:
                deltas[choice["index"]] += choice["delta"].get("content", "")
    stored = json.loads(row_of(data, response)["response"])
    assert stored["object"] == "chat.completion"
    assert {c["index"]: c["message"]["content"] for c in stored["choices"]} == deltas
    assert stored["usage"]["completion_tokens"] == 8


def test_calls_that_fail(logging_server: ServerProcess, data: Path) -> None:
    refused = {**ASK, "messages": [{"role": "user", "content": REFUSED}]}
    for body, status in ((refused, 400), ({**ASK, "temperature": -1}, 400)):
        path = f"/serving-endpoints/{MODEL_ID}/invocations"
        response = post(logging_server, body, path)
        row = row_of(data, response)
        assert row["status_code"] == response.status_code == status
        assert json.loads(row["request"]) == body
        assert json.loads(row["response"]) == response.json()


def test_a_body_that_is_no_text(logging_server: ServerProcess, data: Path) -> None:
    path = f"/serving-endpoints/{MODEL_ID}/invocations"
    response = post(logging_server, b'{"messages": "\xff\x00"}', path)
    assert response.status_code == 400
    assert row_of(data, response)["request"] == '{"messages": "\ufffd\x00"}'


def test_bodies_over_a_mebibyte_are_left_out(logging_server: ServerProcess, data: Path) -> None:
    long = {**ASK, "metadata": {"note": "x" * (1 << 20)}}
    response = post(logging_server, long)
    assert response.status_code == 200
    row = row_of(data, response)
    assert row["request"] is None
    assert row["logging_error_codes"] == ["MAX_REQUEST_SIZE_EXCEEDED"]
    assert json.loads(row["response"]) == response.json()
    many = {"model": MODEL_ID, "prompt": ["hi"] * 56, "max_tokens": 50, "logprobs": 20}
    response = post(logging_server, {**many, "ignore_eos": True}, "/v1/completions")
    assert len(response.content) > 1 << 20
    row = row_of(data, response)
    assert row["response"] is None
    assert row["logging_error_codes"] == ["MAX_RESPONSE_SIZE_EXCEEDED"]


def test_a_client_that_leaves(logging_server: ServerProcess, data: Path) -> None:
    connection = post_raw(logging_server, {**ASKED, "user": "leaves", "stream": True})
    assert connection.recv(1 << 16)
    connection.close()
    sql = "SELECT * FROM tiny_payload WHERE request LIKE '%\"leaves\"%'"
    [row] = wait_for(data, PAYLOAD, sql, 1)
    assert row["status_code"] == 499
    answered = json.loads(row["response"])
    assert answered["choices"][0]["finish_reason"] is None  # what it had got by then
    assert answered["usage"]["completion_tokens"] >= 1


def test_a_sample_of_calls_and_usage_of_all(logging_server: ServerProcess, data: Path) -> None:
    responses = [post(logging_server, {**ASK, "model": "half"}) for _ in range(16)]
    ids = {response.headers["x-request-id"] for response in responses}
    for response in responses[::-1]:
        assert row_of(data, response, USAGE)["status_code"] == 200
    logged = wait_for(data, SAMPLED, "SELECT * FROM half_payload", 1)
    assert 0 < len(logged) < len(ids)
    assert all(row["sampling_fraction"] == 0.5 for row in logged)


def test_endpoints_without_a_table(logging_server: ServerProcess, data: Path) -> None:
    counted = post(logging_server, {**ASK, "model": "count"})
    unlogged = post(logging_server, {**ASK, "model": "unlogged"})
    assert unlogged.status_code == 200
    assert row_of(data, counted, USAGE)["output_token_count"] == 4
    names = TableStore(str(data / "tables")).names()
    assert set(names) <= {PAYLOAD, SAMPLED, USAGE, SERVED_ENTITIES}
    [[count]] = TableQueries(TableStore(str(data / "tables")), [USAGE]).select(
        "SELECT count(*) FROM endpoint_usage WHERE databricks_request_id = "
        f"'{unlogged.headers['x-request-id']}'"
    )
    assert count == 0


def test_served_entities(logging_server: ServerProcess, data: Path) -> None:
    response = post(logging_server, ASK)
    served = row_of(data, response)["served_entity_id"]
    rows = wait_for(data, SERVED_ENTITIES, "SELECT * FROM served_entities", 3)
    assert {row["endpoint_name"] for row in rows} == {MODEL_ID, "half", "count"}
    [row] = [row for row in rows if row["served_entity_id"] == served]
    assert row["endpoint_name"] == MODEL_ID
    assert row["endpoint_config_version"] == 1


def rows(server: ServerProcess, **query: Any) -> dict[str, Any]:
    response = httpx.get(f"{server.url}/api/2.0/dashboard/rows", params=query, timeout=60)
    assert response.status_code == 200, response.text
    return response.json()


def wait_until_shown(server: ServerProcess, request_id: str) -> None:
    """A call shows as soon as its last byte is out, which may be after the client has read it."""
    deadline = time.monotonic() + 5
    while rows(server, limit=1)["rows"][0]["databricks_request_id"] != request_id:
        assert time.monotonic() < deadline


def test_the_dashboard_finds_calls_at_once(logging_server: ServerProcess) -> None:
    ids = []
    for i in range(4):
        body = {**ASK, "messages": [{"role": "user", "content": f"Platypus {i}"}]}
        ids.append(post(logging_server, body).headers["x-request-id"])
    wait_until_shown(logging_server, ids[-1])
    found = rows(logging_server, text="platypus", limit=3)
    assert [row["databricks_request_id"] for row in found["rows"]] == ids[:0:-1]
    row = found["rows"][0]
    assert row["endpoint"] == MODEL_ID
    assert (row["status_code"], row["output_token_count"]) == (200, 4)
    assert abs(row["request_time"] - time.time()) < 60
    rest = rows(logging_server, text="platypus", limit=3, cursor=found["cursor"])
    assert [row["databricks_request_id"] for row in rest["rows"]] == ids[:1]
    assert rest["cursor"] is None
    assert rows(logging_server, text="platypus", status="5xx") == {"rows": [], "cursor": None}
    assert rows(logging_server, text="platypus", endpoint="half")["rows"] == []
    url = f"{logging_server.url}/api/2.0/dashboard/rows"
    whole = httpx.get(f"{url}/{ids[0]}").json()
    assert json.loads(whole["request"])["messages"][0]["content"] == "Platypus 0"
    assert json.loads(whole["response"])["choices"]
    assert httpx.get(f"{url}/req-none").status_code == 404
    assert httpx.get(url, params={"cursor": "none"}).status_code == 400


def test_a_search_that_is_killed_is_told_and_the_next_one_works(
    logging_server: ServerProcess,
) -> None:
    rows(logging_server)
    [worker] = [
        child
        for child in psutil.Process(logging_server.process.pid).children()
        if "dropless.tables.search_worker" in child.cmdline()
    ]
    worker.suspend()
    with ThreadPoolExecutor(1) as thread:
        url = f"{logging_server.url}/api/2.0/dashboard/rows"
        answer = thread.submit(httpx.get, url, timeout=60)
        time.sleep(0.2)
        worker.kill()
        response = answer.result()
    assert (response.status_code, response.json()["error_code"]) == (503, "TEMPORARILY_UNAVAILABLE")
    assert rows(logging_server)["rows"]


def test_an_endpoint_gets_a_table_while_the_server_runs(
    logging_server: ServerProcess, data: Path
) -> None:
    file = data / "dropless.yaml"
    document = json.loads(file.read_text())
    [endpoint] = [e for e in document["endpoints"] if e["name"] == "unlogged"]
    endpoint["inference_table_config"] = {"table_name_prefix": "late"}
    file.write_text(json.dumps(document))
    reload = httpx.post(f"{logging_server.url}/api/2.0/config/reload", timeout=60)
    assert reload.json()["changed"] == ["unlogged"]
    response = post(logging_server, {**ASK, "model": "unlogged"})
    row = row_of(data, response, TableName("main", "default", "late_payload"))
    assert row["status_code"] == 200
    sql = "SELECT * FROM served_entities WHERE endpoint_name = 'unlogged'"
    [entity] = wait_for(data, SERVED_ENTITIES, sql, 1)
    assert entity["endpoint_config_version"] == 2
    assert entity["served_entity_id"] == row["served_entity_id"]


def test_health_says_how_logging_goes(logging_server: ServerProcess) -> None:
    health = logging_server.health().json()["inference_tables"]
    assert (health["status"], health["dropped_rows"]) == ("ok", 0)
    assert health["waiting_bytes"] >= 0


async def load(server: ServerProcess, answers: int) -> dict[str, bool]:
    """Calls from 16 clients; the server is killed after so many answers. Of each call that it has
    begun to answer the id, and whether the answer came whole."""
    told: dict[str, bool] = {}

    async def client(number: int, http: httpx.AsyncClient) -> None:
        # Every second one asks for so much that it waits for its answer when the server is killed.
        body = {**ASKED, "max_tokens": 3 + 400 * (number % 2), "stream": True}
        while True:
            request_id = None
            try:
                url = f"{server.url}/v1/completions"
                async with http.stream("POST", url, json=body) as response:
                    request_id = response.headers["x-request-id"]
                    told[request_id] = False
                    text = (await response.aread()).decode()
                    told[request_id] = "[DONE]" in text
            except httpx.HTTPError:
                return

    async def kill() -> None:
        while sum(told.values()) < answers:
            await asyncio.sleep(0.01)
        server.process.kill()

    async with httpx.AsyncClient(timeout=30) as http:
        await asyncio.gather(*(client(i, http) for i in range(16)), kill())
    return told


def test_a_server_killed_under_load_has_a_row_of_every_call(
    start_server: StartServer, model_folder: Path, tmp_path: Path
) -> None:
    server = start_server(file=configuration(model_folder, tmp_path)).wait_until_ready()
    [writer] = [
        child
        for child in psutil.Process(server.process.pid).children()
        if "dropless.tables.writer" in child.cmdline()
    ]
    told = asyncio.run(load(server, answers=40))
    writer.kill()
    writer.wait()
    store = TableStore(str(tmp_path / "tables"))
    finish_left_sessions(tmp_path / "spool", store)
    assert not sessions(tmp_path / "spool")
    for name in (PAYLOAD, USAGE):
        result = TableQueries(store, [name]).select(
            f'SELECT databricks_request_id, list(status_code) FROM "{name}" GROUP BY 1'
        )
        found = dict(result)
        assert all(len(statuses) == 1 for statuses in found.values())
        assert told.keys() <= found.keys()
        # 16 may have been on their way to an answer. Whose answer came whole may have been killed
        # before its end was noted: those of the last moment.
        assert len(found) <= len(told) + 16
        lost = [call for call, whole in told.items() if whole and found[call] == [500]]
        assert len(lost) <= 16
    result = TableQueries(store, [PAYLOAD]).select(
        "SELECT request, response->>'$.error.code' FROM tiny_payload WHERE status_code = 500"
    )
    rows = list(result)
    assert rows
    for request, code in rows:
        assert json.loads(request)["prompt"] == "hi"
        assert code == "server_stopped"


def test_a_server_that_is_stopped_leaves_no_spool(
    logging_server: ServerProcess, data: Path
) -> None:
    """The last one that needs the shared server."""
    ids = [post(logging_server, ASK).headers["x-request-id"] for _ in range(3)]
    logging_server.signal(signal.SIGTERM)
    assert logging_server.wait(20) == 0
    assert not sessions(data / "spool")
    found = TableQueries(TableStore(str(data / "tables")), [PAYLOAD]).select(
        "SELECT databricks_request_id, status_code FROM tiny_payload "
        "ORDER BY request_time DESC LIMIT 3"
    )
    assert list(found) == [(request_id, 200) for request_id in ids[::-1]]
