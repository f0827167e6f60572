"""RouterCore with targets: who waits, who goes first, who is told to come back. Numbers are invariants of core.py."""

from collections.abc import Iterator

import pytest
from msgspec.structs import replace

from kvstore.types import RequestId, WorkerId
from router.core import RouterCore
from router.events import (
    Command,
    Dispatch,
    FirstToken,
    Hold,
    Reject,
    RejectReason,
    ReplicasReported,
    RequestArrived,
    RequestCancelled,
    RequestDone,
    RequestFailed,
    Woken,
    WorkerChanged,
    WorkerGone,
)
from router.latency import LatencyPrior
from router.slo_settings import ClassSettings, SloSettings
from router.types import Request, Terms
from tests.builders import MODEL, make_core, make_request, make_terms, make_worker

# 1,000 tokens take a second; everything else takes next to nothing. So 3.3 s are three requests: promises are given on
# fifteen parts in sixteen of the time only (router/admission/queue.py).
PRIOR = LatencyPrior(
    prefill_tokens_per_s=1000.0, decode_step_s=1e-3, decode_step_per_seq_s=1e-4, transfer_s=1e-6, prefill_s=1e-6,
    prefill_attention_s=1e-9, decode_step_per_1k_kv_tokens_s=1e-9, transfer_tokens_per_s=1e9,
)  # fmt: skip
SLO = SloSettings(
    classes={"chat": ClassSettings(ttft_s=3.3, tpot_s=1.0, deadline_s=60.0)}, default_class="chat", safety_margin=0.0
)


@pytest.fixture
def core() -> Iterator[RouterCore]:
    made = core_with_a_worker()
    yield made
    made.validate()


def core_with_a_worker(slo: SloSettings = SLO, num_workers: int = 1) -> RouterCore:
    core = make_core(slo=slo, prior=PRIOR)
    for index in range(num_workers):
        core.handle(WorkerChanged(make_worker(f"w{index}", kv_blocks_total=100_000)), 0.0)
    return core


def asks(name: str, *, tokens: int = 1000, terms: Terms | None = None) -> Request:
    terms = terms or make_terms(ttft_s=3.3, tpot_s=1.0)
    return replace(make_request(name, num_prompt_tokens=tokens, terms=terms), terms_implicit=False)


def arrive(
    core: RouterCore, name: str, now_s: float, *, tokens: int = 1000, terms: Terms | None = None
) -> list[Command]:
    return core.handle(RequestArrived(asks(name, tokens=tokens, terms=terms)), now_s)


def dispatched(commands: list[Command]) -> list[str]:
    return [command.decision.request_id for command in commands if isinstance(command, Dispatch)]


def held(commands: list[Command]) -> bool:
    """The one answer is to wait."""
    return [type(command) for command in commands] == [Hold]


def the_reject(commands: list[Command]) -> Reject:
    (command,) = commands
    assert isinstance(command, Reject)
    return command


def end(core: RouterCore, name: str, now_s: float) -> list[Command]:
    first = core.handle(FirstToken(RequestId(name), 1), now_s)
    return first + core.handle(RequestDone(RequestId(name), 1), now_s)


def test_an_idle_worker_gets_the_request_at_once_with_a_promise(core: RouterCore) -> None:
    (command,) = arrive(core, "a", 0.0)
    assert isinstance(command, Dispatch)
    assert command.decision.promised
    assert "predicted TTFT" in command.decision.why
    assert core.next_wakeup_s(0.0) is None


def test_invariant_1_what_can_be_kept_waits_and_is_dispatched_when_there_is_room(core: RouterCore) -> None:
    arrive(core, "a", 0.0)
    assert held(arrive(core, "b", 0.0))
    assert core.num_waiting == 1
    wakeup_s = core.next_wakeup_s(0.0)
    assert wakeup_s is not None and wakeup_s > 0.0
    assert dispatched(end(core, "a", 1.0)) == ["b"]
    assert core.num_waiting == 0


def test_the_earliest_deadline_goes_first(core: RouterCore) -> None:
    arrive(core, "first", 0.0)
    assert held(arrive(core, "late", 0.0, tokens=300, terms=make_terms(ttft_s=20.0, tpot_s=1.0)))
    assert held(arrive(core, "soon", 0.1, tokens=300, terms=make_terms(ttft_s=2.5, tpot_s=1.0)))
    assert dispatched(end(core, "first", 1.0)) == ["soon"]


def test_what_cannot_be_kept_is_told_when_to_come_back_and_is_let_in_then(core: RouterCore) -> None:
    arrive(core, "a", 0.0)
    arrive(core, "b", 0.0)
    assert held(arrive(core, "c", 0.0))
    refused = the_reject(arrive(core, "d", 0.0))
    assert refused.reason is RejectReason.TTFT_INFEASIBLE
    assert refused.retry_after_s is not None
    assert "a place is kept" in refused.detail
    end(core, "a", 1.0)
    back = replace(asks("d again"), digest=b"d")
    commands = core.handle(RequestArrived(back), refused.retry_after_s)
    assert not [command for command in commands if isinstance(command, Reject)]


def test_a_class_that_says_so_waits_for_what_promises_leave(core: RouterCore) -> None:
    for name in ("a", "b", "c"):
        arrive(core, name, 0.0)
    assert held(arrive(core, "batch", 0.0, terms=make_terms(ttft_s=3.3, tpot_s=1.0, best_effort_ok=True)))
    assert dispatched(end(core, "a", 1.0)) == ["b"]
    assert dispatched(end(core, "b", 2.0)) == ["c"]
    (command,) = end(core, "c", 3.0)
    assert isinstance(command, Dispatch)
    assert (command.decision.request_id, command.decision.promised) == ("batch", False)


def test_who_leaves_while_it_waits_is_forgotten_at_once(core: RouterCore) -> None:
    arrive(core, "a", 0.0)
    arrive(core, "b", 0.0)
    assert core.handle(RequestCancelled(RequestId("b")), 0.5) == []
    assert core.num_waiting == 0
    assert end(core, "a", 1.0) == []


def test_who_has_waited_too_long_is_turned_away(core: RouterCore) -> None:
    arrive(core, "a", 0.0)
    arrive(core, "b", 0.0)
    expired = the_reject(core.handle(Woken(), 3.4))  # the worker is slower than was predicted
    assert (expired.request_id, expired.reason) == ("b", RejectReason.EXPIRED)
    assert core.num_waiting == 0


def test_a_promise_that_breaks_while_it_waits_raises_the_margin(core: RouterCore) -> None:
    arrive(core, "a", 0.0)
    arrive(core, "b", 0.0)
    core.handle(Woken(), 3.4)
    assert core._desk._pools[MODEL].rules.margin == pytest.approx(0.0196)


def test_a_request_without_room_in_a_decode_batch_waits_for_a_sequence_to_end() -> None:
    core = core_with_a_worker()
    tight = make_terms(ttft_s=3.3, tpot_s=0.00135)  # three sequences
    for number in range(3):
        assert dispatched(arrive(core, str(number), 0.1 * number, tokens=1, terms=tight)) == [str(number)]
        core.handle(FirstToken(RequestId(str(number)), 1), 0.1 * number + 0.001)
    assert held(arrive(core, "waits", 0.3, tokens=1, terms=tight))
    soon = make_terms(ttft_s=0.006, tpot_s=0.00135)
    refused = the_reject(arrive(core, "cannot wait", 0.3, tokens=1, terms=soon))
    assert refused.reason is RejectReason.TPOT_INFEASIBLE
    assert dispatched(core.handle(RequestDone(RequestId("0"), 1), 0.4)) == ["waits"]
    core.validate()


def test_a_failed_attempt_is_repeated_before_those_that_wait() -> None:
    core = core_with_a_worker(num_workers=2)
    (first,) = arrive(core, "a", 0.0)
    arrive(core, "b", 0.0)
    assert held(arrive(core, "c", 0.0))
    assert isinstance(first, Dispatch)
    again, _ = core.handle(RequestFailed(RequestId("a"), 1, first.decision.decode.spec.id, retriable=True), 0.1)
    assert isinstance(again, Dispatch)
    assert (again.decision.request_id, again.decision.attempt) == ("a", 2)
    core.validate()


def test_when_the_last_worker_goes_those_that_wait_are_told(core: RouterCore) -> None:
    arrive(core, "a", 0.0)
    arrive(core, "b", 0.0)
    commands = core.handle(WorkerGone(WorkerId("w0"), "left"), 0.5)
    rejects = [command for command in commands if isinstance(command, Reject)]
    assert [(reject.request_id, reject.reason) for reject in rejects] == [("b", RejectReason.NO_WORKER)]
    core.handle(RequestFailed(RequestId("a"), 1, WorkerId("w0"), retriable=True), 0.6)


def test_a_target_that_no_idle_worker_can_meet_is_refused_unless_nobody_asked_for_it(core: RouterCore) -> None:
    refused = the_reject(arrive(core, "a", 0.0, tokens=9000))
    assert (refused.reason, refused.retry_after_s) == (RejectReason.TTFT_INFEASIBLE, None)
    implicit = replace(asks("b", tokens=9000), terms_implicit=True)
    (command,) = core.handle(RequestArrived(implicit), 0.0)
    assert isinstance(command, Dispatch)
    assert not command.decision.promised


def test_a_tpot_that_would_break_is_refused() -> None:
    core = core_with_a_worker()
    tight = make_terms(ttft_s=3.0, tpot_s=0.00115)
    assert dispatched(arrive(core, "a", 0.0, tokens=10, terms=tight)) == ["a"]
    core.handle(FirstToken(RequestId("a"), 1), 0.05)
    commands = arrive(core, "b", 0.1, tokens=10, terms=make_terms(ttft_s=0.001, tpot_s=1.0))
    refused = the_reject(commands)
    assert refused.reason in (RejectReason.TPOT_INFEASIBLE, RejectReason.TTFT_INFEASIBLE)
    core.validate()


def served_by_two(*, share: bool) -> int:
    """Promises that two routers give together, of ten requests each, before anything has ended."""
    cores = [core_with_a_worker(num_workers=2) for _ in range(2)]
    names = ["r0", "r1"]
    promised = 0

    def exchange() -> None:
        reports = [core.report(name, 0.0) for core, name in zip(cores, names, strict=True)]
        for at, core in enumerate(cores):
            core.handle(ReplicasReported((reports[1 - at],) if share else (), 2), 0.0)

    exchange()
    for number in range(10):
        for core, name in zip(cores, names, strict=True):
            commands = arrive(core, f"{name}-{number}", 0.0)
            promised += not any(isinstance(command, Reject) for command in commands)
            if share:
                exchange()
    for core in cores:
        core.validate()
    return promised


def test_limits_hold_for_all_routers_together() -> None:
    """Two workers have computed six prompts after three seconds: so many may be promised, by whomever."""
    alone = core_with_a_worker(num_workers=2)
    commands = [arrive(alone, f"r-{number}", 0.0) for number in range(20)]
    by_one = sum(not any(isinstance(command, Reject) for command in answer) for answer in commands)
    assert 5 <= by_one <= 6
    assert served_by_two(share=True) <= by_one


def test_routers_that_do_not_know_of_each_other_keep_to_their_share() -> None:
    assert served_by_two(share=False) <= 6
