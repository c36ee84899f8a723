// What went wrong, in the server's words, and what to do about it.

/**
 * An answer that is no success. `message` is the server's own; `status` is 0 if there was no answer,
 * and null if the answer had begun well and broke off.
 */
export class ApiError extends Error {
  constructor(message, details = {}) {
    super(message);
    this.status = details.status === undefined ? 0 : details.status;
    this.code = details.code ?? null;
    this.param = details.param ?? null;
    this.retryAfter = details.retryAfter ?? null; // seconds
    this.requestId = details.requestId ?? null;
    this.guardrail = details.guardrail ?? null; // what a guardrail found, as it was sent
  }
}

/** Reads OpenAI's error object or the platform's, whichever came. */
export async function errorOf(response) {
  const text = await response.text();
  const details = {
    status: response.status,
    requestId: response.headers.get("x-request-id"),
    retryAfter: Number(response.headers.get("retry-after")) || null,
  };
  let body = null;
  try {
    body = JSON.parse(text);
  } catch {
    // Not JSON: a proxy's page, perhaps. Its beginning says more than nothing.
  }
  if (body?.error || body?.error_code) return errorFromBody(body, details);
  return new ApiError(text.slice(0, 300) || `The server answered ${response.status}.`, details);
}

/** @param body an object with `error` (OpenAI's) or `error_code` (the platform's) */
export function errorFromBody(body, details = {}) {
  const error = body.error ?? { message: body.message, code: body.error_code };
  const guardrail = guardrailOf(error.message);
  const message = guardrail ? guardrailMessage(guardrail) : String(error.message);
  return new ApiError(message, {
    ...details,
    code: error.limit_type ?? error.code,
    param: error.param,
    retryAfter: details.retryAfter ?? error.retry_after,
    guardrail,
  });
}

function guardrailOf(message) {
  if (typeof message !== "string" || !message.startsWith("{")) return null;
  try {
    const found = JSON.parse(message);
    return found.input_guardrail || found.output_guardrail ? found : null;
  } catch {
    return null;
  }
}

function guardrailMessage(found) {
  const which = found.input_guardrail ? "prompt" : "answer";
  const findings = found.input_guardrail ?? found.output_guardrail;
  const reasons = new Set();
  for (const finding of findings) {
    if (finding.pii_detection) reasons.add("personal data");
    for (const [category, flagged] of Object.entries(finding.categories ?? {})) {
      if (flagged) reasons.add(category);
    }
    if (finding.flagged && !finding.categories) reasons.add("unsafe content");
  }
  const why = reasons.size ? `: ${[...reasons].join(", ")}` : "";
  return `A guardrail of this endpoint stopped the ${which}${why}.`;
}

/** What the reader can do about it; empty if the message says all. */
export function advice(error) {
  if (error.guardrail) return "Rewrite the message without it, or ask the administrator of the endpoint.";
  switch (error.status) {
    case null:
      return "The answer broke off here. Try again.";
    case 0:
      return "The server did not answer. Is it running, and is the network there?";
    case 400:
      return error.param ? `Change ${error.param} and send again.` : "Change the request and send again.";
    case 401:
      return "Log in with a token of this server.";
    case 403:
      return "Your token may not do this. Ask an administrator for the permission CAN_QUERY.";
    case 404:
      return "Choose another model above.";
    case 413:
      return "Shorten the conversation, or start a new one.";
    case 429:
      return "A limit is reached; it frees up by itself.";
    case 503:
      return "The server is busy, starting or restarting; try again in a moment.";
    default:
      return error.status >= 500 ? "Try again. If it stays so, the server's log knows this request." : "";
  }
}
