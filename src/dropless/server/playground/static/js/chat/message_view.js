// One message of a pane: a question that can be edited, or a reply with its versions and figures.

import { codeBlock, copyButton } from "../code_block.js";
import { h, icon, iconButton, newId, textButton } from "../dom.js";
import { showMarkdown } from "../markdown.js";
import { isRunning, shownAnswer, textOf } from "./conversation.js";
import { errorCard } from "./error_card.js";
import { figures } from "./figures.js";
import { growing } from "./growing.js";

const FINISH = {
  length: "Cut: the longest answer, or the end of the context, was reached.",
  content_filter: "Ended by the safety mode.",
};

/** JSON as indented code, once it is complete; anything else as markdown. */
function showText(container, text) {
  const json = /^\s*[{[]/.test(text) ? indented(text) : null;
  if (json === null) showMarkdown(container, text);
  else container.replaceChildren(codeBlock(json, "json"));
}

function indented(text) {
  try {
    return JSON.stringify(JSON.parse(text), null, 2);
  } catch {
    return null;
  }
}

/** @param actions {edit(index, text), remove(index)} */
export class QuestionView {
  constructor(message, index, actions) {
    this.message = message;
    this.index = index;
    this.actions = actions;
    this.element = h("li", { class: "question" });
    this.show();
  }

  show() {
    const content = h("div", { class: "said" }, this.message.content);
    const edit = iconButton("pencil", "Edit and send again", () => this.edit(), { class: "icon-button small" });
    const remove = iconButton("trash", "Delete with its answer", () => this.actions.remove(this.index), {
      class: "icon-button small",
    });
    const copy = copyButton("Copy question", () => this.message.content);
    this.element.replaceChildren(
      h("h3", { class: "visually-hidden" }, "You"),
      content,
      h("div", { class: "message-actions" }, edit, copy, remove),
    );
    this.editButton = edit;
  }

  edit() {
    const area = growing(h("textarea", { class: "input", value: this.message.content, "aria-label": "Your message", rows: 2 }));
    const cancel = () => {
      this.show();
      this.editButton.focus();
    };
    const submit = (event) => {
      event.preventDefault();
      if (area.value.trim()) this.actions.edit(this.index, area.value);
    };
    const form = h(
      "form",
      { class: "edit-form", onsubmit: submit },
      area,
      h(
        "div",
        { class: "dialog-actions" },
        textButton(null, "Cancel", cancel),
        textButton("arrow-up", "Send again", null, { type: "submit", class: "button primary" }),
      ),
    );
    form.addEventListener("keydown", (event) => {
      if (event.key === "Escape") {
        event.stopPropagation();
        cancel();
      } else if (event.key === "Enter" && !event.shiftKey && event.target === area && !event.isComposing) {
        submit(event);
      }
    });
    this.element.replaceChildren(form);
    area.focus();
    area.setSelectionRange(area.value.length, area.value.length);
  }
}

/** @param actions {again(), showVersion(reply, i), choose(answer, i)} */
export class ReplyView {
  constructor(reply, { last, actions }) {
    this.reply = reply;
    this.last = last;
    this.actions = actions;
    this.texts = h("div", { class: "texts" });
    this.foot = h("div", { class: "reply-foot" });
    this.name = h("h3", { class: "speaker" });
    this.element = h("li", { class: "reply" }, this.name, this.texts, this.foot);
    this.show();
  }

  /** The whole message, after a change other than another piece of text. */
  show() {
    const answer = shownAnswer(this.reply);
    this.name.textContent = answer.model || "Example";
    this.texts.replaceChildren();
    this.showText();
    const below = isRunning(answer) ? [] : [this.ending(answer), this.actionRow(answer)];
    this.foot.replaceChildren(...below.filter(Boolean));
    if (answer.state === "failed") this.foot.prepend(errorCard(answer.error, this.last ? this.actions.again : null));
  }

  /** The text alone: cheap enough for every piece that comes. */
  showText() {
    const answer = shownAnswer(this.reply);
    this.element.classList.toggle("streaming", isRunning(answer));
    this.element.setAttribute("aria-busy", String(isRunning(answer)));
    if (answer.state === "waiting") {
      this.texts.replaceChildren(h("div", { class: "waiting", role: "img", "aria-label": "Waiting for the first token" }));
      return;
    }
    this.texts.querySelector(".waiting")?.remove();
    answer.choices.forEach((choice, i) => {
      const box = this.texts.children[i] ?? this.addChoice(answer, i);
      showText(box.querySelector(".markdown"), choice?.text ?? "");
    });
  }

  addChoice(answer, i) {
    const markdown = h("div", { class: "markdown" });
    const box = h("div", { class: "choice" }, markdown);
    this.texts.append(box);
    if (i > 0) this.nameChoices(answer);
    return box;
  }

  /** Of several answers one goes on; which one, the reader says. */
  nameChoices(answer) {
    const group = newId("choice");
    [...this.texts.children].forEach((box, i) => {
      box.querySelector(".choice-head")?.remove();
      const choose = () => this.actions.choose(answer, i);
      const radio = h("input", { type: "radio", name: group, checked: i === answer.chosen, onchange: choose });
      box.prepend(h("label", { class: "choice-head" }, radio, h("span", {}, `Answer ${i + 1}: go on with this one`)));
    });
  }

  ending(answer) {
    const words = answer.state === "stopped" ? "Stopped." : FINISH[answer.choices[answer.chosen]?.finish_reason];
    return words ? h("p", { class: "ending" }, icon("info"), words) : null;
  }

  actionRow(answer) {
    const text = textOf(this.reply);
    const written = !answer.model;
    return h(
      "div",
      { class: "reply-actions" },
      h(
        "div",
        { class: "message-actions" },
        this.versionButtons(),
        text ? copyButton("Copy answer", () => textOf(this.reply)) : null,
        this.last && !written && answer.state !== "failed"
          ? iconButton("refresh-cw", "Answer again", this.actions.again, { class: "icon-button small" })
          : null,
      ),
      text ? figures(answer) : null,
    );
  }

  versionButtons() {
    const { versions, shown } = this.reply;
    if (versions.length < 2) return null;
    const step = (name, label, to) =>
      iconButton(name, label, () => this.actions.showVersion(this.reply, to), {
        class: "icon-button small",
        disabled: to < 0 || to >= versions.length,
      });
    return h(
      "span",
      { class: "versions", role: "group", "aria-label": "Versions of this answer" },
      step("chevron-left", "Earlier version", shown - 1),
      h("span", { class: "number" }, `${shown + 1}/${versions.length}`),
      step("chevron-right", "Later version", shown + 1),
    );
  }
}
