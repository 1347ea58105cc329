/**
 * The bytes of a text/event-stream, cut anywhere, to its frames. Pure: no I/O, no DOM.
 *
 * https://html.spec.whatwg.org/multipage/server-sent-events.html#event-stream-interpretation
 */

/** The type of a frame without an `event:` line: text. A closing frame has one, so neither is taken for the other. */
export const TEXT = "message";

export class FrameParser {
  // One decoder for the whole stream: it keeps the first bytes of a character until the rest comes, and drops a BOM.
  #decoder = new TextDecoder("utf-8");
  #unfinishedLine = "";
  #lastWasCR = false;
  #event = "";
  #data = [];

  /** Returns the frames that `bytes` completes, each `{event, data}`. One that the stream breaks off in is none. */
  push(bytes) {
    const text = this.#decoder.decode(bytes, { stream: true });
    const frames = [];
    const lineEnd = /\r\n?|\n/g;
    let start = 0;
    if (text !== "") {
      // A CR ended its line at once; the LF of a CRLF that was cut in two must not end another.
      if (this.#lastWasCR && text[0] === "\n") start = 1;
      this.#lastWasCR = text.endsWith("\r");
    }
    lineEnd.lastIndex = start;
    for (let end = lineEnd.exec(text); end !== null; end = lineEnd.exec(text)) {
      const frame = this.#line(this.#unfinishedLine + text.slice(start, end.index));
      if (frame !== null) frames.push(frame);
      this.#unfinishedLine = "";
      start = lineEnd.lastIndex;
    }
    this.#unfinishedLine += text.slice(start);
    return frames;
  }

  #line(line) {
    if (line === "") return this.#dispatch();
    const colon = line.indexOf(":");
    if (colon === 0) return null; // a comment
    const name = colon < 0 ? line : line.slice(0, colon);
    let value = colon < 0 ? "" : line.slice(colon + 1);
    if (value.startsWith(" ")) value = value.slice(1); // one space only: the others are the model's
    if (name === "data") this.#data.push(value);
    else if (name === "event") this.#event = value;
    return null;
  }

  #dispatch() {
    const frame = this.#data.length === 0 ? null : { event: this.#event || TEXT, data: this.#data.join("\n") };
    this.#event = "";
    this.#data = [];
    return frame;
  }
}
