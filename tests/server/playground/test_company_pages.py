"""The pages on a server that has users, limits and inference tables."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from playwright.sync_api import expect

from tests.server.playground.chat_page import ChatPage
from tests.server.playground.company import Company

Open = Callable[..., Any]

HOSTILE = "<img src=x onerror='window.hacked=1'><script>window.hacked=1</script>"


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
    page = open_page(home=company.server.url)
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
    page = open_page("/dashboard", home=company.server.url)
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
