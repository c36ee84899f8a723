// A titled part of the dashboard.

import { h, newId } from "../dom.js";

/** @returns {HTMLElement} a section with a heading; `extra` stands beside it */
export function panel(title, name, content, extra = null) {
  const id = newId("panel");
  return h(
    "section",
    { class: `panel ${name}`, "aria-labelledby": id },
    h("div", { class: "panel-head" }, h("h2", { id }, title), extra),
    content,
  );
}

/** Buttons of which one is pressed. @param choices {value: label} */
export function choice(label, choices, chosen, onchange) {
  const buttons = Object.entries(choices).map(([value, text]) =>
    h("button", { type: "button", "aria-pressed": String(value === chosen), onclick: () => choose(value) }, text),
  );
  const choose = (value) => {
    Object.keys(choices).forEach((each, i) => buttons[i].setAttribute("aria-pressed", String(each === value)));
    onchange(value);
  };
  return h("div", { class: "choice-group", role: "group", "aria-label": label }, buttons);
}

export const nothing = (text) => h("p", { class: "nothing" }, text);
