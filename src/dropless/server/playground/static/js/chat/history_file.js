// Chats as a file: exported, and imported again after a look at what is in it.

import { isRunning, MAX_PANES, newId } from "./conversation.js";

const FORMAT = "dropless-playground";
const VERSION = 1;

export function toFile(conversations) {
  return JSON.stringify({ format: FORMAT, version: VERSION, conversations }, null, 1);
}

/**
 * The conversations of a file, each with an id of its own.
 * @throws {Error} with what is wrong with the file
 */
export function fromFile(text) {
  let file;
  try {
    file = JSON.parse(text);
  } catch {
    throw new Error("This file is not JSON.");
  }
  if (file?.format !== FORMAT) throw new Error("This file was not exported from a playground.");
  if (file.version !== VERSION) {
    throw new Error(`This file has version ${file.version}; this playground reads version ${VERSION}.`);
  }
  return list(file.conversations, "conversations").map(conversation);
}

function conversation(value, i) {
  const where = `conversations[${i}]`;
  const panes = list(value?.panes, `${where}.panes`).map((pane, k) => readPane(pane, `${where}.panes[${k}]`));
  if (panes.length < 1 || panes.length > MAX_PANES) throw new Error(`${where} has ${panes.length} panes.`);
  return {
    id: newId(),
    title: string(value.title, `${where}.title`),
    titled: Boolean(value.titled),
    created: number(value.created, `${where}.created`),
    updated: number(value.updated, `${where}.updated`),
    synchronised: Boolean(value.synchronised),
    safety: Boolean(value.safety),
    panes,
  };
}

function readPane(value, where) {
  return {
    id: newId(),
    model: string(value?.model, `${where}.model`),
    system: string(value.system, `${where}.system`),
    parameters: { ...value.parameters },
    messages: list(value.messages, `${where}.messages`).map((m, i) => message(m, `${where}.messages[${i}]`)),
  };
}

function message(value, where) {
  if (value?.role === "user") return { role: "user", content: string(value.content, `${where}.content`) };
  if (value?.role !== "assistant") throw new Error(`${where}.role is neither "user" nor "assistant".`);
  const versions = list(value.versions, `${where}.versions`).map((a, i) => answer(a, `${where}.versions[${i}]`));
  if (!versions[value.shown]) throw new Error(`${where}.shown names no version.`);
  return { role: "assistant", versions, shown: value.shown };
}

function answer(value, where) {
  const choices = list(value?.choices, `${where}.choices`).map((choice, i) => ({
    text: string(choice?.text, `${where}.choices[${i}].text`),
    finish_reason: choice.finish_reason ?? null,
  }));
  return {
    model: string(value.model, `${where}.model`),
    state: isRunning(value) ? "stopped" : string(value.state, `${where}.state`),
    choices,
    chosen: choices[value.chosen] ? value.chosen : 0,
    usage: value.usage ?? null,
    timings: value.timings ?? null,
    seen: { ...value.seen },
    error: value.error ?? null,
  };
}

function list(value, where) {
  if (!Array.isArray(value)) throw new Error(`${where} is not a list.`);
  return value;
}

function string(value, where) {
  if (typeof value !== "string") throw new Error(`${where} is not a text.`);
  return value;
}

function number(value, where) {
  if (!Number.isFinite(value)) throw new Error(`${where} is not a number.`);
  return value;
}
