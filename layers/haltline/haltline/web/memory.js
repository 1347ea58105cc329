/**
 * What outlives a reload of this tab: unsent text, what was measured of a run, and who is signed in. Without storage it
 * just forgets.
 */

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

/** Forgets all of it: somebody else may sit down. */
export function forgetAll() {
  try {
    for (const key of Object.keys(sessionStorage)) if (key.startsWith(PREFIX)) sessionStorage.removeItem(key);
  } catch {
    // forbidden, so nothing was kept
  }
}
