// Where a message is written. Enter sends, Shift+Enter breaks the line; while an answer comes, the
// button stops it.

import { h, icon, newId } from "../dom.js";
import { growing } from "./growing.js";

export class Composer {
  /** @param panes those that it sends to; null for all of the open chat */
  constructor(chat, panes, label) {
    this.chat = chat;
    this.panes = panes;
    const id = panes ? newId("prompt") : "prompt";
    this.area = growing(
      h("textarea", { id, rows: 1, placeholder: label, "aria-label": label, enterkeyhint: "send" }),
    );
    this.area.addEventListener("input", () => this.showRunning());
    this.area.addEventListener("keydown", (event) => this.keydown(event));
    this.button = h("button", { type: "submit", class: "send" });
    this.element = h("form", { class: "prompt-form", onsubmit: (event) => this.submit(event) }, this.area, this.button);
    this.showRunning();
  }

  get targets() {
    return this.panes ?? this.chat.conversation.panes;
  }

  get running() {
    return this.targets.some((pane) => this.chat.running.has(pane));
  }

  /** Sets the text, to be looked at and sent. */
  write(text) {
    this.area.value = text;
    this.area.dispatchEvent(new Event("input"));
    this.area.focus();
    this.area.setSelectionRange(text.length, text.length);
  }

  showRunning() {
    const { running } = this;
    this.button.replaceChildren(icon(running ? "square" : "arrow-up"));
    this.button.setAttribute("aria-label", running ? "Stop" : "Send");
    this.button.title = running ? "Stop (Esc)" : "Send (Enter)";
    this.button.classList.toggle("stop", running);
    this.button.disabled = !running && !this.area.value.trim();
  }

  keydown(event) {
    if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
    event.preventDefault();
    if (!this.running) this.send();
  }

  submit(event) {
    event.preventDefault();
    if (this.running) for (const pane of this.targets) this.chat.stop(pane);
    else this.send();
  }

  send() {
    const text = this.area.value.trim();
    if (!text || !this.targets.every((pane) => pane.model)) return;
    this.chat.send(text, this.targets);
    this.area.value = "";
    this.area.dispatchEvent(new Event("input"));
  }
}
