"""Real clients on a real server with users, limits and a model."""

from __future__ import annotations

import collections
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from dropless.server.identity.principal import Grant
from tests.server.identity.door import People
from tests.server.server_process import ServerProcess
from tests.server.tiny_model import MAX_MODEL_LEN, tiny_endpoint

USER: Any = [{"role": "user", "content": "Name three colours of the rainbow."}]


@pytest.fixture(scope="module")
def server(model_folder: Path, data: Path, who: People) -> Iterator[ServerProcess]:
    del who
    limits: dict[str, list[dict[str, Any]]] = {
        "tiny": [],
        "limited": [{"key": "user", "qps": 1}, {"key": "user", "qph": 1000, "itpm": 100_000}],
        "small": [{"key": "user", "otpm": 100}],
        "few": [{"key": "user", "calls": 1}],
    }
    endpoints = []
    for name, rate_limits in limits.items():
        endpoint = tiny_endpoint(str(model_folder), name)
        endpoint["served_entities"][0]["name"] = "tiny"  # one engine for all of them
        endpoints.append({**endpoint, "rate_limits": rate_limits})
    file = data / "dropless.yaml"
    file.write_text(json.dumps({"data": str(data), "endpoints": endpoints}))
    server = ServerProcess(model_folder, file=str(file)).wait_until_ready()
    yield server
    server.close()


def client(server: ServerProcess, token: str, **options: Any) -> openai.OpenAI:
    options = {"max_retries": 0, **options}
    return openai.OpenAI(base_url=f"{server.url}/v1", api_key=token, **options)


def ask(client: openai.OpenAI, model: str = "tiny", **more: Any) -> Any:
    more = {"max_tokens": 4, "messages": USER, **more}
    return client.chat.completions.create(model=model, **more)


def test_openais_client_knows_what_is_wrong(server: ServerProcess, who: People) -> None:
    assert ask(client(server, who.bob)).choices[0].message.content is not None
    with pytest.raises(openai.AuthenticationError, match="not one of this"):
        ask(client(server, "none"))
    with pytest.raises(openai.PermissionDeniedError, match="carol needs CAN_QUERY on 'tiny'"):
        ask(client(server, who.carol))
    with pytest.raises(openai.PermissionDeniedError):
        ask(client(server, who.bob), "elsewhere")  # whether it exists is none of bob's business
    with pytest.raises(openai.NotFoundError):
        ask(client(server, who.admin), "elsewhere")
    assert [model.id for model in client(server, who.carol).models.list()] == [
        "tiny",
        "limited",
        "small",
        "few",
    ]
    assert [model.id for model in client(server, who.bob).models.list()] == ["tiny", "limited"]


def test_a_revoked_token_is_out_at_the_next_request(server: ServerProcess, who: People) -> None:
    token, info = who.store.tokens.create("bob", created_by="tests")
    mine = client(server, token.value)
    ask(mine)
    who.store.tokens.revoke(info.token_id)
    with pytest.raises(openai.AuthenticationError, match="revoked"):
        ask(mine)


def test_a_limit_is_refused_and_its_retry_after_is_enough(
    server: ServerProcess, who: People
) -> None:
    impatient = client(server, who.robot)
    ask(impatient, "limited")
    with pytest.raises(openai.RateLimitError) as error:
        collections.deque((ask(impatient, "limited") for _ in range(5)), maxlen=0)
    response = error.value.response
    assert response.headers["retry-after"] == "1"
    body = response.json()["error"]
    assert body["message"] == "Rate limit exceeded: QPS limit of 1 queries reached"
    assert (body["type"], body["code"]) == ("rate_limit_exceeded", 429)
    assert (body["limit_type"], body["limit"]) == ("queries_per_second", 1)
    patient = client(server, who.robot, max_retries=2)
    began = time.monotonic()
    for _ in range(3):
        ask(patient, "limited")
    assert time.monotonic() - began > 1.9


def test_platforms_paths_have_the_same_refusal(server: ServerProcess, who: People) -> None:
    headers = {"Authorization": f"Bearer {who.admin}"}
    url = f"{server.url}/serving-endpoints/few/invocations"
    body = {"messages": USER, "max_tokens": 1}
    assert httpx.post(url, json=body, headers=headers).status_code == 200
    refused = httpx.post(url, json=body, headers=headers)
    assert refused.status_code == 429
    assert refused.json()["error"]["limit_type"] == "queries_per_minute"
    assert 50 <= int(refused.headers["retry-after"]) <= 60


def used(server: ServerProcess, token: str, endpoint: str) -> dict[str, int]:
    headers = {"Authorization": f"Bearer {token}"}
    url = f"{server.url}/api/2.0/serving-endpoints/{endpoint}/quota"
    limits = httpx.get(url, headers=headers).json()["limits"]
    return {limit["limit_type"]: limit["current"] for limit in limits}


def test_output_is_reserved_while_it_runs_and_given_back(
    server: ServerProcess, who: People
) -> None:
    who.store.accounts.create("olga", grants=[Grant("CAN_QUERY")])
    token = who.store.tokens.create("olga", created_by="tests")[0].value
    mine = client(server, token)
    answer = mine.chat.completions.with_raw_response.create(
        model="small", messages=USER, max_tokens=80, extra_body={"ignore_eos": True, "stop": "zq"}
    )
    assert answer.headers["x-ratelimit-limit-tokens"] == "100"
    assert answer.headers["x-ratelimit-remaining-tokens"] == "20"
    generated = answer.parse().usage.completion_tokens  # type: ignore[union-attr]
    assert used(server, token, "small") == {"output_tokens_per_minute": generated}
    # Without max_tokens it may have what the limit lets through, and no more; a stream left early
    # gives back what it did not use.
    who.store.accounts.create("pia", grants=[Grant("CAN_QUERY")])
    token = who.store.tokens.create("pia", created_by="tests")[0].value
    mine = client(server, token)
    with ask(
        mine, "small", max_tokens=None, stream=True, extra_body={"ignore_eos": True}
    ) as stream:
        assert stream.response.headers["x-ratelimit-remaining-tokens"] == "0"
        next(iter(stream))
    deadline = time.monotonic() + 10
    while used(server, token, "small")["output_tokens_per_minute"] == 100:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    left = 100 - used(server, token, "small")["output_tokens_per_minute"]
    with pytest.raises(openai.RateLimitError):
        ask(mine, "small", max_tokens=left + 1)
    ask(mine, "small", max_tokens=left)


def test_without_max_tokens_an_answer_ends_where_its_limit_does(
    server: ServerProcess, who: People
) -> None:
    who.store.accounts.create("quentin", grants=[Grant("CAN_QUERY")])
    token = who.store.tokens.create("quentin", created_by="tests")[0].value
    answer = ask(
        client(server, token), "small", max_tokens=None, n=2, extra_body={"ignore_eos": True}
    )
    assert answer.usage.completion_tokens == 100
    assert {choice.finish_reason for choice in answer.choices} == {"length"}


def test_a_request_that_is_wrong_takes_nothing(server: ServerProcess, who: People) -> None:
    before = used(server, who.admin, "limited")
    with pytest.raises(openai.BadRequestError):
        ask(client(server, who.admin), "limited", max_tokens=MAX_MODEL_LEN)
    with pytest.raises(openai.BadRequestError):
        ask(client(server, who.admin), "limited", temperature=3)
    assert used(server, who.admin, "limited") == before


def test_nobody_finds_anothers_prompt_in_the_prefix_cache(
    server: ServerProcess, who: People
) -> None:
    prompt = "What somebody asked is nobody else's business, not even by how long it takes. " * 3

    def cached(token: str) -> int:
        answer = client(server, token).completions.create(
            model="tiny", prompt=prompt, max_tokens=1, temperature=0
        )
        details = answer.usage.prompt_tokens_details  # type: ignore[union-attr]
        return details.cached_tokens or 0  # type: ignore[union-attr]

    assert cached(who.bob) == 0
    assert cached(who.bob) > 50
    assert cached(who.robot) == 0
    second = who.store.tokens.create("bob", created_by="tests")[0].value
    assert cached(second) > 50


def test_nothing_that_is_printed_holds_a_token(server: ServerProcess, who: People) -> None:
    tokens = [who.admin, who.bob, who.carol, who.robot]
    for token in tokens:
        for path in (f"/{token}", f"/v1/models/{token}", f"/version?token={token}"):
            httpx.get(f"{server.url}{path}", headers={"Authorization": f"Bearer {token}"})
        httpx.get(f"{server.url}/version", headers={"Authorization": token})
        httpx.get(f"{server.url}/version", headers={"Authorization": f"Bearer {token}x"})
        body = {"model": token, "messages": [{"role": token, "content": token}], token: 1}
        for path in ("/v1/chat/completions", f"/serving-endpoints/{token}/invocations"):
            headers = {"Authorization": f"Bearer {token}", token: token}
            httpx.post(f"{server.url}{path}", json=body, headers=headers)
    time.sleep(0.3)
    printed = "".join(server.output + server.errors)
    assert f"GET /{who.bob[:14]}... 404" in printed
    for token in tokens:
        assert token[14:] not in printed
        assert token[14:30] not in printed
    assert "Traceback" not in printed


def test_no_path_forges_a_line_of_the_log(server: ServerProcess) -> None:
    httpx.get(f"{server.url}/%0a2026-01-01%20INFO%20forged%0d%1b%5b31m")
    time.sleep(0.2)
    lines = "".join(server.errors).splitlines()
    assert not any(line.startswith("2026-01-01 INFO forged") for line in lines)
    assert any("GET /%0a2026-01-01%20INFO%20forged%0d%1b%5b31m 401" in line for line in lines)


def test_the_command_line_and_the_server_see_the_same_store(
    server: ServerProcess, data: Path
) -> None:
    def dropless(*arguments: str) -> str:
        command = [sys.executable, "-m", "dropless.cli.main", *arguments]
        config = ("--config", str(data / "dropless.yaml"))
        done = subprocess.run(
            [*command, *config], capture_output=True, text=True, check=True, timeout=60
        )
        return done.stdout.strip()

    token = dropless("tokens", "create", "zoe", "--grant", "CAN_QUERY:tiny")
    assert ask(client(server, token)).usage.completion_tokens <= 4
    dropless("tokens", "revoke", token[:14])
    with pytest.raises(openai.AuthenticationError):
        ask(client(server, token))


def test_it_does_not_start_on_a_public_address_without_tokens(tmp_path: Path) -> None:
    """Told before the model is looked at."""
    command = [sys.executable, "-m", "dropless.cli.main", "serve", "/no/such/model"]
    environment = {**os.environ, "HOME": str(tmp_path)}
    options = ["--host", "0.0.0.0", "--port", "0"]
    done = subprocess.run(
        [*command, *options], capture_output=True, text=True, env=environment, timeout=60
    )
    assert done.returncode == 1
    assert "dropless tokens create" in done.stderr
    assert "--insecure-open" in done.stderr
    done = subprocess.run(
        [*command, *options, "--insecure-open"],
        capture_output=True,
        text=True,
        env=environment,
        timeout=60,
    )
    assert "/no/such/model" in done.stderr  # it came so far
