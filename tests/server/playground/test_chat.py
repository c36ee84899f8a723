"""The playground, used as a reader uses it."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import expect

from tests.server.playground.chat_page import ChatPage
from tests.server.server_process import ServerProcess
from tests.server.tiny_model import REFUSED

Open = Callable[..., Any]


@pytest.fixture
def chat(open_page: Open) -> ChatPage:
    return ChatPage(open_page())


def test_an_answer_streams_has_figures_and_is_spoken_once(chat: ChatPage) -> None:
    page = chat.page
    page.evaluate(
        """() => {
          window.spoken = [];
          const region = document.createElement("div");
          new MutationObserver(() => {
            const text = document.getElementById("announcer")?.textContent;
            if (text && text !== window.spoken.at(-1)) window.spoken.push(text);
          }).observe(document.body, { childList: true, subtree: true });
        }"""
    )
    chat.set(max_tokens="40", temperature="0")
    answer = chat.ask("Name a river.")
    spoken = page.evaluate("window.spoken")
    assert [re.sub(r"answered: .*", "answered", text, flags=re.S) for text in spoken] == [
        "tiny answers.",
        "tiny answered",
    ]
    expect(answer.locator(".figures")).to_contain_text(
        re.compile(r"TTFT.*ms.*Answer\s*40 tok.*Total")
    )
    assert answer.locator(".markdown").inner_text()
    [body] = chat.bodies
    assert body["messages"] == [{"role": "user", "content": "Name a river."}]
    assert body["stream"] is True
    assert body["max_tokens"] == 40
    chat.ask("And another one?")
    roles = [message["role"] for message in chat.bodies[1]["messages"]]
    assert roles == ["user", "assistant", "user"]
    expect(chat.prompt).to_have_value("")


def test_stop_ends_the_answer_and_the_request(chat: ChatPage, server: ServerProcess) -> None:
    chat.set(temperature="0")
    chat.prompt.fill("Tell me everything.")
    chat.prompt.press("Enter")
    expect(chat.page.locator(".streaming .markdown")).to_contain_text(re.compile(r"\S{3}"))
    chat.page.get_by_role("button", name="Stop").click()
    expect(chat.answer()).to_contain_text("Stopped.")
    server.wait_until_idle(3)
    expect(chat.page.get_by_role("button", name="Send", exact=True)).to_be_visible()

    chat.prompt.fill("And more.")
    chat.prompt.press("Enter")
    expect(chat.page.locator(".streaming .markdown")).to_contain_text(re.compile(r"\S{3}"))
    chat.page.get_by_role("button", name="New chat").click()  # leaves it, and stops it
    server.wait_until_idle(3)
    expect(chat.page.locator(".question")).to_have_count(0)
    chat.page.get_by_role("button", name="Tell me everything.", exact=True).click()
    expect(chat.page.locator(".ending")).to_have_text(["Stopped.", "Stopped."])


def test_edit_answer_again_and_delete(chat: ChatPage) -> None:
    chat.set(max_tokens="5")
    chat.ask("First")
    chat.ask("Second")
    chat.pane().get_by_role("button", name="Edit and send again").first.click()
    edit = chat.page.get_by_label("Your message")
    expect(edit).to_be_focused()
    edit.fill("First, changed")
    edit.press("Enter")
    chat.answer()
    expect(chat.page.locator(".question")).to_have_count(1)  # what came after is gone
    assert chat.bodies[-1]["messages"] == [{"role": "user", "content": "First, changed"}]

    chat.page.get_by_role("button", name="Answer again").click()
    expect(chat.page.locator(".versions")).to_have_text("2/2")
    again = chat.answer().locator(".markdown").inner_text()
    chat.page.get_by_role("button", name="Earlier version").click()
    expect(chat.page.locator(".versions")).to_have_text("1/2")
    assert chat.answer().locator(".markdown").inner_text() != again
    assert chat.bodies[-1] == chat.bodies[-2]

    chat.page.get_by_role("button", name="Delete with its answer").click()
    expect(chat.page.locator(".messages > li")).to_have_count(0)
    chat.page.get_by_role("button", name="Undo").click()
    expect(chat.page.locator(".messages > li")).to_have_count(2)


def test_four_panes_with_one_prompt_and_with_their_own(chat: ChatPage) -> None:
    chat.set(max_tokens="4")
    for _ in range(3):
        chat.page.get_by_role("button", name="Add pane").click()
    expect(chat.page.get_by_role("button", name="Add pane")).to_be_disabled()
    chat.pane(2).locator(".pane-settings").click()
    chat.page.locator("[id^='temperature-']").first.fill("0.5")
    chat.page.get_by_role("button", name="Close settings").click()
    chat.ask("All of you")
    for number in (1, 2, 3, 4):
        chat.answer(number)
    expect(chat.page.locator(".reply .figures").first).to_contain_text("tok")  # one may be empty
    assert len(chat.bodies) == 4
    assert sorted(body.get("temperature", 1) for body in chat.bodies) == [0.5, 1, 1, 1]

    chat.page.get_by_label("One prompt for all").uncheck()
    expect(chat.prompt).to_be_hidden()
    chat.page.get_by_label("Message for pane 3").fill("You alone")
    chat.page.get_by_label("Message for pane 3").press("Enter")
    chat.answer(3)
    counts = [chat.pane(number).locator(".question").count() for number in (1, 2, 3, 4)]
    assert counts == [1, 1, 2, 1]
    chat.pane(3).get_by_role("button", name="Close pane").click()
    expect(chat.page.locator(".pane")).to_have_count(3)


def test_the_gallery_fills_prompt_examples_and_settings(chat: ChatPage) -> None:
    chat.page.get_by_role("button", name="Find personal data").click()
    expect(chat.prompt).to_have_value(re.compile("Maria Lopez"))
    chat.prompt.press("Enter")
    chat.answer()
    [body] = chat.bodies
    assert body["messages"][0]["content"].startswith("The assistant is a classification model")
    assert [message["content"] for message in body["messages"][2::2]] == [
        "NO_PII", "CONTAINS_PII", "NO_PII", "CONTAINS_PII",
    ]  # fmt: skip
    assert body["temperature"] == 0
    chat.page.get_by_role("button", name="Samples").click()
    chat.page.get_by_role("dialog").get_by_role("button", name="A character as JSON").click()
    chat.prompt.press("Enter")
    answer = chat.answer()
    expect(answer.locator(".code-block figcaption")).to_have_text("json")
    assert isinstance(json.loads(answer.locator("pre").inner_text()), dict)
    assert len(chat.bodies[-1]["messages"]) == 1  # a chat of its own


def test_settings_are_sent_and_wrong_ones_are_told(chat: ChatPage) -> None:
    chat.set(
        system="Answer in one word.", temperature="0.2", max_tokens="3", top_p="0.9", top_k="20",
        stop="END\n\\n\\n", seed="7", n="2", presence_penalty="0.5",
    )  # fmt: skip
    chat.ask("Go")
    body = chat.bodies[-1]
    assert body["messages"][0] == {"role": "system", "content": "Answer in one word."}
    expected = {
        "temperature": 0.2, "max_tokens": 3, "top_p": 0.9, "top_k": 20, "stop": ["END", "\n\n"],
        "seed": 7, "n": 2, "presence_penalty": 0.5,
    }  # fmt: skip
    assert {name: body[name] for name in expected} == expected
    expect(chat.page.get_by_role("radio")).to_have_count(2)
    second = chat.page.locator(".choice").nth(1)
    second.get_by_role("radio").check()
    text = second.locator(".markdown").inner_text()
    chat.ask("Go on")
    assert chat.bodies[-1]["messages"][2]["content"].strip() == text.strip()

    chat.pane().locator(".pane-settings").click()
    chat.page.locator("[id^='temperature-']").first.fill("3")
    expect(chat.page.get_by_text("The most is 2.")).to_be_visible()
    chat.page.get_by_role("button", name="Reset").click()
    expect(chat.page.locator("[id^='temperature-']").first).to_have_value("")
    chat.page.get_by_role("button", name="Close settings").click()
    assert chat.pane().locator(".pane-settings").inner_text() == ""


def test_errors_are_shown_as_they_are(chat: ChatPage) -> None:
    chat.ask(REFUSED)
    card = chat.page.locator(".error-card")
    expect(card).to_contain_text("the template does not like this")
    expect(card).to_contain_text("400 · chat_template_failed · req-")
    chat.page.get_by_role("button", name="Edit and send again").click()
    chat.page.get_by_label("Your message").fill("x" * 5000)
    chat.page.get_by_role("button", name="Send again").click()
    expect(card).to_contain_text("context_length_exceeded")
    expect(card).to_contain_text("2048")


def test_history_outlives_the_page(chat: ChatPage, tmp_path: Path) -> None:
    page = chat.page
    chat.set(max_tokens="3", system="Be brief.")
    chat.ask("About the <b>Danube</b>")
    page.get_by_role("button", name="New chat").click()
    chat.ask("About the Rhine")
    page.reload()
    chats = page.locator(".history-open")
    expect(chats).to_have_text(["About the Rhine", "About the <b>Danube</b>"])
    page.get_by_label("Search chats").fill("danube brief")
    expect(chats).to_have_text(["About the <b>Danube</b>"])
    chats.click()
    expect(page.locator(".said")).to_have_text("About the <b>Danube</b>")
    expect(page.locator(".pane-settings")).to_contain_text("system prompt")

    page.get_by_role("button", name="Rename About the <b>Danube</b>").click()
    page.get_by_label("New name").fill("Blue river")
    page.get_by_label("New name").press("Enter")
    page.get_by_label("Search chats").fill("")
    with page.expect_download() as download:
        page.locator(".history").get_by_role("button", name="Export").click()
    file = tmp_path / "chats.json"
    download.value.save_as(file)
    page.get_by_role("button", name="Delete Blue river").click()
    expect(chats).to_have_text(["About the Rhine"])
    page.locator("input[type=file]").set_input_files(file)
    expect(chats).to_have_text(["About the Rhine", "About the Rhine", "Blue river"])
    page.reload()
    expect(chats).to_have_count(3)

    file.write_text('{"format": "dropless-playground", "version": 1, "conversations": [{}]}')
    page.locator("input[type=file]").set_input_files(file)
    expect(
        page.get_by_text("Nothing was imported. conversations[0].panes is not a list.")
    ).to_be_visible()


def test_all_by_keyboard(chat: ChatPage) -> None:
    page, keys = chat.page, chat.page.keyboard
    expect(chat.prompt).to_be_focused()
    keys.press("Alt+s")
    expect(page.get_by_label("System prompt")).to_be_focused()
    keys.press("Tab")
    keys.press("Tab")
    keys.type("0")  # the temperature, behind its slider
    keys.press("Escape")
    expect(chat.prompt).to_be_focused()
    keys.type("Hello")
    keys.press("Enter")
    expect(page.locator(".streaming .markdown")).to_contain_text(re.compile(r"\S"))
    keys.press("Escape")
    expect(chat.answer()).to_contain_text("Stopped.")
    keys.press("Alt+p")
    expect(page.locator(".pane")).to_have_count(2)
    keys.press("Alt+2")
    expect(chat.pane(2).locator("select")).to_be_focused()
    keys.press("Alt+i")
    expect(chat.prompt).to_be_focused()
    keys.press("Alt+/")
    expect(page.get_by_role("dialog")).to_contain_text("Keyboard shortcuts")
    keys.press("Escape")
    keys.press("Alt+x")
    expect(page.get_by_role("tab", name="Python")).to_be_visible()
    keys.press("Escape")
    expect(chat.prompt).to_be_focused()
    keys.press("Alt+n")
    expect(page.locator(".messages > li")).to_have_count(0)
    keys.press("Alt+k")
    expect(page.get_by_label("Search chats")).to_be_focused()
    outlines = page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
    assert outlines == "solid"
