// What operators change, each after a second look.
import { html, useState } from "./vendor/preact.js";
import { ask, segment } from "./api.js";
import { Dialog } from "./parts.js";

// kind -> title, what follows from it, the request (a POST unless said), its fields, and what is said when it is done.
const CHANGES = {
  drain: {
    title: ({ name }) => `Drain ${name}?`,
    words: "Routers give it nothing new. What it has, it finishes. It stays drained, restarts too, until somebody undrains it.",
    path: ({ name }) => `workers/${segment(name)}/drain`,
    fields: ["reason"],
    done: ({ name }) => `${name} gets nothing new.`,
  },
  undrain: {
    title: ({ name }) => `Undrain ${name}?`,
    words: "Routers give it requests again.",
    path: ({ name }) => `workers/${segment(name)}/undrain`,
    fields: [],
    done: ({ name }) => `${name} gets requests again.`,
  },
  pause: {
    title: ({ name }) => `Pause ${name}?`,
    words: "New requests of this class are turned away with 503. Those that are in go on.",
    path: ({ name }) => `classes/${segment(name)}/pause`,
    fields: ["reason", "retry_after_s"],
    done: ({ name }) => `New requests of ${name} are turned away.`,
  },
  resume: {
    title: ({ name }) => `Resume ${name}?`,
    words: "New requests of this class are taken in again.",
    path: ({ name }) => `classes/${segment(name)}/resume`,
    fields: [],
    done: ({ name }) => `Requests of ${name} are taken in again.`,
  },
  resize: {
    title: ({ name }) => `Resize the ${name} pool`,
    words: "Workers are started, or drained and stopped, until there are so many.",
    path: ({ name }) => `pools/${segment(name)}/size`,
    fields: ["size"],
    done: ({ name }, body) => `The ${name} pool is to have ${body.size}.`,
  },
  revoke: {
    title: ({ name, tenant }) => `Revoke key ${name} of ${tenant}?`,
    words: "Whoever has it gets 401, on every router, and it cannot be given back. Whoever should go on needs a new key first.",
    method: "DELETE",
    path: ({ name }) => `keys/${segment(name)}`,
    fields: [],
    done: ({ name }) => `The key ${name} is revoked.`,
  },
};

function Field({ name, change }) {
  if (name === "reason") {
    return html`<label><span>Reason (shown to everybody who looks)</span><input name="reason" maxlength="256" autocomplete="off" /></label>`;
  }
  if (name === "retry_after_s") {
    return html`<label>Tell clients to come back after, in seconds
      <input name="retry_after_s" type="number" min="1" max="3600" value="30" required /></label>`;
  }
  return html`<label><span>Workers (${change.pool.configured} configured, up to ${change.pool.most})</span>
    <input name="size" type="number" min="0" max=${change.pool.most} value=${change.pool.size} required /></label>`;
}

function read(form, fields) {
  const data = new FormData(form);
  return Object.fromEntries(fields.map((name) => [name, name === "reason" ? data.get(name).trim() : Number(data.get(name))]));
}

export function Change({ change, onDone, onClose }) {
  const [problem, setProblem] = useState("");
  const [busy, setBusy] = useState(false);
  const kind = CHANGES[change.kind];
  const submit = async (event) => {
    event.preventDefault();
    const body = read(event.currentTarget, kind.fields);
    setBusy(true);
    setProblem("");
    try {
      await ask(kind.method ?? "POST", kind.path(change), kind.fields.length ? body : undefined);
      onDone(kind.done(change, body));
      onClose();
    } catch (error) {
      setProblem(`Not done: ${error.message}.`);
      setBusy(false);
    }
  };
  const verb = change.kind.charAt(0).toUpperCase() + change.kind.slice(1);
  return html`<${Dialog} label="change-title" onClose=${onClose}>
    <form onSubmit=${submit}>
      <h2 id="change-title">${kind.title(change)}</h2>
      <p>${kind.words}</p>
      ${kind.fields.map((name) => html`<${Field} key=${name} name=${name} change=${change} />`)}
      <p class="problem" role="alert">${problem}</p>
      <div class="buttons">
        <button type="button" onClick=${(event) => event.currentTarget.closest("dialog").close()}>Cancel</button>
        <button class="primary" disabled=${busy}>${busy ? "Asking …" : verb}</button>
      </div>
    </form>
  </${Dialog}>`;
}
