"""Writes helm/headrace/files/dashboards/*.json for Grafana 10 and later: `python helm/dashboards.py`.

Workers' series are told by every router: `max by (worker)` joins them. Histograms and counters of routers are summed.
"""

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent / "headrace" / "files" / "dashboards"
NS = 'namespace=~"$namespace"'
WIDTH, HEIGHT = 8, 8  # of a panel; the page is 24 wide
_DATASOURCE = {"type": "prometheus", "uid": "${datasource}"}


@dataclass(frozen=True)
class Panel:
    """One chart. `queries`: legend and expression; `unit` is Grafana's name of it."""

    title: str
    unit: str
    queries: tuple[tuple[str, str], ...]
    text: str = ""


def rate(name: str, by: str = "", where: str = "") -> str:
    """Of a counter, summed over routers."""
    labels = ", ".join(part for part in (NS, where) if part)
    return f"sum by ({by}) (rate({name}{{{labels}}}[$__rate_interval]))"


def share(name: str, by: str, part: str, whole: str = "") -> str:
    """Of a counter: some of its series by others."""
    return f"{rate(name, by, part)} / ({rate(name, by, whole)} > 0)"


def quantile(q: float, name: str, by: str = "") -> str:
    """Of a histogram, over all routers."""
    return f"histogram_quantile({q}, {rate(f'{name}_bucket', ', '.join(filter(None, ('le', by))))})"


def quantiles(name: str) -> tuple[tuple[str, str], ...]:
    """The three that are looked at."""
    return tuple((f"p{q * 100:g}", quantile(q, name)) for q in (0.5, 0.9, 0.99))


def worker(expression: str, by: str = "worker") -> str:
    """Of series that every router tells alike."""
    return f"max by ({by}) ({expression})"


def series(name: str, where: str = "") -> str:
    """A selector."""
    return f"{name}{{{', '.join(part for part in (NS, where) if part)}}}"


def worker_rate(name: str, by: str = "worker") -> str:
    """Of a counter of workers."""
    return worker(f"rate({series(name)}[$__rate_interval])", by)


SLO = "headrace_slo_requests_total"
SLOS = (
    Panel(
        "Promises kept",
        "percentunit",
        (
            (
                "{{service_class}}",
                share(SLO, "service_class", 'promised="yes", met="yes"', 'promised="yes"'),
            ),
        ),
        "Of the answers whose targets were promised, those that met both. The alerts look at this.",
    ),
    Panel(
        "Attainment",
        "percentunit",
        (("{{service_class}}", share(SLO, "service_class", 'met="yes"')),),
        "The same of all streamed answers, promised or not.",
    ),
    Panel(
        "Goodput",
        "reqps",
        (("{{service_class}}", rate(SLO, "service_class", 'met="yes"')),),
        "Answers that met both targets.",
    ),
    Panel(
        "Turned away",
        "reqps",
        (("{{service_class}} {{reason}}", rate("headrace_rejected_total", "service_class, reason")),),
    ),
    Panel("Answers by status", "reqps", (("{{status}}", rate("headrace_requests_total", "status")),)),
    Panel(
        "In flight and waiting",
        "short",
        (
            ("in flight", f"sum({series('headrace_requests_in_flight')})"),
            ("waiting", f"sum({series('headrace_requests_waiting')})"),
        ),
    ),
    Panel("Time to first token", "s", quantiles("headrace_ttft_seconds")),
    Panel("Time per output token", "s", quantiles("headrace_tpot_seconds")),
    Panel(
        "In the router's queue, p90",
        "s",
        (("{{service_class}}", quantile(0.9, "headrace_queue_seconds", "service_class")),),
    ),
    Panel("Whole answers", "s", quantiles("headrace_e2e_seconds")),
)
FLEET = (
    Panel(
        "Workers by phase",
        "short",
        (
            (
                "{{role}} {{phase}}",
                f"count by (role, phase) ({worker(series('headrace_worker_phase'), 'worker, role, phase')})",
            ),
        ),
    ),
    Panel("Running sequences", "short", (("{{worker}}", worker(series("headrace_worker_running_seqs"))),)),
    Panel("Waiting in the engine", "short", (("{{worker}}", worker(series("headrace_worker_waiting_seqs"))),)),
    Panel(
        "KV cache in use",
        "percentunit",
        (
            (
                "{{worker}}",
                worker(f"{series('headrace_worker_kv_blocks_used')} / ({series('headrace_worker_kv_blocks')} > 0)"),
            ),
        ),
    ),
    Panel(
        "Prefix hits",
        "percentunit",
        (
            (
                "{{worker}}",
                f"{worker_rate('headrace_worker_prefix_hit_tokens_total')}"
                f" / ({worker_rate('headrace_worker_prefix_query_tokens_total')} > 0)",
            ),
        ),
        "Of the prompt tokens that an engine looked up in its own cache.",
    ),
    Panel(
        "Prompt tokens by source",
        "short",
        (("{{source}}", f"sum by (source) ({worker_rate('headrace_worker_prompt_tokens_total', 'worker, source')})"),),
        "Computed, found in the worker's own cache, or pulled from another engine or a lower tier; tokens a second.",
    ),
    Panel("KV pulled by NIXL", "Bps", (("{{worker}}", worker_rate("headrace_worker_nixl_bytes_total")),)),
    Panel(
        "KV pulls that failed",
        "ops",
        (
            ("{{worker}} failed", worker_rate("headrace_worker_nixl_failed_transfers_total")),
            ("{{worker}} expired", worker_rate("headrace_worker_nixl_expired_total")),
        ),
    ),
    Panel("Attempts", "ops", (("{{kind}}", rate("headrace_attempts_total", "kind")),)),
    Panel(
        "Attempts that failed",
        "ops",
        (
            ("{{worker}}", rate("headrace_failed_attempts_total", "worker")),
            ("hand-off: {{step}}", rate("headrace_failed_hand_offs_total", "step")),
        ),
    ),
    Panel("Retries", "ops", (("{{reason}}", rate("headrace_retries_total", "reason")),)),
    Panel(
        "Starts of engines, one hour",
        "short",
        (("{{worker}}", worker(f"changes({series('headrace_worker_epoch')}[1h])")),),
    ),
)
ROUTERS = (
    Panel(
        "CPU of the event loop",
        "percentunit",
        (("{{instance}}", rate("headrace_loop_cpu_seconds_total", "instance")),),
        "100 % is one core, which is all that a router can use.",
    ),
    Panel(
        "One turn of the event loop, p99",
        "s",
        (("{{instance}}", quantile(0.99, "headrace_loop_turn_seconds", "instance")),),
    ),
    Panel(
        "Requests let in",
        "percentunit",
        (("{{instance}}", series("headrace_http_admitted")),),
        "Under 100 %: overloaded.",
    ),
    Panel(
        "Turned away at the socket",
        "reqps",
        (
            ("shed", rate("headrace_http_shed_total")),
            ("refused", rate("headrace_http_refused_total")),
            ("stalled", rate("headrace_http_stalled_total")),
        ),
    ),
    Panel("Connections", "short", (("{{instance}}", series("headrace_http_open_connections")),)),
    Panel("Memory", "bytes", (("{{instance}}", series("headrace_process_resident_memory_bytes")),)),
    Panel("Lag of the prefix index", "s", (("{{instance}}", series("headrace_index_lag_seconds")),)),
    Panel("Blocks in the prefix index", "short", (("{{instance}}", series("headrace_index_blocks")),)),
    Panel(
        "Workers by how they are followed",
        "short",
        (("{{state}}", f"max by (state) ({series('headrace_index_sources')})"),),
    ),
    Panel(
        "Cached tokens: predicted, real",
        "percentunit",
        tuple(
            (
                f"{{{{model}}}} {word}",
                f"{rate(f'headrace_cached_tokens_{word}_total', 'model')}"
                f" / ({rate('headrace_prompt_tokens_total', 'model')} > 0)",
            )
            for word in ("predicted", "reported")
        ),
        "Of the prompt tokens of answers.",
    ),
    Panel("Parity error", "percentunit", (("{{model}}", f"max by (model) ({series('headrace_parity_error')})"),)),
    Panel(
        "TTFT against its forecast, p90",
        "s",
        (("{{direction}}", quantile(0.9, "headrace_ttft_error_seconds", "direction")),),
    ),
    Panel(
        "Prompts not tokenised",
        "reqps",
        (("{{model}} {{reason}}", rate("headrace_prompts_not_tokenised_total", "model, reason")),),
    ),
    Panel(
        "CPU of the process", "percentunit", (("{{instance}}", rate("headrace_process_cpu_seconds_total", "instance")),)
    ),
    Panel("Redis", "short", (("{{instance}}", series("headrace_redis_up")),), "1 while it answers."),
)
EXPERTS = (
    Panel(
        "Balancedness",
        "percentunit",
        (("{{worker}}", series("headrace_expert_balancedness")),),
        "Even load over the slowest rank's, mean over layers; 100 % is perfect.",
    ),
    Panel(
        "Balancedness, worst layer",
        "percentunit",
        (("{{worker}}", series("headrace_expert_balancedness_worst_layer")),),
    ),
    Panel("Placements applied", "short", (("{{worker}}", series("headrace_expert_placements_total")),)),
    Panel(
        "Tokens to experts",
        "short",
        (("{{worker}}", f"rate({series('headrace_expert_tokens_total')}[$__rate_interval])"),),
        "A second, each once for every expert, of all layers.",
    ),
    Panel(
        "Classes of traffic",
        "percentunit",
        (("{{worker}} {{class}}", series("headrace_expert_class_share")),),
        "Their parts of the last window's tokens.",
    ),
    Panel(
        "Balancedness if a class came alone",
        "percentunit",
        (("{{worker}} {{class}}", series("headrace_expert_class_balancedness")),),
    ),
    Panel(
        "How well a class is known",
        "percentunit",
        (("{{worker}} {{class}}", series("headrace_expert_class_confidence")),),
        "0 %: its experts are taken to be those of all traffic.",
    ),
)
TENANTS = (
    Panel(
        "Budget used",
        "percentunit",
        (
            (
                "{{tenant}}",
                f"1 - min by (tenant) ({series('headrace_tenant_budget_left_tokens')}"
                f" / {series('headrace_tenant_budget_tokens')})",
            ),
        ),
        "Of the period; requests in flight count. Those with the least left.",
    ),
    Panel(
        "Tokens charged",
        "short",
        (("{{tenant}}", rate("headrace_tenant_tokens_total", "tenant", 'kind=~"prompt|output"')),),
        "A second, prompt and output: what budgets count.",
    ),
    Panel(
        "Cached, of the prompts' tokens",
        "percentunit",
        (("{{tenant}}", share("headrace_tenant_tokens_total", "tenant", 'kind="cached"', 'kind="prompt"')),),
    ),
    Panel(
        "Requests by tenant",
        "reqps",
        (("{{tenant}} {{outcome}}", rate("headrace_tenant_requests_total", "tenant, outcome")),),
        "Those who ask most; everybody else is `other`.",
    ),
    Panel(
        "Refused at the door",
        "reqps",
        (("{{tenant}} {{reason}}", rate("headrace_tenant_refused_total", "tenant, reason")),),
        "Over a limit or a budget, a model or class that is not open, a paused class.",
    ),
    Panel(
        "Attainment by tenant",
        "percentunit",
        (
            (
                "{{tenant}}",
                share("headrace_tenant_requests_total", "tenant", 'outcome="met"', 'outcome=~"met|missed"'),
            ),
        ),
        "Those who ask most; everybody else is `other`.",
    ),
    Panel(
        "Without a valid key or token",
        "reqps",
        (("{{instance}}", rate("headrace_rejected_total", "instance", 'reason="invalid_api_key"')),),
        "On every route.",
    ),
    Panel(
        "What says who may ask",
        "short",
        (("{{instance}} {{source}}", series("headrace_identity_up")),),
        "1 while it can be read; at 0 routers go on with what they knew.",
    ),
)
DASHBOARDS = {
    "headrace-slos": ("Headrace: promises", SLOS),
    "headrace-tenants": ("Headrace: tenants", TENANTS),
    "headrace-fleet": ("Headrace: fleet", FLEET),
    "headrace-routers": ("Headrace: routers", ROUTERS),
    "headrace-experts": ("Headrace: experts", EXPERTS),
}


def dashboard(uid: str, title: str, panels: Iterable[Panel]) -> dict[str, Any]:
    """What Grafana imports."""
    return {
        "uid": uid,
        "title": title,
        "tags": ["headrace"],
        "schemaVersion": 39,
        "editable": True,
        "refresh": "30s",
        "time": {"from": "now-1h", "to": "now"},
        "templating": {"list": [_datasource(), _namespace()]},
        "links": [
            {"type": "dashboards", "tags": ["headrace"], "title": "Headrace", "asDropdown": True, "keepTime": True}
        ],
        "panels": [_panel(number, panel) for number, panel in enumerate(panels)],
    }


def _datasource() -> dict[str, Any]:
    return {"name": "datasource", "type": "datasource", "query": "prometheus", "label": "Prometheus"}


def _namespace() -> dict[str, Any]:
    """All of them unless chosen: outside Kubernetes there is none."""
    return {
        "name": "namespace",
        "type": "query",
        "datasource": _DATASOURCE,
        "query": {"query": "label_values(headrace_redis_up, namespace)", "refId": "namespace"},
        "refresh": 2,
        "includeAll": True,
        "allValue": ".*",
        "current": {"text": "All", "value": "$__all"},
    }


def _panel(number: int, panel: Panel) -> dict[str, Any]:
    per_row = 24 // WIDTH
    return {
        "id": number + 1,
        "type": "timeseries",
        "title": panel.title,
        "description": panel.text,
        "datasource": _DATASOURCE,
        "gridPos": {"x": number % per_row * WIDTH, "y": number // per_row * HEIGHT, "w": WIDTH, "h": HEIGHT},
        "fieldConfig": {"defaults": {"unit": panel.unit, "min": 0}, "overrides": []},
        "options": {"legend": {"displayMode": "list", "placement": "bottom"}, "tooltip": {"mode": "multi"}},
        "targets": [
            {"refId": chr(ord("A") + place), "datasource": _DATASOURCE, "legendFormat": legend, "expr": expression}
            for place, (legend, expression) in enumerate(panel.queries)
        ],
    }


def files() -> dict[str, str]:
    """Name and text of every file."""
    return {
        f"{uid}.json": json.dumps(dashboard(uid, title, panels), indent=1) + "\n"
        for uid, (title, panels) in DASHBOARDS.items()
    }


if __name__ == "__main__":
    FOLDER.mkdir(parents=True, exist_ok=True)
    for name, text in files().items():
        (FOLDER / name).write_text(text)
