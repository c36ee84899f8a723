// The endpoints and the models behind them: whether they answer, and with what.

import { h } from "../dom.js";
import { bytes, whole } from "../format.js";
import { nothing, panel } from "./panel.js";

export class EndpointsPanel {
  constructor() {
    this.content = h("ul", { class: "endpoints" });
    this.shown = "";
    this.element = panel("Endpoints", "endpoint-panel", this.content);
  }

  show(endpoints) {
    const state = JSON.stringify(endpoints);
    if (state === this.shown) return;
    this.shown = state;
    if (endpoints.length) this.content.replaceChildren(...endpoints.map(endpoint));
    else this.content.replaceChildren(h("li", {}, nothing("No endpoint that you may see.")));
  }
}

function endpoint({ name, state, served_entities }) {
  return h(
    "li",
    {},
    h("h3", {}, name, h("span", { class: "state", "data-ok": String(state === "READY") }, state)),
    h("ul", {}, served_entities.map(served)),
  );
}

function served({ name, model, traffic_percentage, state, restarts, ready, stats }) {
  const facts = ready
    ? [
        `${ready.quantization === "none" ? ready.dtype : `${ready.quantization} weights`}, ${bytes(ready.weight_bytes)}`,
        `context ${whole(ready.max_model_len)}`,
        `cache ${bytes(ready.kv_cache_bytes)}`,
      ]
    : [];
  if (stats) facts.push(`${whole(stats.running)} running, ${whole(stats.waiting)} waiting`);
  if (restarts) facts.push(`${whole(restarts)} restarts`);
  return h(
    "li",
    {},
    h("div", { class: "served-name" }, h("b", {}, name), model === name ? null : h("span", { class: "muted" }, model)),
    h("span", { class: "chip" }, `${traffic_percentage} % of the traffic`),
    h("span", { class: "state", "data-ok": String(state === "serving") }, state),
    h("p", { class: "muted small number" }, facts.join(" · ")),
  );
}
