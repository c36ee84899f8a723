// Requests to the server that this page came from, and to no other.

import { ApiError, errorFromBody, errorOf } from "./errors.js";

/**
 * A response that is a success.
 * @throws {ApiError} any other answer, or none
 * @throws {DOMException} AbortError, if `signal` aborts
 */
export async function send(path, { method = "GET", body, signal } = {}) {
  const headers = body === undefined ? {} : { "content-type": "application/json" };
  let response;
  try {
    response = await fetch(path, { method, headers, body: JSON.stringify(body), signal });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ApiError(error.message);
  }
  if (!response.ok) throw await errorOf(response);
  return response;
}

/** The JSON of a successful answer; throws as `send` does. */
export async function getJson(path, options) {
  return (await send(path, options)).json();
}

/**
 * The events of a stream, parsed, up to [DONE].
 * @throws {ApiError} an error event, or a stream that ends without [DONE]
 */
export async function* events(response) {
  const broken = { status: null, requestId: response.headers.get("x-request-id") };
  let complete = false;
  for await (const line of lines(response.body)) { // to the very end, or the server sees us leave
    if (!line.startsWith("data: ")) continue;
    const data = line.slice("data: ".length);
    complete ||= data === "[DONE]";
    if (complete) continue;
    const event = JSON.parse(data);
    if (event.error) throw errorFromBody(event, broken);
    yield event;
  }
  if (!complete) throw new ApiError("The connection ended before the answer was complete.", broken);
}

async function* lines(stream) {
  const reader = stream.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  try {
    for (;;) {
      const { value, done } = await reader.read();
      if (done) return;
      const parts = (rest + value).split("\n");
      rest = parts.pop();
      yield* parts;
    }
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ApiError(`The connection broke: ${error.message}`, { status: null });
  } finally {
    await reader.cancel().catch(() => {});
  }
}
