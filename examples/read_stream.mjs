// Send a message, read the answer as it comes, stop it. For browsers and Node 20 or newer; no dependencies.
// EventSource cannot send a POST, so the stream is read with fetch.
//
//   node examples/read_stream.mjs [--url URL] [--chat ID] [--stop-after SECONDS] MESSAGE
//
// --stop-after counts from the first piece of text.

const ALPHABET = "0123456789ABCDEFGHJKMNPQRSTVWXYZ";

/** A ULID. A client that makes it can stop its run at any moment, even before the server has answered. */
export function newRunId(now = Date.now()) {
  let time = "";
  for (let rest = now; time.length < 10; rest = Math.floor(rest / 32)) time = ALPHABET[rest % 32] + time;
  const random = crypto.getRandomValues(new Uint8Array(16));
  return time + Array.from(random, (byte) => ALPHABET[byte % 32]).join("");
}

/** The frames of a response as they arrive, each `{event, data}`; `event` is "message" where no line names one. */
export async function* readFrames(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let pending = ""; // a chunk may end anywhere, in the middle of a frame too
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    const blocks = (pending + value).split("\n\n"); // Haltline ends its lines with LF only
    pending = blocks.pop();
    for (const block of blocks) {
      let event = "message";
      const data = [];
      for (const line of block.split("\n")) {
        // One space belongs to the format, further ones to the text. A line that begins with ":" is a comment.
        if (line.startsWith("data:")) data.push(line.slice(5).replace(/^ /, ""));
        else if (line.startsWith("event:")) event = line.slice(6).trim();
      }
      if (data.length) yield { event, data: data.join("\n") };
    }
  }
}

/** Send a message. `onText` gets each piece of the answer; resolves to the closing frame: done, stopped or error. */
export async function ask(url, chatId, message, { runId = newRunId(), onText = () => {} } = {}) {
  const response = await fetch(`${url}/api/v1/chat/${chatId}`, {
    method: "POST",
    headers: { "Content-Type": "application/json" },
    body: JSON.stringify({ message, run_id: runId }),
  });
  if (!response.ok) throw new Error(`${response.status} ${await response.text()}`);
  for await (const frame of readFrames(response)) {
    if (frame.event === "message") onText(frame.data);
    else return frame;
  }
  throw new Error("the connection broke before the answer ended");
}

/** Stop a run and learn what happened. Not an AbortController: that only hangs up, and no one tells you the outcome. */
export async function stop(url, chatId, runId, seconds = 5) {
  const response = await fetch(`${url}/api/v1/stop/${chatId}?run_id=${runId}&wait=${seconds}`, { method: "POST" });
  if (!response.ok) throw new Error(`${response.status} ${await response.text()}`);
  return response.json();
}

async function main() {
  const { parseArgs } = await import("node:util");
  const { values, positionals } = parseArgs({
    allowPositionals: true,
    options: {
      url: { type: "string", default: "http://127.0.0.1:8000" },
      chat: { type: "string", default: "example" },
      "stop-after": { type: "string" },
    },
  });
  const runId = newRunId();
  let timer;
  const stopIt = async () => console.error(JSON.stringify(await stop(values.url, values.chat, runId)));
  const onText = (text) => {
    process.stdout.write(text);
    if (values["stop-after"]) timer ??= setTimeout(stopIt, Number(values["stop-after"]) * 1000);
  };
  const closing = await ask(values.url, values.chat, positionals.join(" "), { runId, onText });
  process.stdout.write("\n");
  console.error(`${closing.event}: ${closing.data}`);
}

if (globalThis.process?.argv[1]?.endsWith("read_stream.mjs")) await main();
