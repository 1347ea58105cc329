/** The list of chats: newest first, page by page, with the live ones marked. */

import * as api from "./api.js";
import { element } from "./dom.js";

const PAGE = 30;
const MOST = 200; // what one call may ask for
const LIVE_REFRESH_MS = 5000;

export class ChatList {
  chats = [];
  onchange = () => {};

  #list;
  #more;
  #cursor = null;
  #reads = 0;
  #timer = null;

  constructor(list, more) {
    this.#list = list;
    this.#more = more;
    more.addEventListener("click", () => this.#readMore());
  }

  /** Reads again as much as is shown. Raises nothing: an old list is better than none. */
  async refresh() {
    const limit = Math.min(MOST, Math.max(PAGE, this.chats.length));
    await this.#read(async () => {
      const page = await api.listChats({ limit });
      return { chats: page.chats, cursor: page.next_cursor ?? null };
    });
    clearTimeout(this.#timer);
    // Runs of other windows end without a word to this one.
    if (this.chats.some((chat) => chat.status === "running")) {
      this.#timer = setTimeout(() => (document.hidden ? null : this.refresh()), LIVE_REFRESH_MS);
    }
  }

  /** A run of this page has ended, which it knows before the next read does. */
  settle(id) {
    for (const chat of this.chats) if (chat.chat_id === id) chat.status = "idle";
  }

  clear() {
    this.#reads += 1;
    this.chats = [];
    this.#cursor = null;
    this.onchange();
  }

  remove(id) {
    this.#reads += 1; // an answer that still knows it is void
    this.chats = this.chats.filter((chat) => chat.chat_id !== id);
    this.onchange();
  }

  /** `current`: the id to mark; `liveIds`: chats in which this page has a live run, which it knows first. */
  show(current, liveIds) {
    const known = new Set(this.chats.map((chat) => chat.chat_id));
    const unsaved = liveIds.filter((id) => !known.has(id)).map((id) => ({ chat_id: id, status: "running" }));
    const isLive = (chat) => chat.status === "running" || liveIds.includes(chat.chat_id);
    const rows = [...unsaved, ...this.chats].map((chat) => ({ ...chat, live: isLive(chat) }));
    this.#more.hidden = this.#cursor === null;
    // Rebuilt only when it differs, so that focus inside it survives.
    const state = JSON.stringify([current, rows.map((chat) => [chat.chat_id, chat.live, when(chat.updated_at)])]);
    if (state === this.#list.shownState) return;
    const focused = this.#list.contains(document.activeElement) ? document.activeElement.hash : null;
    this.#list.replaceChildren(...rows.map((chat) => row(chat, chat.chat_id === current)));
    this.#list.shownState = state;
    if (focused) [...this.#list.querySelectorAll("a")].find((link) => link.hash === focused)?.focus();
  }

  #readMore() {
    return this.#read(async () => {
      const page = await api.listChats({ limit: PAGE, cursor: this.#cursor });
      const known = new Set(this.chats.map((chat) => chat.chat_id));
      const further = page.chats.filter((chat) => !known.has(chat.chat_id));
      return { chats: [...this.chats, ...further], cursor: page.next_cursor ?? null };
    });
  }

  async #read(fetchChats) {
    const read = (this.#reads += 1);
    try {
      const { chats, cursor } = await fetchChats();
      if (read !== this.#reads) return; // a later read was begun: it knows better
      this.chats = chats;
      this.#cursor = cursor;
    } catch {
      if (read !== this.#reads) return;
    }
    this.onchange();
  }
}

function row(chat, isCurrent) {
  const name = element("span", { className: "name", textContent: chat.chat_id });
  const link = element("a", { href: `#${chat.chat_id}` }, name);
  if (isCurrent) link.setAttribute("aria-current", "page");
  if (chat.live) link.append(element("span", { className: "running", textContent: "running" }));
  else link.append(element("span", { className: "when", textContent: when(chat.updated_at) }));
  return element("li", {}, link);
}

const AGO = new Intl.RelativeTimeFormat("en", { numeric: "auto", style: "narrow" });

/** `time`: ISO 8601, or seconds or milliseconds since the epoch. */
function when(time) {
  const date = new Date(typeof time === "number" && time < 1e11 ? time * 1000 : time);
  const minutes = Math.round((date - Date.now()) / 60_000);
  if (Number.isNaN(minutes)) return "";
  if (minutes > -1) return "now";
  if (minutes > -60) return AGO.format(minutes, "minute");
  if (minutes > -24 * 60) return AGO.format(Math.round(minutes / 60), "hour");
  if (minutes > -7 * 24 * 60) return AGO.format(Math.round(minutes / 60 / 24), "day");
  return date.toLocaleDateString("en", { day: "numeric", month: "short" });
}
