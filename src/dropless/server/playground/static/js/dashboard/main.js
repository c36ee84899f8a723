// Puts the dashboard's page together, and keeps it up to date while it is looked at.

import { getJson } from "../api.js";
import { announce } from "../dialog.js";
import { h, textButton } from "../dom.js";
import { advice } from "../errors.js";
import { clock, duration } from "../format.js";
import { askForToken } from "../login.js";
import { listenForShortcuts } from "../shortcuts.js";
import { TopBar } from "../top_bar.js";
import { EndpointsPanel } from "./endpoints_panel.js";
import { ExpertsPanel } from "./experts_panel.js";
import { LatencyPanel } from "./latency_panel.js";
import { RowsPanel } from "./rows_panel.js";
import { ThroughputPanel } from "./throughput_panel.js";
import { Tiles } from "./tiles.js";
import { UsagePanel } from "./usage_panel.js";

const BASE = "/api/2.0/dashboard";
const LIVE_EVERY_MS = 2000;
const REST_EVERY_MS = 6000; // usage and experts change slowly
const HISTORY_S = 300;
const SMOOTH_S = 5;

const SHORTCUTS = [
  ["Alt+U", "Pause and go on"],
  ["Alt+K", "Search the inference table"],
  ["Alt+T", "Theme"],
  ["Alt+/", "This list"],
];

class Page {
  constructor() {
    this.bar = new TopBar(document.getElementById("top-bar"), SHORTCUTS);
    this.paused = false;
    this.locked = false; // nobody is logged in, and has said so
    this.samples = [];
    this.since = 0;
    this.restDue = 0;
    this.pauseButton = textButton("pause", "Pause", () => this.pause(), { "aria-pressed": "false", title: "Alt+U" });
    this.updated = h("p", { class: "muted small number" }, "Waiting for the first numbers");
    this.problem = h("p", { class: "problem-bar", role: "alert", hidden: true });
    this.tiles = new Tiles();
    this.throughput = new ThroughputPanel();
    this.latency = new LatencyPanel();
    this.experts = new ExpertsPanel();
    this.endpoints = new EndpointsPanel();
    this.usage = new UsagePanel();
    this.rows = new RowsPanel(BASE);
    document.getElementById("dashboard").append(
      h("div", { class: "dashboard-head" }, h("h1", {}, "Dashboard"), this.updated, this.pauseButton),
      this.problem,
      this.tiles.element,
      this.throughput.element,
      this.latency.element,
      this.endpoints.element,
      this.usage.element,
      this.experts.element,
      this.rows.element,
    );
    listenForShortcuts({
      KeyU: () => this.pause(),
      KeyK: () => this.rows.focusSearch(),
      KeyT: () => this.bar.switchTheme(),
      Slash: () => this.bar.showShortcuts(),
    });
  }

  pause() {
    this.paused = !this.paused;
    this.pauseButton.setAttribute("aria-pressed", String(this.paused));
    announce(this.paused ? "The numbers stand still." : "The numbers go on.");
  }

  async run() {
    document.addEventListener("login", () => {
      this.locked = false;
      this.rows.search();
    });
    this.rows.search();
    for (;;) {
      if (!document.hidden && !this.paused && !this.locked) await this.update();
      await new Promise((resolve) => setTimeout(resolve, LIVE_EVERY_MS));
    }
  }

  async update() {
    try {
      this.showLive(await getJson(`${BASE}/live?since=${this.since}`));
      if (Date.now() >= this.restDue) {
        this.restDue = Date.now() + REST_EVERY_MS;
        const [usage, experts] = await Promise.all([getJson(`${BASE}/usage`), getJson(`${BASE}/expert-load`)]);
        this.usage.show(usage);
        this.experts.show(experts);
      }
      this.problem.hidden = true;
    } catch (error) {
      this.problem.textContent = `${error.message} ${advice(error)}`;
      this.problem.hidden = false;
      this.locked = error.status === 401 && !(await askForToken());
    }
  }

  showLive(live) {
    this.samples.push(...live.samples);
    this.since = this.samples.at(-1)?.time ?? 0;
    this.samples = this.samples.filter(({ time }) => time > live.time - HISTORY_S);
    const uptime = ` · up ${duration((live.time - live.started) * 1000)}`;
    this.updated.replaceChildren(clock(live.time), h("span", { class: "uptime" }, uptime));
    const smooth = smoothed(this.samples);
    this.tiles.show(smooth, live.totals);
    this.throughput.show(smooth, live.time);
    this.latency.show(live.latencies);
    this.endpoints.show(live.endpoints);
    const served = live.endpoints.flatMap((endpoint) => endpoint.served_entities);
    this.rows.names = new Map(served.map(({ id, name }) => [id, name]));
  }
}

const RATES = ["requests_per_s", "failed_per_s", "tokens_in_per_s", "tokens_cached_per_s", "tokens_out_per_s"];

/** Rates as their mean over five seconds: a prompt is computed in one moment, and reads as a spike. */
function smoothed(samples) {
  return samples.map((sample, i) => {
    const around = samples.slice(Math.max(0, i - SMOOTH_S + 1), i + 1);
    const means = RATES.map((key) => [key, around.reduce((sum, each) => sum + each[key], 0) / around.length]);
    return { ...sample, ...Object.fromEntries(means) };
  });
}

new Page().run();
