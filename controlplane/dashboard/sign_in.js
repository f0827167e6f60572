// A token, once; the browser keeps a cookie that no script can read.
import { html, useEffect, useState } from "./vendor/preact.js";
import { ThemeSwitch } from "./theme_switch.js";

export function SignIn({ live, why }) {
  const [problem, setProblem] = useState("");
  const [busy, setBusy] = useState(false);
  useEffect(() => document.getElementById("token").focus(), []);
  const submit = async (event) => {
    event.preventDefault();
    const token = new FormData(event.currentTarget).get("token").trim();
    setBusy(true);
    setProblem("");
    try {
      await live.signIn(token);
    } catch (error) {
      setProblem(error.code === "invalid_token" ? "Nobody here has this token." : `${error.message}.`);
      setBusy(false);
      document.getElementById("token").focus();
    }
  };
  return html`<main id="main" class="alone" tabindex="-1">
    <h1>Sign in to Headrace</h1>
    ${why && html`<p role="status">${why}.</p>`}
    <form onSubmit=${submit}>
      <input name="username" autocomplete="username" value="headrace" hidden />
      <label for="token">Token</label>
      <input id="token" name="token" type="password" autocomplete="current-password" required spellcheck=${false}
        autocapitalize="off" aria-invalid=${problem ? "true" : "false"} aria-describedby="token-hint token-problem" />
      <p id="token-problem" class="problem" role="alert">${problem}</p>
      <button class="primary" disabled=${busy}>${busy ? "Signing in …" : "Sign in"}</button>
      <p id="token-hint" class="muted">An operator makes one with <code>headrace admin token</code>. It is exchanged for a session
        of this browser and not kept.</p>
    </form>
    <${ThemeSwitch} />
  </main>`;
}
