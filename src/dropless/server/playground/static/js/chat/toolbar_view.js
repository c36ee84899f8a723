// What concerns the whole chat: sample prompts, panes, switches, export.

import { h, iconButton, switchButton, textButton } from "../dom.js";
import { isEmpty, MAX_PANES } from "./conversation.js";

/** @param actions {history(), samples(), exportCode()} */
export class ToolbarView {
  constructor(chat, element, actions) {
    this.chat = chat;
    this.element = element;
    this.actions = actions;
    chat.addEventListener("open", () => this.show());
    chat.addEventListener("history", () => this.showTitle());
    this.title = h("h1", { class: "chat-title" });
    this.show();
  }

  showTitle() {
    this.title.textContent = isEmpty(this.chat.conversation) ? "New chat" : this.chat.conversation.title;
  }

  show() {
    const { chat, actions } = this;
    const { panes, synchronised, safety } = chat.conversation;
    const several = panes.length > 1;
    const sync = switchButton("One prompt for all", synchronised, (on) => chat.setSynchronised(on), {
      title: "One prompt for all panes (Alt+Y)",
      id: "synchronised",
    });
    const safe = switchButton("Safety", safety, (on) => chat.setSafety(on), {
      title: "enable_safety_mode: refuse unsafe questions and answers",
      id: "safety",
    });
    this.showTitle();
    this.element.replaceChildren(
      iconButton("panel-left", "Chats", actions.history, { class: "icon-button history-toggle" }),
      this.title,
      h("span", { class: "toolbar-switches" }, several ? sync : null, safe),
      h(
        "span",
        { class: "toolbar-buttons" },
        tool("sparkles", "Samples", actions.samples, "Sample prompts (Alt+G)"),
        tool("columns-2", "Add pane", () => chat.addPane(), "Compare side by side (Alt+P)", panes.length >= MAX_PANES),
        tool("code-xml", "Export", actions.exportCode, "As curl, Python or notebook (Alt+X)"),
      ),
    );
  }
}

function tool(name, label, act, title, disabled = false) {
  return textButton(name, label, act, { title, disabled, "aria-label": label, class: "button quiet tool" });
}
