// Runs before the first paint, so that a chosen theme does not flash. See theme.js.
try {
  const theme = localStorage.getItem("dropless-theme");
  if (theme) document.documentElement.dataset.theme = theme;
} catch {
  // The browser forbids storage: the system's preference it is.
}
