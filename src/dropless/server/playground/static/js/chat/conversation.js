// What a chat is: plain objects, as they are kept in the browser's database and exported.
//
// @typedef {{id, title, titled, created, updated, synchronised, safety, panes: Pane[]}} Conversation
//   `titled`: the reader gave it its name; times are Date.now() milliseconds
// @typedef {{id, model, system, parameters, messages: (Question | Reply)[]}} Pane
//   `parameters`: by their names in the API; those that are not set are not there
// @typedef {{role: "user", content}} Question
// @typedef {{role: "assistant", versions: Answer[], shown}} Reply
//   one version for each time that the answer was made again; the one that is shown counts
// @typedef {{model, state, choices: Choice[], chosen, usage, timings, seen, error}} Answer
//   `state`: "waiting", "streaming", "done", "stopped" or "failed"; `seen`: what this page measured
// @typedef {{text, finish_reason}} Choice

export const MAX_PANES = 4;
const TITLE_LENGTH = 60;

export const newId = () =>
  [...crypto.getRandomValues(new Uint8Array(12))].map((byte) => byte.toString(16).padStart(2, "0")).join("");

export function newPane(model = "") {
  return { id: newId(), model, system: "", parameters: {}, messages: [] };
}

/** An empty chat with as many panes as there are models, one for each. */
export function newConversation(models = [""]) {
  const now = Date.now();
  return {
    id: newId(),
    title: "New chat",
    titled: false,
    created: now,
    updated: now,
    synchronised: true,
    safety: false,
    panes: models.map(newPane),
  };
}

export const isEmpty = (conversation) => conversation.panes.every((pane) => pane.messages.length === 0);

export function newAnswer(model) {
  return {
    model, state: "waiting", choices: [], chosen: 0, usage: null, timings: null, seen: {}, error: null,
  };
}

/** A finished reply as an example has it: written by hand. */
export function writtenReply(text) {
  const answer = { ...newAnswer(""), state: "done", choices: [{ text, finish_reason: "stop" }] };
  return { role: "assistant", versions: [answer], shown: 0 };
}

export const shownAnswer = (reply) => reply.versions[reply.shown];

/** Whether the last message is a model's reply, and no example's. */
export function hasOwnReply({ messages }) {
  const last = messages.at(-1);
  return last?.role === "assistant" && shownAnswer(last).model !== "";
}

export const isRunning = (answer) => answer.state === "waiting" || answer.state === "streaming";

/** The text of a message as the model is told it. */
export function textOf(message) {
  if (message.role === "user") return message.content;
  const answer = shownAnswer(message);
  return answer.choices[answer.chosen]?.text ?? "";
}

/** The title that a chat gives itself: how it begins. */
export function ownTitle(conversation) {
  const first = conversation.panes.flatMap((pane) => pane.messages).find((m) => m.role === "user");
  if (!first) return "New chat";
  const line = first.content.trim().replace(/\s+/g, " ");
  return line.length > TITLE_LENGTH ? `${line.slice(0, TITLE_LENGTH - 1)}…` : line;
}

/**
 * The body of the request that makes the reply `messages[index]`; by default the next one.
 * Replies that failed before their first word are left out.
 */
export function requestBody(conversation, pane, index = pane.messages.length) {
  const messages = pane.system.trim() ? [{ role: "system", content: pane.system }] : [];
  for (const message of pane.messages.slice(0, index)) {
    const content = textOf(message);
    if (message.role === "user" || content) messages.push({ role: message.role, content });
  }
  const safety = conversation.safety ? { enable_safety_mode: true } : {};
  return { model: pane.model, messages, ...pane.parameters, ...safety };
}

/** All that was said, for a search: lower case. */
export function searchText(conversation) {
  const said = conversation.panes.flatMap((pane) => [pane.system, ...pane.messages.map(textOf)]);
  return [conversation.title, ...said].join("\n").toLowerCase();
}
