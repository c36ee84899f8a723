"""Two servers with one database: who may, and how much, holds at both."""

from __future__ import annotations

import json
import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest

from dropless.server.identity.principal import Grant
from dropless.server.identity.store import IdentityStore
from tests.server.identity.databases import DATABASES, empty_database
from tests.server.server_process import ServerProcess
from tests.server.tiny_model import MODEL_ID, tiny_endpoint

LIMIT = 20  # requests in an hour
RATE = 20.0  # requests in a second, at both servers together
# Two intervals until another server knows, and what exchanges take on a busy machine.
UNKNOWN_S = 1.5
HTTP = httpx.Client(timeout=60)


@dataclass
class Pair:
    store: IdentityStore
    files: list[str]
    folder: Path
    servers: list[ServerProcess]

    def token(self, name: str) -> str:
        self.store.accounts.create(name, grants=[Grant("CAN_QUERY", MODEL_ID)])
        return self.store.tokens.create(name, created_by="tests")[0].value

    def ask(self, number: int, token: str) -> int:
        return HTTP.post(
            f"{self.servers[number].url}/serving-endpoints/{MODEL_ID}/invocations",
            json={"prompt": "hi", "max_tokens": 1},
            headers={"Authorization": f"Bearer {token}"},
        ).status_code

    def stop_and_start_one(self) -> None:
        """Both stop, one well and one killed, and that one comes back."""
        for server, how in zip(self.servers, (signal.SIGTERM, signal.SIGKILL), strict=True):
            server.signal(how)
        for server in self.servers:
            server.wait(20)
        self.servers[1] = ServerProcess(self.folder, file=self.files[1])

    def taken(self, token: str) -> int:
        """Requests of the last hour, as the second server knows it, with its model loaded or
        not."""
        url = f"{self.servers[1].url}/api/2.0/serving-endpoints/{MODEL_ID}/quota"
        limits = HTTP.get(url, headers={"Authorization": f"Bearer {token}"}).json()["limits"]
        found = {limit["limit_type"]: limit["current"] for limit in limits}
        return int(found["queries_per_hour"])


@pytest.fixture(scope="module", params=DATABASES)
def pair(
    request: pytest.FixtureRequest, model_folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Pair]:
    folder = tmp_path_factory.mktemp("several")
    with empty_database(request.param, folder) as url:
        store = IdentityStore(url)
        store.accounts.create("admin", grants=[Grant("CAN_MANAGE")])
        files = []
        for number in range(2):
            endpoint = tiny_endpoint(str(model_folder))
            endpoint["rate_limits"] = [{"key": "user", "qph": LIMIT, "otpm": 10_000}]
            data = folder / f"data-{number}"
            document = {
                "data": str(data),
                "identity": {"database": url},
                "endpoints": [endpoint],
            }
            file = folder / f"server-{number}.yaml"
            file.write_text(json.dumps(document))  # JSON is YAML
            files.append(str(file))
        servers = [ServerProcess(model_folder, file=file) for file in files]
        for server in servers:
            server.wait_until_ready()
        made = Pair(store, files, model_folder, servers)
        yield made
        for server in made.servers:
            server.close()
        store.close()


def test_a_token_made_at_one_is_good_at_the_other_and_bad_when_revoked(pair: Pair) -> None:
    admin = {
        "Authorization": f"Bearer {pair.store.tokens.create('admin', created_by='t')[0].value}"
    }
    one, other = (f"{server.url}/api/2.0" for server in pair.servers)
    made = HTTP.post(f"{one}/token/create", headers=admin).json()
    token = {"Authorization": f"Bearer {made['token_value']}"}
    assert HTTP.get(f"{other}/session", headers=token).status_code == 200
    body = {"token_id": made["token_info"]["token_id"]}
    assert HTTP.post(f"{one}/token/delete", headers=admin, json=body).status_code == 200
    assert HTTP.get(f"{other}/session", headers=token).status_code == 401, "with the next request"


def test_a_limit_holds_over_both_and_over_restarts(pair: Pair) -> None:
    token = pair.token("bob")
    assert pair.ask(0, pair.token("carol")) == 200, "another user's use is another window"
    start = time.monotonic()
    admitted = [0, 0]
    for number in range(round(RATE * 2)):
        time.sleep(max(0.0, start + number / RATE - time.monotonic()))
        status = pair.ask(number % 2, token)
        assert status in (200, 429)
        admitted[number % 2] += status == 200
    assert LIMIT <= sum(admitted) <= LIMIT + RATE / 2 * UNKNOWN_S, admitted
    assert min(admitted) > LIMIT / 4, admitted
    assert pair.ask(0, dave := pair.token("dave")) == 200, "told when the server stops"
    pair.stop_and_start_one()
    assert (pair.taken(token), pair.taken(dave)) == (sum(admitted), 1)
