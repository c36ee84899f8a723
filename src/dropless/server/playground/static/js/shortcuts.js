// Keyboard shortcuts: Alt and a key, so that they work while one writes. They go by the place of
// the key, as Alt gives letters other meanings on some systems.

/** @param {Record<string, () => void>} actions by event.code, for example {KeyN: newChat} */
export function listenForShortcuts(actions) {
  document.addEventListener("keydown", (event) => {
    if (!event.altKey || event.ctrlKey || event.metaKey || event.shiftKey) return;
    const action = actions[event.code];
    if (!action || document.querySelector("dialog[open]")) return;
    event.preventDefault();
    action();
  });
}
