"""A server that has users, limits and inference tables: the JSON behind its dashboard, who may see
what of it, and its pages."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable
from typing import Any

import httpx
import pytest
from playwright.sync_api import expect

from tests.server.playground.chat_page import ChatPage
from tests.server.playground.company import Company
from tests.server.server_process import ServerProcess
from tests.server.tiny_model import MODEL_ID

Open = Callable[..., Any]

BASE = "/api/2.0/dashboard"
HOSTILE = "<img src=x onerror='window.hacked=1'><script>window.hacked=1</script>"


def test_numbers_of_real_requests(server: ServerProcess) -> None:
    server.wait_until_idle()  # of what tests before it left
    with httpx.Client(base_url=server.url) as http:
        before = http.get(f"{BASE}/live").json()
        body: dict[str, Any] = {"model": MODEL_ID, "messages": [{"role": "user", "content": "Hi"}]}
        whole = {**body, "max_tokens": 4, "ignore_eos": True}  # or chance may end an answer early
        for _ in range(3):
            http.post("/v1/chat/completions", json=whole).raise_for_status()
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
        ("rows?cursor=x", "cursor"),
        ("rows?sql=drop", "sql"),
    ],
)  # fmt: skip
def test_wrong_queries_are_named(company: Company, path: str, says: str) -> None:
    with company.client("root") as http:
        response = http.get(f"{BASE}/{path}")
    assert response.status_code == 400
    assert response.json()["error_code"] == "INVALID_PARAMETER_VALUE"
    assert says in response.json()["message"]


def names(rows: list[dict[str, Any]], key: str) -> set[str]:
    return {row[key] for row in rows}


@pytest.fixture(scope="module")
def asked(company: Company) -> list[dict[str, Any]]:
    """Calls of two users, as an administrator finds them by the word that they have."""
    for user in ("ada", "bob"):
        assert company.ask(user, f"Audit: a question of {user}").status_code == 200
    assert company.ask("ada", "Audit: one", "limited").status_code == 200
    assert company.ask("ada", "Audit: two", "limited").status_code == 429
    assert company.ask("ada", "Audit: three", temperature=9).status_code == 400
    return company.wait_for_rows(5, text="audit:")


def test_rows_have_what_was_asked_and_how_it_went(
    company: Company, asked: list[dict[str, Any]]
) -> None:
    assert len(asked) == 5
    times = [row["request_time"] for row in asked]
    assert times == sorted(times, reverse=True)
    [row] = company.rows("root", text="a question of ADA")
    assert "Audit: a question of ada" in row["request"]
    assert (row["status_code"], row["requester"], row["endpoint"]) == (200, "ada", "tiny")
    assert row["output_token_count"] == 3

    def found(**query: Any) -> list[str]:
        rows = company.rows("root", text="audit:", **query)
        return sorted(json.loads(row["request"])["messages"][0]["content"] for row in rows)

    assert found(status="4xx") == ["Audit: three", "Audit: two"]
    assert found(status="429") == ["Audit: two"]
    assert found(endpoint="limited") == ["Audit: one", "Audit: two"]
    assert found(since=time.time() + 60) == []

    with company.client("root") as http:
        query: dict[str, Any] = {"text": "audit:", "limit": 3}
        page = http.get(f"{BASE}/rows", params=query).json()
        rest = http.get(f"{BASE}/rows", params={**query, "cursor": page["cursor"]}).json()
        assert [*page["rows"], *rest["rows"]] == asked
        assert rest["cursor"] is None
        whole = http.get(f"{BASE}/rows/{row['databricks_request_id']}").json()
    assert whole == row  # which is short enough for a list
    assert json.loads(whole["response"])["usage"]["completion_tokens"] == 3


def test_who_sees_which_rows(company: Company, asked: list[dict[str, Any]]) -> None:
    assert names(asked, "requester") == {"ada", "bob"}
    assert names(company.rows("ada"), "requester") == {"ada"}
    with company.client("ada") as http:
        refused = http.get(f"{BASE}/rows", params={"requester": "bob"})
    assert refused.status_code == 403
    assert "CAN_MANAGE" in refused.json()["message"]
    assert names(company.rows("bob"), "requester") == {"bob"}
    assert names(company.rows("bob", endpoint="tiny"), "requester") >= {"ada", "bob"}  # manages it
    assert company.rows("bob", endpoint="limited") == []
    assert names(company.rows("eve"), "requester") <= {"eve"}
    of_bob = next(row for row in asked if row["requester"] == "bob")
    statuses = {}
    for user in ("root", "bob", "ada", "eve"):
        with company.client(user) as http:
            statuses[user] = http.get(f"{BASE}/rows/{of_bob['databricks_request_id']}").status_code
    assert statuses == {"root": 200, "bob": 200, "ada": 404, "eve": 404}


def test_who_sees_which_endpoints_and_whose_usage(
    company: Company, asked: list[dict[str, Any]]
) -> None:
    assert asked
    endpoints, users = {}, {}
    for user in ("root", "ada", "bob", "eve"):
        with company.client(user) as http:
            live = http.get(f"{BASE}/live").json()
            usage = http.get(f"{BASE}/usage").json()
        endpoints[user] = names(live["endpoints"], "name")
        users[user] = names(usage["users"], "name")
    assert endpoints == {
        "root": {"tiny", "limited", "mixture"},
        "ada": {"tiny", "limited", "mixture"},
        "bob": {"tiny"},
        "eve": {"limited"},
    }
    assert users["root"] >= {"ada", "bob"}
    assert (users["ada"], users["bob"]) == ({"ada"}, {"bob"})


def test_expert_load_is_of_mixtures_and_for_who_sees_them(company: Company) -> None:
    with company.client("root") as root, company.client("bob") as bob:
        deadline = time.monotonic() + 15
        while True:
            company.ask("ada", "Choose experts", "mixture", max_tokens=20)
            seen = root.get(f"{BASE}/expert-load").json()["served_entities"]
            if seen and sum(map(sum, seen[0]["window"])) > 0:
                break
            assert time.monotonic() < deadline, seen
        [load] = seen
        assert (load["served_entity"], load["endpoint"]) == ("mixture", "mixture")
        assert load["experts_per_token"] == 2
        for counts in (load["window"], load["total"]):
            assert [len(layer) for layer in counts] == [8, 8, 8]
            assert len({sum(layer) for layer in counts}) == 1  # every layer has as many choices
        assert bob.get(f"{BASE}/expert-load").json() == {"served_entities": []}


def test_nobody_sees_anything_without_a_token(company: Company) -> None:
    for path in ("live", "usage", "expert-load", "rows", "rows/req-1"):
        assert httpx.get(f"{company.server.url}{BASE}/{path}").status_code == 401
    assert httpx.get(f"{company.server.url}/dashboard").status_code == 200


def test_without_a_table_the_answer_says_how_to_have_one(server: ServerProcess) -> None:
    response = httpx.get(f"{server.url}{BASE}/rows")
    assert response.status_code == 404
    assert "inference_table_config" in response.json()["message"]


def log_in(page: Any, token: str) -> None:
    page.locator("#token").fill(token)
    page.locator("#token").press("Enter")
    expect(page.get_by_role("dialog")).to_have_count(0)


def put_forward(page: Any) -> None:
    """Twelve seconds pass for the page, and whatever it asks the server after the first six is
    answered: all pages ask for /health every five."""
    for _ in range(2):
        with page.expect_response("**/health"):
            page.clock.fast_forward(6000)


def test_a_token_opens_the_playground_and_stays_nowhere(company: Company, open_page: Open) -> None:
    page = open_page(home=company.server.url, clock=True)
    dialog = page.get_by_role("dialog")
    expect(dialog).to_contain_text("This server answers only to who has a token.")
    page.locator("#token").fill("dlp_wrong")
    page.locator("#token").press("Enter")
    expect(dialog.get_by_role("alert")).not_to_be_empty()
    page.keyboard.press("Escape")  # who gives up is not asked again by itself
    put_forward(page)
    expect(dialog).to_have_count(0)
    page.get_by_role("button", name="Log in with a token").click()
    log_in(page, company.tokens["ada"])
    chat = ChatPage(page)
    expect(page.locator("select.model option")).to_have_text(["tiny", "limited", "mixture"])
    chat.set(max_tokens="3")
    chat.ask("Hello")
    page.reload()
    page.get_by_role("button", name="Log out ada").wait_for()
    kept = page.evaluate(
        "JSON.stringify([{...localStorage}, {...sessionStorage}, document.cookie])"
    )
    assert "dlp_" not in kept
    page.get_by_role("button", name="Log out ada").click()
    expect(dialog).to_be_visible()


def test_a_limit_counts_down(company: Company, open_page: Open) -> None:
    page = open_page(home=company.server.url)
    log_in(page, company.tokens["eve"])
    chat = ChatPage(page)
    chat.set(max_tokens="3")
    chat.ask("One")
    chat.ask("Two")
    card = page.locator(".error-card")
    expect(card).to_contain_text("queries_per_minute")
    expect(card.get_by_role("button", name="Try again")).to_be_disabled()
    left = card.locator(".error-actions .number")
    expect(left).to_have_text(re.compile(r"in \d+ s"))
    before = left.inner_text()
    expect(left).not_to_have_text(before)
    expect(left).to_have_text(re.compile(r"in \d+ s"))


def test_the_dashboard_shows_numbers_and_rows_as_text(company: Company, open_page: Open) -> None:
    company.ask("ada", HOSTILE, client_request_id=HOSTILE)
    company.wait_for_rows(1, text="onerror")
    company.ask("ada", "Choose experts", "mixture", max_tokens=30)
    company.wait_for_experts()
    page = open_page("/dashboard", home=company.server.url, clock=True)
    log_in(page, company.tokens["root"])
    expect(page.locator(".tile").first).to_contain_text("tok/s")
    expect(page.locator(".endpoints h3")).to_have_text(
        ["tinyREADY", "limitedREADY", "mixtureREADY"]
    )
    expect(page.locator(".usage tbody th").first).to_have_text("ada")
    expect(page.locator(".latency-table tbody")).to_contain_text(re.compile(r"TTFT.*\d+ m?s"))
    experts = page.locator(".experts")
    experts.get_by_role("button", name="Since the start").click()
    expect(experts.locator(".heat tbody tr")).to_have_count(8)
    expect(experts.locator(".heat tbody tr").first.locator("td")).to_have_count(3)
    expect(experts.locator(".heat tbody td").first).to_have_attribute(
        "title", re.compile(r"Layer 0, expert 0: \d\.\d\d× the mean, [\d,]+ choices")
    )
    expect(experts.locator(".expert-figures")).to_contain_text(re.compile(r"Worst layer\d\.\d\d×"))

    search = page.get_by_role("search")
    search.get_by_label("Text").fill("ONERROR")
    search.get_by_role("button", name="Search").click()
    rows = page.locator(".rows-table tbody tr")
    expect(rows).to_have_count(1)
    expect(rows).to_contain_text(HOSTILE)
    search.get_by_label("Status").select_option("4xx")
    expect(page.get_by_text("No row matches.")).to_be_visible()
    search.get_by_label("Status").select_option("2xx")
    rows.get_by_role("button").press("Enter")
    drawer = page.get_by_role("dialog")
    expect(drawer.locator(".row-messages li").first).to_contain_text(HOSTILE)
    drawer.get_by_text("Request", exact=True).click()
    expect(drawer.locator("pre").first).to_contain_text("onerror")
    expect(page.locator("img[src=x], main script, dialog script")).to_have_count(0)
    assert page.evaluate("window.hacked") is None
    page.keyboard.press("Escape")
    expect(rows.get_by_role("button")).to_be_focused()

    page.keyboard.press("Alt+u")
    expect(page.get_by_role("button", name="Pause")).to_have_attribute("aria-pressed", "true")
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    put_forward(page)
    assert set(asked) == {f"{company.server.url}/health"}
    page.keyboard.press("Alt+u")
    with page.expect_response("**/dashboard/live?*"):
        page.clock.fast_forward(6000)
