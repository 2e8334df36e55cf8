/** Light or dark: the system's choice unless the person chose here. */
export const themes = ["auto", "light", "dark"] as const;
export type Theme = (typeof themes)[number];
const storageKey = "tallystick.theme";

export function readTheme(): Theme {
  const kept = localStorage.getItem(storageKey);
  return themes.find((theme) => theme === kept) ?? "auto";
}

/** Shows the theme and keeps it. Canvases listen to `themechange` on the document. */
export function applyTheme(theme: Theme): void {
  if (theme === "auto") {
    localStorage.removeItem(storageKey);
    delete document.documentElement.dataset["theme"];
  } else {
    localStorage.setItem(storageKey, theme);
    document.documentElement.dataset["theme"] = theme;
  }
  document.dispatchEvent(new Event("themechange"));
}
