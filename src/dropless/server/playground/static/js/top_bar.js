// The bar at the top of both pages: where one is, how the server is, theme, shortcuts, login.

import { showDialog } from "./dialog.js";
import { h, icon, iconButton } from "./dom.js";
import { askForToken, logOut, whoAmI } from "./login.js";
import { currentTheme, nextTheme } from "./theme.js";

const HEALTH_EVERY_MS = 5000;
const PAGES = [["/", "Playground"], ["/dashboard", "Dashboard"]];
const THEME_ICONS = { system: "monitor", light: "sun", dark: "moon" };

/** @param shortcuts [keys, what they do][], of the page */
export class TopBar {
  constructor(element, shortcuts) {
    this.shortcuts = shortcuts;
    this.health = h("div", { class: "health", role: "status" });
    this.user = h("span");
    this.theme = iconButton("monitor", "", () => this.switchTheme());
    element.append(
      h("a", { class: "brand", href: "/" }, h("img", { src: "/playground/favicon.svg", alt: "" }), h("span", {}, "Dropless")),
      h("nav", { "aria-label": "Pages" }, PAGES.map(([href, name]) => {
        const current = location.pathname === href ? "page" : null;
        return h("a", { href, "aria-current": current }, name);
      })),
      this.health,
      this.theme,
      iconButton("keyboard", "Keyboard shortcuts", () => this.showShortcuts(), {
        title: "Keyboard shortcuts (Alt+/)",
        class: "icon-button shortcuts-button",
      }),
      this.user,
    );
    this.nameTheme();
    this.showUser();
    document.addEventListener("login", () => this.showUser());
    this.watchHealth();
  }

  switchTheme() {
    nextTheme();
    this.nameTheme();
  }

  nameTheme() {
    const theme = currentTheme();
    const label = `Theme: ${theme === "system" ? "as the system" : theme}`;
    this.theme.replaceChildren(icon(THEME_ICONS[theme]));
    this.theme.setAttribute("aria-label", label);
    this.theme.title = `${label} (Alt+T)`;
  }

  showShortcuts() {
    const rows = this.shortcuts.flatMap(([keys, what]) => [
      h("dt", {}, what),
      h("dd", {}, keys.split("+").flatMap((key, i) => [i ? " + " : "", h("kbd", { class: "key" }, key)])),
    ]);
    showDialog("Keyboard shortcuts", h("dl", { class: "shortcuts" }, rows));
  }

  /** The way in or out, where the server asks for tokens. */
  async showUser() {
    const user = await whoAmI();
    if (user && !user.needs_token) return;
    this.user.replaceChildren(
      user
        ? iconButton("log-out", `Log out ${user.name}`, logOut)
        : iconButton("key-round", "Log in with a token", askForToken),
    );
  }

  async watchHealth() {
    for (;;) {
      if (!document.hidden) this.showHealth(await askHealth());
      await new Promise((resolve) => setTimeout(resolve, HEALTH_EVERY_MS));
    }
  }

  showHealth({ ok, text }) {
    if (this.health.textContent === text) return; // said once, not every five seconds
    this.health.dataset.ok = String(ok);
    this.health.title = text;
    this.health.replaceChildren(h("span", {}, text));
  }
}

async function askHealth() {
  try {
    const health = await (await fetch("/health")).json();
    return { ok: health.status === "ok", text: health.status === "ok" ? "Serving" : health.detail };
  } catch {
    return { ok: false, text: "No connection to the server" };
  }
}
