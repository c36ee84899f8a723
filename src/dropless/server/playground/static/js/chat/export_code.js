// The request of a pane as code that makes the same one: curl, Python, a notebook.

/** Fields that OpenAI's client does not know; it sends them as its extra_body. */
const EXTENSIONS = new Set(["top_k", "min_p", "repetition_penalty", "enable_safety_mode"]);

/** For a POSIX shell. The token comes from the environment, never from this page. */
export function toCurl(body, origin) {
  const json = JSON.stringify(body, null, 2).replaceAll("'", `'\\''`);
  return [
    `curl ${origin}/v1/chat/completions \\`,
    `  -H "Authorization: Bearer \${DROPLESS_TOKEN:-none}" \\`,
    `  -H 'Content-Type: application/json' \\`,
    `  -d '${json}'`,
    "",
  ].join("\n");
}

/** A script for OpenAI's client. */
export function toPython(body, origin) {
  return `${client(origin)}\n${call(body)}`;
}

function client(origin) {
  return [
    "import os",
    "",
    "from openai import OpenAI",
    "",
    "client = OpenAI(",
    `    base_url=${literal(`${origin}/v1`)},`,
    `    api_key=os.environ.get("DROPLESS_TOKEN", "none"),`,
    ")",
    "",
  ].join("\n");
}

function call(body) {
  const known = Object.entries(body).filter(([name]) => !EXTENSIONS.has(name));
  const extra = Object.fromEntries(Object.entries(body).filter(([name]) => EXTENSIONS.has(name)));
  if (Object.keys(extra).length) known.push(["extra_body", extra]);
  return [
    "completion = client.chat.completions.create(",
    ...known.map(([name, value]) => `    ${name}=${literal(value, "    ")},`),
    ")",
    "for choice in completion.choices:",
    "    print(choice.message.content)",
    "",
  ].join("\n");
}

/** A JSON value in Python's words, long lists and objects over several lines. */
function literal(value, indent = "") {
  if (value === null) return "None";
  if (value === true) return "True";
  if (value === false) return "False";
  if (typeof value !== "object") return asciiJson(value);
  const inner = `${indent}    `;
  const isList = Array.isArray(value);
  const items = isList
    ? value.map((item) => literal(item, inner))
    : Object.entries(value).map(([key, item]) => `${asciiJson(key)}: ${literal(item, inner)}`);
  const [open, close] = isList ? "[]" : "{}";
  const line = `${open}${items.join(", ")}${close}`;
  if (line.length < 70 && !line.includes("\n")) return line;
  return `${open}\n${items.map((item) => `${inner}${item},\n`).join("")}${indent}${close}`;
}

/**
 * A string as JSON writes it is a string of Python's, but for characters that JSON leaves as they
 * are and Python ends a line at, and for halves of surrogate pairs.
 */
function asciiJson(value) {
  return JSON.stringify(value).replace(/[\u007f-\u009f\u2028\u2029]/g, (character) =>
    `\\u${character.charCodeAt(0).toString(16).padStart(4, "0")}`,
  );
}

/** A file that Jupyter opens. */
export function toNotebook(body, origin, title) {
  const cells = [
    ["markdown", `# ${title}\n\nFrom the playground of ${origin}. Set \`DROPLESS_TOKEN\` where the server asks for a token.`],
    ["code", "%pip install --quiet openai"],
    ["code", client(origin).trimEnd()],
    ["code", call(body).trimEnd()],
  ];
  const notebook = {
    cells: cells.map(([kind, source], i) => ({
      cell_type: kind,
      id: `cell-${i}`,
      metadata: {},
      source: source.split(/(?<=\n)/),
      ...(kind === "code" ? { execution_count: null, outputs: [] } : {}),
    })),
    metadata: {
      kernelspec: { display_name: "Python 3", language: "python", name: "python3" },
      language_info: { name: "python" },
    },
    nbformat: 4,
    nbformat_minor: 5,
  };
  return JSON.stringify(notebook, null, 1);
}
