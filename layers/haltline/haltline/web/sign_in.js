/** Who is signed in, in this tab only: by what, how it is renewed, and when it is asked for again. No DOM. */

import * as cognito from "./cognito.js";
import { forgetAll, recall, remember } from "./memory.js";

const HELD = "sign-in"; // {with, value} or {with: "cognito", id, refresh, renewAt}
const BEGUN = "sign-in-begun"; // {state, verifier, hash}, from leaving for the hosted page until the return
const SUBJECT = "sign-in-subject"; // whose drafts these are
const PATIENCE_MS = 10_000;
const RENEWED_AFTER = 0.9; // of a token's life
const LONGEST_TIMER_MS = 2 ** 31 - 1;

const FOREIGN = "That sign-in was not begun in this tab, so it was not taken. Sign in again.";
const OVER = "Your sign-in is not good any more. What you have written is kept.";
const UNREACHABLE = "The sign-in server cannot be reached. Try again.";

class SignIn {
  way = { with: "nothing" }; // what the server asks for: nothing, key, token, or cognito with its domain and client_id
  asked = null; // why it is asked for now, in words that may be empty; null while it is not
  session = 0; // another one with each person
  onchange = () => {};
  onsigned = () => {}; // it was asked for, and is done
  onforgotten = () => {}; // somebody has left, and what was theirs is gone from this tab

  #held = recall(HELD);
  #ready = null;
  #renewal = null;
  #looking = null;
  #timer = null;
  #waiting = [];

  /** Takes up what this tab holds and what a return from the hosted page brings. Before the chat's address is read. */
  start() {
    const begun = recall(BEGUN);
    const back = cognito.takeReturn(begun?.hash ?? location.hash);
    if (back) remember(BEGUN, null);
    this.#ready = this.#start(back, begun);
  }

  /** Resolves when it is known what the server asks for, and whether this tab has it. */
  get ready() {
    return this.#ready;
  }

  /** What a call carries as `Authorization`, or null. */
  get header() {
    if (this.#held === null) return null;
    // API Gateway's authorizer takes Cognito's token as it is.
    return this.#held.with === "cognito" ? this.#held.id : `Bearer ${this.#held.value}`;
  }

  /** For a key or a token that the server has taken. Whose a key is nobody but the server knows. */
  hold(value) {
    if (this.way.with === "token") this.#belongTo(tokenSubject(value));
    this.#signed({ with: this.way.with, value });
  }

  /** Whether this page holds what its tab remembers. One that a browser has kept aside may not: see `pageshow`. */
  get fresh() {
    return JSON.stringify(this.#held) === JSON.stringify(recall(HELD));
  }

  /** Leaves this page for the hosted one. */
  async leave() {
    const { url, begun } = await cognito.authorization(this.way);
    remember(BEGUN, { ...begun, hash: location.hash });
    location.assign(url);
  }

  /**
   * After a 401: whether there is something else by now to send than `sent`. Calls that ask together renew once.
   *
   * Raises: what `fetch` does, where the sign-in server does not answer.
   */
  async renew(sent) {
    if (this.header !== sent) return this.header !== null;
    if (!this.#held?.refresh || this.way.with !== "cognito") return false;
    this.#renewal ??= this.#renew().finally(() => {
      this.#renewal = null;
    });
    return this.#renewal;
  }

  /** After a 401 that nothing could be done about: asks the person, unless they have answered meanwhile. */
  async refused(sent) {
    await this.#look(); // it may ask for something else by now
    if (this.header !== sent || this.asked !== null || this.way.with === "nothing") return;
    this.#ask(sent === null ? "" : OVER);
  }

  /** Resolves once somebody is signed in again; never, where the person signs out instead. */
  again() {
    if (this.asked === null) return Promise.resolve();
    return new Promise((resolve) => this.#waiting.push(resolve));
  }

  /** Forgets all that this tab remembers. */
  out() {
    clearTimeout(this.#timer);
    this.#forget();
    this.#ask("");
    if (this.way.with === "cognito") location.assign(cognito.logout(this.way));
  }

  async #start(back, begun) {
    const known = await this.#look();
    const { with: kind } = this.way;
    if (known && this.#held && this.#held.with !== kind) this.#hold(null);
    const problem = back && kind === "cognito" ? await this.#redeem(back, begun) : "";
    if (this.#held) this.#planRenewal();
    else if (kind !== "nothing") this.#ask(problem);
    this.onchange();
  }

  /** Returns what went wrong, in words. */
  async #redeem({ state, code, error, error_description: why }, begun) {
    if (state !== begun?.state) return FOREIGN;
    if (error) return `The sign-in was refused: ${why ?? error}.`;
    try {
      const fresh = await cognito.redeem(this.way, code, begun.verifier);
      this.#belongTo(tokenSubject(fresh.id));
      this.#hold(tokensOf(fresh));
      return "";
    } catch (trouble) {
      return trouble instanceof cognito.Refused ? "The sign-in was not accepted. Sign in again." : UNREACHABLE;
    }
  }

  async #renew() {
    const { session } = this;
    try {
      const fresh = await cognito.renewed(this.way, this.#held.refresh);
      if (session !== this.session) return false;
      this.#hold(tokensOf(fresh));
      this.#planRenewal();
      return true;
    } catch (trouble) {
      if (!(trouble instanceof cognito.Refused)) throw trouble;
      return false;
    }
  }

  /** Before a call has to wait for it. Where that fails the token is used up, and a 401 decides. */
  #planRenewal() {
    clearTimeout(this.#timer);
    if (!this.#held?.refresh) return;
    const wait = Math.min(Math.max(this.#held.renewAt - Date.now(), 0), LONGEST_TIMER_MS);
    this.#timer = setTimeout(() => this.renew(this.header).catch(() => {}), wait);
  }

  /** What is here of somebody else, drafts and stops that wait, is not for this one. */
  #belongTo(subject) {
    if (![null, subject].includes(recall(SUBJECT))) this.#forget();
    remember(SUBJECT, subject);
  }

  #forget() {
    this.session += 1;
    this.#waiting = [];
    forgetAll();
    this.onforgotten();
  }

  /** Resolves to whether the server has said what it asks for. */
  #look() {
    this.#looking ??= this.#readWay().finally(() => {
      this.#looking = null;
    });
    return this.#looking;
  }

  async #readWay() {
    try {
      const response = await fetch("sign-in", { cache: "no-store", signal: AbortSignal.timeout(PATIENCE_MS) });
      if (response.ok) this.way = await response.json();
      return response.ok;
    } catch {
      return false; // what else is called will say why
    }
  }

  #ask(words) {
    this.#hold(null);
    this.asked = words;
    this.onchange();
  }

  #signed(held) {
    this.#hold(held);
    this.asked = null;
    this.onchange();
    for (const goOn of this.#waiting.splice(0)) goOn();
    this.onsigned();
  }

  #hold(held) {
    this.#held = held;
    remember(HELD, held);
  }
}

/** By this computer's clock and the length of its life: what the token says of its end is by another clock. */
function tokensOf({ id, refresh, lifeMs }) {
  return { with: "cognito", id, refresh, renewAt: Date.now() + lifeMs * RENEWED_AFTER };
}

/** Whose token it is. Not checked: the server does that. */
function tokenSubject(token) {
  try {
    return JSON.parse(atob(token.split(".")[1].replaceAll("-", "+").replaceAll("_", "/"))).sub ?? null;
  } catch {
    return null;
  }
}

export const signIn = new SignIn();
