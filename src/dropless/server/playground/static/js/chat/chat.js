// The playground without its page: the open chat, what can be done with it, and the chats before.
// Views listen to its events and draw what changed:
//   "open"    another chat is open, or its panes or switches changed
//   "pane"    the settings or messages of one pane changed (detail: the pane)
//   "answer"  a piece of an answer came (detail: {pane, reply})
//   "running" some pane began or ended to answer (detail: the pane)
//   "history" the list of chats changed
//   "models"  what the server offers is known anew

import { announce, notify } from "../dialog.js";
import { fetchAnswer } from "./answering.js";
import * as store from "./history_store.js";
import {
  isEmpty, isRunning, MAX_PANES, newAnswer, newConversation, newId, ownTitle, requestBody, shownAnswer, textOf,
  writtenReply,
} from "./conversation.js";

const SAVE_AFTER_MS = 400;
const SPOKEN_LENGTH = 600; // characters of an answer that are read out by themselves

export class Chat extends EventTarget {
  constructor() {
    super();
    this.models = [];
    this.conversations = []; // the latest first; without the open one while it is empty
    this.conversation = newConversation();
    this.running = new Map(); // pane -> AbortController
    this.saving = null;
  }

  emit(name, detail) {
    this.dispatchEvent(new CustomEvent(name, { detail }));
  }

  // ---- models and history

  setModels(models) {
    this.models = models;
    for (const pane of this.conversation.panes) pane.model ||= models[0]?.id ?? "";
    this.emit("models");
  }

  async loadHistory() {
    try {
      this.conversations = await store.loadAll();
    } catch (error) {
      notify(`Chats are not kept: this browser gives no storage (${error.message}).`);
    }
    for (const conversation of this.conversations) conversation.panes.forEach(endInterrupted);
    this.emit("history");
  }

  newChat() {
    this.open(newConversation(this.conversation.panes.map((pane) => pane.model)));
  }

  open(conversation) {
    this.stop();
    this.saveNow();
    this.conversation = conversation;
    this.emit("open");
    this.emit("history");
  }

  rename(conversation, title) {
    conversation.title = title.trim() || ownTitle(conversation);
    conversation.titled = Boolean(title.trim());
    this.keep(conversation);
  }

  remove(conversation) {
    if (conversation === this.conversation) this.newChat();
    this.conversations = this.conversations.filter((other) => other !== conversation);
    store.remove(conversation.id).catch(reportStorage);
    this.emit("history");
    notify(`Deleted “${conversation.title}”.`, {
      label: "Undo",
      act: () => this.keep(conversation),
    });
  }

  add(conversations) {
    for (const conversation of conversations) this.keep(conversation);
  }

  /** Puts it into the history, where its time says. */
  keep(conversation) {
    if (!this.conversations.includes(conversation)) this.conversations.push(conversation);
    this.conversations.sort((a, b) => b.updated - a.updated);
    store.save(structuredClone(conversation)).catch(reportStorage);
    this.emit("history");
  }

  /** The open chat changed: it is saved soon. */
  touch() {
    this.conversation.updated = Date.now();
    if (!this.conversation.titled) this.conversation.title = ownTitle(this.conversation);
    clearTimeout(this.saving);
    this.saving = setTimeout(() => this.saveNow(), SAVE_AFTER_MS);
  }

  saveNow() {
    if (this.saving === null) return;
    clearTimeout(this.saving);
    this.saving = null;
    if (!isEmpty(this.conversation) || this.conversations.includes(this.conversation)) {
      this.keep(this.conversation);
    }
  }

  // ---- panes

  /** Another pane like the last one, messages and all, with a model that no pane has yet. */
  addPane() {
    const { panes } = this.conversation;
    if (panes.length >= MAX_PANES) return;
    const last = panes.at(-1);
    const unused = this.models.find(({ id }) => !panes.some((pane) => pane.model === id));
    const pane = { ...structuredClone(last), id: newId(), model: unused?.id ?? last.model };
    endInterrupted(pane);
    panes.push(pane);
    this.touch();
    this.emit("open");
    announce(`Pane ${panes.length} added.`);
  }

  removePane(pane) {
    const { panes } = this.conversation;
    if (panes.length === 1) return;
    this.stop(pane);
    panes.splice(panes.indexOf(pane), 1);
    this.touch();
    this.emit("open");
    announce("Pane closed.");
  }

  setSynchronised(value) {
    this.conversation.synchronised = value;
    this.touch();
    this.emit("open");
  }

  setSafety(value) {
    this.conversation.safety = value;
    this.touch();
  }

  /** Changes a pane's model, system prompt or parameters. */
  change(pane, changes) {
    Object.assign(pane, changes);
    this.touch();
    this.emit("pane", pane);
  }

  copySettings(from) {
    for (const pane of this.conversation.panes) {
      if (pane === from) continue;
      this.change(pane, { system: from.system, parameters: structuredClone(from.parameters) });
    }
    announce("Settings copied to all panes.");
  }

  clear(pane) {
    const { messages } = pane;
    if (!messages.length) return;
    this.stop(pane);
    this.change(pane, { messages: [] });
    notify("Messages cleared.", { label: "Undo", act: () => this.change(pane, { messages }) });
  }

  useSample(sample) {
    Object.assign(this.conversation, { title: sample.title, titled: true });
    for (const pane of this.conversation.panes) {
      const examples = (sample.examples ?? []).flatMap(([question, reply]) => [
        { role: "user", content: question },
        writtenReply(reply),
      ]);
      this.change(pane, {
        system: sample.system ?? "",
        parameters: structuredClone(sample.parameters ?? {}),
        messages: examples,
      });
    }
  }

  // ---- questions and answers

  /** Sends a text to one pane, or to all. */
  send(text, panes = this.conversation.panes) {
    for (const pane of panes) {
      if (this.running.has(pane)) continue;
      pane.messages.push({ role: "user", content: text });
      this.reply(pane);
    }
  }

  /** Asks for the answer to the last question, as a new version if there is one already. */
  async reply(pane) {
    if (this.running.has(pane)) return;
    const old = pane.messages.at(-1)?.role === "assistant" ? pane.messages.pop() : null;
    const { conversation } = this;
    const body = requestBody(conversation, pane);
    const answer = newAnswer(pane.model);
    const worthKeeping = old?.versions.filter((version) => version.choices.length) ?? [];
    const reply = { role: "assistant", versions: [...worthKeeping, answer], shown: worthKeeping.length };
    pane.messages.push(reply);
    const controller = new AbortController();
    this.running.set(pane, controller);
    this.touch();
    this.saveNow();
    this.emit("pane", pane);
    this.emit("running", pane);
    announce(`${this.nameOf(pane)} answers.`);
    await fetchAnswer(answer, body, controller.signal, () => this.emit("answer", { pane, reply }));
    this.running.delete(pane);
    if (conversation === this.conversation) {
      this.touch();
      this.saveNow();
    } else if (this.conversations.includes(conversation)) {
      this.keep(conversation);
    }
    this.emit("pane", pane);
    this.emit("running", pane);
    announce(this.spoken(pane, answer));
  }

  /** Stops one pane, or all that answer. */
  stop(pane = null) {
    for (const [running, controller] of this.running) {
      if (pane === null || pane === running) controller.abort();
    }
  }

  /** Puts another question in the place of one, drops what came after, and asks. Synchronised
   * panes that have a question there do the same. */
  editQuestion(pane, index, text) {
    const { synchronised, panes } = this.conversation;
    for (const other of synchronised ? panes : [pane]) {
      if (other.messages[index]?.role !== "user" || this.running.has(other)) continue;
      other.messages = [...other.messages.slice(0, index), { role: "user", content: text }];
      this.reply(other);
    }
  }

  /** Deletes a question and the reply to it. */
  deleteTurn(pane, index) {
    const before = pane.messages;
    const reply = before[index + 1]?.role === "assistant" ? before[index + 1] : null;
    if (reply && isRunning(shownAnswer(reply))) this.stop(pane);
    this.change(pane, { messages: before.filter((message, i) => i !== index && message !== reply) });
    notify("Deleted.", { label: "Undo", act: () => this.change(pane, { messages: before }) });
  }

  showVersion(pane, reply, shown) {
    reply.shown = shown;
    this.change(pane, {});
  }

  choose(pane, answer, chosen) {
    answer.chosen = chosen;
    this.touch();
  }

  // ---- words

  nameOf(pane) {
    const { panes } = this.conversation;
    return panes.length === 1 ? pane.model : `Pane ${panes.indexOf(pane) + 1}, ${pane.model},`;
  }

  spoken(pane, answer) {
    const name = this.nameOf(pane);
    if (answer.state === "failed") return `${name} failed: ${answer.error.message}`;
    const text = textOf({ role: "assistant", versions: [answer], shown: 0 });
    const start = text.length > SPOKEN_LENGTH ? `${text.slice(0, SPOKEN_LENGTH)} … and more.` : text;
    return `${name} ${answer.state === "stopped" ? "was stopped" : "answered"}: ${start}`;
  }
}

/** An answer that was on its way when the page was closed, or the pane copied, has been stopped. */
function endInterrupted(pane) {
  for (const message of pane.messages) {
    if (message.role === "assistant" && isRunning(shownAnswer(message))) {
      shownAnswer(message).state = "stopped";
    }
  }
}

function reportStorage(error) {
  notify(`This chat could not be kept: ${error?.message ?? "the browser's storage failed"}.`);
}
