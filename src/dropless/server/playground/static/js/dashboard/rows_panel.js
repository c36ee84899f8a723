// The inference table: search, a list of rows, and one row in full beside it.

import { getJson } from "../api.js";
import { announce } from "../dialog.js";
import { h, icon, newId, textButton } from "../dom.js";
import { clock, duration, whole } from "../format.js";
import { nothing, panel } from "./panel.js";
import { showRow } from "./row_drawer.js";

const STATUSES = [
  ["", "Any"],
  ["2xx", "2xx, answered"],
  ["4xx", "4xx, refused"],
  ["5xx", "5xx, failed"],
  ["429", "429, over a limit"],
  ["499", "499, client left"],
];
const SPANS = [
  ["", "Any"],
  ["3600", "The last hour"],
  ["86400", "The last day"],
  ["604800", "The last week"],
];

const PAGE = 20; // rows at once

export class RowsPanel {
  /** @param base of the dashboard's API */
  constructor(base) {
    this.base = base;
    this.names = new Map(); // of served entities, by their ids
    this.text = h("input", { class: "input", type: "search", placeholder: "Text in request or answer" });
    this.status = select(STATUSES);
    this.span = select(SPANS);
    this.requester = h("input", { class: "input", placeholder: "Any", autocomplete: "off" });
    this.endpoint = h("input", { class: "input", placeholder: "Any", autocomplete: "off" });
    this.body = h("tbody");
    this.more = textButton("chevron-down", "Earlier rows", () => this.load(this.cursor), { hidden: true });
    this.message = h("div", { role: "status" });
    this.cursor = null;
    const head = ["Time", "Status", "User", "Endpoint", "Request", "Tokens", "Time taken"];
    this.table = h(
      "div",
      { class: "table-scroll", hidden: true },
      h("table", { class: "data-table rows-table" }, h("thead", {}, h("tr", {}, head.map((name) => h("th", { scope: "col" }, name)))), this.body),
    );
    this.element = panel("Inference table", "rows", [this.form(), this.message, this.table, this.more]);
  }

  form() {
    const submit = (event) => {
      event.preventDefault();
      this.search();
    };
    const changed = () => this.search();
    for (const control of [this.status, this.span]) control.addEventListener("change", changed);
    return h(
      "form",
      { class: "rows-form", role: "search", onsubmit: submit },
      field("Text", this.text),
      field("Status", this.status),
      field("When", this.span),
      field("User", this.requester),
      field("Endpoint", this.endpoint),
      h("button", { type: "submit", class: "button" }, icon("search"), "Search"),
    );
  }

  focusSearch() {
    this.text.focus();
  }

  search() {
    this.body.replaceChildren();
    return this.load(null);
  }

  async load(cursor) {
    try {
      const { rows, cursor: next } = await getJson(`${this.base}/rows?${this.query(cursor)}`);
      this.cursor = next;
      this.body.append(...rows.map((row) => this.row(row)));
      const count = this.body.children.length;
      this.message.replaceChildren(...(count ? [] : [nothing("No row matches.")]));
      this.table.hidden = !count;
      this.more.hidden = next === null;
      announce(`${count} rows.`);
    } catch (error) {
      this.table.hidden = this.more.hidden = true;
      this.message.replaceChildren(nothing(error.message));
    }
  }

  query(cursor) {
    const seconds = Number(this.span.value);
    const query = new URLSearchParams({ limit: PAGE });
    const given = {
      text: this.text.value.trim(),
      status: this.status.value,
      requester: this.requester.value.trim(),
      endpoint: this.endpoint.value.trim(),
      since: seconds ? String(Date.now() / 1000 - seconds) : "",
      cursor: cursor ?? "",
    };
    for (const [name, value] of Object.entries(given)) if (value) query.set(name, value);
    return query;
  }

  row(row) {
    const id = row.databricks_request_id;
    const open = () => this.open(id);
    const time = h("button", { type: "button", class: "row-open", onclick: open }, clock(row.request_time));
    const tokens = row.input_token_count === null ? "–" : `${whole(row.input_token_count)} → ${whole(row.output_token_count ?? 0)}`;
    return h(
      "tr",
      { onclick: (event) => event.target.closest("button") ?? open() },
      h("td", {}, time),
      h("td", {}, statusMark(row.status_code)),
      h("td", {}, row.requester ?? "–"),
      h("td", {}, row.endpoint),
      h("td", { class: "row-preview" }, preview(row)),
      h("td", { class: "number" }, tokens),
      h("td", { class: "number" }, duration(row.execution_duration_ms || null)),
    );
  }

  async open(id) {
    try {
      const row = await getJson(`${this.base}/rows/${encodeURIComponent(id)}`);
      showRow(row, this.names.get(row.served_entity_id) ?? row.served_entity_id);
    } catch (error) {
      this.message.replaceChildren(nothing(error.message));
    }
  }
}

export function statusMark(status) {
  const kind = status < 400 ? "good" : status < 500 ? "warning" : "danger";
  return h("span", { class: `status-mark ${kind}` }, String(status));
}

/** What was asked, in a line: the last text in the request, which may have been cut somewhere. */
function preview({ request, logging_error_codes }) {
  if (request === null) return logging_error_codes.join(", ");
  const asked = [...request.matchAll(/"(?:content|prompt|input)"\s*:\s*("(?:[^"\\]|\\.)*)"?/g)].at(-1);
  if (!asked) return request;
  try {
    return JSON.parse(`${asked[1]}"`);
  } catch {
    return asked[1];
  }
}

function select(options) {
  return h("select", { class: "input" }, options.map(([value, label]) => h("option", { value }, label)));
}

function field(label, control) {
  const id = newId("filter");
  control.id = id;
  return h("div", { class: "field" }, h("label", { for: id }, label), control);
}
