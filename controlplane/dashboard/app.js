// The page: what is shown in which state, and who sees the buttons.
import { html, render, useEffect, useRef, useState } from "./vendor/preact.js";
import { Change } from "./changes.js";
import { Decisions } from "./decisions.js";
import { Experts } from "./experts.js";
import { Fleet } from "./fleet.js";
import { Live } from "./live.js";
import { Promises } from "./promises.js";
import { SignIn } from "./sign_in.js";
import { Freshness, Header } from "./status.js";
import { Summary } from "./summary.js";
import { Tenants } from "./tenants.js";

const TITLES = { stale: "Stale – Headrace", away: "Disconnected – Headrace", signed_out: "Sign in – Headrace" };

const live = new Live();

function Message({ title, children }) {
  return html`<main id="main" class="alone" tabindex="-1"><h1>${title}</h1>${children}</main>`;
}

function Loading({ why, phase }) {
  if (phase === "away") {
    return html`<${Message} title="The control plane does not answer">
      <p role="alert">${why}. The page tries again by itself.</p>
      <button onClick=${() => live.retry()}>Try now</button>
    </${Message}>`;
  }
  return html`<${Message} title="Headrace"><p role="status">${phase === "stale" ? why : "Asking the control plane …"}</p></${Message}>`;
}

function Views({ state, onChange, said }) {
  const change = state.who?.role === "operator" ? onChange : null;
  return html`
    <main id="main" tabindex="-1" data-phase=${state.phase}>
      <h1 class="unseen">Fleet overview</h1>
      <${Summary} fleet=${state.fleet} slo=${state.slo} />
      <${Promises} ...${state} onChange=${change} />
      <${Fleet} ...${state} onChange=${change} />
      <${Experts} engines=${state.experts} />
      <${Tenants} ...${state} onChange=${change} />
      <${Decisions} ...${state} />
    </main>
    <p class="said" role="status">${said}</p>`;
}

function App() {
  const [state, setState] = useState(live.state);
  const [change, setChange] = useState(null);
  const [said, setSaid] = useState("");
  useEffect(() => live.listen(setState), []);
  const wasOut = useRef(false);
  const isOut = state.phase === "signed_out";
  const isShown = state.fleet !== null;
  useEffect(() => {
    if (isShown && wasOut.current) document.getElementById("main").focus(); // the button that had it is gone
    wasOut.current = isOut || (wasOut.current && !isShown);
  }, [isOut, isShown]);
  useEffect(() => {
    document.title = TITLES[state.phase] ?? "Headrace";
  }, [state.phase]);
  useEffect(() => {
    const timer = said && setTimeout(() => setSaid(""), 8000);
    return () => clearTimeout(timer);
  }, [said]);
  if (isOut) return html`<${SignIn} live=${live} why=${state.why} />`;
  if (state.phase === "forbidden") {
    return html`<${Message} title="Not from here"><p role="alert">${state.why}.</p></${Message}>`;
  }
  if (!isShown) return html`<${Loading} ...${state} />`;
  const done = (words) => {
    setSaid(words);
    live.lookAgain();
  };
  return html`
    <${Header} ...${state} onSignOut=${() => live.signOut()} />
    <${Freshness} ...${state} onRetry=${() => live.retry()} />
    <${Views} state=${state} onChange=${setChange} said=${said} />
    ${change && html`<${Change} change=${change} onDone=${done} onClose=${() => setChange(null)} />`}`;
}

const page = document.getElementById("page");
page.replaceChildren(); // "Loading …"
render(html`<${App} />`, page);
live.run();
