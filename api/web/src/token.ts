/**
 * The token of this browser tab. It arrives in the address's fragment, which
 * browsers never send to a server, and is moved at once to the session storage,
 * so that it is neither in the history nor in a copied address.
 */
const storageKey = "tallystick.token";

/** Takes a token out of the address, if there is one, and returns the tab's token or "". */
export function takeToken(): string {
  const match = /[#&]token=([^&]+)/.exec(location.hash);
  if (match?.[1]) {
    keepToken(decodeURIComponent(match[1]));
    history.replaceState(null, "", location.pathname + location.search);
  }
  return sessionStorage.getItem(storageKey) ?? "";
}

export function keepToken(token: string): void {
  sessionStorage.setItem(storageKey, token.trim());
}

export function dropToken(): void {
  sessionStorage.removeItem(storageKey);
}
