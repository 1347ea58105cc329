/** What outlives a reload of this tab: unsent text, and what was measured of a run. Without storage it just forgets. */

const PREFIX = "haltline.";

export function remember(key, value) {
  try {
    if (value === null || value === "") sessionStorage.removeItem(PREFIX + key);
    else sessionStorage.setItem(PREFIX + key, JSON.stringify(value));
  } catch {
    // full, or forbidden by the browser's settings
  }
}

export function recall(key) {
  try {
    return JSON.parse(sessionStorage.getItem(PREFIX + key));
  } catch {
    return null;
  }
}
