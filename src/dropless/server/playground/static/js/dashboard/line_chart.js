// Lines over time, drawn by hand as SVG: axes, a line for each series, a reading where the pointer is.

import { h, s } from "../dom.js";
import { clock, rate } from "../format.js";

const MARGIN = { top: 8, right: 8, bottom: 22, left: 44 };
const HEIGHT = 208;
const TICK_S = 60;

export class LineChart {
  /**
   * @param label what the chart shows, for screen readers
   * @param series {key, name, className}[]: `key` of a sample is drawn as a line of this class
   */
  constructor(label, series, seconds) {
    this.label = label;
    this.series = series;
    this.seconds = seconds;
    this.samples = [];
    this.end = 0;
    this.svg = s("svg", { class: "chart", role: "img" });
    this.reading = h("div", { class: "reading", hidden: true });
    this.element = h("div", { class: "chart-box" }, this.svg, this.reading);
    this.element.addEventListener("pointermove", (event) => this.read(event));
    this.element.addEventListener("pointerleave", () => (this.reading.hidden = true));
    new ResizeObserver(() => this.draw()).observe(this.element);
  }

  show(samples, end) {
    this.samples = samples;
    this.end = end;
    this.draw();
  }

  draw() {
    this.width = this.element.clientWidth;
    if (!this.width) return;
    const top = niceTop(Math.max(...this.samples.flatMap((sample) => this.series.map(({ key }) => sample[key])), 1));
    this.svg.setAttribute("viewBox", `0 0 ${this.width} ${HEIGHT}`);
    this.svg.setAttribute("aria-label", this.describe());
    this.y = (value) => HEIGHT - MARGIN.bottom - (value / top) * (HEIGHT - MARGIN.top - MARGIN.bottom);
    this.x = (time) =>
      this.width - MARGIN.right - ((this.end - time) / this.seconds) * (this.width - MARGIN.left - MARGIN.right);
    this.cursor = s("line", { class: "cursor", y1: MARGIN.top, y2: HEIGHT - MARGIN.bottom, x1: -9, x2: -9 });
    this.svg.replaceChildren(...this.axes(top), ...this.series.flatMap((series) => this.line(series)), this.cursor);
  }

  axes(top) {
    const rows = [0, 0.25, 0.5, 0.75, 1].flatMap((share) => {
      const y = this.y(share * top);
      return [
        s("line", { class: "grid", x1: MARGIN.left, x2: this.width - MARGIN.right, y1: y, y2: y }),
        s("text", { x: MARGIN.left - 8, y: y + 4, "text-anchor": "end" }, rate(share * top)),
      ];
    });
    const columns = [];
    for (let ago = 0; ago <= this.seconds; ago += TICK_S) {
      const anchor = ago === 0 ? "end" : "middle";
      const x = this.x(this.end - ago);
      const text = ago ? `−${ago / 60} min` : "now";
      if (x > MARGIN.left + 12) columns.push(s("text", { x, y: HEIGHT - 4, "text-anchor": anchor }, text));
    }
    return [...rows, ...columns];
  }

  line({ key, className }) {
    if (!this.samples.length) return [];
    const points = this.samples.map((sample) => `${this.x(sample.time).toFixed(1)},${this.y(sample[key]).toFixed(1)}`);
    const first = this.x(this.samples[0].time);
    const last = this.x(this.samples.at(-1).time);
    const area = `M${first},${this.y(0)}L${points.join("L")}L${last},${this.y(0)}Z`;
    return [
      s("path", { class: `area ${className}`, d: area }),
      s("polyline", { class: `line ${className}`, points: points.join(" ") }),
    ];
  }

  read(event) {
    if (!this.samples.length) return;
    const x = event.clientX - this.element.getBoundingClientRect().left;
    const distance = (sample) => Math.abs(this.x(sample.time) - x);
    const nearest = this.samples.reduce((a, b) => (distance(b) < distance(a) ? b : a));
    const rows = this.series.map(({ key, name, className }) =>
      h("div", {}, h("span", { class: `mark ${className}` }), `${name} `, h("b", { class: "number" }, rate(nearest[key]))),
    );
    this.reading.replaceChildren(h("div", { class: "muted" }, clock(nearest.time)), ...rows);
    this.reading.hidden = false;
    const at = this.x(nearest.time);
    this.cursor.setAttribute("x1", at);
    this.cursor.setAttribute("x2", at);
    this.reading.style.translate = `${Math.min(at + 12, this.width - this.reading.offsetWidth)}px 0`;
  }

  describe() {
    const parts = this.series.map(({ key, name }) => {
      const values = this.samples.map((sample) => sample[key]);
      if (!values.length) return `${name}: nothing yet`;
      const mean = values.reduce((a, b) => a + b, 0) / values.length;
      return `${name}: now ${rate(values.at(-1))}, mean ${rate(mean)}, highest ${rate(Math.max(...values))}`;
    });
    return `${this.label}, the last ${this.seconds / 60} minutes. ${parts.join(". ")}.`;
  }
}

/** The next of 1, 2, 4, 6, 8 and 10 times a power of ten: its quarters are short numbers. */
function niceTop(value) {
  const power = 10 ** Math.floor(Math.log10(value));
  return power * [1, 2, 4, 6, 8, 10].find((step) => step * power >= value);
}

/** A line without axes, for a tile. */
export function sparkline(values) {
  const top = Math.max(...values, 1e-9);
  const points = values.map((value, i) => `${((i / Math.max(values.length - 1, 1)) * 100).toFixed(1)},${(24 - (value / top) * 22).toFixed(1)}`);
  const line = s("polyline", { points: points.join(" ") });
  return s("svg", { class: "sparkline", viewBox: "0 0 100 25", preserveAspectRatio: "none", "aria-hidden": "true" }, line);
}
