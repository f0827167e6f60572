// Pools and their workers, routers, and what operators want of them.
import { html } from "./vendor/preact.js";
import { capital, clock, count, measured, part, plural, share } from "./format.js";
import { Badge, Empty, Meter, Section, Table } from "./parts.js";

const ROLES = ["prefill", "decode", "mixed"];
const TONES = { ready: "ok", starting: "warn", draining: "warn", lost: "bad" };

function Worker({ worker }) {
  return html`<span class="id">${worker.id}</span>
    <span class="note">${[worker.model, ...worker.adapters].join(", ")}</span>
    ${worker.ranks.length > 1 && html`<${Ranks} worker=${worker} />`}`;
}

function rankWords(rank) {
  const kv = share(part(rank.kv_blocks_used, rank.kv_blocks_total));
  return `${count(rank.running_seqs)} running, ${count(rank.waiting_seqs)} waiting, KV ${kv}`;
}

function Ranks({ worker }) {
  return html`<details>
    <summary>${plural(worker.ranks.length, "rank")}</summary>
    <ol class="ranks" start="0">
      ${worker.ranks.map((rank, index) => html`<li key=${index}>
        ${rankWords(rank)}
      </li>`)}
    </ol>
  </details>`;
}

function Phase({ worker, numRouters }) {
  const { drain } = worker;
  const left = drain && `${drain.routers_told} of ${plural(numRouters, "router")} told, ${worker.routed_seqs} left`;
  return html`<${Badge} tone=${TONES[worker.phase] ?? ""}>${worker.phase}</${Badge}>
    ${drain && html`<span class="note">
      by ${drain.by} at ${clock(drain.at_s)}: ${drain.is_done ? "nothing left" : left}
      ${drain.reason && html`<br />${drain.reason}`}
    </span>`}`;
}

function columns(fleet, onChange) {
  const found = [
    { head: "Worker", width: "19%", cell: (one) => html`<${Worker} worker=${one} />` },
    { head: "Phase", width: "23%", cell: (one) => html`<${Phase} worker=${one} numRouters=${fleet.routers.length} />` },
    { head: "Running", number: true, cell: (one) => count(one.running_seqs) },
    { head: "Waiting", number: true, cell: (one) => count(one.waiting_seqs) },
    {
      head: "KV in use",
      number: true,
      width: "17%",
      cell: (one) => {
        const used = part(one.kv_blocks_used, one.kv_blocks_total);
        return html`<${Meter} value=${used} label="KV in use" text=${share(used)} />`;
      },
    },
    { head: "Prefix hits", number: true, cell: (one) => share(part(one.prefix_hit_tokens, one.prefix_query_tokens)) },
    { head: "Lease age", number: true, cell: (one) => measured(one.lease_age_s, 1) },
  ];
  if (onChange) found.push({ head: "", width: "108px", cell: (one) => html`<${DrainButton} worker=${one} onChange=${onChange} />` });
  return found;
}

function DrainButton({ worker, onChange }) {
  const kind = worker.drain ? "undrain" : "drain";
  return html`<button onClick=${() => onChange({ kind, name: worker.id })}>
    ${capital(kind)}<span class="unseen"> worker ${worker.id}</span>
  </button>`;
}

function Pool({ role, fleet, pool, onChange }) {
  const workers = fleet.workers.filter((worker) => worker.role === role);
  const ready = workers.filter((worker) => worker.phase === "ready").length;
  const wanted = pool && pool.size !== workers.length ? `, ${pool.size} wanted` : "";
  return html`<div class="pool">
    <div class="heading">
      <h3>${capital(role)} pool <span class="muted">${ready} of ${plural(workers.length, "worker")} ready${wanted}</span></h3>
      ${pool && onChange && html`<button onClick=${() => onChange({ kind: "resize", name: role, pool })}>
        Resize<span class="unseen"> the ${role} pool</span>
      </button>`}
    </div>
    ${workers.length
      ? html`<${Table} caption="${capital(role)} workers" rows=${workers} keyOf=${(one) => one.id} columns=${columns(fleet, onChange)} quiet />`
      : html`<${Empty} title="No worker is here yet" />`}
  </div>`;
}

const ROUTER_COLUMNS = [
  { head: "Router", cell: (one) => html`<span class="id">${one.id}</span>` },
  { head: "In flight", number: true, cell: (one) => count(one.in_flight) },
  { head: "Waiting", number: true, cell: (one) => count(one.waiting) },
];

export function Fleet({ fleet, pools, onChange }) {
  const sizes = new Map(pools.map((pool) => [pool.role, pool]));
  const present = ROLES.filter((role) => sizes.has(role) || fleet.workers.some((worker) => worker.role === role));
  return html`<${Section} id="fleet" title="Fleet">
    ${present.map((role) => html`<${Pool} key=${role} ...${{ role, fleet, pool: sizes.get(role), onChange }} />`)}
    ${!present.length && html`<${Empty} title="No workers">None has a lease: start one with <code>headrace up</code> or <code>headrace worker join</code>.</${Empty}>`}
    ${fleet.absent_drains.length > 0 && html`<p class="muted">To be drained, and not in the fleet: ${fleet.absent_drains.join(", ")}.</p>`}
    <div class="pool narrow">
      <div class="heading"><h3>Routers</h3></div>
      ${fleet.routers.length
        ? html`<${Table} caption="Routers and their queues" rows=${fleet.routers} keyOf=${(one) => one.id} columns=${ROUTER_COLUMNS} quiet />`
        : html`<${Empty} title="No routers">None has told of itself in the last seconds: nobody answers clients.</${Empty}>`}
    </div>
  </${Section}>`;
}
