"""Pages of a real server in a real Chromium, which must be installed: `apt install chromium`."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import sync_playwright

from tests.server.playground.company import Company, found
from tests.server.server_process import ServerProcess

NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")


def find_chromium() -> str:
    for name in NAMES:
        path = shutil.which(name)
        if path is not None:
            return path
    pytest.skip("no Chromium is installed (apt install chromium)")


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """Not for the whole session: while it lives its event loop runs, beside which tests that follow
    in this process could have none."""
    path = find_chromium()
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path)
        yield browser
        browser.close()


@pytest.fixture(scope="session")
def company(model_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Company]:
    company = found(model_folder, tmp_path_factory.mktemp("company"))
    yield company
    company.server.close()


@pytest.fixture
def open_page(server: ServerProcess, browser: Any) -> Iterator[Callable[..., Any]]:
    """Opens a path of the server, or of the one at `home`, in a profile of its own; other keywords
    are Playwright's for a context; with `clock` the page's clock can be put forward. Fails the test
    that asks another host for anything, or has an error in a script."""
    contexts, problems = [], []

    def open_(
        path: str = "/", home: str = server.url, *, clock: bool = False, **options: Any
    ) -> Any:
        context = browser.new_context(**options)
        contexts.append(context)
        context.set_default_timeout(10_000)
        if clock:
            context.clock.install()
        page = context.new_page()
        page.on("pageerror", lambda error: problems.append(f"script: {error}"))
        page.on("request", lambda request: problems.extend(elsewhere(request.url, home)))
        page.goto(home + path)
        return page

    yield open_
    for context in contexts:
        context.close()
    assert not problems


def elsewhere(url: str, home: str) -> list[str]:
    return [] if url.startswith((home, "blob:" + home)) else [f"a request to {url}"]
