// Numbers and times as people read them.

const WHOLE = new Intl.NumberFormat("en", { maximumFractionDigits: 0 });
const SHORT = new Intl.NumberFormat("en", { notation: "compact", maximumFractionDigits: 1 });

/** 1234567 -> "1,234,567" */
export const whole = (value) => WHOLE.format(value);

/** 1234567 -> "1.2M" */
export const compact = (value) => (value < 10_000 ? WHOLE.format(value) : SHORT.format(value));

/** Three digits at most: 0, 0.42, 4.2, 42, 420 */
export function rate(value) {
  if (value >= 10_000) return SHORT.format(value);
  if (value >= 100 || value === 0) return WHOLE.format(value);
  return value.toFixed(value >= 10 ? 1 : 2).replace(/\.?0+$/, "");
}

/** Milliseconds -> "85 ms", "1.24 s", "2 min 5 s"; null -> "–" */
export function duration(ms) {
  if (ms === null || ms === undefined) return "–";
  if (ms === 0) return "0 ms";
  if (ms < 10) return `${ms.toFixed(1)} ms`;
  if (ms < 1000) return `${Math.round(ms)} ms`;
  if (ms < 60_000) return `${(ms / 1000).toFixed(ms < 10_000 ? 2 : 1)} s`;
  const seconds = Math.round(ms / 1000);
  if (seconds < 3600) return `${Math.floor(seconds / 60)} min ${seconds % 60} s`;
  return `${Math.floor(seconds / 3600)} h ${Math.floor((seconds % 3600) / 60)} min`;
}

/** 0.1234 -> "12 %" */
export const percent = (share) => `${(share * 100).toFixed(share && share < 0.1 ? 1 : 0)} %`;

/** Bytes -> "1.4 GiB" */
export function bytes(value) {
  const units = ["B", "KiB", "MiB", "GiB", "TiB"];
  const power = value > 0 ? Math.min(Math.floor(Math.log2(value) / 10), units.length - 1) : 0;
  const scaled = value / 1024 ** power;
  return `${scaled.toFixed(power && scaled < 100 ? 1 : 0)} ${units[power]}`;
}

/** A date in seconds -> "14:03:22", with the day if it is another one than today. */
export function clock(seconds) {
  const date = new Date(seconds * 1000);
  const time = date.toLocaleTimeString("en-GB");
  const today = date.toDateString() === new Date().toDateString();
  return today ? time : `${date.toLocaleDateString("en-CA")} ${time}`;
}
