// The admin API: one question, and the stream of events. Errors are ApiError.
//
// `status` 0: there was no answer. The API's own errors have a `code`; GET /openapi.json lists them.

export class ApiError extends Error {
  constructor(status, code, message) {
    super(message);
    this.status = status;
    this.code = code;
  }
}

export const segment = encodeURIComponent;

async function open(method, path, { body, signal, accept = "application/json" } = {}) {
  const headers = { Accept: accept };
  if (method !== "GET") headers["x-headrace-csrf"] = "1";
  if (body !== undefined) headers["Content-Type"] = "application/json";
  let response;
  try {
    response = await fetch(new URL(path, document.baseURI), {
      ...{ method, headers, signal, cache: "no-store", credentials: "same-origin" },
      body: body === undefined ? undefined : JSON.stringify(body),
    });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ApiError(0, "unreachable", "the control plane does not answer");
  }
  if (response.ok) return response;
  const said = await response.json().catch(() => null);
  throw new ApiError(
    response.status,
    said?.error?.code ?? "unknown",
    said?.error?.message ?? `the control plane answered ${response.status}`,
  );
}

/** The parsed answer. */
export async function ask(method, path, body, signal) {
  return (await open(method, path, { body, signal })).json();
}

/** Server-sent events as {event, data}. Not EventSource: it does not say why a stream was refused. */
export async function* events(signal) {
  const response = await open("GET", "events", { signal, accept: "text/event-stream" });
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  let event = "message";
  for (;;) {
    let read;
    try {
      read = await reader.read();
    } catch (error) {
      if (error.name === "AbortError") throw error;
      throw new ApiError(0, "unreachable", "the connection to the control plane was lost");
    }
    if (read.done) return;
    const lines = (rest + read.value).split("\n");
    rest = lines.pop();
    for (const line of lines) {
      if (line.startsWith("event: ")) event = line.slice("event: ".length);
      else if (line.startsWith("data: ")) yield { event, data: JSON.parse(line.slice("data: ".length)) };
    }
  }
}
