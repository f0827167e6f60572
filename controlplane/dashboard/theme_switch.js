// Light, dark, or as the system is.
import { html, useState } from "./vendor/preact.js";

const KEY = "headrace-theme";

function store(theme) {
  try {
    if (theme === "system") localStorage.removeItem(KEY);
    else localStorage.setItem(KEY, theme);
  } catch {
    // It holds for this visit.
  }
}

export function ThemeSwitch() {
  const [theme, setTheme] = useState(document.documentElement.dataset.theme ?? "system");
  const choose = (event) => {
    const chosen = event.currentTarget.value;
    if (chosen === "system") delete document.documentElement.dataset.theme;
    else document.documentElement.dataset.theme = chosen;
    store(chosen);
    setTheme(chosen);
    document.dispatchEvent(new Event("themechange"));
  };
  return html`<label class="theme">
    <span class="unseen">Theme</span>
    <select value=${theme} onChange=${choose}>
      <option value="system">System theme</option>
      <option value="light">Light</option>
      <option value="dark">Dark</option>
    </select>
  </label>`;
}
