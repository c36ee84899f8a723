// A block of code with its language, and a button that copies it.

import { announce } from "./dialog.js";
import { h, icon, iconButton } from "./dom.js";
import { showCode } from "./highlight.js";

/**
 * The element has a method updateCode(code, language), which changes the code in place; it returns
 * false if the language is another one.
 */
export function codeBlock(code, language) {
  const content = h("code");
  const head = h(
    "figcaption",
    {},
    h("span", {}, language || "text"),
    copyButton("Copy code", () => content.textContent),
  );
  const figure = h("figure", { class: "code-block" }, head, h("pre", { tabindex: "0" }, content));
  figure.updateCode = (newCode, newLanguage) => {
    if (newLanguage !== language) return false;
    showCode(content, newCode, language);
    return true;
  };
  showCode(content, code, language);
  return figure;
}

const COPIED_MS = 1500;

/** Copies what `text()` returns, and says so with a tick. */
export function copyButton(label, text) {
  const button = iconButton("copy", label, async () => {
    await copy(text());
    announce("Copied.");
    button.replaceChildren(icon("check"));
    setTimeout(() => button.replaceChildren(icon("copy")), COPIED_MS);
  });
  button.classList.add("small");
  return button;
}

async function copy(text) {
  if (navigator.clipboard) {
    await navigator.clipboard.writeText(text);
    return;
  }
  // Over plain HTTP from another machine a browser has no clipboard object; this still works.
  const area = h("textarea", { class: "visually-hidden", value: text });
  (document.querySelector("dialog[open]") ?? document.body).append(area);
  area.select();
  document.execCommand("copy");
  area.remove();
}
