// The list of chats: search, rename, delete, export and import.

import { announce, notify } from "../dialog.js";
import { h, icon, iconButton, saveFile, textButton } from "../dom.js";
import { searchText } from "./conversation.js";
import { fromFile, toFile } from "./history_file.js";

const DAY_MS = 86_400_000;

export class HistoryView {
  constructor(chat, element) {
    this.chat = chat;
    this.search = h("input", {
      class: "input",
      type: "search",
      placeholder: "Search chats",
      "aria-label": "Search chats",
      oninput: () => this.show(true),
    });
    this.list = h("div", { class: "history-list" });
    this.file = h("input", { type: "file", accept: ".json,application/json", hidden: true, onchange: () => this.importFile() });
    element.append(
      h(
        "div",
        { class: "history-head" },
        textButton("plus", "New chat", () => this.newChat(), { title: "New chat (Alt+N)" }),
        iconButton("x", "Close the list of chats", () => this.close(), { class: "icon-button history-close" }),
      ),
      h("div", { class: "history-search" }, icon("search"), this.search),
      this.list,
      h(
        "div",
        { class: "history-foot" },
        textButton("download", "Export", () => this.exportAll(), { class: "button quiet", title: "Save all chats as a file" }),
        textButton("upload", "Import", () => this.file.click(), { class: "button quiet", title: "Add the chats of a file" }),
        this.file,
      ),
    );
    this.element = element;
    this.opener = null;
    element.addEventListener("keydown", (event) => {
      if (event.key !== "Escape" || !document.body.classList.contains("with-history")) return;
      event.stopPropagation(); // it stops no answer
      this.close();
    });
    chat.addEventListener("history", () => this.show());
    this.show();
  }

  newChat() {
    this.chat.newChat();
    this.close();
    document.getElementById("prompt")?.focus();
  }

  /** To the search; on a small screen the list has to come into sight first. */
  open() {
    this.opener = document.activeElement;
    document.body.classList.add("with-history");
    this.search.focus();
  }

  close() {
    document.body.classList.remove("with-history");
    this.opener?.focus();
    this.opener = null;
  }

  show(searched = false) {
    const words = this.search.value.toLowerCase().split(/\s+/).filter(Boolean);
    const found = this.chat.conversations.filter((conversation) => {
      const text = words.length ? searchText(conversation) : "";
      return words.every((word) => text.includes(word));
    });
    const groups = Map.groupBy(found, ageOf);
    const sections = [...groups].map(([age, conversations]) => [
      h("h2", {}, age),
      h("ul", {}, conversations.map((conversation) => this.item(conversation))),
    ]);
    const nothing = words.length ? "No chat has these words." : "Chats stay in this browser. They will be listed here.";
    const empty = found.length ? null : h("p", { class: "history-empty" }, nothing);
    this.list.replaceChildren(...sections.flat(), ...(empty ? [empty] : []));
    if (searched) announce(`${found.length} chats found.`);
  }

  item(conversation) {
    const current = conversation === this.chat.conversation;
    const open = h(
      "button",
      {
        type: "button",
        class: "history-open",
        "aria-current": current ? "true" : null,
        title: conversation.title,
        onclick: () => {
          this.chat.open(conversation);
          this.close();
        },
      },
      conversation.title,
    );
    const item = h("li", {}, open);
    const rename = iconButton("pencil", `Rename ${conversation.title}`, () => this.rename(item, conversation));
    const remove = iconButton("trash", `Delete ${conversation.title}`, () => {
      this.chat.remove(conversation);
      this.search.focus();
    });
    for (const button of [rename, remove]) button.classList.add("small");
    item.append(h("span", { class: "history-actions" }, rename, remove));
    return item;
  }

  rename(item, conversation) {
    const input = h("input", { class: "input", value: conversation.title, "aria-label": "New name", maxlength: 120 });
    let done = false;
    const finish = (keep) => {
      if (done) return;
      done = true;
      if (keep) this.chat.rename(conversation, input.value);
      this.show();
      this.list.querySelector('[aria-current="true"]')?.focus();
    };
    input.addEventListener("keydown", (event) => {
      if (event.key === "Enter") finish(true);
      if (event.key === "Escape") finish(false);
      event.stopPropagation();
    });
    input.addEventListener("blur", () => finish(true));
    item.replaceChildren(input);
    input.focus();
    input.select();
  }

  exportAll() {
    this.chat.saveNow();
    const { conversations } = this.chat;
    if (!conversations.length) {
      notify("There is no chat to export yet.");
      return;
    }
    saveFile("dropless-chats.json", toFile(conversations), "application/json");
  }

  async importFile() {
    const [file] = this.file.files;
    this.file.value = "";
    if (!file) return;
    try {
      const conversations = fromFile(await file.text());
      this.chat.add(conversations);
      notify(`${conversations.length} chats imported.`);
    } catch (error) {
      notify(`Nothing was imported. ${error.message}`);
    }
  }
}

function ageOf({ updated }) {
  const today = new Date().setHours(0, 0, 0, 0);
  if (updated >= today) return "Today";
  if (updated >= today - DAY_MS) return "Yesterday";
  if (updated >= today - 7 * DAY_MS) return "The last seven days";
  return new Date(updated).toLocaleDateString("en", { month: "long", year: "numeric" });
}
