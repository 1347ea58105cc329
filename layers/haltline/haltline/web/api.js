/** Every call that the page makes to the server. Addresses are relative, so the page works under any prefix. */

import { recall, remember } from "./memory.js";
import { signIn } from "./sign_in.js";
import { FrameParser } from "./sse.js";

const API = "api/v1/";
const WAITING_STOP = "waiting-stop"; // {chatId, runId}: it was asked for, and somebody must sign in first
const NOT_SIGNED_IN = "You are not signed in.";

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

/**
 * Asks a run to halt; the answer, with its replica, tells what really happened in at most `wait` seconds. Where the
 * person has to sign in first it is kept until they have, and then sent at once.
 */
export async function stopChat(chatId, { runId = null, wait = 5 } = {}) {
  const query = new URLSearchParams({ wait: String(wait) });
  if (runId) query.set("run_id", runId);
  // Longer than `wait`, so that only a server that hangs is given up on and the button can be pressed again.
  const options = { method: "POST", patienceMs: (wait + 5) * 1000 };
  const { session } = signIn;
  for (;;) {
    try {
      const response = await call(`stop/${encodeURIComponent(chatId)}?${query}`, options);
      return { ...(await response.json()), replica: response.headers.get("X-Replica") };
    } catch (error) {
      if (error.status !== 401 || signIn.way.with === "nothing") throw error;
      if (session !== signIn.session) throw error; // whoever wanted it has left
    }
    remember(WAITING_STOP, { chatId, runId }); // for one who leaves this page to sign in
    await signIn.again();
    remember(WAITING_STOP, null);
  }
}

/** Sends a stop that was kept when the person left this page to sign in. */
export async function sendWaitingStop() {
  await signIn.ready;
  const stop = signIn.asked === null ? recall(WAITING_STOP) : null;
  if (stop === null) return;
  remember(WAITING_STOP, null);
  await stopChat(stop.chatId, stop).catch(() => {}); // the chat shows whether it still runs
}

/** Whether the server takes this key or token. Raises: ApiError where it cannot tell. */
export async function isTaken(credential) {
  const response = await send("chats?limit=1", { Authorization: `Bearer ${credential}` });
  if (response.ok || response.status === 401) return response.ok;
  throw new ApiError(response.status, await refusal(response));
}

/** Returns `{healthy, words, replica}`; never raises. */
export async function health() {
  try {
    const response = await send("health", authorization(signIn.header));
    const replica = response.headers.get("X-Replica");
    if (response.ok) return { healthy: true, words: "", replica };
    const lost = "The server is up but has lost the signal bus (Redis). It starts no run that it could not stop.";
    return { healthy: false, words: response.status === 503 ? lost : await refusal(response), replica };
  } catch (error) {
    return { healthy: false, words: error.message, replica: null };
  }
}

function chat(chatId) {
  return `chat/${encodeURIComponent(chatId)}`;
}

async function json(path, options) {
  return (await call(path, options)).json();
}

/** Raises: ApiError for every answer but 2xx, and for none. */
async function call(path, options) {
  const response = await signedCall(path, options);
  if (response.ok) return response;
  throw new ApiError(response.status, await refusal(response), { replica: response.headers.get("X-Replica") });
}

/** As whoever is signed in. A refused credential is renewed once; where it cannot be, the person is asked for another. */
async function signedCall(path, options) {
  await signIn.ready;
  if (signIn.asked !== null) throw new ApiError(401, NOT_SIGNED_IN); // nobody is: the server need not say it again
  const { session } = signIn;
  const sent = signIn.header;
  const response = await send(path, authorization(sent), options);
  if (response.status !== 401) return response;
  const again = await signIn.renew(sent).catch(() => {
    throw new ApiError(0, "The sign-in could not be renewed: its server cannot be reached.");
  });
  if (session !== signIn.session) throw new ApiError(401, NOT_SIGNED_IN); // by now it would be somebody else's call
  if (!again) {
    await signIn.refused(sent);
    return response;
  }
  const renewed = signIn.header;
  const second = await send(path, authorization(renewed), options);
  if (second.status === 401) await signIn.refused(renewed);
  return second;
}

function authorization(header) {
  return header === null ? {} : { Authorization: header };
}

/** Raises: ApiError where nobody answers. */
async function send(path, headers, { patienceMs = null, ...options } = {}) {
  if (options.body) headers = { ...headers, "Content-Type": "application/json" };
  const signal = patienceMs === null ? null : AbortSignal.timeout(patienceMs);
  try {
    return await fetch(API + path, { cache: "no-store", ...options, headers, signal });
  } catch (error) {
    const late = error.name === "TimeoutError";
    throw new ApiError(0, late ? "The server did not answer in time." : "The server cannot be reached. Is it running?");
  }
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
      return signIn.asked === null ? "The server asks for a sign-in that this page does not have." : NOT_SIGNED_IN;
    case 403:
      return detail ? `${detail}.` : "The server does not let you do this.";
    case 404:
      return "The server does not know this.";
    case 409:
      return "This chat is already answering.";
    case 413:
      return detail ? `${detail}.` : "That message is too long.";
    case 422:
      return `The server did not accept that: ${detail || "the message or the name is not valid"}.`;
    case 429: // which limit it is, and what would help, only the server knows
      return `${detail || "Too many requests"}. ${retryAfter ? `Try again in ${retryAfter} s.` : "Try again later."}`;
    case 503:
      if (detail) return `${detail}.`;
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
