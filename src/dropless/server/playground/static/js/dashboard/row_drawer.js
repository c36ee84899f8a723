// One row of the inference table in full: facts, the conversation, the bodies. All of it is text.

import { codeBlock } from "../code_block.js";
import { showDialog } from "../dialog.js";
import { h } from "../dom.js";
import { clock, duration, whole } from "../format.js";

/** @param servedBy the name of the served entity, null if the call came to none */
export function showRow(row, servedBy) {
  const request = parsed(row.request);
  const response = parsed(row.response);
  const dialog = showDialog(
    `Request of ${clock(row.request_time)}`,
    [facts(row, servedBy), conversation(request, response), body("Request", row.request, request), body("Response", row.response, response)],
    { wide: true },
  );
  dialog.classList.add("drawer");
}

function facts(row, servedBy) {
  const tokens = row.input_token_count === null ? "–" : `${whole(row.input_token_count)} in, ${whole(row.output_token_count ?? 0)} out`;
  const known = {
    Status: String(row.status_code),
    User: row.requester ?? "–",
    Endpoint: row.endpoint,
    "Served by": servedBy || "–",
    Tokens: tokens,
    "Model time": duration(row.execution_duration_ms || null),
    "Client's id": row.client_request_id ?? "–",
    "Request id": row.databricks_request_id,
  };
  if (row.logging_error_codes.length) known["Not kept"] = row.logging_error_codes.join(", ");
  return h("dl", { class: "row-facts" }, Object.entries(known).map(([name, value]) => h("div", {}, h("dt", {}, name), h("dd", {}, value))));
}

/** The messages that were sent and the answers that came, if this was a chat. */
function conversation(request, response) {
  const sent = Array.isArray(request?.messages) ? request.messages : [];
  const answers = (response?.choices ?? []).map((choice) => choice.message ?? { role: "assistant", content: choice.text });
  const all = [...sent, ...answers].filter((message) => message && typeof message === "object");
  if (!all.length) return null;
  return h("ol", { class: "row-messages" }, all.map((message) => h(
    "li",
    { "data-role": String(message.role) },
    h("h3", {}, String(message.role)),
    h("p", {}, contentOf(message)),
  )));
}

function contentOf({ content }) {
  return typeof content === "string" ? content : JSON.stringify(content, null, 1) ?? "";
}

function body(title, text, value) {
  if (text === null) return null;
  const shown = value === null ? text : JSON.stringify(value, null, 2);
  return h("details", {}, h("summary", {}, title), codeBlock(shown, value === null ? "text" : "json"));
}

function parsed(text) {
  try {
    return JSON.parse(text);
  } catch {
    return null;
  }
}
