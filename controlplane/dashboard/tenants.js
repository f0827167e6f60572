// Who asks, what they have used of what they may have, and the keys that they ask with.
import { html, useEffect, useRef } from "./vendor/preact.js";
import { count, day, NONE, part, reason, share } from "./format.js";
import { Badge, Empty, List, Meter, Section } from "./parts.js";

const SOON_S = 7 * 86400;
const STATES = ["active", "expired", "revoked"];

const isIdle = (one) => one.source === "default" && !one.num_keys && !one.used.requests && !Object.keys(one.refused).length;

/** Those of whom there is something to say: `default` is there whoever asks. */
const present = ({ tenants }) => tenants.filter((one) => !isIdle(one));

/** Whether anything depends on who asks. */
export function hasTenants(state) {
  const { identity, keys } = state;
  return identity !== null && (identity.required || identity.takes_tokens || keys.length > 0 || state.tenants.some((one) => one.source !== "default"));
}

function terms({ settings, source }) {
  const { class: name, classes, models, weight, value } = settings;
  const found = [
    name && `class ${name}`,
    classes && `classes ${classes.join(", ")}`,
    models && `models ${models.join(", ")}`,
    weight && `weight ${weight}`,
    value && `value ${value}`,
    source === "default" && "as default",
  ];
  return found.filter(Boolean).join("; ");
}

function Used({ used }) {
  const tokens = used.prompt_tokens + used.output_tokens;
  if (used.budget_tokens === null) return html`${count(tokens)}<span class="note">no budget; ${used.period}</span>`;
  const value = part(used.budget_tokens - used.left_tokens, used.budget_tokens);
  return html`<${Meter} value=${value} label="of the budget" text=${share(value)} />
    <span class="note">${count(tokens)} of ${count(used.budget_tokens)}; ${used.period}</span>`;
}

function Limits({ settings }) {
  const found = [
    [settings.requests_per_min, "requests"],
    [settings.tokens_per_min, "tokens"],
  ].filter(([limit]) => limit);
  if (!found.length) return NONE;
  return html`<ul>${found.map(([limit, what]) => html`<li key=${what}>${count(limit)} ${what}</li>`)}</ul>`;
}

function Refused({ refused }) {
  const found = Object.entries(refused).sort((a, b) => b[1] - a[1]);
  if (!found.length) return "0";
  return html`<ul class="reasons">${found.map(([code, number]) => html`<li key=${code}>${count(number)} ${reason(code)}</li>`)}</ul>`;
}

const COLUMNS = [
  { head: "Tenant", cell: (one) => html`<span class="id">${one.name}</span><span class="note">${terms(one)}</span>` },
  { head: "Tokens used", number: true, cell: (one) => html`<${Used} used=${one.used} />` },
  { head: "Requests", number: true, cell: (one) => count(one.used.requests) },
  { head: "Limits a minute", number: true, cell: (one) => html`<${Limits} settings=${one.settings} />` },
  { head: "Keys", number: true, cell: (one) => count(one.num_keys) },
  { head: "Refused, 10 min", wide: true, cell: (one) => html`<${Refused} refused=${one.refused} />` },
];

function State({ one }) {
  const isSoon = one.state === "active" && one.expires_at_s !== null && one.expires_at_s < Date.now() / 1000 + SOON_S;
  return html`<${Badge} tone=${one.state !== "active" ? "" : isSoon ? "warn" : "ok"}>${one.state}</${Badge}>
    ${isSoon && html` <span class="beside">ends soon</span>`}`;
}

function Made({ one }) {
  if (one.source === "config") return "in the configuration";
  const at = one.created_at_s === null ? NONE : day(one.created_at_s);
  return html`${at}${one.created_by && ` by ${one.created_by}`}${one.note && html`<span class="note">${one.note}</span>`}`;
}

function keyColumns(onRevoke) {
  const found = [
    { head: "Key", cell: (one) => html`<span class="id">${one.id}</span>` },
    { head: "Tenant", cell: (one) => html`<span class="id">${one.tenant}</span>` },
    { head: "Class", cell: (one) => one.class ?? NONE },
    { head: "State", cell: (one) => html`<${State} one=${one} />` },
    { head: "Until", cell: (one) => day(one.revoked_at_s ?? one.expires_at_s) },
    { head: "Made", wide: true, cell: (one) => html`<${Made} one=${one} />` },
  ];
  if (onRevoke) found.push({ head: "", cell: (one) => html`<${RevokeButton} one=${one} onRevoke=${onRevoke} />` });
  return found;
}

function RevokeButton({ one, onRevoke }) {
  if (one.state !== "active" || one.source !== "redis") return null;
  return html`<button onClick=${() => onRevoke(one)}>Revoke<span class="unseen"> key ${one.id} of ${one.tenant}</span></button>`;
}

/** Usable ones first, then those that ended last. */
function inOrder(keys) {
  const ended = (one) => one.revoked_at_s ?? one.expires_at_s ?? 0;
  return [...keys].sort(
    (a, b) =>
      STATES.indexOf(a.state) - STATES.indexOf(b.state) ||
      (a.state === "active" ? a.tenant.localeCompare(b.tenant) : ended(b) - ended(a)) ||
      a.id.localeCompare(b.id),
  );
}

function Keys({ keys, identity, onChange }) {
  const [title, isAsked] = [useRef(null), useRef(false)];
  useEffect(() => {
    // A key that is revoked has no button any more: the focus would be nowhere.
    if (!isAsked.current || document.activeElement !== document.body) return;
    isAsked.current = false;
    title.current.focus();
  });
  const onRevoke = onChange && ((one) => {
    isAsked.current = true;
    onChange({ kind: "revoke", name: one.id, tenant: one.tenant });
  });
  return html`<div class="pool list">
    <h3 ref=${title} tabindex="-1">API keys</h3>
    ${keys.length
      ? html`<${List} caption="API keys" rows=${inOrder(keys)} keyOf=${(one) => one.id} columns=${keyColumns(onRevoke)} quiet />`
      : html`<${Empty} title="No keys" />`}
    <p class="muted">${identity.keys_in_redis
      ? html`A key is shown once, to whoever makes it: <code>headrace keys create</code> and <code>rotate</code> do that in a terminal.`
      : "Routers know the keys of the configuration only: identity.keys_in_redis is false."}</p>
  </div>`;
}

/** The least that is left first, then who uses most. */
function byUse(a, b) {
  const full = ({ used }) => (used.budget_tokens === null ? -1 : 1 - used.left_tokens / used.budget_tokens);
  const tokens = ({ used }) => used.prompt_tokens + used.output_tokens;
  return full(b) - full(a) || tokens(b) - tokens(a) || a.name.localeCompare(b.name);
}

export function Tenants(state) {
  if (!hasTenants(state)) return null;
  const tenants = present(state).sort(byUse);
  return html`<${Section} id="tenants" title="Tenants">
    ${tenants.length
      ? html`<div class="list"><${List} caption="Use of this month, or of the day where the budget is one; requests in flight are not in it"
          rows=${tenants} keyOf=${(one) => one.name} columns=${COLUMNS} /></div>`
      : html`<${Empty} title="No tenants">Keys or tokens are asked for, and nobody has come with one. <code>headrace keys create TENANT</code> makes a key.</${Empty}>`}
    <${Keys} keys=${state.keys} identity=${state.identity} onChange=${state.onChange} />
  </${Section}>`;
}
