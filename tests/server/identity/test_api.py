"""The management calls for tokens and permissions, over a real socket."""

from __future__ import annotations

import time
from typing import Any

import pytest

from tests.server.identity.door import Door, People


def test_a_token_is_created_used_listed_and_deleted(door: Door, who: People) -> None:
    asked = {"comment": "laptop", "lifetime_seconds": 600}
    before = int(time.time() * 1000) - 20  # a clock may be set back a little meanwhile
    made = door.ask("POST", "/api/2.0/token/create", who.admin, json=asked)
    assert made.status_code == 200
    assert made.headers["cache-control"] == "no-store"
    info = made.json()["token_info"]
    token = made.json()["token_value"]
    assert set(info) >= {"token_id", "creation_time", "expiry_time", "comment"}
    assert token.startswith(info["token_id"])
    assert before <= info["creation_time"] <= time.time() * 1000 + 20
    assert info["expiry_time"] == info["creation_time"] + 600_000
    assert door.ask("GET", "/api/2.0/session", token).json()["name"] == "admin"
    listed = door.ask("GET", "/api/2.0/token/list", token).json()["token_infos"]
    assert info in listed
    assert token not in str(listed)
    body = {"token_id": info["token_id"]}
    assert door.ask("POST", "/api/2.0/token/delete", token, json=body).json() == {}
    assert door.ask("GET", "/api/2.0/token/list", token).status_code == 401
    again = door.ask("POST", "/api/2.0/token/delete", who.admin, json=body)
    assert again.status_code == 404
    assert again.json()["error_code"] == "RESOURCE_DOES_NOT_EXIST"


def test_without_a_body_a_token_does_not_expire(door: Door, who: People) -> None:
    info = door.ask("POST", "/api/2.0/token/create", who.admin).json()["token_info"]
    assert (info["expiry_time"], info["comment"], info["scopes"]) == (-1, "", [])


def test_tokens_for_others_with_scopes(door: Door, who: People) -> None:
    asked: dict[str, Any] = {"user_name": "bob", "scopes": ["CAN_VIEW:tiny"]}
    token = door.ask("POST", "/api/2.0/token/create", who.admin, json=asked).json()["token_value"]
    me = door.ask("GET", "/api/2.0/session", token).json()
    assert (me["name"], me["grants"]) == ("bob", ["CAN_VIEW:tiny"])
    asked = {"application_id": "robot", "comment": "job", "lifetime_seconds": 60}
    path = "/api/2.0/token-management/on-behalf-of/tokens"
    token = door.ask("POST", path, who.admin, json=asked).json()["token_value"]
    me = door.ask("GET", "/api/2.0/session", token).json()
    assert (me["name"], me["kind"]) == ("robot", "service_principal")


def test_an_administrator_sees_all_tokens(door: Door, who: People) -> None:
    path = "/api/2.0/token-management/tokens"
    infos = door.ask("GET", path, who.admin).json()["token_infos"]
    assert {info["owner_username"] for info in infos} >= {"admin", "bob", "carol", "robot"}
    mine = door.ask("GET", f"{path}?created_by_username=admin", who.admin).json()["token_infos"]
    assert {info["created_by_username"] for info in mine} == {"admin"}
    token, info = who.store.tokens.create("bob", created_by="tests")
    one = door.ask("GET", f"{path}/{info.token_id}", who.admin).json()["token_info"]
    assert (one["owner_username"], one["created_by_username"]) == ("bob", "tests")
    assert door.ask("DELETE", f"{path}/{info.token_id}", who.admin).status_code == 200
    assert door.ask("GET", "/version", token.value).status_code == 401
    assert door.ask("GET", f"{path}/{info.token_id}", who.admin).status_code == 404


def test_who_is_no_administrator_has_their_own_tokens_only(door: Door, who: People) -> None:
    managed = "/api/2.0/token-management"
    for method, path in (
        ("POST", "/api/2.0/token/create"),
        ("POST", f"{managed}/on-behalf-of/tokens"),
        ("GET", f"{managed}/tokens"),
        ("GET", f"{managed}/tokens/{who.bob[:14]}"),
        ("DELETE", f"{managed}/tokens/{who.bob[:14]}"),
    ):
        body = {"application_id": "robot"} if "on-behalf-of" in path else {}
        response = door.ask(method, path, who.bob, **({"json": body} if method == "POST" else {}))
        assert response.status_code == 403, path
        assert response.json()["error_code"] == "PERMISSION_DENIED"
        assert "bob needs CAN_MANAGE" in response.json()["message"]
    token, info = who.store.tokens.create("bob", created_by="tests")
    infos = door.ask("GET", "/api/2.0/token/list", who.bob).json()["token_infos"]
    assert {who.bob[:14], info.token_id} <= {each["token_id"] for each in infos}
    others = {"token_id": who.carol[:14]}
    assert door.ask("POST", "/api/2.0/token/delete", who.bob, json=others).status_code == 404
    assert door.ask("GET", "/version", who.carol).status_code == 200
    own = {"token_id": info.token_id}
    assert door.ask("POST", "/api/2.0/token/delete", who.bob, json=own).status_code == 200
    assert door.ask("GET", "/version", token.value).status_code == 401


def test_a_narrowed_token_of_an_administrator_is_none(door: Door, who: People) -> None:
    body = {"scopes": ["CAN_MANAGE:tiny"]}
    token = door.ask("POST", "/api/2.0/token/create", who.admin, json=body).json()["token_value"]
    assert door.ask("POST", "/api/2.0/token/create", token).status_code == 403
    permissions = "/api/2.0/permissions/serving-endpoints"
    assert door.ask("GET", f"{permissions}/tiny", token).status_code == 200
    assert door.ask("GET", f"{permissions}/other", token).status_code == 403


@pytest.mark.parametrize(
    ("body", "says"),
    [
        (b"{", "not valid JSON"),
        (b"[]", "must be a JSON object"),
        (b'{"lifetime_seconds": "5"}', "lifetime_seconds"),
        (b'{"lifetime_seconds": 0}', "lifetime_seconds"),
        (b'{"lifetime_seconds": 1e300}', "lifetime_seconds"),
        (b'{"comment": 5}', "comment"),
        (b'{"comment": "a\\nb"}', "comment"),
        (b'{"scopes": ["CAN_EAT"]}', "CAN_EAT"),
        (b'{"name": "x"}', "name"),
        (b"[" * 5000, "not valid JSON"),
        (b'{"comment": "\xff"}', "not valid JSON"),
    ],
)
def test_bodies_that_are_none(door: Door, who: People, body: bytes, says: str) -> None:
    response = door.ask("POST", "/api/2.0/token/create", who.admin, content=body)
    assert response.status_code == 400
    assert response.json()["error_code"] == "INVALID_PARAMETER_VALUE"
    assert says in response.json()["message"]


def test_a_token_for_nobody(door: Door, who: People) -> None:
    body = {"user_name": "nobody"}
    response = door.ask("POST", "/api/2.0/token/create", who.admin, json=body)
    assert response.status_code == 404
    assert "'nobody'" in response.json()["message"]


def test_permissions_of_an_endpoint(door: Door, who: People) -> None:
    store = who.store
    store.accounts.create("frank")
    store.accounts.create_group("team")
    path = "/api/2.0/permissions/serving-endpoints/a/b"  # names may have slashes
    asked = {
        "access_control_list": [
            {"user_name": "frank", "permission_level": "CAN_QUERY"},
            {"group_name": "team", "permission_level": "CAN_MANAGE"},
            {"service_principal_name": "robot", "permission_level": "CAN_VIEW"},
        ]
    }
    document = door.ask("PUT", path, who.admin, json=asked).json()
    assert document["object_id"] == "/serving-endpoints/a/b"
    assert document["object_type"] == "serving-endpoint"
    entries = {
        (key, entry[key]): entry["all_permissions"]
        for entry in document["access_control_list"]
        for key in entry
        if key.endswith("_name")
    }
    direct = {"inherited": False}
    assert entries["user_name", "frank"] == [{"permission_level": "CAN_QUERY", **direct}]
    assert entries["group_name", "team"] == [{"permission_level": "CAN_MANAGE", **direct}]
    assert entries["service_principal_name", "robot"] == [
        {"permission_level": "CAN_VIEW", **direct}
    ]
    assert entries["user_name", "admin"] == [
        {
            "permission_level": "CAN_MANAGE",
            "inherited": True,
            "inherited_from_object": ["/serving-endpoints/"],
        }
    ]
    assert door.ask("GET", path, who.admin).json() == document
    change = {"access_control_list": [{"user_name": "frank", "permission_level": "CAN_MANAGE"}]}
    document = door.ask("PATCH", path, who.admin, json=change).json()
    assert len(document["access_control_list"]) == len(entries)
    token, _ = store.tokens.create("frank", created_by="tests")
    assert door.ask("GET", path, token.value).status_code == 200
    assert door.ask("GET", "/api/2.0/permissions/serving-endpoints/c", token.value).status_code == (
        403
    )
    document = door.ask("PUT", path, token.value, json={"access_control_list": []}).json()
    assert all(
        permission["inherited"]
        for entry in document["access_control_list"]
        for permission in entry["all_permissions"]
    )
    assert door.ask("GET", path, token.value).status_code == 403


def test_permission_levels(door: Door, who: People) -> None:
    path = "/api/2.0/permissions/serving-endpoints/tiny/permissionLevels"
    levels = door.ask("GET", path, who.admin).json()["permission_levels"]
    assert [level["permission_level"] for level in levels] == [
        "CAN_VIEW",
        "CAN_QUERY",
        "CAN_MANAGE",
    ]
    assert all(level["description"] for level in levels)


@pytest.mark.parametrize(
    ("entry", "status"),
    [
        ({"permission_level": "CAN_QUERY"}, 400),
        ({"user_name": "bob", "group_name": "x", "permission_level": "CAN_QUERY"}, 400),
        ({"user_name": "bob", "permission_level": "CAN_EAT"}, 400),
        ({"user_name": "bob"}, 400),
        ({"user_name": "nobody", "permission_level": "CAN_QUERY"}, 404),
        ({"group_name": "bob", "permission_level": "CAN_QUERY"}, 404),
    ],
)
def test_access_controls_that_are_none(
    door: Door, who: People, entry: dict[str, str], status: int
) -> None:
    path = "/api/2.0/permissions/serving-endpoints/tiny"
    before = door.ask("GET", path, who.admin).json()
    for method in ("PUT", "PATCH"):
        body = {"access_control_list": [entry]}
        assert door.ask(method, path, who.admin, json=body).status_code == status
    assert door.ask("GET", path, who.admin).json() == before
