// Puts the playground's page together.

import { getJson } from "../api.js";
import { showDialog } from "../dialog.js";
import { h } from "../dom.js";
import { askForToken } from "../login.js";
import { listenForShortcuts } from "../shortcuts.js";
import { TopBar } from "../top_bar.js";
import { Chat } from "./chat.js";
import { Composer } from "./composer.js";
import { hasOwnReply, isEmpty } from "./conversation.js";
import { showExport } from "./export_dialog.js";
import { galleryCards } from "./gallery_view.js";
import { HistoryView } from "./history_view.js";
import { PaneView } from "./pane_view.js";
import { SettingsView } from "./settings_view.js";
import { ToolbarView } from "./toolbar_view.js";

const MODELS_EVERY_MS = 2000; // while there are none, or they load

const SHORTCUTS = [
  ["Enter", "Send"],
  ["Shift+Enter", "Break the line"],
  ["Esc", "Stop all answers"],
  ["Alt+I", "To the prompt"],
  ["Alt+1", "To pane 1, 2, 3, 4"],
  ["Alt+R", "Answer again, in every pane"],
  ["Alt+S", "Settings of the pane"],
  ["Alt+P", "Add a pane"],
  ["Alt+Y", "One prompt for all panes, or one for each"],
  ["Alt+N", "New chat"],
  ["Alt+K", "Search chats"],
  ["Alt+G", "Sample prompts"],
  ["Alt+X", "Export as code"],
  ["Alt+T", "Theme"],
  ["Alt+/", "This list"],
];

const find = (id) => document.getElementById(id);

class Page {
  constructor() {
    this.chat = new Chat();
    this.bar = new TopBar(find("top-bar"), SHORTCUTS);
    this.history = new HistoryView(this.chat, find("history"));
    this.settings = new SettingsView(this.chat, find("settings"));
    this.composer = new Composer(this.chat, null, "Ask anything");
    find("composer").append(this.composer.element);
    this.panes = new Map(); // pane -> PaneView
    this.toolbar = new ToolbarView(this.chat, find("toolbar"), {
      history: () => this.history.open(),
      samples: () => this.showSamples(),
      exportCode: () => showExport(this.chat, this.composer.area.value),
    });
    this.welcome = h(
      "div",
      { class: "welcome" },
      h("h2", {}, "What would you like to try?"),
      h("p", { class: "muted" }, "Write below, or begin with one of these."),
      galleryCards((sample) => this.useSample(sample)),
    );
    this.listen();
    this.showPanes();
  }

  listen() {
    const { chat } = this;
    chat.addEventListener("open", () => this.showPanes());
    chat.addEventListener("models", () => this.showModels());
    chat.addEventListener("pane", ({ detail }) => {
      this.panes.get(detail)?.show();
      this.showWelcome();
    });
    chat.addEventListener("answer", ({ detail }) => this.panes.get(detail.pane)?.showPiece(detail.reply));
    chat.addEventListener("running", () => this.showRunning());
    addEventListener("pagehide", () => chat.saveNow());
    document.addEventListener("keydown", (event) => {
      if (event.key === "Escape" && !document.querySelector("dialog[open]")) chat.stop();
    });
    const toPane = (i) => [...this.panes.values()][i]?.model.focus();
    listenForShortcuts({
      KeyI: () => this.focusPrompt(),
      Digit1: () => toPane(0),
      Digit2: () => toPane(1),
      Digit3: () => toPane(2),
      Digit4: () => toPane(3),
      KeyR: () => this.answerAgain(),
      KeyS: () => this.settings.toggle(this.currentPane()),
      KeyP: () => chat.addPane(),
      KeyY: () => chat.setSynchronised(!chat.conversation.synchronised),
      KeyN: () => this.history.newChat(),
      KeyK: () => this.history.open(),
      KeyG: () => this.showSamples(),
      KeyX: () => showExport(chat, this.composer.area.value),
      KeyT: () => this.bar.switchTheme(),
      Slash: () => this.bar.showShortcuts(),
    });
  }

  /** The pane that has the focus, else the first. */
  currentPane() {
    const focused = [...this.panes].find(([, view]) => view.element.contains(document.activeElement));
    return focused?.[0] ?? this.chat.conversation.panes[0];
  }

  answerAgain() {
    for (const pane of this.chat.conversation.panes) if (hasOwnReply(pane)) this.chat.reply(pane);
  }

  focusPrompt() {
    const own = this.panes.get(this.currentPane()).composer;
    (own ?? this.composer).area.focus();
  }

  showPanes() {
    const { panes, synchronised } = this.chat.conversation;
    const views = new Map();
    for (const pane of panes) views.set(pane, new PaneView(this.chat, pane, (p) => this.settings.toggle(p)));
    this.panes = views;
    const container = find("panes");
    container.dataset.count = panes.length;
    container.replaceChildren(...[...views.values()].map((view) => view.element));
    for (const view of views.values()) view.scrollToEnd();
    find("composer").hidden = !synchronised && panes.length > 1;
    this.showWelcome();
    this.showRunning();
  }

  showWelcome() {
    const { conversation } = this.chat;
    const show = isEmpty(conversation) && conversation.panes.every((pane) => !pane.system);
    if (show && !this.welcome.isConnected) find("panes").before(this.welcome);
    if (!show) this.welcome.remove();
    find("workbench").classList.toggle("welcoming", show);
  }

  showModels() {
    for (const view of this.panes.values()) view.showModels();
    this.composer.showRunning();
  }

  showRunning() {
    this.composer.showRunning();
    for (const view of this.panes.values()) view.composer?.showRunning();
  }

  showSamples() {
    const dialog = showDialog("Sample prompts", galleryCards((sample) => {
      dialog.close();
      this.useSample(sample);
    }), { wide: true });
  }

  useSample(sample) {
    if (!isEmpty(this.chat.conversation)) this.chat.newChat();
    this.chat.useSample(sample);
    const composers = [...this.panes.values()].map((view) => view.composer).filter(Boolean);
    for (const composer of composers.length ? composers : [this.composer]) composer.write(sample.prompt);
  }

  /** Asks until there are models and they are loaded. */
  async watchModels() {
    for (;;) {
      try {
        const { data } = await getJson("/v1/models");
        const models = data.filter(({ task }) => task === "llm/v1/chat");
        this.chat.setModels(models);
        if (models.length && models.every((model) => model.max_model_len !== null)) return;
      } catch (error) {
        if (error.status === 401) {
          document.addEventListener("login", () => this.watchModels(), { once: true });
          await askForToken();
          return;
        }
      }
      await new Promise((resolve) => setTimeout(resolve, MODELS_EVERY_MS));
    }
  }
}

const page = new Page();
page.watchModels();
page.chat.loadHistory();
page.composer.area.focus();
