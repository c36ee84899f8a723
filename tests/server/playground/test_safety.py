"""What models and users write stays text, and nothing leaves for elsewhere."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from playwright.sync_api import expect

from tests.server.playground.chat_page import ChatPage

Open = Callable[..., Any]

HOSTILE = [
    "<img src=x onerror='window.hacked=1'>",
    "<script>window.hacked=1</script>",
    "<svg/onload='window.hacked=1'>",
    "[click](javascript:window.hacked=1)",
    "[click](JaVaScRiPt&#58;window.hacked=1)",
    "[click](data:text/html,<script>window.hacked=1</script>)",
    "![pixel](http://198.51.100.7/pixel.png)",
    "![x](x 'y\" onerror=\"window.hacked=1')",
    "<http://a.example/\"onmouseover='window.hacked=1'>",
    "| a |\n|---|\n| <iframe src='http://198.51.100.7/'></iframe> |",
    "```html\n<img src=x onerror=window.hacked=1>\n```",
    "<a href='http://198.51.100.7/'>x</a>",
    "- [ ] <b onclick='window.hacked=1'>x</b>",
    "&lt;img src=x onerror=window.hacked=1&gt;",
    "<style>body{background:url(http://198.51.100.7/)}</style>",
    "[ref]: javascript:window.hacked=1\n\n[ref]",
]
TAGS = {
    "a", "blockquote", "br", "button", "circle", "code", "del", "div", "em", "figcaption", "figure",
    "h3", "h4", "h5", "h6", "hr", "input", "li", "ol", "p", "path", "pre", "rect", "span", "strong",
    "svg", "table", "tbody", "td", "th", "thead", "tr", "ul",
}  # fmt: skip


def test_hostile_markdown_becomes_harmless_elements_and_html_is_refused(open_page: Open) -> None:
    page = open_page()
    found = page.evaluate(
        """async (texts) => {
          const { showMarkdown } = await import("/playground/js/markdown.js");
          const box = document.createElement("div");
          document.body.append(box);
          const found = { tags: [], handlers: [], links: [], sources: [] };
          for (const text of [...texts, texts.join("\\n\\n")]) {
            for (let end = 1; end <= text.length; end += 3) showMarkdown(box, text.slice(0, end));
            showMarkdown(box, text);
            for (const element of box.querySelectorAll("*")) {
              found.tags.push(element.localName);
              const names = element.getAttributeNames();
              found.handlers.push(...names.filter((name) => /^(on.*|style)$/.test(name)));
              found.sources.push(...names.filter((name) => name === "src" || name === "srcdoc"));
              if (element.localName === "a") found.links.push(element.protocol);
            }
          }
          return found;
        }""",
        HOSTILE,
    )
    assert set(found["tags"]) <= TAGS
    assert found["handlers"] == found["sources"] == []
    assert set(found["links"]) == {"http:"}
    assert page.evaluate("window.hacked") is None

    attempts = page.evaluate(
        """() => {
          const tried = {};
          try {
            document.body.insertAdjacentHTML("beforeend", "<img src=x>");
            tried.html = "done";
          } catch (error) { tried.html = error.name; }
          const style = document.createElement("style");
          style.textContent = "body { display: none }";
          document.head.append(style);
          tried.display = getComputedStyle(document.body).display;
          return tried;
        }"""
    )
    assert attempts["html"] == "TypeError"  # trusted types
    assert attempts["display"] != "none"


def test_hostile_answers_and_titles_are_shown_as_they_are(open_page: Open) -> None:
    chat = ChatPage(open_page())
    text = "<img src=x onerror='window.hacked=1'> [a](javascript:window.hacked=1)"
    chat.say(text)
    answer = chat.ask(text)
    expect(answer.locator(".markdown")).to_contain_text(text)
    expect(answer.locator(".markdown img, .markdown a")).to_have_count(0)
    expect(chat.page.locator(".said")).to_have_text(text)
    expect(chat.page.locator(".history-open")).to_have_text(text[:59] + "…")
    assert chat.page.evaluate("window.hacked") is None
