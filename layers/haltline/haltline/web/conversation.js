/** One chat as the page holds it: its turns, its live run, the unsent text and the notice above the box. No DOM. */

import * as api from "./api.js";
import { recall, remember } from "./memory.js";
import { ElsewhereRun, Run, mayOpenStream } from "./run.js";

const ELSEWHERE_CHECK_MS = 1000;

export class Conversation {
  turns = []; // {role, text, facts} at rest; {role: "assistant", run} of a run of this page
  run = null; // the latest Run or ElsewhereRun; it may have ended
  notice = null; // {words, label, act, whileLive}: label and act make a button, whileLive goes with the run
  loading = false;
  onchange = () => {};
  onsettled = () => {}; // the server is done with a run: lists may be read again

  #draft;
  #loads = 0;
  #replaced = null; // what `run` was before: it lives on where the new run is refused

  /** `fresh`: the id was made just now, so there is nothing to load. */
  constructor(id, { fresh = false } = {}) {
    this.id = id;
    this.fresh = fresh;
    this.#draft = recall(`draft.${id}`) ?? "";
  }

  get draft() {
    return this.#draft;
  }

  set draft(text) {
    this.#draft = text;
    remember(`draft.${this.id}`, text);
  }

  get live() {
    return this.run !== null && !this.run.ended;
  }

  /** Reads the history and whether the chat is answering elsewhere. What this page runs itself it knows better. */
  async load() {
    if (this.fresh || (this.live && !this.run.elsewhere)) return;
    const load = (this.#loads += 1);
    this.loading = true;
    this.onchange();
    try {
      const [messages, status] = await Promise.all([api.listMessages(this.id), api.chatStatus(this.id)]);
      if (load !== this.#loads) return;
      this.#merge(messages);
      if (status.status === "running" && !this.live) this.#watchElsewhere();
    } catch (error) {
      if (load !== this.#loads) return;
      const again = { label: "Try again", act: () => this.load() };
      // Where one must sign in first the page says so, and loads it then.
      if (error.status !== 401) this.notice = { words: `The history could not be read. ${error.message}`, ...again };
    }
    this.loading = false;
    this.onchange();
  }

  /** Sends the draft. The run exists, and can be stopped, before this returns. */
  send({ ifRunning = null } = {}) {
    const message = this.draft;
    if (message.trim() === "") return;
    if (this.live && !ifRunning) {
      this.#tell("An answer is still coming in this chat.", this.#stopItAndSend);
      return;
    }
    if (!mayOpenStream()) {
      this.#tell("Five answers are coming in already, and a stop must always get through. Stop one of them first.");
      return;
    }
    const run = new Run(this.id, message, { ifRunning });
    run.onchange = () => this.#ownRunChanged(run);
    if (ifRunning) run.onopen = () => this.#catchUp();
    this.#replaced = this.run;
    this.run = run;
    this.fresh = false;
    this.notice = null;
    this.draft = "";
    this.turns.push({ role: "user", text: message }, { role: "assistant", run });
    this.#settle(run);
    this.onchange();
  }

  async #settle(run) {
    await run.start();
    await run.stopAnswer; // a stopped stream closes before the server has written all, its stop is answered after
    this.onsettled();
  }

  askStop(askedAt) {
    if (!this.live) return;
    this.notice = null;
    this.run.askStop(askedAt);
  }

  /** Raises: ApiError. */
  async remove() {
    await api.deleteChat(this.id);
    this.#loads += 1; // an answer still on its way must not bring it back
    this.draft = "";
  }

  /** Nobody looks at this any more. Its runs go on, but nothing of them is remembered. */
  leave() {
    this.onchange = () => {};
    this.onsettled = () => {};
    for (const { run } of this.turns) if (run) run.onchange = () => {};
    this.run = null;
  }

  #ownRunChanged(run) {
    if (run.outcome === "refused") this.#takeBack(run);
    else if (run.outcome === "broken") this.load(); // it may live on, and may be stopped yet
    else if (run.ended) remember(`run.${run.runId}`, factsOf(run));
    if (run === this.run) this.#tellOfStop(run);
    if (run.ended && this.notice?.whileLive && !this.live) this.notice = null;
    this.onchange(run);
  }

  #tell(words, button = {}) {
    this.notice = { words, ...button };
    this.onchange();
  }

  #stopItAndSend = { label: "Stop it and send", act: () => this.send({ ifRunning: "stop" }), whileLive: true };

  /** The run that was stopped for this one left turns that were never seen here. */
  async #catchUp() {
    const messages = await api.listMessages(this.id).catch(() => null);
    if (messages !== null) this.#merge(messages);
    this.onchange();
  }

  /** The server's history, but the turn of this page's own run as the page has it: newer, and measured. */
  #merge(messages) {
    const at = this.run ? this.turns.findIndex((turn) => turn.run === this.run) : -1;
    const own = at < 0 ? [] : this.turns.slice(at - 1, at + 1);
    const isOwn = (message) => own.length > 0 && message.run_id === this.run.runId;
    const first = messages.findIndex(isOwn);
    const before = first < 0 ? messages : messages.slice(0, first);
    const after = first < 0 ? [] : messages.slice(messages.findLastIndex(isOwn) + 1);
    const shown = (some) => some.filter(isShown).map(fromServer);
    this.turns = [...shown(before), ...own, ...shown(after)];
  }

  /** Nothing was started: the text goes back into the box, before whatever was typed since. */
  #takeBack(run) {
    if (!this.turns.some((turn) => turn.run === run)) return;
    this.turns = this.turns.slice(0, this.turns.findIndex((turn) => turn.run === run) - 1);
    this.draft = run.message + (this.draft === "" ? "" : `\n\n${this.draft}`);
    const goesOn = this.#replaced?.ended === false;
    this.run = goesOn && !this.#replaced.elsewhere ? this.#replaced : null;
    if (this.run === null && (goesOn || run.refusal.status === 409)) this.#watchElsewhere();
    if (run.refusal.status === 409) {
      const words = run.ifRunning
        ? "The other run has not ended within 5 s. Your text is back in the box."
        : "This chat is answering already, in another window or program. Your text is back in the box.";
      this.notice = { words, ...this.#stopItAndSend };
    } else {
      const again = isLasting(run.refusal) ? {} : { label: "Send again", act: () => this.send() };
      this.notice = { words: `${run.problem} Your text is back in the box.`, ...again };
    }
  }

  #tellOfStop(run) {
    if (run.ended || run.stop === null) return;
    if (run.stop.state === "failed") {
      this.notice = { words: `The stop was not taken. ${run.stop.problem.message} Press Stop again.` };
    } else if (run.stop.status === "unconfirmed") {
      const words = "The stop was sent, but nothing confirmed it within 5 s. Press Stop again if the answer goes on.";
      this.notice = { words };
    }
  }

  async #watchElsewhere() {
    const run = new ElsewhereRun(this.id);
    this.run = run;
    run.onchange = () => {
      this.#tellOfStop(run);
      if (run.ended && run === this.run) this.#elsewhereEnded(run);
      else this.onchange();
    };
    // Asked again and again, as no stream of that run comes here; a hidden page asks nothing.
    while (run === this.run && !run.ended) {
      await new Promise((resolve) => setTimeout(resolve, ELSEWHERE_CHECK_MS));
      if (document.hidden || run !== this.run || run.ended || run.stopping) continue;
      const status = await api.chatStatus(this.id).catch(() => ({ status: "running" }));
      if (status.status !== "running" && run === this.run && !run.stopping) {
        run.ended = true;
        run.onchange();
      }
    }
  }

  async #elsewhereEnded(run) {
    if (this.notice?.whileLive) this.notice = null;
    await this.load();
    const last = this.turns.at(-1);
    const isIts = run.stoppedAfterMs !== null && last?.facts?.outcome === "stopped";
    if (isIts) last.facts = { ...last.facts, ...factsOf(run) };
    this.onchange();
    this.onsettled();
  }
}

/** What is known of how a run ended: `{outcome, problem, replica, stoppedAfterMs, stopReplica, haltedMs}`. */
export function factsOf(run) {
  return {
    outcome: run.outcome ?? (run.stoppedAfterMs === null ? null : "stopped"),
    problem: run.problem ?? null,
    replica: run.replica ?? null,
    stoppedAfterMs: run.stoppedAfterMs,
    stopReplica: run.stop?.replica ?? null,
    haltedMs: run.stop?.haltedMs ?? null,
  };
}

/** Trying the same again would be refused again. */
function isLasting(error) {
  return [403, 413, 422].includes(error.status);
}

/** A tool call without words is nothing to read; a run that was stopped or failed before its first word is. */
function isShown({ role, text, stopped, error }) {
  return ["user", "assistant"].includes(role) && Boolean(text !== "" || stopped || error);
}

/** How a turn ended is for the server to say, what was measured of it for the page to remember. */
function fromServer({ role, text, stopped, error, reason = null, run_id: runId = null }) {
  const measured = role === "assistant" && runId ? recall(`run.${runId}`) : null;
  const outcome = stopped ? "stopped" : error ? "error" : null;
  return { role, text, facts: { ...measured, outcome, problem: error ?? null, reason } };
}
