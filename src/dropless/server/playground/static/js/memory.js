// Small things that a browser remembers for a page. A browser may forbid it; the page then forgets.

const PREFIX = "dropless-";

/** What was remembered under this name, or null. */
export function remembered(name) {
  try {
    return localStorage.getItem(PREFIX + name);
  } catch {
    return null;
  }
}

/** Null forgets. */
export function remember(name, text) {
  try {
    if (text === null) localStorage.removeItem(PREFIX + name);
    else localStorage.setItem(PREFIX + name, text);
  } catch {
    // Forbidden or full: not worth a word.
  }
}
