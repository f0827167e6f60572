// How even the load of experts is, where engines have experts.
import { html } from "./vendor/preact.js";
import { count, seconds, share } from "./format.js";
import { Section, Table } from "./parts.js";

const COLUMNS = [
  {
    head: "Engine",
    cell: (one) => html`<span class="id">${one.worker}</span>
      <span class="note">${one.model}; ${count(one.ranks)} ranks of ${count(one.slots_per_rank)} slots</span>`,
  },
  { head: "Balance", number: true, cell: (one) => (one.balancedness ? share(one.balancedness.mean) : "–") },
  {
    head: "Worst layer",
    number: true,
    cell: (one) => (one.balancedness ? `${share(one.balancedness.worst)} (${one.balancedness.worst_layer})` : "–"),
  },
  { head: "Drift", number: true, cell: (one) => share(one.drift) },
  { head: "Placements", number: true, cell: (one) => count(one.placements) },
  { head: "Last decision", wide: true, cell: (one) => html`${one.decision}<${Classes} engine=${one} />` },
];

function Classes({ engine }) {
  if (!engine.classes.length) return null;
  return html`<details>
    <summary>By class of traffic</summary>
    <ul class="plain">
      ${engine.classes.map((one) => html`<li key=${one.name}>
        ${one.name}: ${share(one.share)} of tokens, balance ${share(one.balancedness)}
      </li>`)}
    </ul>
  </details>`;
}

export function Experts({ engines }) {
  if (!engines.length) return null;
  const window = Math.max(...engines.map((one) => one.window_s));
  return html`<${Section} id="experts" title="Experts">
    <p class="muted">Balance is even load over the slowest rank's: at 100 % no rank waits for another.</p>
    <${Table} caption="Expert-parallel engines, windows up to ${seconds(window)}" rows=${engines} keyOf=${(one) => one.worker} columns=${COLUMNS} />
  </${Section}>`;
}
