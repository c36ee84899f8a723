// The request of a pane, to take along: curl, Python, a notebook.

import { codeBlock } from "../code_block.js";
import { showDialog } from "../dialog.js";
import { h, saveFile, textButton } from "../dom.js";
import { requestBody } from "./conversation.js";
import { toCurl, toNotebook, toPython } from "./export_code.js";

const KINDS = [
  { label: "Python", language: "python", file: "request.py", type: "text/x-python", make: toPython },
  { label: "curl", language: "bash", file: "request.sh", type: "text/x-shellscript", make: toCurl },
  { label: "Notebook", language: "json", file: "request.ipynb", type: "application/x-ipynb+json", make: toNotebook },
];

/** @param draft what stands in the prompt and is not sent yet */
export function showExport(chat, draft) {
  const { panes, title } = chat.conversation;
  let kind = KINDS[0];
  const select = h(
    "select",
    { class: "input", "aria-label": "Pane", onchange: () => draw() },
    panes.map((pane, i) => h("option", { value: i }, `Pane ${i + 1}: ${pane.model}`)),
  );
  const tabs = h("div", { class: "tabs", role: "tablist", "aria-label": "As" });
  const content = h("div", { class: "export-code", role: "tabpanel", "aria-labelledby": "export-tab" });

  const draw = () => {
    const body = lastRequest(chat, panes[Number(select.value || 0)], draft);
    const text = kind.make(body, location.origin, title);
    tabs.replaceChildren(...KINDS.map(tab));
    content.replaceChildren(
      codeBlock(text, kind.language),
      h(
        "div",
        { class: "dialog-actions" },
        textButton("download", `Save ${kind.file}`, () => saveFile(kind.file, text, kind.type)),
      ),
    );
  };
  const choose = (other) => {
    kind = other;
    draw();
    tabs.querySelector('[aria-selected="true"]').focus();
  };
  const tab = (each) => {
    const selected = each === kind;
    const onkeydown = (event) => {
      const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
      if (step) choose(KINDS[(KINDS.indexOf(kind) + step + KINDS.length) % KINDS.length]);
    };
    return h(
      "button",
      {
        type: "button",
        role: "tab",
        id: selected ? "export-tab" : null,
        "aria-selected": String(selected),
        tabindex: selected ? 0 : -1,
        onclick: () => choose(each),
        onkeydown,
      },
      each.label,
    );
  };
  draw();
  const note = h(
    "p",
    { class: "small muted" },
    "The request that asks your last question again. The token is read from ",
    h("code", {}, "DROPLESS_TOKEN"),
    "; a server without tokens needs none.",
  );
  showDialog("Take this request along", [note, panes.length > 1 ? select : null, tabs, content], { wide: true });
}

/** Up to the last question; the draft is one if there is any. */
function lastRequest(chat, pane, draft) {
  if (draft.trim()) {
    const question = { role: "user", content: draft.trim() };
    return requestBody(chat.conversation, { ...pane, messages: [...pane.messages, question] });
  }
  const last = pane.messages.findLastIndex((message) => message.role === "user");
  return requestBody(chat.conversation, pane, last + 1);
}
