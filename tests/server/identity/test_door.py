"""Who comes in: every path, tokens and sessions, browsers, addresses; over real sockets."""

from __future__ import annotations

import json
import re
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from fastapi import FastAPI
from starlette.routing import BaseRoute, Mount, Route

from dropless.errors import SettingsError
from dropless.server.app import is_public
from dropless.server.identity import gatekeeper as gatekeeper_module
from dropless.server.identity.gatekeeper import Gatekeeper
from dropless.server.identity.principal import ANYONE, LOCAL, Grant, Holder
from dropless.server.identity.secret import SESSION_S, Secret
from dropless.server.identity.settings import IdentitySettings
from dropless.server.identity.store import IdentityStore
from dropless.server.identity.token import Token
from tests.server.identity.door import Door, People, people, standing


@pytest.fixture(scope="module")
def open_door(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Door]:
    with standing(tmp_path_factory.mktemp("empty") / "data") as made:
        yield made


def requests_of(routes: list[BaseRoute]) -> Iterator[tuple[str, str]]:
    """A method and a path for each route, mounted ones too."""
    for route in routes:
        if isinstance(route, Mount):
            inner = route.routes if isinstance(route.routes, list) else []
            for method, path in requests_of(inner):
                yield method, route.path + path
            yield "GET", f"{route.path}/some/file"
        elif hasattr(route, "original_router"):  # how FastAPI keeps an included one
            yield from requests_of(route.original_router.routes)
        else:
            assert isinstance(route, Route), type(route)
            for method in route.methods or {"GET"}:
                yield method, re.sub(r"{[^}]*}", "x", route.path)


def test_every_route_is_closed(door: Door, who: People) -> None:
    app: FastAPI = door.app

    @app.get("/added/later")
    async def added_later() -> str:
        return "secret"

    asked = sorted(set(requests_of(app.routes)))
    assert len(asked) > 30
    assert ("POST", "/v1/chat/completions") in asked
    assert ("GET", "/added/later") in asked
    for method, path in asked:
        if is_public(path):
            assert method in ("GET", "HEAD")
            continue
        response = door.ask(method, path)
        assert response.status_code == 401, (method, path)
        assert response.headers["www-authenticate"].startswith("Bearer")
        assert door.ask(method, path, Token.new().value).status_code == 401, (method, path)
    assert door.ask("GET", "/added/later", who.carol).json() == "secret"


def test_health_and_the_pages_are_public_and_no_more(door: Door) -> None:
    for path in ("/health", "/", "/dashboard", "/playground/js/login.js"):
        assert door.ask("GET", path).status_code == 200
    for path in (
        "/health/",
        "/health/../version",
        "/health%2f..%2fversion",
        "//health",
        "/Health",
        "/playground",
        "//playground/js/login.js",
        "/dashboard/live",
        "/v1/playground/",
    ):
        connection = socket.create_connection(("127.0.0.1", door.port))
        connection.sendall(f"GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
        assert connection.recv(100).startswith(b"HTTP/1.1 401"), path
        connection.close()


@pytest.mark.parametrize(
    "path",
    [
        "/playground/../version",
        "/playground/../../../../../../../etc/passwd",
        "/playground/..%2f..%2fapp.py",
        "/playground/%2e%2e/%2e%2e/app.py",
        "/playground/..%5c..%5capp.py",
        "/playground//etc/passwd",
        "/playground/js/../../pages.py",
        "/playground/%00",
        "/playground/" + "a" * 5000,
        "/playground/js",
    ],
)
def test_below_the_pages_there_is_nothing_else(door: Door, path: str) -> None:
    with socket.create_connection(("127.0.0.1", door.port)) as connection:
        connection.sendall(f"GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
        assert connection.recv(100).split()[1] in (b"401", b"404")


def test_paths_that_are_none_tell_nothing(door: Door, who: People) -> None:
    assert door.ask("GET", "/no/such/path").status_code == 401
    assert door.ask("GET", "/no/such/path", who.bob).status_code == 404


@pytest.mark.parametrize("path", ["/v1/models", "/serving-endpoints/chat/completions"])
def test_401_in_openais_shape(door: Door, path: str) -> None:
    response = door.ask("GET", path)
    error = response.json()["error"]
    assert (error["type"], error["code"]) == ("invalid_request_error", "invalid_api_key")
    assert "Authorization: Bearer dlp_" in error["message"]
    assert response.headers["x-request-id"].startswith("req-")


@pytest.mark.parametrize("path", ["/api/2.0/token/list", "/serving-endpoints/tiny/invocations"])
def test_401_in_the_platforms_shape(door: Door, path: str) -> None:
    body = door.ask("GET", path).json()
    assert body["error_code"] == "UNAUTHENTICATED"
    assert "Authorization: Bearer dlp_" in body["message"]


@pytest.mark.parametrize(
    "authorization",
    [
        "",
        "Bearer",
        "Bearer none",
        "Basic dG9rZW46eA==",
        "dlp_x",
        "Bearer \xff",
        "x" * 999,
    ],
)
def test_other_authorizations(door: Door, authorization: str) -> None:
    headers = {"Authorization": authorization.encode("latin-1")}
    response = door.ask("GET", "/version", headers=headers)
    assert response.status_code == 401


def test_a_token_by_another_spelling_of_bearer(door: Door, who: People) -> None:
    headers = {"authorization": f"bearer  {who.bob}"}
    assert httpx.get(f"{door.url}/version", headers=headers).status_code == 200


def test_two_authorizations_are_none(door: Door, who: People) -> None:
    headers = [("Authorization", f"Bearer {who.bob}"), ("Authorization", f"Bearer {who.admin}")]
    response = httpx.get(f"{door.url}/version", headers=headers)
    assert response.status_code == 400
    assert "authorization is there twice" in response.json()["error"]["message"]


def test_revoked_expired_and_deleted(door: Door, who: People) -> None:
    store = who.store
    token, _ = store.tokens.create("bob", created_by="tests")
    assert door.ask("GET", "/version", token.value).status_code == 200
    store.tokens.revoke(token.token_id)
    assert door.ask("GET", "/version", token.value).status_code == 401
    short, _ = store.tokens.create("bob", created_by="tests", lifetime_s=1)
    assert door.ask("GET", "/version", short.value).status_code == 200
    time.sleep(1.01)
    response = door.ask("GET", "/version", short.value)
    assert response.status_code == 401
    assert "expired" in response.json()["error"]["message"]
    store.accounts.create("dave", grants=[Grant("CAN_VIEW")])
    his, _ = store.tokens.create("dave", created_by="tests")
    assert door.ask("GET", "/version", his.value).status_code == 200
    store.accounts.delete("dave")
    assert door.ask("GET", "/version", his.value).status_code == 401


def test_a_call_that_is_turned_away_is_told_to_those_who_watch(door: Door) -> None:
    before = len(door.watcher.ended_calls)
    door.ask("POST", "/v1/chat/completions", content=b"{}")
    door.ask("POST", "/serving-endpoints/a/b/invocations", content=b"{}")
    door.ask("GET", "/v1/models")
    chat, invocation = door.watcher.ended_calls[before:]
    assert (chat.status_code, chat.principal, chat.endpoint, chat.api) == (401, None, "", "chat")
    assert (invocation.status_code, invocation.endpoint) == (401, "a/b")


def test_a_store_that_is_made_closes_an_open_server_at_once(tmp_path: Path) -> None:
    with standing(tmp_path / "data") as door:
        assert door.ask("GET", "/version").status_code == 200
        assert door.ask("GET", "/api/2.0/session").json() == {
            "name": "local",
            "kind": "user",
            "groups": [],
            "grants": ["CAN_MANAGE"],
            "is_admin": True,
            "needs_token": False,
        }
        response = door.ask("POST", "/api/2.0/token/create", json={})
        assert response.status_code == 400
        assert "dropless tokens create" in response.json()["message"]
        with people(tmp_path / "data") as made:
            assert door.ask("GET", "/version").status_code == 401
            assert door.ask("GET", "/version", made.bob).status_code == 200


def test_an_open_server_takes_any_key(open_door: Door) -> None:
    for key in ("none", "sk-123", Token.new().value):
        assert open_door.ask("GET", "/v1/models", key).status_code == 200


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("127.0.0.1", 200),
        ("127.0.0.1:8000", 200),
        ("127.1.2.3", 200),
        ("localhost:1", 200),
        ("LOCALHOST.", 200),
        ("dropless.localhost", 200),
        ("[::1]:8000", 200),
        ("evil.example", 403),
        ("127.0.0.1.evil.example", 403),
        ("localhost.evil.example:8000", 403),
        ("192.168.1.2:8000", 403),
        ("0.0.0.0", 403),
        ("[::]", 403),
        ("", 403),
        ("127.0.0.1@evil.example", 403),
    ],
)
def test_names_of_an_open_server(open_door: Door, host: str, status: int) -> None:
    """Against DNS rebinding."""
    assert open_door.ask("GET", "/version", headers={"Host": host}).status_code == status


def test_names_that_the_configuration_knows(tmp_path: Path) -> None:
    with standing(tmp_path / "d", allowed_hosts=["llm.example.com"]) as door:
        for host, status in (("LLM.example.com:80", 200), ("localhost", 200), ("example.com", 403)):
            assert door.ask("GET", "/version", headers={"Host": host}).status_code == status


def test_a_closed_server_goes_by_any_name_unless_told(door: Door, who: People) -> None:
    response = door.ask("GET", "/version", who.bob, headers={"Host": "llm.example.com"})
    assert response.status_code == 200


def test_http_1_1_needs_a_host(open_door: Door) -> None:
    for head, status in ((b"HTTP/1.1", b"400"), (b"HTTP/1.0", b"403")):
        with socket.create_connection(("127.0.0.1", open_door.port)) as connection:
            connection.sendall(b"GET /version " + head + b"\r\n\r\n")
            assert connection.recv(100).split()[1] == status


FROM_ELSEWHERE = [
    {"Origin": "https://evil.example"},
    {"Origin": "null"},
    {"Origin": "https://evil.example", "Sec-Fetch-Site": "cross-site"},
    {"Origin": "http://127.0.0.1:1", "Sec-Fetch-Site": "same-site"},
    {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "no-cors"},
    {"Sec-Fetch-Site": "same-site", "Sec-Fetch-Mode": "no-cors"},
]


@pytest.mark.parametrize("headers", FROM_ELSEWHERE)
@pytest.mark.parametrize("method", ["GET", "POST", "OPTIONS"])
def test_pages_of_other_sites_are_refused(
    open_door: Door, door: Door, who: People, method: str, headers: dict[str, str]
) -> None:
    for response in (
        open_door.ask(method, "/v1/models", headers=headers),
        door.ask(method, "/v1/models", who.admin, headers=headers),
    ):
        assert response.status_code == 403
        assert "cors_origins" in response.json()["error"]["message"]
        assert "access-control-allow-origin" not in response.headers


def test_our_own_pages_links_and_programs_are_not(open_door: Door) -> None:
    for headers in (
        {},
        {"Origin": open_door.url},
        {"Origin": open_door.url, "Sec-Fetch-Site": "same-origin"},
        {"Sec-Fetch-Site": "none", "Sec-Fetch-Mode": "navigate"},
        {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate"},
    ):
        assert open_door.ask("GET", "/v1/models", headers=headers).status_code == 200, headers
    link = {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate"}
    assert open_door.ask("POST", "/v1/completions", headers=link).status_code == 403  # a form


def test_behind_a_proxy_that_changes_the_host(door: Door, who: People) -> None:
    """The browser itself says that it is the same site."""
    headers = {"Origin": "https://llm.example.com", "Sec-Fetch-Site": "same-origin"}
    assert door.ask("GET", "/v1/models", who.bob, headers=headers).status_code == 200


def test_cors_for_those_who_are_told(data: Path, who: People) -> None:
    app = "https://app.example.com"
    with standing(data, cors_origins=[app]) as door:
        preflight = door.ask(
            "OPTIONS",
            "/v1/chat/completions",
            headers={
                "Origin": app,
                "Sec-Fetch-Site": "cross-site",
                "Access-Control-Request-Method": "POST",
                "Access-Control-Request-Headers": "authorization,content-type",
            },
        )
        assert preflight.status_code == 200
        assert preflight.headers["access-control-allow-origin"] == app
        assert "authorization" in preflight.headers["access-control-allow-headers"]
        from_app = {"Origin": app, "Sec-Fetch-Site": "cross-site"}
        for token, status in ((who.bob, 200), (None, 401)):
            response = door.ask("GET", "/v1/models", token, headers=from_app)
            assert response.status_code == status
            assert response.headers["access-control-allow-origin"] == app
            assert "retry-after" in response.headers["access-control-expose-headers"].lower()
            assert "access-control-allow-credentials" not in response.headers
        other = door.ask("GET", "/v1/models", who.bob, headers={"Origin": "https://evil.example"})
        assert other.status_code == 403


def test_security_headers_are_on_all_that_is_answered(door: Door, who: People) -> None:
    for response in (
        door.ask("GET", "/health"),
        door.ask("GET", "/version"),
        door.ask("GET", "/v1/models", who.bob),
        door.ask("GET", "/nothing", who.bob),
        door.ask("POST", "/v1/completions", who.bob, content=b"{"),
    ):
        policy = response.headers["content-security-policy"]
        for rule in ("default-src 'self'", "object-src 'none'", "frame-ancestors 'none'"):
            assert rule in policy
        assert "unsafe" not in policy
        assert response.headers["x-content-type-options"] == "nosniff"
        assert response.headers["referrer-policy"] == "no-referrer"
        assert "server" not in response.headers


def test_a_browser_logs_in_with_a_cookie_that_is_not_the_token(door: Door, who: People) -> None:
    token, info = who.store.tokens.create("bob", created_by="tests")
    browser = httpx.Client(base_url=door.url)
    authorization = {"Authorization": f"Bearer {token.value}"}
    response = browser.post("/api/2.0/session", headers=authorization)
    assert response.status_code == 200
    assert response.json()["name"] == "bob"
    cookie = response.headers["set-cookie"]
    assert "HttpOnly" in cookie
    assert "SameSite=strict" in cookie
    assert f"Max-Age={SESSION_S}" in cookie
    assert token.value not in cookie
    assert browser.get("/api/2.0/session").json()["name"] == "bob"
    assert browser.get("/v1/models").status_code == 200
    # The cookie alone makes no new one, nor does it go with a request from elsewhere.
    assert browser.post("/api/2.0/session").status_code == 401
    assert browser.get("/v1/models", headers={"Origin": "http://x"}).status_code == 403
    out = browser.delete("/api/2.0/session")
    assert out.status_code == 200
    assert "Max-Age=0" in out.headers["set-cookie"]
    assert browser.get("/v1/models").status_code == 401
    kept = dict(response.cookies)
    assert door.ask("GET", "/v1/models", cookies=kept).status_code == 200
    who.store.tokens.revoke(info.token_id)
    response = door.ask("GET", "/v1/models", cookies=kept)
    assert response.status_code == 401
    assert "log in again" in response.json()["error"]["message"]


def test_cookies_that_were_not_sealed_here(door: Door, who: People) -> None:
    secret = door.gatekeeper.secret
    token_id = who.bob[:14]
    name = secret.cookie_name
    good = secret.seal_session(token_id, time.time())
    assert door.ask("GET", "/version", cookies={name: good}).status_code == 200
    late = secret.seal_session(token_id, time.time() - SESSION_S)
    other = Secret.fresh().seal_session(token_id, time.time())
    moved = good.replace(token_id, who.admin[:14])
    longer = re.sub(r"\.(\d+)\.", lambda m: f".{int(m[1]) + 1}.", good)
    for wrong in (late, other, moved, longer, good[:-1], good + "0", "", "..", "a.b.c", who.bob):
        assert door.ask("GET", "/version", cookies={name: wrong}).status_code == 401, wrong
    assert door.ask("GET", "/version", cookies={"other": good}).status_code == 401


def test_sessions_outlive_a_restart_of_the_server(data: Path, who: People) -> None:
    with standing(data) as first:
        cookies = first.ask("POST", "/api/2.0/session", who.bob).cookies
    with standing(data) as second:
        assert second.ask("GET", "/version", cookies=cookies).status_code == 200


def test_a_public_address_without_tokens_is_refused(tmp_path: Path) -> None:
    for address in ("0.0.0.0", "::", "192.168.1.2", "2001:db8::1"):
        with pytest.raises(SettingsError, match=r"dropless tokens create.*--insecure-open"):
            Gatekeeper(IdentitySettings(), tmp_path, address)
        Gatekeeper(IdentitySettings(open=True), tmp_path, address)
    for address in ("127.0.0.1", "127.8.8.8", "::1"):
        Gatekeeper(IdentitySettings(), tmp_path, address)
    IdentityStore(f"sqlite:///{tmp_path}/identity.db").close()
    Gatekeeper(IdentitySettings(), tmp_path, "0.0.0.0")


def test_an_open_public_server_is_used_but_not_managed(tmp_path: Path) -> None:
    with standing(tmp_path / "d", address="0.0.0.0", identity={"open": True}) as door:
        me = door.ask("GET", "/api/2.0/session").json()
        assert (me["name"], me["is_admin"]) == ("anyone", False)
        assert door.ask("GET", "/v1/models", headers={"Host": "llm.example.com"}).status_code == 200
        answer = door.ask("DELETE", "/api/2.0/serving-endpoints/tiny")
        assert answer.status_code == 403
        assert answer.json()["error_code"] == "PERMISSION_DENIED"
        assert door.ask("POST", "/api/2.0/config/reload").status_code == 403


def test_open_does_not_open_a_server_that_has_tokens(data: Path, who: People) -> None:
    del who
    with standing(data, address="0.0.0.0", identity={"open": True}) as door:
        assert door.ask("GET", "/version").status_code == 401


def test_the_prefix_cache_is_ones_own(tmp_path: Path) -> None:
    secret, other = Secret.of_folder(tmp_path), Secret.fresh()
    owners = {secret.cache_owner(who) for who in (LOCAL, ANYONE)}
    owners.add(other.cache_owner(LOCAL))
    assert len(owners) == 3
    assert Secret.of_folder(tmp_path).cache_owner(LOCAL) == secret.cache_owner(LOCAL)
    assert (tmp_path / "secret").stat().st_mode & 0o777 == 0o600
    assert repr(secret) == "<Secret>"


def test_a_secret_that_is_none_is_told(tmp_path: Path) -> None:
    (tmp_path / "secret").write_bytes(b"short")
    with pytest.raises(SettingsError, match="has 5 bytes"):
        Secret.of_folder(tmp_path)
    (tmp_path / "secret").unlink()
    (tmp_path / "secret").mkdir()
    with pytest.raises(SettingsError, match="cannot be read"):
        Secret.of_folder(tmp_path)


def test_no_token_reaches_an_error_message(door: Door, who: People) -> None:
    """A token in the wrong place comes back without its secret."""
    secret = who.admin[14:]
    body = json.dumps({"model": who.admin, "prompt": "hi", who.admin: 1})
    for response in (
        door.ask("POST", "/v1/completions", who.admin, content=body),
        door.ask("GET", f"/v1/models/{who.admin}", who.admin),
        door.ask("GET", f"/{who.admin}", who.admin),
        door.ask("POST", "/api/2.0/token/delete", who.admin, json={"token_id": who.admin}),
        door.ask("GET", f"/api/2.0/token-management/tokens/{who.admin}", who.admin),
        door.ask("GET", "/version", who.admin[:-1]),
    ):
        assert response.status_code in (400, 401, 404)
        assert secret not in response.text
        assert secret[:8] not in response.text


def test_the_store_is_not_imported_without_one() -> None:
    """It takes as long as half the server's start."""
    assert "IdentityStore" not in vars(gatekeeper_module)


def test_groups_reach_the_door(door: Door, who: People) -> None:
    store = who.store
    store.accounts.create("erin")
    store.accounts.create_group("viewers", [Grant("CAN_VIEW")])
    store.accounts.add_member("viewers", "erin")
    token, _ = store.tokens.create("erin", created_by="tests")
    me = door.ask("GET", "/api/2.0/session", token.value).json()
    assert me["groups"] == ["viewers"]
    assert me["grants"] == ["CAN_VIEW"]
    store.accounts.grant(Holder("group", "viewers"), [Grant("CAN_QUERY")])
    assert door.ask("GET", "/api/2.0/session", token.value).json()["grants"] == ["CAN_QUERY"]
