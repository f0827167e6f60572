// Recent decisions as they come, or those that are looked for.
import { html, useEffect, useRef, useState } from "./vendor/preact.js";
import { ask } from "./api.js";
import { Explanation } from "./explanation.js";
import { clock, count, isoTime, measured, NONE, path, plural, reason, REASON_CODES } from "./format.js";
import { Badge, Empty, Failure, List, Section } from "./parts.js";
import { FILTERS, useSearch } from "./search.js";

const MOST_FOUND = 100;

function Outcome({ one }) {
  const missed = [one.ttft_met === false && "first token", one.tpot_met === false && "token gap"].filter(Boolean);
  const tone = { done: missed.length ? "warn" : "ok", rejected: "bad", failed: "bad" }[one.outcome] ?? "";
  const note = one.outcome === "rejected" ? reason(one.reason ?? "") : missed.length ? `missed ${missed.join(", ")}` : "";
  return html`<${Badge} tone=${tone}>${one.outcome}</${Badge}>${note && html` <span class="beside">${note}</span>`}`;
}

function columns(onOpen) {
  return [
    {
      head: "Request",
      cell: (one) => html`<button class="link id" onClick=${() => onOpen(one.public_id)}>${one.public_id}</button>`,
    },
    { head: "Arrived", cell: (one) => html`<time datetime=${isoTime(one.arrived_at_s)}>${clock(one.arrived_at_s)}</time>` },
    { head: "Class", cell: (one) => one.class_name },
    { head: "Tenant", cell: (one) => one.tenant },
    { head: "Outcome", cell: (one) => html`<${Outcome} one=${one} />` },
    { head: "Worker", cell: (one) => html`<span class="id">${one.decode === null ? NONE : path(one.prefill, one.decode)}</span>` },
    { head: "Prompt", number: true, cell: (one) => count(one.prompt_tokens) },
    { head: "Output", number: true, cell: (one) => count(one.output_tokens) },
    { head: "First token", number: true, cell: (one) => measured(one.ttft_s) },
    { head: "Took", number: true, cell: (one) => measured(one.took_s) },
  ];
}

function Select({ name, label, children }) {
  return html`<label>${label}<select name=${name}><option value="">any</option>${children}</select></label>`;
}

function SearchForm({ wanted, classes, workers, onSearch }) {
  const form = useRef(null);
  useEffect(() => {
    for (const name of FILTERS) form.current.elements[name].value = wanted[name] ?? "";
  }, [JSON.stringify(wanted)]);
  const submit = (event) => {
    event.preventDefault();
    const data = new FormData(event.currentTarget);
    onSearch(Object.fromEntries(FILTERS.map((name) => [name, data.get(name).trim()])));
  };
  const clear = () => {
    form.current.elements.request.focus(); // the button goes away
    onSearch({});
  };
  const option = (name) => html`<option value=${name}>${name}</option>`;
  return html`<form role="search" aria-label="Decisions" class="search" ref=${form} onSubmit=${submit}>
    <label class="grow">Request id begins with<input name="request" type="search" autocomplete="off" spellcheck=${false} /></label>
    <${Select} name="class" label="Class">${classes.map(option)}</${Select}>
    <${Select} name="outcome" label="Outcome">
      ${["done", "missed", "rejected", "failed", "cancelled"].map(option)}
      <optgroup label="Rejected because">${REASON_CODES.map((code) => html`<option value=${code}>${reason(code)}</option>`)}</optgroup>
    </${Select}>
    <${Select} name="worker" label="Worker">${workers.map(option)}</${Select}>
    <button class="primary">Search</button>
    ${isFiltered(wanted) && html`<button type="button" onClick=${clear}>Clear</button>`}
  </form>`;
}

const isFiltered = (wanted) => FILTERS.some((name) => wanted[name]);

/** The answer to a search; null: there is none under way. */
function useFound(wanted) {
  const [found, setFound] = useState(null);
  const [turn, setTurn] = useState(0);
  const query = new URLSearchParams(FILTERS.filter((name) => wanted[name]).map((name) => [name, wanted[name]])).toString();
  useEffect(() => {
    if (!query) return setFound(null);
    const abort = new AbortController();
    setFound({ isLoading: true });
    ask("GET", `decisions?${query}&limit=${MOST_FOUND}`, undefined, abort.signal).then(
      (answer) => setFound(answer),
      (error) => error.name === "AbortError" || setFound({ error, retry: () => setTurn(turn + 1) }),
    );
    return () => abort.abort();
  }, [query, turn]);
  return found;
}

function Decided({ caption, decisions, onOpen }) {
  return html`<${List} caption=${caption} rows=${decisions} keyOf=${(one) => one.request_id} columns=${columns(onOpen)} quiet />`;
}

function Found({ found, onOpen }) {
  if (found.isLoading) return html`<p class="muted" role="status">Searching …</p>`;
  if (found.error) return html`<${Failure} error=${found.error} onRetry=${found.retry} />`;
  const { decisions, looked_at: lookedAt, more } = found;
  const words = `${plural(decisions.length, "decision")} of ${count(lookedAt)} looked at${more ? "; there may be more" : ""}`;
  return html`<p class="muted" role="status">${words}</p>
    ${decisions.length
      ? html`<${Decided} caption="Decisions found" decisions=${decisions} onOpen=${onOpen} />`
      : html`<${Empty} title="No such decision">It may still be running, be older than what Redis keeps, or the id begins otherwise.</${Empty}>`}`;
}

/** Those that come, unless somebody wants to read. */
function Stream({ decisions, onOpen, isReading }) {
  const [held, setHeld] = useState(null);
  const shown = held ?? decisions ?? [];
  useEffect(() => {
    if (isReading) setHeld((known) => known ?? decisions);
  }, [isReading]);
  const toggle = () => setHeld(held ? null : decisions);
  return html`<p class="toolbar">
      <button aria-pressed=${held ? "true" : "false"} onClick=${toggle}>Hold the list</button>
      <span class="muted">${held ? "New ones are not shown." : "The newest come first, as they end."}</span>
    </p>
    ${shown.length
      ? html`<${Decided} caption="Newest decisions" decisions=${shown} onOpen=${onOpen} />`
      : html`<${Empty} title="No decisions yet">Each request shows up here when it has ended.</${Empty}>`}`;
}

export function Decisions({ decisions, classes, fleet, slo }) {
  const [wanted, change] = useSearch();
  const found = useFound(wanted);
  const names = [...new Set([...classes.map((one) => one.name), ...(slo?.classes ?? []).map((one) => one.class_name)])];
  const onOpen = (id) => change({ ...wanted, id });
  const onClose = () => change({ ...wanted, id: undefined });
  return html`<${Section} id="decisions" title="Decisions">
    <${SearchForm} wanted=${wanted} classes=${names} workers=${fleet.workers.map((worker) => worker.id)} onSearch=${change} />
    <div class="list">
      ${found
        ? html`<${Found} found=${found} onOpen=${onOpen} />`
        : html`<${Stream} decisions=${decisions} onOpen=${onOpen} isReading=${Boolean(wanted.id)} />`}
    </div>
    ${wanted.id && html`<${Explanation} key=${wanted.id} id=${wanted.id} onClose=${onClose} />`}
  </${Section}>`;
}
