// How long requests take: percentiles over a window of time.

import { h } from "../dom.js";
import { duration, whole } from "../format.js";
import { choice, panel } from "./panel.js";

const WINDOWS = { "1m": "1 min", "5m": "5 min", "60m": "1 h" };
const FIGURES = {
  ttft_ms: ["TTFT", "Time to first token"],
  tpot_ms: ["TPOT", "Time per output token, after the first"],
  e2e_ms: ["End to end", "From the request's arrival to the end of its answer"],
};
const PERCENTILES = ["p50", "p95", "p99"];

export class LatencyPanel {
  constructor() {
    this.window = "5m";
    this.latencies = null;
    this.body = h("tbody");
    this.count = h("p", { class: "muted small number" });
    const head = ["Figure", ...PERCENTILES].map((name) => h("th", { scope: "col" }, name));
    const table = h(
      "table",
      { class: "latency-table" },
      h("caption", { class: "visually-hidden" }, "Latency percentiles of requests that succeeded"),
      h("thead", {}, h("tr", {}, head)),
      this.body,
    );
    const windows = choice("Window", WINDOWS, this.window, (window) => {
      this.window = window;
      if (this.latencies) this.show(this.latencies);
    });
    this.element = panel("Latency", "latency", [table, this.count], windows);
  }

  show(latencies) {
    this.latencies = latencies;
    const figures = latencies[this.window];
    const rows = Object.entries(FIGURES).map(([key, [name, meaning]]) => {
      const longest = figures[key].p99;
      const cells = PERCENTILES.map((percentile) => cell(figures[key][percentile], longest));
      return h("tr", {}, h("th", { scope: "row", title: meaning }, name, h("span", {}, meaning)), cells);
    });
    this.body.replaceChildren(...rows);
    this.count.textContent = `${whole(figures.e2e_ms.count)} requests that succeeded`;
  }
}

function cell(value, longest) {
  const bar = h("span", { class: "bar" });
  bar.style.setProperty("--share", value ? value / longest : 0);
  return h("td", {}, h("span", { class: "number" }, duration(value)), bar);
}
