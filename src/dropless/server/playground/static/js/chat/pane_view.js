// One pane: its model and settings at the top, the messages, and a prompt of its own if the panes
// are not synchronised.

import { h, icon, iconButton, newId } from "../dom.js";
import { Composer } from "./composer.js";
import { QuestionView, ReplyView } from "./message_view.js";
import { summary } from "./parameters.js";

const NEAR_END_PX = 80;

export class PaneView {
  /** @param openSettings called with the pane */
  constructor(chat, pane, openSettings) {
    this.chat = chat;
    this.pane = pane;
    this.views = new Map(); // message -> view
    this.frame = null; // of the animation that will draw what came
    this.model = h("select", {
      class: "model",
      "aria-label": "Model",
      onchange: () => chat.change(pane, { model: this.model.value }),
    });
    this.settings = h("button", { type: "button", class: "pane-settings", onclick: () => openSettings(pane) });
    this.list = h("ol", { class: "messages", "aria-label": "Messages" });
    this.toEnd = iconButton("arrow-down", "To the end", () => this.scrollToEnd(), { class: "to-end icon-button" });
    this.scroller = h("div", { class: "scroller", tabindex: "-1", onscroll: () => this.noteScroll() }, this.list);
    this.composer = null;
    this.foot = h("div", { class: "pane-foot" });
    this.titleId = newId("pane");
    this.title = h("h2", { class: "visually-hidden", id: this.titleId });
    this.element = h(
      "section",
      { class: "pane", "aria-labelledby": this.titleId },
      this.title,
      h("header", { class: "pane-head" }, this.model, this.settings, this.headButtons()),
      h("div", { class: "pane-body" }, this.scroller, this.toEnd),
      this.foot,
    );
    this.follow = true;
    this.showModels();
    this.show();
  }

  headButtons() {
    const { chat, pane } = this;
    const clear = iconButton("eraser", "Clear messages", () => chat.clear(pane));
    const several = chat.conversation.panes.length > 1;
    const close = iconButton("x", "Close pane", () => chat.removePane(pane));
    return h("span", { class: "pane-buttons" }, clear, several ? close : null);
  }

  get number() {
    return this.chat.conversation.panes.indexOf(this.pane) + 1;
  }

  showModels() {
    const { models } = this.chat;
    const known = models.some(({ id }) => id === this.pane.model);
    const others = known || !this.pane.model ? [] : [h("option", { value: this.pane.model }, `${this.pane.model} (not served)`)];
    if (!models.length && !others.length) others.push(h("option", { value: "" }, "No model that chats"));
    const options = models.map(({ id }) => h("option", { value: id }, id));
    this.model.replaceChildren(...others, ...options);
    this.model.value = this.pane.model;
    this.model.disabled = !models.length;
  }

  /** Everything, with the views of messages that are still there. */
  show() {
    const { chat, pane } = this;
    const focused = this.element.contains(document.activeElement);
    this.title.textContent = `Pane ${this.number}: ${pane.model}`;
    this.model.value = pane.model;
    this.showSettings();
    const views = new Map();
    pane.messages.forEach((message, i) => views.set(message, this.viewOf(message, i)));
    this.views = views;
    const elements = [...views.values()].map((view) => view.element);
    const same = elements.length === this.list.children.length && elements.every((e, i) => this.list.children[i] === e);
    if (!same) this.list.replaceChildren(...elements);
    this.showComposer();
    if (chat.running.has(pane)) this.scrollToEnd();
    else this.keepAtEnd();
    const lost = focused && !this.element.contains(document.activeElement);
    if (lost) this.scroller.focus({ preventScroll: true }); // what had it is gone
  }

  showSettings() {
    const words = summary(this.pane);
    const chips = words.slice(0, 3).map((word) => h("span", { class: "chip accent" }, word));
    if (words.length > 3) chips.push(h("span", { class: "chip accent" }, `+${words.length - 3}`));
    const said = words.length ? `Settings: ${words.join(", ")}` : "Settings";
    this.settings.setAttribute("aria-label", said);
    this.settings.title = said;
    this.settings.replaceChildren(icon("sliders-horizontal"), ...chips);
  }

  showComposer() {
    const own = !this.chat.conversation.synchronised && this.chat.conversation.panes.length > 1;
    if (own && !this.composer) {
      this.composer = new Composer(this.chat, [this.pane], `Message for pane ${this.number}`);
      this.foot.replaceChildren(this.composer.element);
    } else if (!own && this.composer) {
      this.composer = null;
      this.foot.replaceChildren();
    }
  }

  viewOf(message, index) {
    const last = index === this.pane.messages.length - 1;
    const old = this.views.get(message);
    if (message.role === "user") {
      if (old && old.index === index) return old;
      return new QuestionView(message, index, {
        edit: (i, text) => this.chat.editQuestion(this.pane, i, text),
        remove: (i) => this.chat.deleteTurn(this.pane, i),
      });
    }
    if (old) {
      old.last = last;
      old.show();
      return old;
    }
    return new ReplyView(message, {
      last,
      actions: {
        again: () => this.chat.reply(this.pane),
        showVersion: (reply, i) => this.chat.showVersion(this.pane, reply, i),
        choose: (answer, i) => this.chat.choose(this.pane, answer, i),
      },
    });
  }

  /** Draws a piece that came, at the next frame: pieces may come faster than the screen shows. */
  showPiece(reply) {
    this.frame ??= requestAnimationFrame(() => {
      this.frame = null;
      this.views.get(reply)?.showText();
      this.keepAtEnd();
    });
  }

  // The end stays in sight unless the reader scrolled away from it.

  noteScroll() {
    const { scrollHeight, scrollTop, clientHeight } = this.scroller;
    this.follow = scrollHeight - scrollTop - clientHeight < NEAR_END_PX;
    this.toEnd.hidden = this.follow;
  }

  keepAtEnd() {
    if (this.follow) this.scroller.scrollTop = this.scroller.scrollHeight;
    this.noteScroll();
  }

  scrollToEnd() {
    this.follow = true;
    this.keepAtEnd();
  }
}
