// How evenly a mixture of experts is used: a table of layers and experts, whose cells are coloured
// by their share. It is a heat map to the eye and a table to a screen reader.

import { h } from "../dom.js";
import { percent, whole } from "../format.js";
import { choice, nothing, panel } from "./panel.js";

const SPANS = { window: "Last minute", total: "Since the start" };
const NUMBERS = { hidden: "Colours", shown: "Numbers" };

export class ExpertsPanel {
  constructor() {
    this.span = "window";
    this.models = [];
    this.chosen = 0;
    this.content = h("div", {}, nothing("No mixture of experts is served."));
    this.select = h("select", { class: "input", "aria-label": "Served model", hidden: true, onchange: () => this.choose() });
    const spans = choice("Span", SPANS, this.span, (span) => {
      this.span = span;
      this.draw();
    });
    const numbers = choice("Cells", NUMBERS, "hidden", (value) => {
      this.content.classList.toggle("with-numbers", value === "shown");
    });
    const controls = h("div", { class: "panel-controls" }, this.select, numbers, spans);
    this.element = panel("Expert load", "experts", this.content, controls);
  }

  choose() {
    this.chosen = Number(this.select.value);
    this.draw();
  }

  show({ served_entities }) {
    const names = served_entities.map((model) => model.served_entity);
    if (names.join("\n") !== this.models.map((model) => model.served_entity).join("\n")) {
      this.select.replaceChildren(...names.map((name, i) => h("option", { value: i }, name)));
      this.select.hidden = names.length < 2;
      this.chosen = 0;
    }
    this.models = served_entities;
    this.draw();
  }

  draw() {
    const model = this.models[this.chosen];
    if (!model) return;
    const counts = model[this.span];
    const rows = counts.map(balance);
    const active = rows.filter((row) => row.sum > 0);
    if (!active.length) {
      this.content.replaceChildren(nothing("No token in this span of time."));
      return;
    }
    this.content.replaceChildren(summary(model, active, rows), legend(), heatTable(counts, rows));
  }
}

/** What a layer's counts say: 1 is the mean, and what each expert would get of an even load. */
function balance(counts, layer) {
  const sum = counts.reduce((a, b) => a + b, 0);
  const mean = sum / counts.length;
  const loads = counts.map((count) => (mean ? count / mean : 0));
  const highest = Math.max(...loads);
  const spread = Math.sqrt(loads.reduce((all, load) => all + (load - 1) ** 2, 0) / loads.length);
  return { layer, sum, loads, highest, busiest: loads.indexOf(highest), spread };
}

function summary(model, active, rows) {
  const mean = active.reduce((all, row) => all + row.highest, 0) / active.length;
  const worst = active.reduce((a, b) => (b.highest > a.highest ? b : a));
  const idle = active.reduce((all, row) => all + row.loads.filter((load) => load === 0).length, 0);
  const spread = active.reduce((all, row) => all + row.spread, 0) / active.length;
  const figure = (name, value, note) => h("div", {}, h("dt", {}, name), h("dd", { class: "number" }, value, h("span", {}, note)));
  return h(
    "dl",
    { class: "expert-figures" },
    figure("Mean imbalance", `${mean.toFixed(2)}×`, "busiest expert / mean, over layers"),
    figure("Worst layer", `${worst.highest.toFixed(2)}×`, `expert ${worst.busiest} of layer ${worst.layer}`),
    figure("Spread", percent(spread), "standard deviation / mean"),
    figure("Idle experts", whole(idle), `of ${whole(rows.length * rows[0].loads.length)}`),
    figure("Choices seen", whole(active.reduce((all, row) => all + row.sum, 0)), `${model.experts_per_token} a token and layer, of one step a second`),
  );
}

function legend() {
  return h(
    "div",
    { class: "heat-legend", "aria-hidden": "true" },
    h("span", {}, "0"),
    h("span", { class: "heat-scale" }),
    h("span", {}, "2× the mean and more"),
  );
}

function heatTable(counts, rows) {
  const layers = rows.map((row) => h("th", { scope: "col" }, String(row.layer)));
  const experts = counts[0].map((_, expert) =>
    h("tr", {}, h("th", { scope: "row" }, String(expert)), rows.map((row) => heatCell(row, expert, counts[row.layer][expert]))),
  );
  const highest = rows.map((row) => h("td", { class: "number" }, row.highest.toFixed(1)));
  const caption =
    "Columns are layers, rows are experts. A cell is the expert's load over the mean of its layer; the last row is the busiest expert's.";
  return h(
    "div",
    { class: "table-scroll", tabindex: "0", role: "group", "aria-label": "Load of experts by layer" },
    h(
      "table",
      { class: "heat" },
      h("caption", {}, caption),
      h("thead", {}, h("tr", {}, h("th", { scope: "col" }, h("span", { class: "visually-hidden" }, "Expert")), layers)),
      h("tbody", {}, experts),
      h("tfoot", {}, h("tr", {}, h("th", { scope: "row" }, "max"), highest)),
    ),
  );
}

function heatCell({ layer, loads }, expert, count) {
  const load = loads[expert];
  const title = `Layer ${layer}, expert ${expert}: ${load.toFixed(2)}× the mean, ${whole(count)} choices`;
  const cell = h("td", { title }, h("span", {}, load.toFixed(1)));
  // Below the mean towards blue, above it towards orange; twice the mean is all orange.
  cell.style.setProperty("--hot", `${Math.min(Math.max(load - 1, 0), 1) * 100}%`);
  cell.style.setProperty("--cold", `${Math.max(1 - load, 0) * 100}%`);
  return cell;
}
