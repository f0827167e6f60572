"""Every alert fires when it should, and alone, and is silent when things are merely busy: judged by promtool itself."""

import re
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import yaml

from tests.prometheus import RULES, promtool, rules, selectors

DOC = Path(__file__).parents[2] / "docs" / "operations.md"
ALERTS = {rule["alert"]: rule for rule in rules() if "alert" in rule}
HOURS_7 = 420  # minutes


@dataclass(frozen=True)
class Case:
    """Series as promtool writes them, a value each minute; looked at after `at_min` minutes."""

    alert: str
    at_min: int
    bad: dict[str, str]
    good: dict[str, str]
    healthy: dict[str, str] = field(
        default_factory=lambda: {
            'headrace_redis_up{instance="r0"}': "1x500",
            'headrace_worker_up{instance="r0", worker="d0", role="decode"}': "1x500",
        }
    )


def judged(missed_a_min: int) -> dict[str, str]:
    """A hundred promised answers a minute."""
    series = 'headrace_slo_requests_total{instance="r0", service_class="chat", promised="yes", met="%s"}'
    return {series % "no": f"0+{missed_a_min}x500", series % "yes": f"0+{100 - missed_a_min}x500"}


def after_hours(well_min: int, bad_min: int) -> dict[str, str]:
    """All is well for so long, then seven of ten promises are broken for so long, then all is well again."""
    series = 'headrace_slo_requests_total{instance="r0", service_class="chat", promised="yes", met="%s"}'
    kept = 100 * well_min
    return {
        series % "no": f"0x{well_min} 70+70x{bad_min - 1} {70 * bad_min}x100",
        series % "yes": f"0+100x{well_min} {kept + 30}+30x{bad_min - 1} {kept + 30 * bad_min + 100}+100x99",
    }


REJECTED = 'headrace_rejected_total{instance="r0", service_class="chat", reason="%s"}'
DISPATCHED = 'headrace_queue_seconds_count{instance="r0", service_class="chat"}'
WORKER = '{instance="%s", worker="d0", role="decode"}'
REQUESTS = 'headrace_requests_total{instance="r0", route="/v1/completions", status="%s"}'
UP = {'headrace_redis_up{instance="r0"}': "1x500"}
CASES = [
    Case("HeadracePromisesBreakFast", 348, after_hours(330, 20), after_hours(318, 20)),  # good: the last ten minutes
    Case("HeadracePromisesBreakSlowly", HOURS_7, judged(8), judged(5)),
    Case(
        "HeadraceRejections",
        60,
        {REJECTED % "ttft_infeasible": "0+10x500", DISPATCHED: "0+100x500"},
        {REJECTED % "ttft_infeasible": "0+4x500", REJECTED % "unknown_model": "0+50x500", DISPATCHED: "0+100x500"},
    ),
    Case("HeadraceRejections", 60, {REJECTED % "kv_full": "0+10x500"}, {REJECTED % "class_paused": "0+10x500"}),
    Case(
        "HeadraceRequestsFail",
        30,
        {REQUESTS % "502": "0+2x500", REQUESTS % "200": "0+98x500"},
        {REQUESTS % "503": "0+50x500", REQUESTS % "400": "0+50x500", REQUESTS % "200": "0+98x500"},
    ),
    Case("HeadraceNoRouter", 10, {"up": "0x500"}, UP | {"headrace_worker_up" + WORKER % "r0": "1x500"}, healthy={}),
    Case(
        "HeadraceNoWorker",
        10,
        UP
        | {
            "headrace_worker_up" + WORKER % "r0": "1x5 0x500",
            'headrace_worker_up{worker="p0", role="prefill"}': "1x500",
        },
        UP | {"headrace_worker_up" + WORKER % "r0": "0x500", 'headrace_worker_up{worker="m0", role="mixed"}': "1x500"},
        healthy={},
    ),
    Case("HeadraceNoWorker", 10, UP, UP | {"headrace_worker_up" + WORKER % "r0": "1x500"}, healthy={}),
    Case(
        "HeadraceWorkerFlaps",
        30,
        {"headrace_worker_epoch" + WORKER % router: "1x5 2x5 3x5 4x5 4x400" for router in ("r0", "r1")},
        {"headrace_worker_epoch" + WORKER % router: "1x5 2x5 3x400" for router in ("r0", "r1")},
    ),
    Case(
        "HeadraceWorkerFlaps",
        30,
        {"headrace_worker_up" + WORKER % "r1": "1x2 0x2 1x2 0x2 1x2 0x2 1x400"},
        {"headrace_worker_up" + WORKER % "r1": "1x2 0x2 1x2 0x2 1x400"},
    ),
    Case(
        "HeadraceKvNearlyFull",
        30,
        {
            "headrace_worker_kv_blocks_used" + WORKER % "r0": "97x500",
            "headrace_worker_kv_blocks" + WORKER % "r0": "100x500",
        },
        {
            "headrace_worker_kv_blocks_used" + WORKER % "r0": "90x500",
            "headrace_worker_kv_blocks" + WORKER % "r0": "100x500",
        },
    ),
    Case(
        "HeadraceHandOffsFail",
        30,
        {
            'headrace_failed_hand_offs_total{step="prefill"}': "0+10x500",
            'headrace_attempts_total{kind="hand_off"}': "0+99x500",
        },
        {
            'headrace_failed_hand_offs_total{step="prefill"}': "0+2x500",
            'headrace_attempts_total{kind="hand_off"}': "0+99x500",
        },
    ),
    Case(
        "HeadraceKvTransfersFail",
        30,
        {
            "headrace_worker_nixl_failed_transfers_total" + WORKER % "r0": "0+1x500",
            "headrace_worker_nixl_expired_total" + WORKER % "r0": "0x500",
        },
        {
            "headrace_worker_nixl_failed_transfers_total" + WORKER % "r0": "5x500",
            "headrace_worker_nixl_expired_total" + WORKER % "r0": "0 1 2 3 3x500",
        },
    ),
    Case(
        "HeadraceRedisAway",
        10,
        {'headrace_redis_up{instance="r1"}': "1x3 0x500"},
        {'headrace_redis_up{instance="r1"}': "1x500"},
    ),
    Case(
        "HeadraceIdentityStale",
        30,
        {'headrace_identity_up{instance="r0", source="jwks_url"}': "1x5 0x500"},
        {'headrace_identity_up{instance="r0", source="jwks_url"}': "1x5 0x10 1x500"},
    ),
    Case(
        "HeadraceRouterSheds",
        20,
        {'headrace_http_shed_total{instance="r0"}': "0+30x500"},
        {'headrace_http_shed_total{instance="r0"}': "0 30 60 60x500"},
    ),
    Case(
        "HeadraceParityDrift",
        30,
        {'headrace_parity_trusted{model="m"}': "1x5 0x500"},
        {'headrace_parity_trusted{model="m"}': "1x5 0x10 1x500"},
    ),
    Case(
        "HeadraceIndexBehind",
        30,
        {'headrace_index_lag_seconds{instance="r0"}': "9x500"},
        {'headrace_index_lag_seconds{instance="r0"}': "9x10 1x500", 'headrace_index_sources{state="behind"}': "0x500"},
    ),
    Case(
        "HeadraceIndexBehind",
        30,
        {'headrace_index_sources{state="behind", instance="r0"}': "1x500"},
        {'headrace_index_sources{state="behind", instance="r0"}': "1x10 0x10 1x500"},
    ),
]


def judge(folder: Path, case: Case, series: dict[str, str], firing: list[str]) -> None:
    """Let promtool say which alerts fire."""
    written = case.healthy | series
    test = {
        "rule_files": [str(RULES)],
        "evaluation_interval": "1m",
        "tests": [
            {
                "interval": "1m",
                "input_series": [{"series": name, "values": values} for name, values in written.items()],
                "promql_expr_test": [
                    {
                        "expr": 'count by (alertname) (ALERTS{alertstate="firing"})',
                        "eval_time": f"{case.at_min}m",
                        "exp_samples": [{"labels": f'{{alertname="{name}"}}', "value": 1} for name in firing],
                    }
                ],
            }
        ],
    }
    path = folder / "test.yaml"
    path.write_text(yaml.safe_dump(test))
    promtool("test", "rules", path)


@pytest.mark.parametrize("case", CASES, ids=[f"{number}-{case.alert}" for number, case in enumerate(CASES)])
def test_an_alert_fires_alone_when_it_should(tmp_path: Path, case: Case) -> None:
    judge(tmp_path, case, case.bad, [case.alert])


@pytest.mark.parametrize("case", CASES, ids=[f"{number}-{case.alert}" for number, case in enumerate(CASES)])
def test_nothing_fires_when_things_are_merely_busy(tmp_path: Path, case: Case) -> None:
    judge(tmp_path, case, case.good, [])


def test_every_alert_is_tried() -> None:
    assert {case.alert for case in CASES} == ALERTS.keys()


def test_prometheus_takes_the_file() -> None:
    promtool("check", "rules", RULES)


@pytest.mark.parametrize("name", ALERTS)
def test_every_alert_says_what_it_is_and_what_to_do(name: str) -> None:
    alert = ALERTS[name]
    assert alert["labels"]["severity"] in ("critical", "warning")
    assert alert["annotations"].keys() == {"summary", "description", "runbook_url"}
    page, _, anchor = alert["annotations"]["runbook_url"].partition("#")
    assert page.endswith("/docs/operations.md")
    section = re.search(rf"^### {name}\n(.*?)(?=^##|\Z)", DOC.read_text(), re.MULTILINE | re.DOTALL)
    assert section is not None, f"docs/operations.md has no section {name}"
    assert anchor == name.lower()
    for part in ("Means:", "Look at:", "Do:"):
        assert part in section[1]


@pytest.mark.parametrize("rule", rules(), ids=lambda rule: str(rule.get("alert", rule.get("record"))))
def test_expressions_are_promql(rule: dict[str, str]) -> None:
    """Also where promtool is missing."""
    assert list(selectors(rule["expr"]))
