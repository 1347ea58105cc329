/** The page: puts the chat, its list and the controls together. What happens in a chat is in conversation.js. */

import * as api from "./api.js";
import { ChatList } from "./chat_list.js";
import { Conversation } from "./conversation.js";
import { chatIdProblem, newChatId } from "./ids.js";
import { signIn } from "./sign_in.js";
import { SignInDialog } from "./sign_in_dialog.js";
import { Speaker } from "./speaker.js";
import { Transcript, milliseconds } from "./transcript.js";

const HEALTH_CHECK_MS = 5000;
const SLOW_START_MS = 3000;

const $ = (id) => document.getElementById(id);
const transcript = new Transcript($("transcript"), $("turns"), $("to-end"));
const chatList = new ChatList($("chat-list"), $("more"));
const speaker = new Speaker($("spoken"));
const signInDialog = new SignInDialog($("sign-in"));
const narrow = matchMedia("(max-width: 820px)");

const conversations = new Map(); // chat id → Conversation; kept, so that a run goes on while another is looked at
let current = null;
let framePending = false;

// ---------------------------------------------------------------- which chat

function openChat(id, { fresh = false } = {}) {
  if (current?.id === id) return;
  if (!conversations.has(id)) conversations.set(id, newConversation(id, fresh));
  current = conversations.get(id);
  if (hashId() !== id) history.replaceState(null, "", `#${id}`);
  $("message").value = current.draft;
  transcript.follow();
  showDrawer(false);
  render();
  current.load();
  if (!narrow.matches) $("message").focus();
}

function newConversation(id, fresh) {
  const conversation = new Conversation(id, { fresh });
  conversation.onchange = (run) => {
    if (conversation === current) {
      if (run) speaker.follow(run);
      renderControls(); // at once: Stop is armed in the same moment as Send is pressed
    }
    if (run?.ended && !conversation.live) chatList.settle(id);
    renderSoon();
    if (run?.ended && ["refused", "broken"].includes(run.outcome)) checkHealth();
  };
  conversation.onsettled = () => chatList.refresh();
  return conversation;
}

function hashId() {
  try {
    return decodeURIComponent(location.hash.slice(1));
  } catch {
    return location.hash.slice(1); // a stray %: not an id either way
  }
}

function openFromHash() {
  const id = hashId();
  const problem = id === "" ? "" : chatIdProblem(id);
  if (id !== "" && problem === "") return openChat(id);
  openChat(newChatId(), { fresh: true });
  if (problem !== "") {
    current.notice = { words: `The address names no chat. ${problem} Here is a new one.` };
    render();
  }
}

// ---------------------------------------------------------------- what is shown

/** Text comes faster than a screen can show it: one look a frame is enough. */
function renderSoon() {
  if (framePending) return;
  framePending = true;
  requestAnimationFrame(() => {
    framePending = false;
    render();
  });
}

function render() {
  renderControls();
  transcript.show(current.turns);
  $("transcript").setAttribute("aria-busy", String(current.loading));
  $("welcome").hidden = current.turns.length > 0 || current.loading || current.live;
  $("title").textContent = current.id;
  $("badge").hidden = !current.live;
  document.title = `${current.live ? "● " : ""}${current.id} · Haltline`;
  const live = [...conversations.values()].filter((conversation) => conversation.live);
  chatList.show(current.id, live.map(({ id }) => id));
}

function renderControls() {
  const { run, live, notice } = current;
  const halting = live && run.stop !== null && run.stop.state !== "failed" && run.stop.status !== "unconfirmed";
  const stop = $("stop");
  stop.dataset.state = halting ? "stopping" : live ? "armed" : "off";
  // aria-disabled, not disabled: the focus must not fall off the button when the run ends under it.
  stop.setAttribute("aria-disabled", String(!live));
  if (!halting) $("stop-words").textContent = "Stop";
  else if (!stopClock) tickStopClock();
  $("send").setAttribute("aria-disabled", String(live));
  setText($("status"), statusWords());
  $("status").dataset.outcome = !live && (run?.outcome === "stopped" || run?.stoppedAfterMs > 0) ? "stopped" : "";
  if ($("message").value !== current.draft) {
    $("message").value = current.draft;
    fitMessage();
  }
  $("notice").hidden = notice === null;
  if (notice !== null) {
    setText($("notice-words"), notice.words);
    $("notice-act").hidden = !notice.act;
    $("notice-act").textContent = notice.label ?? "";
  }
}

function statusWords() {
  const { run, live, loading } = current;
  if (loading && !live) return "Reading the chat…";
  if (!run) return "";
  if (live) {
    if (run.stop?.state === "asked") return "Stopping…";
    if (run.stop?.status === "idle") return "The stop is stored: the run halts as soon as it begins";
    if (run.elsewhere) return "Answering in another window or program";
    if (!run.opened) return "Sending…";
    if (run.text === "") return "Waiting for the first word…";
    return "Answering…";
  }
  if (run.stoppedAfterMs !== null) return `Stopped after ${milliseconds(run.stoppedAfterMs)}`;
  const words = { done: "Finished", stopped: "Stopped", error: "Failed", broken: "Connection lost" };
  return run.outcome === "done" && run.stop ? "Finished before the stop arrived" : (words[run.outcome] ?? "");
}

/** Only what differs is written: a live region repeats whatever is put into it. */
function setText(node, words) {
  if (node.textContent !== words) node.textContent = words;
}

let stopClock = 0;

function tickStopClock() {
  const { run, live } = current;
  if (!live || $("stop").dataset.state !== "stopping") {
    stopClock = 0;
    return;
  }
  $("stop-words").textContent = milliseconds(Math.round(performance.now() - run.stop.askedAt));
  stopClock = requestAnimationFrame(tickStopClock);
}

function fitMessage() {
  const box = $("message");
  box.style.height = "auto";
  box.style.height = `${box.scrollHeight}px`;
}

// ---------------------------------------------------------------- what the person does

function send() {
  current.send();
  transcript.follow();
}

$("composer").addEventListener("submit", (event) => {
  event.preventDefault();
  send();
});

$("message").addEventListener("keydown", (event) => {
  if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
  event.preventDefault();
  send();
});

$("message").addEventListener("input", () => {
  current.draft = $("message").value;
  fitMessage();
});

$("stop").addEventListener("click", (event) => current.askStop(event.timeStamp));

document.addEventListener("keydown", (event) => {
  if (event.key !== "Escape" || event.isComposing || $("confirm").open) return;
  if (current.live) current.askStop(event.timeStamp);
  else showDrawer(false);
});

$("notice-act").addEventListener("click", () => {
  const { act } = current.notice;
  current.notice = null;
  act();
  transcript.follow();
  render();
  $("message").focus();
});

$("notice-close").addEventListener("click", () => {
  current.notice = null;
  render();
  $("message").focus();
});

$("new-chat").addEventListener("click", () => {
  openChat(newChatId(), { fresh: true });
  $("message").focus();
});

$("open-form").addEventListener("submit", (event) => {
  event.preventDefault();
  const id = $("open-id").value.trim();
  const problem = chatIdProblem(id);
  $("open-problem").textContent = problem;
  $("open-id").setAttribute("aria-invalid", String(problem !== ""));
  if (problem !== "") return;
  $("open-id").value = "";
  openChat(id);
});

$("open-id").addEventListener("input", () => {
  $("open-problem").textContent = "";
  $("open-id").removeAttribute("aria-invalid");
});

for (const button of document.querySelectorAll(".suggestion")) {
  button.addEventListener("click", () => {
    current.draft = button.textContent;
    render();
    $("message").focus();
  });
}

$("delete").addEventListener("click", () => {
  $("confirm-name").textContent = current.id;
  $("confirm").returnValue = "keep"; // what closing by Escape means
  $("confirm").showModal();
});

$("confirm").addEventListener("close", async () => {
  if ($("confirm").returnValue !== "delete") return;
  const doomed = current;
  try {
    await doomed.remove();
  } catch (error) {
    const words = error.status === 409 ? "Its run has not stopped within 5 s." : error.message;
    doomed.notice = { words: `The chat was not deleted. ${words}` };
    if (doomed === current) render();
    return;
  }
  conversations.delete(doomed.id);
  chatList.remove(doomed.id);
  if (doomed === current) openChat(newChatId(), { fresh: true });
  chatList.refresh();
});

// ---------------------------------------------------------------- signing in and out

signIn.onchange = () => {
  signInDialog.show();
  $("sign-out").hidden = signIn.header === null;
};

signIn.onsigned = () => {
  chatList.refresh();
  current.load();
  if (!narrow.matches) $("message").focus();
};

signIn.onforgotten = () => {
  for (const conversation of conversations.values()) conversation.leave();
  conversations.clear();
  chatList.clear();
  $("spoken").replaceChildren();
  $("open-id").value = "";
  openChat(newChatId(), { fresh: true });
};

$("sign-out").addEventListener("click", () => signIn.out());

// A page that the browser kept aside comes back as it was, also to whoever sits there after a sign-out.
window.addEventListener("pageshow", (event) => {
  if (event.persisted && !signIn.fresh) location.reload();
});

// ---------------------------------------------------------------- the list on a narrow screen

function showDrawer(open) {
  const shown = open && narrow.matches;
  const had = $("drawer").contains(document.activeElement);
  document.body.classList.toggle("drawer-open", shown);
  $("drawer").inert = narrow.matches && !shown;
  $("scrim").hidden = !shown;
  $("toggle").setAttribute("aria-expanded", String(shown));
  if (shown) $("new-chat").focus();
  else if (had && narrow.matches) $("toggle").focus();
}

$("toggle").addEventListener("click", () => showDrawer(!document.body.classList.contains("drawer-open")));
$("scrim").addEventListener("click", () => showDrawer(false));
narrow.addEventListener("change", () => showDrawer(false));

// ---------------------------------------------------------------- the server's health

let healthTimer = null;

async function checkHealth() {
  clearTimeout(healthTimer);
  const { healthy, words, replica } = await api.health();
  clearTimeout(healthTimer); // of a check that was begun meanwhile
  showConnection(healthy ? "good" : "bad", healthy ? `Connected${replica ? ` to ${replica}` : ""}` : "Not well", words);
  if (!healthy) healthTimer = setTimeout(checkHealth, HEALTH_CHECK_MS);
}

function showConnection(state, words, banner) {
  $("connection").dataset.state = state;
  $("connection-words").textContent = words;
  $("banner").hidden = banner === "";
  setText($("banner"), banner);
}

document.addEventListener("visibilitychange", async () => {
  if (document.hidden) return;
  await chatList.refresh();
  const begunElsewhere = chatList.chats.some((chat) => chat.chat_id === current.id && chat.status === "running");
  if (begunElsewhere && !current.live) current.load();
});
window.addEventListener("hashchange", openFromHash);
chatList.onchange = renderSoon;

showDrawer(false);
signIn.start();
openFromHash();
const slowStart = setTimeout(
  () => showConnection("waiting", "Connecting…", "The server is waking up. A cold start can take some seconds."),
  SLOW_START_MS,
);
checkHealth().then(() => clearTimeout(slowStart));
chatList.refresh();
api.sendWaitingStop();
