// An error as the server told it, what to do about it, and a button that does it.

import { h, icon, textButton } from "../dom.js";
import { advice } from "../errors.js";
import { askForToken } from "../login.js";

/**
 * @param error see answering.js
 * @param again tries again; null if that is not possible here
 */
export function errorCard(error, again) {
  const facts = [error.status || null, error.code, error.requestId].filter(Boolean).join(" · ");
  const actions = h("div", { class: "error-actions" });
  if (again) actions.append(...buttons(error, again));
  return h(
    "div",
    { class: "error-card" },
    icon("circle-alert"),
    h(
      "div",
      {},
      h("p", { class: "error-message" }, error.message),
      h("p", { class: "muted" }, advice(error)),
      facts ? h("p", { class: "error-facts" }, facts) : null,
      actions,
    ),
  );
}

function buttons(error, again) {
  if (error.status === 401) {
    const logIn = async () => (await askForToken()) && again();
    return [textButton("key-round", "Log in", logIn, { class: "button primary" })];
  }
  const retry = textButton("refresh-cw", "Try again", again);
  const until = error.retryAfter ? error.time + error.retryAfter * 1000 : 0;
  return [retry, ...(until > Date.now() ? [countdown(until, retry)] : [])];
}

/** Counts the seconds until a retry makes sense; the button waits with it. */
function countdown(until, retry) {
  const words = h("span", { class: "muted number" });
  retry.disabled = true;
  const tick = () => {
    const left = Math.ceil((until - Date.now()) / 1000);
    words.textContent = left > 0 ? `in ${left} s` : "";
    if (left > 0 && (words.isConnected || !timer)) return;
    retry.disabled = false;
    clearInterval(timer);
  };
  let timer = null;
  tick();
  timer = setInterval(tick, 250);
  return words;
}
