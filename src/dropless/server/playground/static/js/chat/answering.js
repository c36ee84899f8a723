// One answer from the server, written into a plain Answer as it comes.

import { events, send } from "../api.js";

/**
 * Asks, and fills `answer` (see conversation.js) until it is complete. Never throws: what goes wrong
 * becomes the answer's state and error. `onchange` is called for every piece.
 */
export async function fetchAnswer(answer, body, signal, onchange) {
  const start = performance.now();
  const since = () => Math.round(performance.now() - start);
  const stream = { ...body, stream: true, stream_options: { include_usage: true }, include_timings: true };
  try {
    const response = await send("/v1/chat/completions", { method: "POST", body: stream, signal });
    for await (const chunk of events(response)) {
      take(answer, chunk, since);
      onchange();
    }
    answer.state = "done";
  } catch (error) {
    if (error.name === "AbortError") {
      answer.state = "stopped";
    } else {
      answer.state = "failed";
      answer.error = plain(error);
    }
  }
  answer.seen.total_ms = since();
  onchange();
}

function take(answer, chunk, since) {
  answer.state = "streaming";
  for (const { index, delta, finish_reason } of chunk.choices) {
    const choice = (answer.choices[index] ??= { text: "", finish_reason: null });
    if (delta.content) {
      answer.seen.ttft_ms ??= since();
      choice.text += delta.content;
    }
    if (finish_reason) choice.finish_reason = finish_reason;
  }
  if (chunk.usage) answer.usage = chunk.usage;
  if (chunk.timings) answer.timings = chunk.timings;
}

/** An ApiError as an object that the browser's database can keep; anything else is a bug, shown. */
function plain(error) {
  const { message, status = null, code, param, retryAfter, requestId, guardrail } = error;
  return { message, status, code, param, retryAfter, requestId, guardrail, time: Date.now() };
}
