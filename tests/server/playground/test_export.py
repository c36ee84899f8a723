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

Open = Callable[..., Any]

SAID = 'It\'s "fine": $HOME `date` \\n {x} ü 漢'


@pytest.fixture(scope="module")
def codes(server: Any, browser: Any) -> dict[str, str]:
    """The three texts of a request in which everything that wants quoting occurs."""
    context = browser.new_context()
    page = context.new_page()
    page.goto(server.url)
    chat = ChatPage(page)
    chat.say(SAID)
    chat.set(system='It\'s\n"quoted"', top_k="5", seed="3", temperature="0")
    chat.prompt.fill("What's $1 + `2`?\nAnd \\ that?")
    page.get_by_role("button", name="Export", exact=True).last.click()
    codes = {}
    for kind in ("Python", "curl", "Notebook"):
        page.get_by_role("tab", name=kind).click()
        codes[kind] = page.locator(".export-code code").text_content()
    context.close()
    return codes


def run(*command: str) -> list[str]:
    """The lines that a command prints."""
    result = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert result.returncode == 0, result.stderr
    return result.stdout.splitlines()


def test_python_and_notebook(codes: dict[str, str]) -> None:
    assert 'extra_body={"top_k": 5}' in codes["Python"]
    notebook = json.loads(codes["Notebook"])
    assert (notebook["nbformat"], notebook["nbformat_minor"]) == (4, 5)
    cells = ["".join(cell["source"]) for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert cells[0] == "%pip install --quiet openai"
    lines = run(sys.executable, "-c", "\n".join([codes["Python"], *cells[1:]]))
    assert [json.loads(line) for line in lines] == [SAID, SAID]


def test_curl(codes: dict[str, str]) -> None:
    if shutil.which("curl") is None:
        pytest.skip("no curl is installed")
    [line] = run("sh", "-c", codes["curl"].replace("curl ", "curl --silent ", 1))
    assert json.loads(json.loads(line)["choices"][0]["message"]["content"]) == SAID
