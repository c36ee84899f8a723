// Who asks. A server with tokens answers 401 to whoever has none; then this asks for one.
//
// The token goes to the server once, for a session cookie that no script can read. A server that
// has no sessions gets it with each request instead, and it is kept until the tab is closed.

import { announce, showDialog } from "./dialog.js";
import { h, textButton } from "./dom.js";
import { errorOf } from "./errors.js";

const KEY = "dropless-token";
const SESSION = "/api/2.0/session";

/** The header that says who asks, if there is a token to send. */
export function authorization() {
  const token = sessionStorage.getItem(KEY);
  return token ? { authorization: `Bearer ${token}` } : {};
}

/** The user, null for nobody, or undefined where the server has no sessions. */
export async function whoAmI() {
  const response = await fetch(SESSION, { headers: authorization() }).catch(() => null);
  if (!response || response.status === 404) return undefined;
  return response.ok ? response.json() : null;
}

export async function logOut() {
  sessionStorage.removeItem(KEY);
  await session("DELETE");
  location.reload();
}

function session(method, body) {
  const headers = { "content-type": "application/json", "x-requested-with": "dropless-playground" };
  return fetch(SESSION, { method, headers, body: JSON.stringify(body) });
}

/** @throws {ApiError} the server does not take this token */
async function logIn(token) {
  let response = await session("POST", { token });
  if (response.status === 404) {
    const headers = { authorization: `Bearer ${token}` };
    response = await fetch("/v1/models", { headers });
    if (response.ok) sessionStorage.setItem(KEY, token);
  }
  if (!response.ok) throw await errorOf(response);
}

let asking = null;

/** Asks for a token until one is taken. Resolves to false if the reader gives up. */
export function askForToken() {
  asking ??= new Promise(showForm).finally(() => {
    asking = null;
  });
  return asking;
}

function showForm(resolve) {
  let accepted = false;
  const problem = h("p", { class: "problem", role: "alert", id: "token-problem" });
  const input = h("input", {
    class: "input code",
    id: "token",
    type: "password",
    autocomplete: "current-password",
    required: true,
    "aria-describedby": "token-help token-problem",
  });
  const submit = async (event) => {
    event.preventDefault();
    problem.textContent = "";
    try {
      await logIn(input.value.trim());
      accepted = true;
      announce("Logged in.");
      dialog.close();
    } catch (error) {
      problem.textContent = error.message;
      input.select();
    }
  };
  const form = h(
    "form",
    { class: "dialog-body", onsubmit: submit },
    h(
      "div",
      { class: "field" },
      h("label", { for: "token" }, "Token"),
      input,
      h(
        "p",
        { class: "help", id: "token-help" },
        "This server answers only who has a token. An administrator makes one with ",
        h("code", {}, "dropless tokens create"),
        ". It stays in this tab, and goes to this server only.",
      ),
      problem,
    ),
    h("div", { class: "dialog-actions" }, textButton(null, "Log in", null, { type: "submit", class: "button primary" })),
  );
  const dialog = showDialog("Log in", form, { onclose: () => resolve(accepted) });
  input.focus();
}
