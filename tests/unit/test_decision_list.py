"""Which decisions a question finds."""

import json
from typing import Any

import pytest

from controlplane.decision_list import Wanted, _decode


def decision(outcome: str = "done", **last: Any) -> bytes:
    arrival = {"model": "m", "tenant": "acme", "class_name": "chat", "num_prompt_tokens": 3}
    steps = [{"step": "dispatched", "decode": "decode-0"}, {"step": outcome, **last}]
    ids = {"request_id": "r", "public_id": "p", "router": "0", "arrived_at_s": 1.0}
    return json.dumps({**ids, "outcome": outcome, "arrival": arrival, "steps": steps}).encode()


@pytest.mark.parametrize(
    ("ttft_met", "tpot_met", "is_missed"),
    [(True, True, False), (False, True, True), (True, False, True), (None, None, False), (None, False, True)],
)
def test_missed_is_late_or_slow(ttft_met: bool | None, tpot_met: bool | None, is_missed: bool) -> None:
    record = _decode(decision(ttft_met=ttft_met, tpot_met=tpot_met))
    assert record is not None
    assert Wanted(outcome="missed").takes(record) == is_missed
    assert Wanted(outcome="done").takes(record)


def test_a_rejection_is_found_by_its_reason_too() -> None:
    record = _decode(decision("rejected", reason="kv_full"))
    assert record is not None
    assert [name for name in ("rejected", "kv_full", "missed", "done") if Wanted(outcome=name).takes(record)] == [
        "rejected",
        "kv_full",
    ]
