// The sample prompts as cards.

import { h } from "../dom.js";
import { SAMPLES } from "./gallery.js";

/** @param use called with the sample that was chosen */
export function galleryCards(use) {
  const card = (sample) =>
    h(
      "li",
      {},
      h(
        "button",
        { type: "button", class: "sample", onclick: () => use(sample) },
        h("span", { class: "sample-title" }, sample.title),
        h("span", { class: "sample-lesson" }, sample.lesson),
        h("span", { class: "sample-prompt" }, sample.prompt),
      ),
    );
  return h("ul", { class: "samples", "aria-label": "Sample prompts" }, SAMPLES.map(card));
}
