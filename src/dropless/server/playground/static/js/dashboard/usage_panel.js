// Who uses the server: the last hour, by user.

import { h } from "../dom.js";
import { clock, compact, whole } from "../format.js";
import { nothing, panel } from "./panel.js";

const SHOWN = 20;

export class UsagePanel {
  constructor() {
    this.content = h("div", { class: "table-scroll" }, nothing("No request in the last hour."));
    this.statuses = h("p", { class: "muted small number" });
    this.element = panel("Usage, the last hour", "usage", [this.content, this.statuses]);
  }

  show({ users, statuses, everybody }) {
    if (!users.length) return;
    const most = Math.max(...users.map((user) => user.tokens_in + user.tokens_out), 1);
    const head = ["User", "Requests", "Failed", "Tokens in", "Tokens out", "Last"];
    const rows = users.slice(0, SHOWN).map((user) => row(user, most));
    const table = h(
      "table",
      { class: "data-table" },
      h("thead", {}, h("tr", {}, head.map((name, i) => h("th", { scope: "col", class: i ? "right" : null }, name)))),
      h("tbody", {}, rows),
    );
    this.content.replaceChildren(table);
    const counts = Object.entries(statuses).map(([status, count]) => `${status}: ${whole(count)}`);
    const rest = users.length > SHOWN ? ` · ${users.length - SHOWN} users with less are not shown` : "";
    this.statuses.textContent = everybody ? `By status: ${counts.join(" · ")}${rest}` : "Your own usage.";
  }
}

function row(user, most) {
  const bar = h("span", { class: "bar" });
  bar.style.setProperty("--share", (user.tokens_in + user.tokens_out) / most);
  const numbers = [whole(user.requests), whole(user.failed), compact(user.tokens_in), compact(user.tokens_out), clock(user.last_time)];
  return h("tr", {}, h("th", { scope: "row" }, user.name, bar), numbers.map((text) => h("td", { class: "right number" }, text)));
}
