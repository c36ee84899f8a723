// Colours for code. Highlight.js reads it into a tree of scopes, which becomes spans here.

import hljs from "../vendor/highlight/core.js";

const LANGUAGES = new Set(
  ("bash c cpp csharp css diff go ini java javascript json kotlin markdown python r ruby rust scala " +
    "sql swift typescript xml yaml").split(" "),
);
const ALIASES = {
  "c++": "cpp", "c#": "csharp", cs: "csharp", golang: "go", html: "xml", js: "javascript", jsx: "javascript",
  md: "markdown", py: "python", rs: "rust", sh: "bash", shell: "bash", svg: "xml", toml: "ini",
  ts: "typescript", tsx: "typescript", yml: "yaml", zsh: "bash",
};
const MAX_LENGTH = 50_000; // beyond it colours are not worth the time

/** Puts `code` into `element`, in colour as soon as the language's grammar is here. */
export function showCode(element, code, language) {
  const name = ALIASES[language] ?? language;
  if (!LANGUAGES.has(name) || code.length > MAX_LENGTH) {
    element.textContent = code;
    return;
  }
  if (hljs.getLanguage(name)) {
    element.replaceChildren(...spans(hljs.highlight(code, { language: name })._emitter.rootNode));
    return;
  }
  element.textContent = code;
  load(name).then(() => {
    if (element.textContent === code) showCode(element, code, name);
  });
}

async function load(name) {
  const grammar = await import(`../vendor/highlight/languages/${name}.js`);
  if (!hljs.getLanguage(name)) hljs.registerLanguage(name, grammar.default);
}

function spans(node) {
  return node.children.map((child) => {
    if (typeof child === "string") return child;
    if (!child.scope && !child.language) return fragment(child);
    const span = document.createElement("span");
    if (child.scope) span.className = child.scope.split(".").map((part) => `hl-${part}`).join(" ");
    span.append(...spans(child));
    return span;
  });
}

function fragment(node) {
  const result = document.createDocumentFragment();
  result.append(...spans(node));
  return result;
}
