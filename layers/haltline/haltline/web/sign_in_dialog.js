/** The dialog that asks for a sign-in. It stays until somebody is signed in: without that nothing here works. */

import { isTaken } from "./api.js";
import { signIn } from "./sign_in.js";

const KINDS = {
  key: { name: "API key", words: "This server asks for an API key.", wrong: "The server does not know this key." },
  token: { name: "Token", words: "This server asks for a token.", wrong: "The server does not take this token." },
  cognito: { words: "This server asks who you are. You come back here afterwards." },
};
const PRINTABLE = /^[\x21-\x7e]+$/; // what a header can carry

export class SignInDialog {
  #dialog;
  #part;
  #busy = false;

  constructor(dialog) {
    this.#dialog = dialog;
    this.#part = (name) => dialog.querySelector(`#sign-in-${name}`);
    this.#part("form").addEventListener("submit", (event) => {
      event.preventDefault();
      this.#go();
    });
    this.#part("value").addEventListener("input", () => this.#complain(""));
    dialog.addEventListener("cancel", (event) => event.preventDefault());
    dialog.addEventListener("close", () => this.show()); // a browser may close it all the same
  }

  /** Brings it up to date with `signIn`. */
  show() {
    const { asked, way } = signIn;
    if (asked === null) {
      this.#part("value").value = "";
      this.#dialog.close();
    } else if (!this.#dialog.open) {
      const kind = KINDS[way.with];
      this.#part("words").textContent = kind.words;
      this.#part("credential").hidden = way.with === "cognito";
      this.#part("label").textContent = kind.name ?? "";
      this.#part("problem").textContent = asked;
      this.#dialog.showModal();
      this.#part(way.with === "cognito" ? "go" : "value").focus();
    }
  }

  async #go() {
    if (this.#busy) return;
    this.#busy = true;
    this.#part("go").setAttribute("aria-disabled", "true");
    this.#complain("");
    try {
      if (signIn.way.with === "cognito") await signIn.leave();
      else await this.#try(this.#part("value").value.trim());
    } catch (error) {
      this.#complain(error.message);
    }
    this.#busy = false;
    this.#part("go").removeAttribute("aria-disabled");
  }

  async #try(credential) {
    const { name, wrong } = KINDS[signIn.way.with];
    if (credential === "") this.#complain(`Type the ${name === "Token" ? "token" : "API key"} first.`);
    else if (PRINTABLE.test(credential) && (await isTaken(credential))) signIn.hold(credential);
    else this.#complain(wrong);
    if (signIn.asked !== null) this.#part("value").focus();
  }

  #complain(words) {
    this.#part("problem").textContent = words;
    if (words === "") this.#part("value").removeAttribute("aria-invalid");
    else this.#part("value").setAttribute("aria-invalid", "true");
  }
}
