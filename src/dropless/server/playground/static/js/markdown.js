// Markdown to elements. marked reads the text into tokens; here each token becomes an element by
// name, and its text becomes text. There is no HTML in between, so nothing can be injected: an
// HTML tag in the text is shown as it is written. Images are shown as links: no page that a
// model names is ever asked for anything, unless the reader follows a link.

import { h } from "./dom.js";
import { codeBlock } from "./code_block.js";
import { lexer } from "../vendor/marked.js";

const SAFE_LINK = /^(https?|mailto):/i;
const ENTITIES = { amp: "&", lt: "<", gt: ">", quot: '"', apos: "'", nbsp: "\u00a0" };

/**
 * Shows `text` in `container`. Called again with a longer text, it leaves the blocks that did not
 * change alone, so that a selection or a focus within them stays.
 */
export function showMarkdown(container, text) {
  const tokens = lexer(text).filter((token) => token.type !== "space" && token.type !== "def");
  const shown = [...container.children];
  tokens.forEach((token, i) => {
    const old = shown[i];
    if (old?.dataset.raw === token.raw) return;
    if (token.type === "code" && old?.updateCode?.(token.text, language(token))) {
      old.dataset.raw = token.raw;
      return;
    }
    const element = block(token);
    element.dataset.raw = token.raw;
    if (old) old.replaceWith(element);
    else container.append(element);
  });
  for (const rest of shown.slice(tokens.length)) rest.remove();
}

const language = (token) => (token.lang ?? "").match(/^[\w+#.-]*/)[0].toLowerCase();

function block(token) {
  switch (token.type) {
    case "heading": // the page has h1 and h2 of its own
      return h(`h${Math.min(token.depth + 2, 6)}`, {}, inline(token.tokens));
    case "paragraph":
      return h("p", {}, inline(token.tokens));
    case "code":
      return codeBlock(token.text, language(token));
    case "blockquote":
      return h("blockquote", {}, token.tokens.filter(isVisible).map(block));
    case "list":
      return list(token);
    case "table":
      return table(token);
    case "hr":
      return h("hr");
    case "text": // of a list item without blank lines
      return h("div", {}, token.tokens ? inline(token.tokens) : unescape(token.text));
    default: // html, and whatever marked may learn
      return h("p", { class: "raw" }, token.raw);
  }
}

const isVisible = (token) => token.type !== "space" && token.type !== "def" && token.type !== "checkbox";

function list(token) {
  const start = token.ordered && token.start !== 1 ? token.start : null;
  const items = token.items.map((item) => {
    const done = item.checked ? "Done" : "To do";
    const box = h("input", { type: "checkbox", checked: item.checked, disabled: true, "aria-label": done });
    return h(
      "li",
      { class: item.task ? "task" : null },
      item.task ? box : null,
      item.tokens.filter(isVisible).map(block),
    );
  });
  return h(token.ordered ? "ol" : "ul", { start }, items);
}

function table(token) {
  const cell = (tag) => (content, column) =>
    h(tag, { "data-align": token.align[column] }, inline(content.tokens));
  const rows = token.rows.map((row) => h("tr", {}, row.map(cell("td"))));
  return h(
    "div",
    { class: "table-scroll", tabindex: "0", role: "group", "aria-label": "Table" },
    h("table", {}, h("thead", {}, h("tr", {}, token.header.map(cell("th")))), h("tbody", {}, rows)),
  );
}

function inline(tokens) {
  return tokens.map((token) => {
    switch (token.type) {
      case "strong":
      case "em":
      case "del":
        return h(token.type, {}, inline(token.tokens));
      case "codespan":
        return h("code", {}, token.text);
      case "br":
        return h("br");
      case "link":
        return link(token.href, inline(token.tokens), token.raw);
      case "image":
        return link(token.href, [token.text || token.href], token.raw);
      case "text":
        return token.tokens ? h("span", {}, inline(token.tokens)) : unescape(token.text);
      case "escape":
        return token.text;
      case "checkbox":
        return null;
      default:
        return token.raw;
    }
  });
}

function link(href, content, raw) {
  if (!SAFE_LINK.test(href)) return raw;
  return h("a", { href, target: "_blank", rel: "noopener noreferrer nofollow" }, content);
}

/** "&lt;" -> "<": the entities that models write; others stay as they are. */
function unescape(text) {
  return text.replace(/&(?:#(\d{1,7})|#x([\da-f]{1,6})|([a-z]{2,4}));/gi, (all, dec, hex, name) => {
    if (name) return ENTITIES[name.toLowerCase()] ?? all;
    const code = dec ? Number(dec) : parseInt(hex, 16);
    return code > 0 && code <= 0x10ffff ? String.fromCodePoint(code) : all;
  });
}

