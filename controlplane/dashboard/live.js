// What the page knows, and the one connection that it learns it by.
//
// Invariants
//  1. `phase` says how far what is shown can be trusted:
//     loading     nothing was heard yet
//     live        told within the last SILENT_S
//     stale       connected, but told nothing new: Redis is away, or the control plane is stuck
//     away        not connected; tried again and again, what was known stays on the page
//     signed_out  a token is needed
//     forbidden   a token would not help
//  2. `heardAt` is when the fleet was last told of, in ms of this clock.
//  3. At most one stream is open, and none while nobody has looked at the page for HIDDEN_S.
import { ApiError, ask, events } from "./api.js";

const SILENT_S = 4;
const STUCK_S = 20;
const HIDDEN_S = 60;
const SLOW_S = 10; // between looks at what changes seldom
const MOST_WAIT_S = 15;
const MOST_DECISIONS = 100;
const SILENT = "the control plane says nothing new";

const nothing = {
  phase: "loading",
  why: "",
  heardAt: null,
  who: null,
  fleet: null,
  slo: null,
  classes: [],
  pools: [],
  experts: [],
  identity: null,
  tenants: [],
  keys: [],
  decisions: null,
};

export class Live {
  #listeners = new Set();
  #abort = null;
  #again = () => {};
  #hiddenSince = null;
  #poolsAreElsewhere = false; // on Kubernetes: not asked for again
  #ticks = 0;

  constructor() {
    this.state = nothing;
  }

  /** Told at once, too: something may have happened since whoever listens was drawn. */
  listen(listener) {
    this.#listeners.add(listener);
    listener(this.state);
    return () => this.#listeners.delete(listener);
  }

  /** Never ends. */
  async run() {
    setInterval(() => this.#watch(), 1000);
    document.addEventListener("visibilitychange", () => this.#look());
    addEventListener("online", () => this.#again());
    for (let waitS = 1; ; waitS = Math.min(2 * waitS, MOST_WAIT_S)) {
      const began = Date.now();
      const error = await this.#follow();
      if (Date.now() - began > 1000 * MOST_WAIT_S) waitS = 1;
      this.#failed(error);
      const forever = this.state.phase === "signed_out" || document.hidden;
      await new Promise((resolve) => {
        this.#again = resolve;
        if (!forever) setTimeout(resolve, 1000 * waitS * (0.75 + Math.random() / 2));
      });
    }
  }

  /** Now, whatever the wait. */
  retry() {
    this.#again();
  }

  async signIn(token) {
    await ask("POST", "session", { token });
    this.#set({ phase: "loading", why: "" });
    this.#again();
  }

  async signOut() {
    await ask("DELETE", "session");
    this.#abort?.abort();
    this.#set({ ...nothing, phase: "signed_out" });
  }

  /** What changes seldom, at once: an operator changed it. */
  async lookAgain() {
    const [classes, pools, experts, identity, tenants, keys] = await Promise.all([
      ask("GET", "classes").catch(() => this.state.classes),
      this.#poolsAreElsewhere ? [] : ask("GET", "pools").catch((error) => this.#noPools(error)),
      ask("GET", "experts").then((found) => found.engines, () => this.state.experts),
      ...["identity", "tenants", "keys"].map((name) => ask("GET", name).catch(() => this.state[name])),
    ]);
    this.#set({ classes, pools, experts, identity, tenants, keys });
  }

  #noPools(error) {
    this.#poolsAreElsewhere = error.status === 409;
    return this.#poolsAreElsewhere ? [] : this.state.pools;
  }

  async #follow() {
    this.#abort = new AbortController();
    try {
      this.#set({ who: await ask("GET", "session", undefined, this.#abort.signal) });
      await this.lookAgain();
      const { decisions } = await ask("GET", `decisions?limit=${MOST_DECISIONS}`).catch(() => ({ decisions: [] }));
      this.#set({ decisions });
      for await (const { event, data } of events(this.#abort.signal)) this.#take(event, data);
      return new ApiError(0, "ended", "the control plane ended the connection");
    } catch (error) {
      return error;
    } finally {
      this.#abort.abort();
    }
  }

  #take(event, data) {
    if (event === "fleet") this.#set({ fleet: data, phase: "live", why: "", heardAt: Date.now() });
    else if (event === "slo") this.#set({ slo: data });
    else if (event === "stale") this.#set({ phase: "stale", why: data.message });
    else if (event === "decision" && !this.state.decisions?.some((one) => one.request_id === data.request_id)) {
      this.#set({ decisions: [data, ...(this.state.decisions ?? [])].slice(0, MOST_DECISIONS) });
    }
  }

  #failed(error) {
    if (this.state.phase === "signed_out") return;
    const ended = error.code === "session_ended" ? error.message : "";
    if (error.status === 401) this.#set({ ...nothing, phase: "signed_out", why: ended });
    else if (error.status === 403) this.#set({ ...nothing, phase: "forbidden", why: error.message });
    else if (error.name === "AbortError") this.#set({ phase: "away", why: "the control plane is silent" });
    else this.#set({ phase: "away", why: error.message });
  }

  #watch() {
    const { phase, heardAt } = this.state;
    const silentS = heardAt === null ? 0 : (Date.now() - heardAt) / 1000;
    if (phase === "live" && silentS > SILENT_S) this.#set({ phase: "stale", why: SILENT });
    if (this.state.why === SILENT && silentS > STUCK_S) this.#abort?.abort();
    if (++this.#ticks % SLOW_S === 0 && phase === "live" && !document.hidden) this.lookAgain();
    if (this.#hiddenSince !== null && Date.now() - this.#hiddenSince > 1000 * HIDDEN_S) this.#abort?.abort();
  }

  #look() {
    this.#hiddenSince = document.hidden ? Date.now() : null;
    if (!document.hidden && this.state.phase !== "live") this.#again();
  }

  #set(change) {
    this.state = { ...this.state, ...change };
    for (const listener of this.#listeners) listener(this.state);
  }
}
