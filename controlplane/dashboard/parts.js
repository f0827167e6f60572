// What every view is made of.
import { html, useEffect, useRef, useState } from "./vendor/preact.js";

const AT_FIRST = 20;

/**
 * A table that turns into cards on a phone. Roles are written out: CSS that changes `display` takes them away.
 * columns: [{ head, cell(row), number?, wide?, width? }]; the first is the row's header. `quiet`: a heading says already
 * what the caption says.
 */
export function Table({ caption, columns, rows, keyOf, quiet = false }) {
  const cell = (column, row, index) => {
    const name = [column.number && "number", column.wide && "wide"].filter(Boolean).join(" ");
    return index === 0
      ? html`<th scope="row" role="rowheader">${column.cell(row)}</th>`
      : html`<td role="cell" class=${name} data-head=${column.head}>${column.cell(row)}</td>`;
  };
  const isFixed = columns.some((column) => column.width);
  return html`<table role="table" class=${isFixed ? "fixed" : ""}>
    <caption class=${quiet ? "unseen" : ""}>${caption}</caption>
    <thead role="rowgroup">
      <tr role="row">
        ${columns.map((column) => html`<th scope="col" role="columnheader" class=${column.number ? "number" : ""} style=${{ width: column.width }}>
          ${column.head || html`<span class="unseen">Actions</span>`}
        </th>`)}
      </tr>
    </thead>
    <tbody role="rowgroup">
      ${rows.map((row) => html`<tr role="row" key=${keyOf(row)}>${columns.map((column, index) => cell(column, row, index))}</tr>`)}
    </tbody>
  </table>`;
}

/** A table of the first rows; of all when that is asked for. */
export function List({ rows, ...table }) {
  const [isAll, setAll] = useState(false);
  const shown = isAll ? rows : rows.slice(0, AT_FIRST);
  return html`<${Table} rows=${shown} ...${table} />
    ${shown.length < rows.length && html`<p><button onClick=${() => setAll(true)}>Show ${rows.length - shown.length} more</button></p>`}`;
}

/**
 * A modal dialog: the browser keeps the focus in it, closes it by Escape and gives the focus back. Its siblings have to be
 * the same elements at all times: one that comes or goes moves the dialog, and a dialog that is moved is modal no more.
 */
export function Dialog({ label, onClose, children, wide = false }) {
  const ref = useRef(null);
  useEffect(() => {
    const dialog = ref.current;
    dialog.showModal();
    return () => dialog.close();
  }, []);
  const onClick = (event) => event.target === ref.current && ref.current.close();
  return html`<dialog ref=${ref} class=${wide ? "wide" : ""} aria-labelledby=${label} onClose=${onClose} onClick=${onClick}>
    <div class="inside">${children}</div>
  </dialog>`;
}

export function Badge({ tone, children }) {
  return html`<span class="badge ${tone}">${children}</span>`;
}

/** How full something is: a bar beside its number. */
export function Meter({ value, label, text }) {
  const full = Math.max(0, Math.min(1, value ?? 0));
  const tone = full >= 0.95 ? "bad" : full >= 0.85 ? "warn" : "";
  return html`<span class="meter">
    <span class="bar ${tone}" aria-hidden="true"><span style=${{ width: `${100 * full}%` }}></span></span>
    <span><span class="unseen">${label} </span>${text}</span>
  </span>`;
}

export function Empty({ title, children }) {
  return html`<div class="empty"><p><strong>${title}</strong></p>${children && html`<p>${children}</p>`}</div>`;
}

export function Failure({ error, onRetry }) {
  return html`<div class="failure" role="alert">
    <p><strong>This could not be read.</strong> ${error.message}</p>
    ${onRetry && html`<button onClick=${onRetry}>Try again</button>`}
  </div>`;
}

export function Section({ id, title, aside, children }) {
  return html`<section id=${id} aria-labelledby="${id}-title">
    <div class="heading"><h2 id="${id}-title">${title}</h2>${aside}</div>
    ${children}
  </section>`;
}
