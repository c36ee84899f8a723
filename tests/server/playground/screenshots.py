"""Makes the pictures of docs/playground.md, of both pages or of one:

    python -m tests.server.playground.screenshots docs/images/ [playground] [dashboard]

Real models answer (both are fetched if they are not cached); only the experts are those of a small
model of DBRX's shape with generated weights. Takes some minutes on two cores.
"""

from __future__ import annotations

import itertools
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
from PIL import Image
from playwright.sync_api import Browser, Page, expect, sync_playwright

from dropless.checkpoints.writer import write_tiny_dbrx
from dropless.server.identity.principal import Grant
from dropless.server.identity.store import IdentityStore
from tests.server.playground.conftest import find_chromium
from tests.server.server_process import ServerProcess
from tests.server.tiny_model import tiny_endpoint, write_tiny_model

CODER, SMALL = "qwen2.5-coder-0.5b-instruct", "smollm2-135m-instruct"
USERS = ("ada@example.com", "grace@example.com", "svc-reports")
QUESTIONS = (
    "Summarise in one sentence: the Rhine rises in the Alps and ends in the North Sea.",
    "Translate to French: good morning.",
    "Write a SQL query that counts orders by month.",
    "Name three colours of the rainbow.",
    "What is the capital of Portugal?",
)
SCALE = 0.003  # of the made-up weights: with larger ones all tokens go to the same experts
LOAD_S = 100.0
ANSWER_MS = 600_000
MAX_BYTES = 300_000


def main(folder: Path, pages: list[str]) -> None:
    with (
        tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as data,
        serving(Path(data)) as (url, tokens),
        sync_playwright() as playwright,
    ):
        browser = playwright.chromium.launch(executable_path=find_chromium())
        if "dashboard" in pages:
            with load(url, tokens):
                dashboard(browser, url, tokens["root"], folder)
        if "playground" in pages:
            playground(browser, url, tokens["root"], folder)
    for picture in sorted(folder.glob("playground-*.png")) + sorted(folder.glob("dashboard-*.png")):
        optimise(picture)
        print(f"{picture}  {picture.stat().st_size:,} bytes")


@contextmanager
def serving(data: Path) -> Iterator[tuple[str, dict[str, str]]]:
    store = IdentityStore(f"sqlite:///{data}/identity.db")
    tokens = {}
    for name in ("root", *USERS):
        grants = [Grant("CAN_MANAGE" if name == "root" else "CAN_QUERY")]
        store.accounts.create(name, grants=grants)
        tokens[name] = store.tokens.create(name, created_by="root")[0].value
    store.close()
    limited: dict[str, Any] = {"rate_limits": [{"key": "user", "principal": USERS[2], "calls": 10}]}
    mixture = data / "dbrx-shape"
    mixture.mkdir()
    write_tiny_model(mixture)
    shape: dict[str, Any] = {
        "vocab_size": 512,
        "n_layers": 40,
        "moe_num_experts": 16,
        "moe_top_k": 4,
    }
    write_tiny_dbrx(mixture, scale=SCALE, **shape)
    endpoints = [
        endpoint("coder", CODER),
        {**endpoint("small", SMALL), **limited},
        tiny_endpoint(str(mixture), "dbrx-shape", weights="checkpoint"),
    ]
    configuration = {"data": str(data), "tables": {"flush_seconds": 1.0}, "endpoints": endpoints}
    server = ServerProcess(data, configuration=configuration)
    try:
        while server.health().status_code != 200:
            assert server.process.poll() is None, "".join(server.errors)
        yield server.url, tokens
    finally:
        server.close()


def endpoint(name: str, model: str) -> dict[str, Any]:
    return {
        "name": name,
        "served_entities": [{"name": model, "model": model, "engine": {"threads": 1}}],
        "inference_table_config": {"enabled": True},
    }


@contextmanager
def load(url: str, tokens: dict[str, str]) -> Iterator[None]:
    """Three users ask the small model for as long as the block runs, and one the mixture."""
    stop = threading.Event()
    asking = [*((name, "small") for name in USERS), (USERS[0], "dbrx-shape")]
    threads = [
        threading.Thread(target=ask, args=(url, tokens[name], model, stop))
        for name, model in asking
    ]
    for thread in threads:
        thread.start()
    stop.wait(LOAD_S)
    try:
        yield
    finally:
        stop.set()
        for thread in threads:
            thread.join()


def ask(url: str, token: str, model: str, stop: threading.Event) -> None:
    headers = {"authorization": f"Bearer {token}"}
    with httpx.Client(base_url=url, headers=headers, timeout=120) as client:
        for i, question in enumerate(itertools.cycle(QUESTIONS)):
            if stop.is_set():
                return
            messages = [
                {"role": "system", "content": "You are a helpful assistant. Answer briefly."},
                {"role": "user", "content": question},
            ]
            body = {"model": model, "messages": messages, "max_tokens": 12 + 9 * (i % 4)}
            response = client.post("/v1/chat/completions", json=body)
            stop.wait(6.0 if response.status_code == 429 else 0.3)


def opened(browser: Browser, url: str, token: str, **options: Any) -> Page:
    page = browser.new_context(**options).new_page()
    page.set_default_timeout(ANSWER_MS)
    page.goto(url)
    page.locator("#token").fill(token)
    page.locator("#token").press("Enter")
    expect(page.get_by_role("dialog")).to_have_count(0)
    return page


STILL: dict[str, Any] = {"reduced_motion": "reduce"}
DESKTOP: dict[str, Any] = {"viewport": {"width": 1280, "height": 800}, **STILL}
PHONE: dict[str, Any] = {
    "viewport": {"width": 390, "height": 780},
    "device_scale_factor": 2,
    **STILL,
}


def dashboard(browser: Browser, url: str, token: str, folder: Path) -> None:
    page = opened(browser, f"{url}/dashboard", token, **DESKTOP)
    page.locator(".usage tbody tr").nth(2).wait_for()
    page.locator(".rows-table tbody tr").nth(5).wait_for()
    page.locator(".heat tbody tr").first.wait_for()
    page.screenshot(path=folder / "dashboard-light.png", full_page=True)
    page.locator(".row-open").nth(3).click()
    page.locator(".row-messages").wait_for()
    page.emulate_media(color_scheme="dark")
    page.screenshot(path=folder / "dashboard-row-dark.png")
    page.context.close()
    page = opened(browser, f"{url}/dashboard", token, color_scheme="dark", **PHONE)
    page.locator(".usage tbody tr").first.wait_for()
    page.screenshot(path=folder / "dashboard-phone-dark.png")
    page.context.close()


def playground(browser: Browser, url: str, token: str, folder: Path) -> None:
    page = opened(browser, url, token, **DESKTOP)
    page.locator("select.model option").nth(1).wait_for(state="attached")
    page.screenshot(path=folder / "playground-light.png")
    sample(page, "Fifteen muffins")
    page.get_by_role("button", name="Add pane").click()
    send(page, 2)
    page.emulate_media(color_scheme="dark")
    page.screenshot(path=folder / "playground-panes-dark.png")
    page.emulate_media(color_scheme="light")
    page.get_by_role("button", name="Close pane").last.click()
    page.get_by_role("button", name="New chat").click()
    sample(page, "A function with its test")
    send(page, 1)
    page.locator(".pane-settings").click()
    page.locator(".scroller").evaluate("(element) => element.scrollTo(0, 120)")
    page.mouse.move(1, 1)
    page.screenshot(path=folder / "playground-code-light.png")
    page.context.close()
    page = opened(browser, url, token, **PHONE)
    sample(page, "A character as JSON")
    send(page, 1)
    page.screenshot(path=folder / "playground-phone-light.png")
    page.context.close()


def sample(page: Page, title: str) -> None:
    page.locator(".welcome").get_by_role("button", name=title).click()


def send(page: Page, replies: int) -> None:
    page.locator("#prompt").press("Enter")
    page.mouse.move(1, 1)  # no button is pointed at
    expect(page.locator(".figures")).to_have_count(replies, timeout=ANSWER_MS)


def optimise(picture: Path) -> None:
    """256 colours are enough for a page, and a third of the bytes."""
    image = Image.open(picture).convert("RGB").quantize(256, dither=Image.Dither.NONE)
    image.save(picture, optimize=True)
    assert picture.stat().st_size < MAX_BYTES, f"{picture} is too large"


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:] or ["playground", "dashboard"])
