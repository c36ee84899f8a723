// The numbers of this moment, each with its last minutes.

import { h } from "../dom.js";
import { percent, rate, whole } from "../format.js";
import { sparkline } from "./line_chart.js";

const SPARK_S = 120;

/** Each from the latest sample `now`, all of the last minutes, and the totals since the start. */
const TILES = [
  {
    name: "Output",
    key: "tokens_out_per_s",
    value: ({ now }) => [rate(now.tokens_out_per_s), "tok/s"],
    note: ({ samples }) => `highest ${rate(Math.max(...samples.map((s) => s.tokens_out_per_s)))}`,
  },
  {
    name: "Input",
    key: "tokens_in_per_s",
    value: ({ now }) => [rate(now.tokens_in_per_s), "tok/s"],
    note: ({ samples }) => `highest ${rate(Math.max(...samples.map((s) => s.tokens_in_per_s)))}`,
  },
  {
    name: "Requests",
    key: "requests_per_s",
    value: ({ now }) => [rate(now.requests_per_s), "per s"],
    note: ({ now, samples }) => `${whole(now.in_flight)} open · ${failed(samples)} failed`,
  },
  {
    name: "Running",
    key: "running",
    value: ({ now }) => [whole(now.running), ""],
    note: ({ now }) => `${whole(now.waiting)} waiting`,
    alert: ({ now }) => now.waiting > 0,
  },
  {
    name: "KV cache",
    key: "kv_used",
    value: ({ now }) => [percent(now.kv_used), "used"],
    note: ({ totals }) => `${whole(totals.kv_blocks_free)} blocks free`,
    alert: ({ now }) => now.kv_used > 0.95,
  },
  {
    name: "Prefix hits",
    key: "tokens_cached_per_s",
    value: ({ samples }) => [share(sum(samples, "tokens_cached_per_s"), sum(samples, "tokens_in_per_s")), "of input"],
    note: ({ totals }) => `${share(totals.prefix_hit_tokens, totals.prompt_tokens)} since the start`,
  },
  {
    name: "Preemptions",
    value: ({ totals }) => [whole(totals.preemptions), ""],
    note: () => "since the start",
    alert: ({ totals }) => totals.preemptions > 0,
  },
];

const sum = (samples, key) => samples.reduce((all, sample) => all + sample[key], 0);
const share = (part, all) => (all ? percent(part / all) : "–");
const failed = (samples) => whole(Math.round(sum(samples, "failed_per_s")));

export class Tiles {
  constructor() {
    this.tiles = TILES.map((tile) => {
      const value = h("dd", { class: "tile-value number" }, "–");
      const note = h("dd", { class: "tile-note number" });
      const spark = h("dd", { class: "tile-spark" });
      const element = h("div", { class: "tile" }, h("dt", {}, tile.name), value, note, spark);
      return { ...tile, element, parts: { value, note, spark } };
    });
    this.element = h("dl", { class: "tiles", "aria-label": "Now" }, this.tiles.map((tile) => tile.element));
  }

  show(samples, totals) {
    const now = samples.at(-1);
    if (!now) return;
    const recent = samples.slice(-SPARK_S);
    for (const { element, parts, key, value, note, alert } of this.tiles) {
      const [number, unit] = value({ now, samples, totals });
      parts.value.replaceChildren(number, h("span", {}, unit && ` ${unit}`));
      parts.note.textContent = note({ now, samples, totals });
      if (key) parts.spark.replaceChildren(sparkline(recent.map((sample) => sample[key])));
      element.classList.toggle("alert", Boolean(alert?.({ now, totals })));
    }
  }
}
