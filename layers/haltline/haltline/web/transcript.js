/** The turns of a chat on the screen. Stays at the end while the reader is there, and nowhere else. */

import { factsOf } from "./conversation.js";
import { element } from "./dom.js";
import { renderInto } from "./markdown.js";

const NEAR_END_PX = 40;

/** Why a run was halted, where it was not by a person's stop. */
const REASONS = {
  superseded: "the next message came first",
  disconnect: "its window was closed",
  deadline: "it took too long",
  shutdown: "its replica was shut down",
  signal_lost: "the signal bus was lost",
  agent: "the agent stopped itself",
  lost: "its replica was lost",
};

export class Transcript {
  #scroller;
  #list;
  #toEnd;
  #views = new Map(); // turn → the element that shows it
  #atEnd = true;

  constructor(scroller, list, toEnd) {
    this.#scroller = scroller;
    this.#list = list;
    this.#toEnd = toEnd;
    scroller.addEventListener("scroll", () => this.#noteWhere(), { passive: true });
    toEnd.addEventListener("click", () => {
      this.follow();
      scroller.focus({ preventScroll: true });
    });
    // The box below grows, a phone's keyboard opens: the end stays in sight.
    new ResizeObserver(() => this.#keepUp()).observe(scroller);
  }

  /** Shows these turns; those on the screen already are brought up to date in place. */
  show(turns) {
    const wanted = new Set(turns);
    for (const [turn, view] of this.#views) {
      if (wanted.has(turn)) continue;
      view.remove();
      this.#views.delete(turn);
    }
    turns.forEach((turn, place) => {
      if (!this.#views.has(turn)) this.#views.set(turn, turn.role === "user" ? userView(turn) : answerView());
      const view = this.#views.get(turn);
      const there = this.#list.children[place];
      if (there !== view) this.#list.insertBefore(view, there ?? null);
      if (turn.role !== "user") updateAnswer(view, turn);
    });
    this.#keepUp();
  }

  /** From now on stay at the end. */
  follow() {
    this.#atEnd = true;
    this.#keepUp();
  }

  #noteWhere() {
    const { scrollHeight, scrollTop, clientHeight } = this.#scroller;
    this.#atEnd = scrollHeight - scrollTop - clientHeight < NEAR_END_PX;
    this.#toEnd.hidden = this.#atEnd;
  }

  #keepUp() {
    if (this.#atEnd) this.#scroller.scrollTop = this.#scroller.scrollHeight;
    this.#noteWhere();
  }
}

function userView(turn) {
  return element("article", { className: "turn user", "aria-label": "You" }, element("p", { textContent: turn.text }));
}

function answerView() {
  return element(
    "article",
    { className: "turn answer", "aria-label": "Answer" },
    element("div", { className: "body" }),
    element("footer", { className: "end" }),
  );
}

function updateAnswer(view, turn) {
  const { run } = turn;
  const text = run ? run.text : turn.text;
  const live = run ? !run.ended : false;
  const facts = run ? factsOf(run) : turn.facts;
  view.classList.toggle("live", live);
  view.classList.toggle("waiting", live && text === "");
  view.classList.toggle("stopped", facts.outcome === "stopped");
  const [body, end] = view.children;
  // An answer at rest costs nothing when a neighbour changes.
  if (view.shownText !== text) {
    renderInto(body, text);
    view.shownText = text;
  }
  const state = JSON.stringify([live, facts]);
  if (view.shownState !== state) {
    end.replaceChildren(...ending(facts, live));
    view.shownState = state;
  }
}

function ending(facts, live) {
  const ranOn = facts.replica ? [fact("Ran on", facts.replica)] : [];
  if (live) return facts.replica ? [factList([fact("Running on", facts.replica)])] : [];
  if (facts.outcome === "stopped") return [haltLine(facts), factList([...ranOn, ...stopFacts(facts)])];
  if (facts.outcome === "error" || facts.outcome === "broken") {
    return [element("p", { className: "fault", textContent: facts.problem }), factList(ranOn)];
  }
  return [factList(ranOn)];
}

function haltLine({ stoppedAfterMs }) {
  const label = element("strong", { textContent: "Stopped" });
  const after = typeof stoppedAfterMs === "number" ? [` after ${milliseconds(stoppedAfterMs)}`] : [];
  return element(
    "p",
    { className: "halt" },
    element("span", { className: "octagon", "aria-hidden": "true" }),
    element("span", { className: "halt-words" }, label, ...after),
  );
}

function stopFacts({ stopReplica, haltedMs, reason }) {
  const facts = [];
  if (reason in REASONS) facts.push(fact("Why", REASONS[reason]));
  if (stopReplica) facts.push(fact("Stop taken by", stopReplica));
  if (typeof haltedMs === "number") facts.push(fact("Halted on the replica in", milliseconds(haltedMs)));
  return facts;
}

function fact(name, value) {
  // The space is for those who copy it.
  return element("div", {}, element("dt", { textContent: name }), " ", element("dd", { textContent: value }));
}

function factList(facts) {
  return facts.length === 0 ? "" : element("dl", { className: "facts" }, ...facts);
}

/** Whole milliseconds, but for those under ten: there a decimal is news. */
export function milliseconds(ms) {
  return `${ms < 10 ? Number(ms.toFixed(1)) : Math.round(ms).toLocaleString("en")} ms`;
}
