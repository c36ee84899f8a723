// What can be set for a pane, with the words that explain it. Names, ranges and defaults are the
// API's; what is not set is not sent.

export const PARAMETERS = [
  {
    name: "temperature", label: "Temperature", kind: "number", min: 0, max: 2, step: 0.05, standard: 1, slider: true,
    help: "0 always takes the likeliest token. Low for facts and code, higher for variety; much above 1 it stops making sense.",
  },
  {
    name: "max_tokens", label: "Longest answer", kind: "integer", min: 1, unit: "tokens", standard: "to the end of the context",
    help: "The answer is cut there. Four tokens are about three English words.",
  },
  {
    name: "top_p", label: "Top p", kind: "number", min: 0.01, max: 1, step: 0.01, standard: 1, slider: true,
    help: "Only the likeliest tokens that together have this probability are drawn. Change this or the temperature, not both.",
  },
  {
    name: "top_k", label: "Top k", kind: "integer", min: 0, standard: "0: all",
    help: "Only so many of the likeliest tokens are drawn.",
  },
  {
    name: "response_format", label: "Format of the answer", kind: "format",
    help: "JSON is valid by construction, also where the answer had to be cut. A schema says which fields it has.",
  },
  {
    name: "stop", label: "Stop at", kind: "lines", max: 16, standard: "one text a line, such as \\n\\n",
    help: "The answer ends before any of these texts. \\n is a line break.",
  },
  {
    name: "seed", label: "Seed", kind: "integer", standard: "another each time",
    help: "The same seed draws the same random numbers, so that an answer can be had again.",
  },
  {
    name: "n", label: "Answers at once", kind: "integer", min: 1, max: 5, standard: 1,
    help: "Several answers to one prompt, which is computed once. The one that you choose goes on.",
  },
  {
    name: "presence_penalty", label: "Presence penalty", kind: "number", min: -2, max: 2, step: 0.1, standard: 0, slider: true, more: true,
    help: "Above 0 a token that the answer has already becomes less likely: new subjects.",
  },
  {
    name: "frequency_penalty", label: "Frequency penalty", kind: "number", min: -2, max: 2, step: 0.1, standard: 0, slider: true, more: true,
    help: "The same, once more for each time that the token is there: fewer repetitions.",
  },
  {
    name: "repetition_penalty", label: "Repetition penalty", kind: "number", min: 0.01, max: 10, step: 0.01, standard: 1, more: true,
    help: "Above 1 whatever stands in prompt or answer becomes less likely. 1.1 is much already.",
  },
  {
    name: "min_p", label: "Min p", kind: "number", min: 0, max: 1, step: 0.01, standard: 0, slider: true, more: true,
    help: "Tokens less likely than this share of the likeliest are not drawn.",
  },
];

/**
 * A field's text as the API's value: undefined if there is none.
 * @throws {Error} with what is wrong, for the reader
 */
export function parseParameter(parameter, text) {
  if (!text.trim()) return undefined;
  if (parameter.kind === "lines") return parseLines(parameter, text);
  const value = Number(text);
  if (!Number.isFinite(value)) throw new Error("This must be a number.");
  if (parameter.kind === "integer" && !Number.isSafeInteger(value)) throw new Error("This must be a whole number.");
  const { min = -Infinity, max = Infinity } = parameter;
  if (value < min) throw new Error(`The least is ${min}.`);
  if (value > max) throw new Error(`The most is ${max}.`);
  return value;
}

function parseLines(parameter, text) {
  const lines = text.split("\n").filter((line) => line).map(unescapeLine);
  if (lines.length > parameter.max) throw new Error(`At most ${parameter.max} texts.`);
  return lines;
}

const ESCAPES = { "\\n": "\n", "\\t": "\t", "\\\\": "\\" };
const unescapeLine = (line) => line.replace(/\\[nt\\]/g, (escape) => ESCAPES[escape]);
const escapeLine = (line) => line.replaceAll("\\", "\\\\").replaceAll("\n", "\\n").replaceAll("\t", "\\t");

/** The API's value as a field's text. */
export function parameterText(parameter, value) {
  if (value === undefined) return "";
  return parameter.kind === "lines" ? value.map(escapeLine).join("\n") : String(value);
}

/** What is set, in few words: ["temperature 0.2", "JSON"] */
export function summary(pane) {
  const words = Object.entries(pane.parameters).map(([name, value]) => {
    if (name === "response_format") return value.type === "json_object" ? "JSON" : "JSON schema";
    if (name === "stop") return "stop";
    return `${name.replaceAll("_", " ")} ${value}`;
  });
  return pane.system.trim() ? ["system prompt", ...words] : words;
}
