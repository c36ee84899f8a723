"""Exported code runs, and makes the request that the pane would make."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest

from tests.server.playground.chat_page import ChatPage
from tests.server.playground.conftest import playwright_api

expect = playwright_api.expect
Open = Callable[..., Any]

SAID = 'It\'s "fine": $HOME `date` \\n {x}\u2028ü 漢'


@pytest.fixture(scope="module")
def codes(server: Any, browser: Any) -> dict[str, str]:
    """The three texts of a request in which everything that wants quoting occurs."""
    context = browser.new_context()
    page = context.new_page()
    page.goto(server.url)
    chat = ChatPage(page)
    chat.say(SAID)
    chat.set(system="It's\n\"quoted\"", top_k="5", seed="3", temperature="0")
    chat.prompt.fill("What's $1 + `2`?\nAnd \\ that?")
    page.get_by_role("button", name="Export", exact=True).last.click()
    codes = {}
    for kind in ("Python", "curl", "Notebook"):
        page.get_by_role("tab", name=kind).click()
        codes[kind] = page.locator(".export-code code").text_content()
    context.close()
    return codes


def run(*command: str) -> str:
    result = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert result.returncode == 0, result.stderr
    return result.stdout


def test_python(codes: dict[str, str]) -> None:
    assert "extra_body={'top_k': 5}".replace("'", '"') in codes["Python"]
    printed = run(sys.executable, "-c", codes["Python"])
    assert json.loads(printed) == SAID


def test_curl(codes: dict[str, str]) -> None:
    if shutil.which("curl") is None:
        pytest.skip("no curl is installed")
    answer = json.loads(run("sh", "-c", codes["curl"].replace("curl ", "curl --silent ", 1)))
    assert json.loads(answer["choices"][0]["message"]["content"]) == SAID


def test_notebook(codes: dict[str, str]) -> None:
    notebook = json.loads(codes["Notebook"])
    assert (notebook["nbformat"], notebook["nbformat_minor"]) == (4, 5)
    cells = ["".join(cell["source"]) for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert cells[0].startswith("%pip install")
    assert json.loads(run(sys.executable, "-c", "\n".join(cells[1:]))) == SAID
