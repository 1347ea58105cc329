/** Tells a screen reader of an answer as it comes: whole sentences, now and then, never token by token. */

import { element } from "./dom.js";

const PAUSE_MS = 2500;
const KEPT = 4; // what was said stays readable for a moment, then goes

export class Speaker {
  #region;
  #run = null;
  #spoken = 0;
  #lastAt = 0;

  constructor(region) {
    this.#region = region;
  }

  /** Give it the run after each change; what is new and whole gets said. */
  follow(run) {
    if (run !== this.#run) {
      this.#run = run;
      this.#spoken = 0;
      this.#lastAt = performance.now();
    }
    if (!run.ended && performance.now() - this.#lastAt < PAUSE_MS) return;
    const fresh = run.text.slice(this.#spoken);
    const end = run.ended ? fresh.length : lastSentenceEnd(fresh);
    if (end === 0) return;
    this.#spoken += end;
    this.#lastAt = performance.now();
    this.#say(fresh.slice(0, end));
  }

  #say(markdown) {
    const words = markdown.replace(/[*_`#>|]+/g, " ").trim();
    if (words === "") return;
    this.#region.append(element("p", { textContent: words }));
    while (this.#region.childElementCount > KEPT) this.#region.firstElementChild.remove();
  }
}

function lastSentenceEnd(text) {
  const ends = [...text.matchAll(/[.!?…:]\s|\n/g)];
  return ends.length === 0 ? 0 : ends.at(-1).index + ends.at(-1)[0].length;
}
