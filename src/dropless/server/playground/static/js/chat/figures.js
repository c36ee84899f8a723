// The line of figures below an answer.

import { h } from "../dom.js";
import { duration, rate, whole } from "../format.js";

/** What is known of a finished answer; null if nothing is. */
export function figures(answer) {
  const { timings, usage, seen } = answer;
  const items = [];
  const add = (name, value, explanation) =>
    items.push(
      h("div", { title: explanation }, h("dt", {}, name), h("dd", {}, value)),
    );
  const first = timings?.ttft_ms ?? seen.ttft_ms;
  if (first !== undefined) add("TTFT", duration(first), "Time to first token, measured by the " + by(timings));
  if (timings?.decode_tokens_per_s) {
    add("Speed", `${rate(timings.decode_tokens_per_s)} tok/s`, "Tokens per second after the first");
  }
  if (usage) {
    const cached = usage.prompt_tokens_details?.cached_tokens;
    const known = cached ? ` (${whole(cached)} cached)` : "";
    add("Prompt", `${whole(usage.prompt_tokens)}${known}`, "Tokens of the prompt; cached ones were not computed again");
    add("Answer", `${whole(usage.completion_tokens)} tok`, "Tokens of the answer");
  }
  const total = timings?.total_ms ?? seen.total_ms;
  if (total !== undefined) add("Total", duration(total), "From the request to the end, measured by the " + by(timings));
  return items.length ? h("dl", { class: "figures", "aria-label": "Figures" }, items) : null;
}

const by = (timings) => (timings ? "server" : "browser");
