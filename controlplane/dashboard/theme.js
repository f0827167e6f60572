// Runs before anything is painted, so that a page that was set to dark never flashes white.
const KEY = "headrace-theme";

try {
  const chosen = localStorage.getItem(KEY);
  if (chosen === "light" || chosen === "dark") document.documentElement.dataset.theme = chosen;
} catch {
  // Storage is closed to us: the system's theme it is.
}
