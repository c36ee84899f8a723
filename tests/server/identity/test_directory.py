"""Users, service principals and groups over HTTP, through a real socket."""

from __future__ import annotations

from typing import Any

import httpx
import pytest
from jsonschema import Draft202012Validator

from dropless.server.openapi.document import server_document
from tests.server.identity.door import Door, People

SCIM = "/api/2.0/preview/scim/v2"
PERMISSIONS = "/api/2.0/permissions/serving-endpoints"


class Admin:
    """Asks as an administrator, and sees that answers are as the OpenAPI document says."""

    def __init__(self, door: Door, token: str) -> None:
        self._door = door
        self._token = token
        self._document = server_document()

    def ask(self, method: str, path: str, body: Any = None) -> httpx.Response:
        more = {} if body is None else {"json": body}
        response = self._door.ask(method, SCIM + path, self._token, **more)
        kind, _, name = path.partition("?")[0].lstrip("/").partition("/")
        known = f"{SCIM}/{kind}" + ("/{name}" if name else "")
        answer = self._document["paths"][known][method.lower()]["responses"]
        schema = answer[str(response.status_code)]["content"]["application/json"]["schema"]
        whole = {**schema, "components": self._document["components"]}
        Draft202012Validator(whole).validate(response.json())
        return response

    def names(self, path: str) -> list[str]:
        return [each["id"] for each in self.ask("GET", path).json()["Resources"]]


@pytest.fixture(scope="module")
def admin(door: Door, who: People) -> Admin:
    return Admin(door, who.admin)


def member(name: str) -> dict[str, str]:
    return {"value": name, "display": name}


def test_a_user_from_the_beginning_to_the_end(door: Door, who: People, admin: Admin) -> None:
    assert admin.ask("POST", "/Groups", {"displayName": "first"}).status_code == 200
    asked = {
        "schemas": ["urn:ietf:params:scim:schemas:core:2.0:User"],
        "userName": "zoë@example.com",
        "groups": [{"value": "first"}],
        "grants": ["CAN_QUERY:tiny"],
    }
    made = admin.ask("POST", "/Users", asked)
    assert made.status_code == 200
    assert made.json() == {
        "schemas": ["urn:ietf:params:scim:schemas:core:2.0:User"],
        "id": "zoë@example.com",
        "userName": "zoë@example.com",
        "displayName": "zoë@example.com",
        "active": True,
        "groups": [member("first")],
        "grants": ["CAN_QUERY:tiny"],
    }
    assert admin.ask("GET", "/Users/zoë@example.com").json() == made.json()
    assert "zoë@example.com" in admin.names("/Users")
    again = admin.ask("POST", "/Users", asked)
    assert (again.status_code, again.json()["error_code"]) == (409, "RESOURCE_CONFLICT")
    body = {"user_name": "zoë@example.com"}
    created = door.ask("POST", "/api/2.0/token/create", who.admin, json=body).json()
    token = created["token_value"]
    me = door.ask("GET", "/api/2.0/session", token).json()
    assert (me["groups"], me["grants"]) == (["first"], ["CAN_QUERY:tiny"])
    assert admin.ask("DELETE", "/Users/zoë@example.com").json() == {}
    assert door.ask("GET", "/api/2.0/session", token).status_code == 401
    gone = admin.ask("GET", "/Users/zoë@example.com")
    assert (gone.status_code, gone.json()["error_code"]) == (404, "RESOURCE_DOES_NOT_EXIST")


def test_nobody_deletes_itself(door: Door, who: People, admin: Admin) -> None:
    name = door.ask("GET", "/api/2.0/session", who.admin).json()["name"]
    refused = admin.ask("DELETE", f"/Users/{name}")
    assert refused.status_code == 400
    assert "cannot delete itself" in refused.json()["message"]
    assert name in admin.names("/Users")


def test_service_principals_are_apart_from_users(admin: Admin) -> None:
    made = admin.ask("POST", "/ServicePrincipals", {"displayName": "nightly/report"}).json()
    assert (made["applicationId"], made["groups"], made["grants"]) == ("nightly/report", [], [])
    named = {"displayName": "Shown", "applicationId": "job-7"}
    assert admin.ask("POST", "/ServicePrincipals", named).json()["id"] == "job-7"
    assert "nightly/report" not in admin.names("/Users")
    assert {"nightly/report", "job-7", "robot"} <= set(admin.names("/ServicePrincipals"))
    for method in ("GET", "DELETE"):
        assert admin.ask(method, "/Users/nightly/report").status_code == 404
        assert admin.ask(method, "/ServicePrincipals/bob").status_code == 404
    assert admin.ask("DELETE", "/ServicePrincipals/nightly/report").status_code == 200


def test_a_groups_members(door: Door, who: People, admin: Admin) -> None:
    asked = {"displayName": "team", "members": [{"value": "bob"}], "grants": ["CAN_VIEW:x"]}
    made = admin.ask("POST", "/Groups", asked).json()
    assert (made["members"], made["grants"]) == ([member("bob")], ["CAN_VIEW:x"])
    assert "CAN_VIEW:x" in door.ask("GET", "/api/2.0/session", who.bob).json()["grants"]
    operations: list[dict[str, Any]] = [
        {"op": "add", "value": {"members": [{"value": "carol"}, {"value": "admin"}]}},
        {"op": "add", "path": "members", "value": [{"value": "robot"}]},
        {"op": "remove", "path": 'members[value eq "bob"]'},
        {"op": "remove", "path": "members", "value": [{"value": "admin"}]},
    ]
    changed = admin.ask("PATCH", "/Groups/team", {"Operations": operations}).json()
    assert changed["members"] == [member("carol"), member("robot")]
    assert "CAN_VIEW:x" not in door.ask("GET", "/api/2.0/session", who.bob).json()["grants"]
    half: Any = [operations[0], {"op": "remove", "path": 'members[value eq "bob"]'}]
    refused = admin.ask("PATCH", "/Groups/team", {"Operations": half})
    assert (refused.status_code, "'bob' is not in" in refused.json()["message"]) == (404, True)
    assert admin.ask("GET", "/Groups/team").json() == changed, "all operations or none"
    assert admin.ask("DELETE", "/Groups/team").json() == {}
    assert "team" not in admin.names("/Groups")
    assert "carol" in admin.names("/Users")


def test_pages_and_filters(admin: Admin) -> None:
    names = admin.names("/Users")
    assert len(names) >= 3
    page = admin.ask("GET", "/Users?startIndex=2&count=1").json()
    assert [each["id"] for each in page["Resources"]] == names[1:2]
    assert (page["totalResults"], page["startIndex"], page["itemsPerPage"]) == (len(names), 2, 1)
    assert admin.names(f"/Users?startIndex={len(names) + 1}") == []
    assert admin.names('/Users?filter=userName eq "bob"') == ["bob"]
    assert admin.names('/Groups?filter=displayName eq "none"') == []
    for query in ("filter=userName co b", 'filter=grants eq "x"', "count=-1", "startIndex=x"):
        assert admin.ask("GET", f"/Users?{query}").status_code == 400


def test_permissions_on_all_endpoints(door: Door, who: People, admin: Admin) -> None:
    admin.ask("POST", "/Users", {"userName": "eve"})
    body = {"user_name": "eve"}
    token = door.ask("POST", "/api/2.0/token/create", who.admin, json=body).json()["token_value"]
    level = {"user_name": "eve", "permission_level": "CAN_MANAGE"}
    change = {"access_control_list": [level]}
    assert door.ask("PATCH", f"{PERMISSIONS}/*", token, json=change).status_code == 403
    assert door.ask("PATCH", f"{PERMISSIONS}/*", who.admin, json=change).status_code == 200
    assert door.ask("GET", "/api/2.0/session", token).json()["is_admin"]
    assert admin.ask("DELETE", "/Users/eve").status_code == 200


@pytest.mark.parametrize(
    ("path", "body", "status", "says"),
    [
        ("/Users", {}, 400, "userName"),
        ("/Users", {"userName": "a\nb"}, 400, "printable"),
        ("/Users", {"userName": "x", "active": False}, 400, "active"),
        ("/Users", {"userName": "x", "roles": []}, 400, "roles"),
        ("/Users", {"userName": "x", "grants": ["CAN_EAT"]}, 400, "CAN_EAT"),
        ("/Users", {"userName": "x", "groups": [{"value": "nothing"}]}, 404, "'nothing'"),
        ("/ServicePrincipals", {"userName": "x"}, 400, "displayName"),
        ("/Groups", {"displayName": "g", "members": [{"value": "nobody"}]}, 404, "'nobody'"),
        ("/Groups", [], 400, "JSON object"),
    ],
)
def test_bodies_that_are_none(admin: Admin, path: str, body: Any, status: int, says: str) -> None:
    response = admin.ask("POST", path, body)
    assert response.status_code == status
    assert says in response.json()["message"]
    assert "x" not in admin.names("/Users")
    assert "g" not in admin.names("/Groups")


@pytest.mark.parametrize(
    "operations",
    [
        [],
        [{"op": "replace", "value": {"members": []}}],
        [{"op": "add", "path": 'members[value eq "bob"]'}],
        [{"op": "remove", "path": "members"}],
        [{"op": "add", "path": "displayName", "value": [{"value": "x"}]}],
    ],
)
def test_operations_that_are_none(admin: Admin, operations: Any) -> None:
    response = admin.ask("PATCH", "/Groups/first", {"Operations": operations})
    assert response.status_code == 400, response.text


def test_it_is_an_administrators(door: Door, who: People) -> None:
    for kind in ("Users", "ServicePrincipals", "Groups"):
        calls = [("GET", kind), ("POST", kind), ("GET", f"{kind}/bob"), ("DELETE", f"{kind}/bob")]
        for method, path in [*calls, *([("PATCH", "Groups/x")] if kind == "Groups" else [])]:
            for token in (who.bob, who.carol):
                response = door.ask(method, f"{SCIM}/{path}", token)
                assert (response.status_code, "CAN_MANAGE" in response.text) == (403, True)
            assert door.ask(method, f"{SCIM}/{path}").status_code == 401


def test_the_platforms_own_client(door: Door, who: People) -> None:
    sdk = pytest.importorskip("databricks.sdk")
    iam, errors = sdk.service.iam, sdk.errors
    client = sdk.WorkspaceClient(host=door.url, token=who.admin, auth_type="pat")
    assert client.users.create(user_name="yan@example.com").id == "yan@example.com"
    assert {"admin", "yan@example.com"} <= {user.user_name for user in client.users.list()}
    [found] = client.users.list(filter='userName eq "yan@example.com"')
    group = client.groups.create(display_name="crew", members=[iam.ComplexValue(value="bob")])
    operations = [
        iam.Patch(op=iam.PatchOp.ADD, value={"members": [{"value": found.id}]}),
        iam.Patch(op=iam.PatchOp.REMOVE, path='members[value eq "bob"]'),
    ]
    client.groups.patch(id=group.id, operations=operations)
    assert [each.value for each in client.groups.get(group.id).members] == ["yan@example.com"]
    assert client.service_principals.create(display_name="job").application_id == "job"
    client.service_principals.delete("job")
    client.groups.delete("crew")
    client.users.delete("yan@example.com")
    with pytest.raises(errors.ResourceDoesNotExist):
        client.users.get("yan@example.com")
