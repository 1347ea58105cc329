/** Every call that the page makes to the server. Addresses are relative, so the page works under any prefix. */

import { FrameParser } from "./sse.js";

const API = "api/v1/";

/** A call that was refused or never answered. `status` is 0 when the server could not be reached. */
export class ApiError extends Error {
  constructor(status, words, { replica = null } = {}) {
    super(words);
    this.name = "ApiError";
    this.status = status;
    this.replica = replica;
  }
}

/** Returns `{chats, count, next_cursor}`, newest first. */
export function listChats({ cursor = null, limit = 50 } = {}) {
  const query = new URLSearchParams({ limit: String(limit) });
  if (cursor) query.set("cursor", cursor);
  return json(`chats?${query}`);
}

export function chatStatus(chatId) {
  return json(chat(chatId));
}

export async function listMessages(chatId) {
  return (await json(`${chat(chatId)}/messages`)).messages;
}

/** Deletes a chat; one that is gone already counts as deleted. */
export async function deleteChat(chatId) {
  try {
    await json(chat(chatId), { method: "DELETE" });
  } catch (error) {
    if (error.status !== 404) throw error;
  }
}

/** Sends a message. Returns the open answer: `{replica, frames}`, `frames` an async iterable of `{event, data}`. */
export async function openAnswer(chatId, message, runId, { ifRunning = null } = {}) {
  const query = ifRunning ? `?${new URLSearchParams({ if_running: ifRunning })}` : "";
  const body = JSON.stringify({ message, run_id: runId });
  const response = await call(chat(chatId) + query, { method: "POST", body });
  return { replica: response.headers.get("X-Replica"), frames: frames(response.body) };
}

/** Asks a run to halt; the answer, with its replica, tells what really happened in at most `wait` seconds. */
export async function stopChat(chatId, { runId = null, wait = 5 } = {}) {
  const query = new URLSearchParams({ wait: String(wait) });
  if (runId) query.set("run_id", runId);
  // Longer than `wait`, so that only a server that hangs is given up on and the button can be pressed again.
  const signal = AbortSignal.timeout((wait + 5) * 1000);
  const response = await call(`stop/${encodeURIComponent(chatId)}?${query}`, { method: "POST", signal });
  return { ...(await response.json()), replica: response.headers.get("X-Replica") };
}

/** Returns `{healthy, words, replica}`; never raises. */
export async function health() {
  try {
    const response = await fetch(`${API}health`, { cache: "no-store" });
    const replica = response.headers.get("X-Replica");
    if (response.ok) return { healthy: true, words: "", replica };
    return {
      healthy: false,
      words: "The server is up but has lost the signal bus (Redis). It starts no run that it could not stop.",
      replica,
    };
  } catch {
    return { healthy: false, words: "The server cannot be reached.", replica: null };
  }
}

function chat(chatId) {
  return `chat/${encodeURIComponent(chatId)}`;
}

async function json(path, options) {
  return (await call(path, options)).json();
}

/** Raises: ApiError for every answer but 2xx, and for none. */
async function call(path, options = {}) {
  const headers = options.body ? { "Content-Type": "application/json" } : {};
  let response;
  try {
    response = await fetch(API + path, { cache: "no-store", ...options, headers });
  } catch (error) {
    const late = error.name === "TimeoutError";
    throw new ApiError(0, late ? "The server did not answer in time." : "The server cannot be reached. Is it running?");
  }
  if (response.ok) return response;
  throw new ApiError(response.status, await refusal(response), { replica: response.headers.get("X-Replica") });
}

async function* frames(body) {
  const parser = new FrameParser();
  const reader = body.getReader();
  for (let piece = await reader.read(); !piece.done; piece = await reader.read()) yield* parser.push(piece.value);
}

/** An error answer in plain words. The server's own `detail` is added where it tells the person something to do. */
async function refusal(response) {
  const detail = await readDetail(response);
  const retryAfter = Number(response.headers.get("Retry-After"));
  switch (response.status) {
    case 401:
    case 403:
      return "The server asks for a sign-in that this page does not have.";
    case 404:
      return "The server does not know this.";
    case 409:
      return "This chat is already answering.";
    case 413:
      return "That message is too long: at most 64 KiB of text.";
    case 422:
      return `The server did not accept that: ${detail || "the message or the name is not valid"}.`;
    case 429:
      return `Too many requests. ${retryAfter ? `Try again in ${retryAfter} s.` : "Try again in a moment."}`;
    case 503:
      return "The server cannot reach its signal bus (Redis) just now, and starts nothing that it could not stop.";
    default:
      return `The server answered with an error (${response.status})${detail ? `: ${detail}` : ""}.`;
  }
}

async function readDetail(response) {
  try {
    const { detail } = await response.json();
    const words = Array.isArray(detail) ? detail.map((entry) => entry.msg).join("; ") : detail;
    return typeof words === "string" ? words.replace(/\.$/, "") : "";
  } catch {
    return ""; // a proxy's page, or nothing
  }
}
