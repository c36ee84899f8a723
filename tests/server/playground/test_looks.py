"""Light and dark, narrow screens, reduced motion, and what axe-core finds."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import expect

from tests.server.playground.chat_page import ChatPage

Open = Callable[..., Any]


def background(page: Any) -> str:
    color: str = page.evaluate("getComputedStyle(document.documentElement).backgroundColor")
    return color


def test_theme_and_motion_follow_the_system_until_a_theme_is_chosen(open_page: Open) -> None:
    page = open_page(color_scheme="dark")
    dark = background(page)
    page.emulate_media(color_scheme="light")
    light = background(page)
    assert dark != light
    page.get_by_role("button", name="Theme: as the system").click()
    page.get_by_role("button", name="Theme: light").click()
    assert background(page) == dark
    page.goto(page.url + "dashboard")
    assert background(page) == dark
    page.get_by_role("button", name="Theme: dark").click()
    assert background(page) == light

    duration = "getComputedStyle(document.querySelector('.button')).transitionDuration"
    assert page.evaluate(duration) != "0s"
    page.emulate_media(reduced_motion="reduce")
    assert page.evaluate(duration) == "0s"


def test_320_pixels_are_enough_for_a_chat(open_page: Open) -> None:
    page = open_page(viewport={"width": 320, "height": 560})
    chat = ChatPage(page)
    chat.set(max_tokens="5")
    chat.ask("a" * 200)
    page.get_by_role("button", name="Chats", exact=True).click()
    expect(page.get_by_label("Search chats")).to_be_focused()
    page.keyboard.press("Escape")
    page.get_by_role("button", name="Add pane").click()
    check_width(page, 320)


def test_axe_finds_nothing_in_the_playground(open_page: Open) -> None:
    page = open_page(reduced_motion="reduce")
    chat = ChatPage(page)
    check(page)
    chat.set(max_tokens="5", n="2")
    chat.say("x")
    chat.page.get_by_role("button", name="Add pane").click()
    chat.ask("Hello")
    chat.answer(2)
    chat.pane().locator(".pane-settings").click()
    check_light_and_dark(page)
    page.get_by_role("button", name="Export", exact=True).last.click()
    check(page, "dialog")


def test_axe_finds_nothing_in_the_dashboard_and_320_pixels_are_enough(open_page: Open) -> None:
    page = open_page("/dashboard", reduced_motion="reduce")
    expect(page.locator(".tile-value").first).not_to_have_text("–")
    check_light_and_dark(page)
    page.set_viewport_size({"width": 320, "height": 560})
    check_width(page, 320)


def check_light_and_dark(page: Any) -> None:
    check(page)
    page.emulate_media(color_scheme="dark")
    check(page, rules=["color-contrast"])


def check(page: Any, within: str = "html", rules: list[str] | None = None) -> None:
    only = rules or ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa", "best-practice"]
    results = Axe().run(page, context=within, options={"runOnly": only}).response
    found = [
        (violation["id"], node["html"][:160], node.get("failureSummary", "")[:300])
        for violation in results["violations"]
        for node in violation["nodes"]
    ]
    assert found == []
    assert results["passes"]


def check_width(page: Any, width: int) -> None:
    """Nothing is wider, and every control is in sight but in what scrolls by itself."""
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    outside = page.evaluate(
        """(width) => [...document.querySelectorAll("button, a, select, textarea, input")]
          .filter((e) => e.checkVisibility() && !e.matches(".skip-link"))
          .filter((e) => !e.closest(".panes, .table-scroll"))
          .map((e) => [e.outerHTML.slice(0, 80), e.getBoundingClientRect()])
          .filter(([, box]) => box.width && (box.left < -1 || box.right > width + 1))
          .map(([html]) => html)""",
        width,
    )
    assert outside == []
