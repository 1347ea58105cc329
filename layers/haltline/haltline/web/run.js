/** A run as the page sees it, and the stop of one. No DOM: whoever shows it sets `onchange`. */

import * as api from "./api.js";
import { ulid } from "./ids.js";
import { TEXT } from "./sse.js";

/** One press of Stop that reached the network: `state` is asked, then answered or failed. */
class StopRequest {
  state = "asked";
  status = null; // what the server says happened: stopped, finished, idle, unconfirmed
  replica = null;
  haltedMs = null;
  problem = null;

  constructor(askedAt) {
    this.askedAt = askedAt;
  }

  async send(chatId, runId) {
    try {
      const answer = await api.stopChat(chatId, { runId });
      this.state = "answered";
      this.status = answer.status;
      this.replica = answer.replica;
      this.haltedMs = answer.halted_ms ?? null;
    } catch (error) {
      this.state = "failed";
      this.problem = error;
    }
  }
}

/** What Run and ElsewhereRun share: it can be asked to halt, again and again until it ends. */
class Stoppable {
  elsewhere = false;
  ended = false;
  stop = null;
  stopAnswer = Promise.resolve(); // resolves when the latest stop has its answer, good or bad
  onchange = () => {};

  constructor(chatId, runId) {
    this.chatId = chatId;
    this.runId = runId;
  }

  /** A stop is under way and its answer still out: pressing again would tell the server nothing new. */
  get stopping() {
    return !this.ended && this.stop?.state === "asked";
  }

  /** `askedAt`: when the person pressed, in ms of performance.now(). */
  async askStop(askedAt = performance.now()) {
    if (this.ended || this.stopping) return;
    const stop = new StopRequest(askedAt);
    this.stop = stop;
    this.onchange();
    this.stopAnswer = stop.send(this.chatId, this.runId);
    await this.stopAnswer;
    this.stopAnswered(stop);
    this.onchange();
  }

  stopAnswered() {}
}

/** Over HTTP/1.1 a browser opens six connections to a server: one is kept for stops, which must never queue. */
const MOST_STREAMS = 5;
let openStreams = 0;

export function mayOpenStream() {
  return openStreams < MOST_STREAMS;
}

/** A run that this page started. It ends with an `outcome`: done, stopped, error, refused (never started) or broken. */
export class Run extends Stoppable {
  text = "";
  opened = false;
  outcome = null;
  problem = null; // words for a person
  refusal = null; // the ApiError of a refused run
  replica = null;
  stoppedAfterMs = null;
  onopen = () => {}; // the server has taken the message

  constructor(chatId, message, { ifRunning = null } = {}) {
    super(chatId, ulid());
    this.message = message;
    this.ifRunning = ifRunning;
  }

  /** Resolves when the server has closed the stream, which may be after the closing frame was seen. Never raises. */
  async start() {
    openStreams += 1;
    await this.#follow();
    openStreams -= 1;
  }

  async #follow() {
    let answer;
    try {
      answer = await api.openAnswer(this.chatId, this.message, this.runId, { ifRunning: this.ifRunning });
    } catch (error) {
      this.refusal = error;
      this.#end("refused", error.message);
      return;
    }
    this.opened = true;
    this.replica = answer.replica;
    this.onopen();
    this.onchange();
    try {
      // Read to the end even after the closing frame: to hang up would look like a client that left.
      for await (const frame of answer.frames) if (!this.ended) this.#take(frame);
    } catch {
      // The connection broke; told below, unless all had been said.
    }
    if (!this.ended) this.#end("broken", "The connection broke before the answer ended.");
  }

  #take({ event, data }) {
    if (event === TEXT) {
      this.text += data;
      this.onchange();
    } else if (event === "done" || event === "stopped") {
      this.#end(event);
    } else if (event === "error") {
      this.#end("error", data.replace(/^\[ERROR\] ?/, "") || "The run failed.");
    }
  }

  #end(outcome, problem = null) {
    this.ended = true;
    this.outcome = outcome;
    this.problem = problem;
    if (outcome === "stopped" && this.stop) this.stoppedAfterMs = performance.now() - this.stop.askedAt;
    this.onchange();
  }
}

/** A live run that another window or program started: the page sees only that it is there, and may stop it. */
export class ElsewhereRun extends Stoppable {
  elsewhere = true;
  stoppedAfterMs = null;

  constructor(chatId) {
    super(chatId, null); // whatever lives in that chat now is meant, so no run is named
  }

  stopAnswered(stop) {
    // There is no stream to see a closing frame in, so the server's word is the moment.
    if (stop.status === "stopped") this.stoppedAfterMs = performance.now() - stop.askedAt;
    if (["stopped", "finished", "idle"].includes(stop.status)) this.ended = true;
  }
}
