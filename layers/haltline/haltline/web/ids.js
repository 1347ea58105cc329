/** The names the page gives: a run's ULID and a chat's id. */

const CROCKFORD = "0123456789ABCDEFGHJKMNPQRSTVWXYZ";
const CHAT_ID = /^[A-Za-z0-9][A-Za-z0-9._-]{0,127}$/;
const RESERVED = ["bulk", "all"];

/** A fresh ULID: 48 bits of time in ms, then 80 random ones. https://github.com/ulid/spec */
export function ulid(now = Date.now()) {
  let time = "";
  for (let rest = now, i = 0; i < 10; i += 1, rest = Math.floor(rest / 32)) time = CROCKFORD[rest % 32] + time;
  return time + randomLetters(16);
}

/** A chat id that a person can read aloud: the local day, then enough randomness for one person's chats. */
export function newChatId(now = new Date()) {
  const two = (n) => String(n).padStart(2, "0");
  return `chat-${now.getFullYear()}-${two(now.getMonth() + 1)}-${two(now.getDate())}-${randomLetters(6).toLowerCase()}`;
}

/** Returns what is wrong with a chat id, in words for a person, or "" when nothing is. */
export function chatIdProblem(id) {
  if (id === "") return "Type a name first.";
  if (RESERVED.includes(id)) return `“${id}” is a reserved name.`;
  if (id.length > 128) return "At most 128 characters.";
  if (!CHAT_ID.test(id)) return "Letters, digits, dot, dash and underscore only; begin with a letter or digit.";
  return "";
}

function randomLetters(count) {
  // getRandomValues, as randomUUID is missing on plain http. A byte is 8 times 32, so no letter is likelier.
  return Array.from(crypto.getRandomValues(new Uint8Array(count)), (byte) => CROCKFORD[byte % 32]).join("");
}
