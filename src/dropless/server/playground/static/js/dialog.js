// Modal dialogs and short notices.

import { h, iconButton, newId, textButton } from "./dom.js";

/**
 * Shows a modal dialog and removes it when it closes; Escape and a click beside it close it.
 * @returns {HTMLDialogElement}
 */
export function showDialog(title, content, { wide = false, onclose = () => {} } = {}) {
  const id = newId("dialog");
  const dialog = h(
    "dialog",
    { "aria-labelledby": id, class: wide ? "wide" : null },
    h(
      "div",
      { class: "dialog-head" },
      h("h2", { id }, title),
      iconButton("x", "Close", () => dialog.close()),
    ),
    h("div", { class: "dialog-body" }, content),
  );
  dialog.addEventListener("click", (event) => {
    if (event.target === dialog) dialog.close();
  });
  dialog.addEventListener("close", () => {
    dialog.remove();
    onclose();
  });
  document.body.append(dialog);
  dialog.showModal();
  return dialog;
}

const NOTICE_MS = 7000;

function noticeArea() {
  let area = document.querySelector(".notices");
  if (!area) {
    area = h("div", { class: "notices", role: "status" });
    document.body.append(area);
  }
  return area;
}

/** A line at the bottom of the page that goes away by itself, with one thing to do at most. */
export function notify(text, action = null) {
  const notice = h("div", { class: "notice" }, h("span", {}, text));
  const remove = () => notice.remove();
  if (action) {
    const act = () => {
      remove();
      action.act();
    };
    notice.append(textButton(null, action.label, act));
  }
  noticeArea().append(notice);
  const timer = setTimeout(remove, NOTICE_MS);
  notice.addEventListener("focusin", () => clearTimeout(timer)); // whoever is there may take time
}

/** Says something to screen readers only. */
export function announce(text) {
  let region = document.getElementById("announcer");
  if (!region) {
    region = h("div", { id: "announcer", class: "visually-hidden", "aria-live": "polite" });
    document.body.append(region);
  }
  region.replaceChildren(h("p", {}, text));
}
