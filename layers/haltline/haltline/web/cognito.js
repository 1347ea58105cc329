/**
 * Cognito's hosted sign-in, as a page uses it that can keep no secret: OAuth 2.0's code flow with PKCE.
 *
 * https://docs.aws.amazon.com/cognito/latest/developerguide/authorization-endpoint.html, RFC 6749, RFC 7636.
 * `way` is what the server answered to `GET sign-in`: `{domain, client_id}`.
 */

const PATIENCE_MS = 10_000;

/** The hosted page does not take what it was shown: only a new sign-in helps. */
export class Refused extends Error {}

/** Returns where to send the person, and `{state, verifier}`, to be kept until they are back. */
export async function authorization(way) {
  const state = randomWord();
  const verifier = randomWord();
  const digest = await crypto.subtle.digest("SHA-256", new TextEncoder().encode(verifier));
  const query = new URLSearchParams({
    response_type: "code",
    client_id: way.client_id,
    redirect_uri: pageAddress(),
    scope: "openid",
    state,
    code_challenge: base64url(new Uint8Array(digest)),
    code_challenge_method: "S256",
  });
  return { url: `${way.domain}/oauth2/authorize?${query}`, begun: { state, verifier } };
}

/** Takes what the hosted page has put into this page's address, and out of it again. Null where it has put nothing. */
export function takeReturn(hash) {
  const query = new URLSearchParams(location.search);
  if (!query.has("state") || !(query.has("code") || query.has("error"))) return null;
  history.replaceState(null, "", location.pathname + hash);
  return Object.fromEntries(query);
}

/** Tokens for a code: `{id, refresh, lifeMs}`. Raises: Refused, or whatever `fetch` does where nobody answers. */
export function redeem(way, code, verifier) {
  const grant = { grant_type: "authorization_code", code, code_verifier: verifier, redirect_uri: pageAddress() };
  return tokens(way, grant);
}

/** The same for a refresh token, which stays good unless there is a new one in the answer. */
export async function renewed(way, refresh) {
  const fresh = await tokens(way, { grant_type: "refresh_token", refresh_token: refresh });
  return { ...fresh, refresh: fresh.refresh ?? refresh };
}

/** Where the hosted page forgets the person too, and sends them back here. */
export function logout(way) {
  return `${way.domain}/logout?${new URLSearchParams({ client_id: way.client_id, logout_uri: pageAddress() })}`;
}

async function tokens(way, grant) {
  const response = await fetch(`${way.domain}/oauth2/token`, {
    method: "POST",
    body: new URLSearchParams({ ...grant, client_id: way.client_id }),
    cache: "no-store",
    credentials: "omit",
    signal: AbortSignal.timeout(PATIENCE_MS),
  });
  if (response.status >= 500 || response.status === 429) throw new TypeError(`answered ${response.status}`);
  if (!response.ok) throw new Refused();
  const { id_token: id, refresh_token: refresh, expires_in: seconds } = await response.json();
  return { id, refresh, lifeMs: seconds * 1000 };
}

/** As it is registered with the client: without what a chat or a return adds. */
function pageAddress() {
  return location.origin + location.pathname;
}

/** 256 bits, in 43 characters that a URL takes as they are. */
function randomWord() {
  return base64url(crypto.getRandomValues(new Uint8Array(32)));
}

function base64url(bytes) {
  return btoa(String.fromCharCode(...bytes)).replaceAll("+", "-").replaceAll("/", "_").replaceAll("=", "");
}
