"""Who may make which management call."""

from __future__ import annotations

from pathlib import Path

import pytest

from dropless.errors import PermissionDeniedError
from dropless.server.configuration.endpoint_settings import EndpointSettings
from dropless.server.identity.principal import Grant, Principal
from dropless.server.management.local_models import check_local_models
from tests.server.identity.door import Door, People

ENDPOINTS = "/api/2.0/serving-endpoints"
CONFIG = {"served_entities": [{"entity_name": "no-such-model"}]}


CALLS = [
    ("GET", f"{ENDPOINTS}/tiny", None, "CAN_VIEW"),
    ("GET", f"{ENDPOINTS}/tiny/openapi", None, "CAN_VIEW"),
    ("POST", ENDPOINTS, {"name": "tiny", "config": CONFIG}, "CAN_MANAGE"),
    ("PUT", f"{ENDPOINTS}/tiny/config", CONFIG, "CAN_MANAGE"),
    ("PUT", f"{ENDPOINTS}/tiny/ai-gateway", {}, "CAN_MANAGE"),
    ("DELETE", f"{ENDPOINTS}/tiny", None, "CAN_MANAGE"),
    ("POST", "/api/2.0/config/reload", None, "administrator"),
]


@pytest.mark.parametrize(("method", "path", "body", "needs"), CALLS)
def test_each_call_needs_its_permission(
    door: Door, who: People, method: str, path: str, body: object, needs: str
) -> None:
    """Those who may are told that there is nothing, the others only that they may not."""
    may = {
        who.admin: True,
        who.carol: needs == "CAN_VIEW",
        who.bob: needs == "CAN_VIEW",  # who may query may see
        who.robot: needs == "CAN_VIEW",
    }
    for token, allowed in may.items():
        response = door.ask(method, path, token, json=body)
        if allowed:
            assert response.status_code in (400, 404), response.text
        else:
            assert response.status_code == 403
            assert response.json()["error_code"] == "PERMISSION_DENIED"
            assert "CAN_MANAGE" in response.json()["message"]
    assert door.ask(method, path, json=body).status_code == 401


def test_who_manages_one_endpoint_serves_nothing_from_the_servers_disk(
    door: Door, who: People, tmp_path: Path
) -> None:
    who.store.accounts.create("mary", grants=[Grant("CAN_MANAGE", "mine")])
    mary = who.store.tokens.create("mary", created_by="tests")[0].value
    answers = set()
    for path in (str(tmp_path), str(tmp_path / "nothing"), "./a.gguf", "org/a.gguf", "~/model"):
        body = {"name": "mine", "config": {"served_entities": [{"entity_name": path}]}}
        response = door.ask("POST", ENDPOINTS, mary, json=body)
        answers.add((response.status_code, response.json()["message"].replace(path, "")))
        assert door.ask("POST", ENDPOINTS, who.admin, json=body).status_code in (400, 404), path
    [(status, says)] = answers
    assert status == 403
    assert "mary needs CAN_MANAGE on all endpoints" in says
    entity = {"entity_name": "smollm2-135m-instruct", "engine": {"tokenizer_path": str(tmp_path)}}
    body = {"name": "mine", "config": {"served_entities": [entity]}}
    assert door.ask("POST", ENDPOINTS, mary, json=body).status_code == 403


def test_what_is_published_and_what_an_endpoint_has_already(tmp_path: Path) -> None:
    mary = Principal("mary", grants=(Grant("CAN_MANAGE", "mine"),))

    def endpoint(model: str, **engine: str) -> EndpointSettings:
        entity = {"model": model, "engine": engine}
        return EndpointSettings.model_validate(
            {"name": "mine", "served_entities": [entity]}, strict=False
        )

    check_local_models(mary, endpoint("smollm2-135m-instruct"))
    check_local_models(mary, endpoint("databricks/dbrx-instruct"))
    check_local_models(mary, endpoint("dbrx", weights="random"))
    with pytest.raises(PermissionDeniedError):
        check_local_models(mary, endpoint("dbrx"))
    old = endpoint(str(tmp_path), tokenizer_path="/t")
    check_local_models(mary, endpoint(str(tmp_path), tokenizer_path="/t", device="cpu"), old)
    with pytest.raises(PermissionDeniedError):
        check_local_models(mary, endpoint(str(tmp_path), tokenizer_path="/u"), old)
    with pytest.raises(PermissionDeniedError):
        check_local_models(mary, endpoint(str(tmp_path.parent)), old)


def test_what_may_not_be_seen_is_not_told_from_what_is_not_there(door: Door, who: People) -> None:
    hidden = door.ask("GET", f"{ENDPOINTS}/secret", who.bob)
    assert hidden.status_code == 403
    assert "'secret'" in hidden.json()["message"]
    assert door.ask("GET", f"{ENDPOINTS}/secret", who.carol).status_code == 404


def test_the_list_is_open_to_all_who_are_known(door: Door, who: People) -> None:
    for path in (ENDPOINTS, ENDPOINTS + "/"):
        assert door.ask("GET", path, who.bob).json() == {"endpoints": []}
        assert door.ask("GET", path).status_code == 401
