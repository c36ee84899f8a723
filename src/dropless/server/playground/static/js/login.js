// Who asks. A server with tokens answers 401 to whoever has none; then this asks for one. The token
// goes to the server once, for a session's cookie, which no script can read; it is kept nowhere.

import { announce, showDialog } from "./dialog.js";
import { h, textButton } from "./dom.js";
import { errorOf } from "./errors.js";

const SESSION = "/api/2.0/session";

/** {name, needs_token, is_admin, ...}, or null for nobody that the server knows. */
export async function whoAmI() {
  const response = await fetch(SESSION).catch(() => null);
  return response?.ok ? response.json() : null;
}

export async function logOut() {
  await fetch(SESSION, { method: "DELETE" });
  location.reload();
}

/** @throws {ApiError} the server does not take this token */
async function logIn(token) {
  const headers = { authorization: `Bearer ${token}` };
  const response = await fetch(SESSION, { method: "POST", headers });
  if (!response.ok) throw await errorOf(response);
}

let asking = null;

/**
 * Asks for a token until one is taken; the document then has the event "login". Resolves to false
 * if the reader gives up.
 */
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
      document.dispatchEvent(new Event("login"));
      dialog.close();
    } catch (error) {
      problem.textContent = error.message;
      input.select();
    }
  };
  const help = h(
    "p",
    { class: "help", id: "token-help" },
    "This server answers only to who has a token. Whoever runs it makes one with ",
    h("code", {}, "dropless tokens create YOUR-NAME"),
    ".",
  );
  const button = textButton(null, "Log in", null, { type: "submit", class: "button primary" });
  const form = h(
    "form",
    { class: "login-form", onsubmit: submit },
    h("div", { class: "field" }, h("label", { for: "token" }, "Token"), input, help, problem),
    h("div", { class: "dialog-actions" }, button),
  );
  const dialog = showDialog("Log in", form, { onclose: () => resolve(accepted) });
  input.focus();
}
