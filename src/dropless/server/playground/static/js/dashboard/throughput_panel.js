// Tokens per second, in and out.

import { h } from "../dom.js";
import { LineChart } from "./line_chart.js";
import { panel } from "./panel.js";

const SERIES = [
  { key: "tokens_out_per_s", name: "Output", className: "series-1" },
  { key: "tokens_in_per_s", name: "Input", className: "series-2" },
];

export class ThroughputPanel {
  constructor() {
    this.chart = new LineChart("Tokens per second", SERIES, 300);
    const legend = SERIES.map(({ name, className }) => h("li", {}, h("span", { class: `mark ${className}` }), name));
    this.element = panel("Tokens per second, mean of 5 s", "throughput", this.chart.element, h("ul", { class: "legend" }, legend));
  }

  show(samples, time) {
    this.chart.show(samples, time);
  }
}
