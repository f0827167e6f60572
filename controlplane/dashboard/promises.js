// Are promises kept, by class: now in a table, over time in charts.
import { html, useEffect, useState } from "./vendor/preact.js";
import { ask } from "./api.js";
import { Chart } from "./chart.js";
import { count, rate, reason, REASON_CODES, seconds, share } from "./format.js";
import { Badge, Empty, Failure, Section, Table } from "./parts.js";
import { linkTo } from "./search.js";
import { tone } from "./summary.js";

const POINTS = 60;
const NO_CLASS = "none"; // as routers call it
const WINDOWS = [
  [600, "10 minutes"],
  [3600, "1 hour"],
];

/** Every class that is configured, paused or had a request. */
function rowsOf({ classes, slo, fleet }) {
  const counted = new Map((slo?.classes ?? []).map((one) => [one.class_name, one]));
  const paused = new Map(fleet.paused.map((one) => [one.class_name, one]));
  const targets = new Map(classes.map((one) => [one.name, one]));
  const names = [...new Set([...targets.keys(), ...counted.keys(), ...paused.keys()])];
  return names.map((name) => ({
    name,
    count: counted.get(name),
    paused: paused.get(name),
    targets: targets.get(name),
    waiting: fleet.routers.reduce((total, one) => total + (one.waiting_by_class[name] ?? 0), 0),
  }));
}

function Rejections({ row }) {
  const found = Object.entries(row.count?.rejected ?? {}).sort((a, b) => b[1] - a[1]);
  if (!found.length) return row.count ? "0" : "–";
  return html`<ul class="reasons">
    ${found.map(([code, number]) => html`<li key=${code}>
      ${count(number)} ${REASON_CODES.includes(code) ? html`<a href=${linkTo({ class: row.name, outcome: code })}>${reason(code)}</a>` : reason(code)}
    </li>`)}
  </ul>`;
}

function Name({ row }) {
  const { targets, paused } = row;
  return html`<span class="id">${row.name}</span> ${paused && html`<${Badge} tone="warn">paused</${Badge}>`}
    ${row.name === NO_CLASS && html`<span class="note">of no class: nothing is promised</span>`}
    ${targets && html`<span class="note">first token ${seconds(targets.ttft_s)}, ${seconds(targets.tpot_s)} a token</span>`}
    ${paused && html`<span class="note">by ${paused.by}${paused.reason && `: ${paused.reason}`}</span>`}`;
}

function columns(onChange) {
  const number = (head, of) => ({ head, number: true, cell: (row) => (row.count ? of(row.count) : "–") });
  const found = [
    { head: "Class", cell: (row) => html`<${Name} row=${row} />` },
    number("Attainment", (one) => html`<span class=${tone(one.attainment)}>${share(one.attainment)}</span>`),
    number("Promises kept", (one) => html`<span class=${tone(one.kept)}>${share(one.kept)}</span>`),
    number("Goodput", (one) => rate(one.goodput_per_s)),
    number("Arrived", (one) => count(one.arrived)),
    { head: "Waiting now", number: true, cell: (row) => count(row.waiting) },
    number("Answered", (one) => count(one.answered)),
    number("Failed", (one) => html`<span class=${one.failed ? "bad" : ""}>${count(one.failed)}</span>`),
    { head: "Rejected", wide: true, cell: (row) => html`<${Rejections} row=${row} />` },
  ];
  if (onChange) found.push({ head: "", cell: (row) => html`<${PauseButton} row=${row} onChange=${onChange} />` });
  return found;
}

function PauseButton({ row, onChange }) {
  const kind = row.paused ? "resume" : "pause";
  if (!row.paused && !row.targets) return null;
  return html`<button onClick=${() => onChange({ kind, name: row.name })}>
    ${row.paused ? "Resume" : "Pause"}<span class="unseen"> class ${row.name}</span>
  </button>`;
}

/** Without the time before the control plane started, of which it knows nothing. */
function known(reports) {
  const first = reports.findIndex((report) => report.window_s > 0);
  return first < 0 ? reports.slice(-1) : reports.slice(first);
}

/** Reports from /slo/history, each step; kept as they are while the page is not live. */
function useHistory(windowS, phase) {
  const [history, setHistory] = useState({ reports: null, error: null });
  const [turn, setTurn] = useState(0);
  const isLive = phase === "live";
  useEffect(() => {
    const read = () =>
      ask("GET", `slo/history?window_s=${windowS}&points=${POINTS}`).then(
        (reports) => setHistory({ reports: known(reports), error: null }),
        (error) => setHistory((before) => ({ ...before, error })),
      );
    if (isLive) read();
    const timer = isLive && setInterval(read, (1000 * windowS) / POINTS / 4);
    return () => clearInterval(timer);
  }, [windowS, isLive, turn]);
  return { ...history, retry: () => setTurn(turn + 1) };
}

/** One line a name; `of` one class's report or none. */
function lines(reports, names, of) {
  return names.map((name) => ({
    label: name,
    values: reports.map((report) => of(report.classes.find((one) => one.class_name === name), report)),
  }));
}

function rejectedPerS(reports) {
  const codes = [...new Set(reports.flatMap((report) => report.classes.flatMap((one) => Object.keys(one.rejected))))].sort();
  return codes.map((code) => ({
    label: reason(code),
    values: reports.map((report) =>
      report.window_s > 0
        ? report.classes.reduce((total, one) => total + (one.rejected[code] ?? 0), 0) / report.window_s
        : null,
    ),
  }));
}

function Charts({ reports, names, words }) {
  const times = reports.map((report) => report.at_s);
  const charts = [
    ["SLO attainment", lines(reports, names, (one) => one?.attainment ?? null), share, [0, 1.06]],
    ["Goodput", lines(reports, names, (one, report) => (report.window_s > 0 ? (one?.goodput_per_s ?? 0) : null)), rate, null],
    ["Arrived", lines(reports, names, (one, report) => (report.window_s > 0 ? (one?.arrived ?? 0) / report.window_s : null)), rate, null],
    ["Waiting", lines(reports, names, (one, report) => (report.window_s > 0 ? (one?.most_waiting ?? 0) : null)), count, null, true],
    ["Rejected", rejectedPerS(reports), rate, null],
    ["Prefix hit rate", [{ label: "all workers", values: reports.map((report) => report.prefix_hit_rate) }], share, [0, 1.06]],
  ];
  return html`<div class="charts">
    ${charts.map(([title, series, format, range, isWhole]) => html`<${Chart} key=${title} ...${{ title, series, format, range, isWhole, times, words }} />`)}
  </div>`;
}

export function Promises(state) {
  const [windowS, setWindowS] = useState(WINDOWS[0][0]);
  const { reports, error, retry } = useHistory(windowS, state.phase);
  const rows = rowsOf(state);
  const words = WINDOWS.find(([s]) => s === windowS)[1];
  const chooser = html`<label class="inline">Charts
    <select value=${windowS} onChange=${(event) => setWindowS(Number(event.currentTarget.value))}>
      ${WINDOWS.map(([s, name]) => html`<option value=${s}>${name}</option>`)}
    </select></label>`;
  const seen = new Set((reports ?? []).flatMap((report) => report.classes.map((one) => one.class_name)));
  return html`<${Section} id="promises" title="Promises" aside=${chooser}>
    ${rows.length
      ? html`<${Table} caption="Service classes, the last ${seconds(state.slo?.window_s ?? 0)}" rows=${rows}
          keyOf=${(row) => row.name} columns=${columns(state.onChange)} />`
      : html`<${Empty} title="No classes">slo.enabled is false: every request is taken in, and nothing is promised.</${Empty}>`}
    ${error && html`<${Failure} error=${error} onRetry=${retry} />`}
    ${reports && html`<${Charts} reports=${reports} words=${words} names=${rows.map((row) => row.name).filter((name) => seen.has(name))} />`}
    ${!reports && !error && html`<p class="muted">Loading history …</p>`}
  </${Section}>`;
}
