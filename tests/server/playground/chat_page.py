"""The playground as the tests use it: what a reader would click and type."""

from __future__ import annotations

import json
from typing import Any


class ChatPage:
    """Wraps Playwright's page."""

    def __init__(self, page: Any) -> None:
        self.page = page
        self.prompt = page.locator("#prompt")
        self.bodies: list[dict[str, Any]] = []  # of the requests for answers
        page.on("request", self._note)
        page.locator("select.model option").first.wait_for(state="attached")

    def _note(self, request: Any) -> None:
        if request.url.endswith("/chat/completions"):
            self.bodies.append(json.loads(request.post_data))

    def pane(self, number: int = 1) -> Any:
        return self.page.locator(".pane").nth(number - 1)

    def ask(self, text: str) -> Any:
        """Sends and waits for the whole answer of the first pane, which is returned."""
        self.prompt.fill(text)
        self.prompt.press("Enter")
        return self.answer()

    def answer(self, pane: int = 1) -> Any:
        """The last reply of a pane, when it is complete."""
        reply = self.pane(pane).locator(".reply[aria-busy=false]").last
        self.pane(pane).locator(".reply").last.locator(".reply-foot > *").first.wait_for()
        return reply

    def set(self, **settings: str) -> None:
        """Fills fields of the first pane's settings by their name in the API, and closes them."""
        self.pane().locator(".pane-settings").click()
        if "presence_penalty" in settings:
            self.page.get_by_text("Penalties and min p").click()
        for name, value in settings.items():
            self.page.locator(f"[id^='{name}-']").first.fill(value)
        self.page.get_by_role("button", name="Close settings").click()

    def say(self, text: str) -> None:
        """Makes the model answer exactly this, as a JSON string: its format allows nothing else."""
        self.pane().locator(".pane-settings").click()
        self.page.locator("[id^='response_format-']").first.select_option("json_schema")
        self.page.get_by_role("textbox", name="JSON schema").fill(json.dumps({"const": text}))
        self.page.get_by_role("button", name="Close settings").click()
