// Light, dark, or as the system prefers. theme_start.js applies the choice before the first paint.

import { remember } from "./memory.js";

const ORDER = ["system", "light", "dark"];

/** @returns {"system" | "light" | "dark"} */
export function currentTheme() {
  return document.documentElement.dataset.theme ?? "system";
}

/** Goes on to the next one and returns it. */
export function nextTheme() {
  const theme = ORDER[(ORDER.indexOf(currentTheme()) + 1) % ORDER.length];
  if (theme === "system") delete document.documentElement.dataset.theme;
  else document.documentElement.dataset.theme = theme;
  remember("theme", theme === "system" ? null : theme);
  return theme;
}
