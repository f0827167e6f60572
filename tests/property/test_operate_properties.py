"""What operators' intents and windows of counters do, against naive twins. Numbers: invariants of the module named."""

from collections.abc import Sequence
from random import Random

from hypothesis import given, settings
from hypothesis import strategies as st

from controlplane.counter_window import CounterWindow
from controlplane.gauge_window import GaugeWindow
from kvstore.types import WorkerId
from router.class_counts import ClassCounts
from router.drains import Drains
from router.events import Command, Event
from tests.builders import make_core, make_worker
from tests.histories import CLASSES, History
from workers.membership import Joined, Left
from workers.types import Phase, WorkerState

IDS = [WorkerId(name) for name in "abc"]
PHASES = st.sampled_from([Phase.READY, Phase.READY, Phase.STARTING, Phase.DRAINING])

joins = st.builds(lambda name, phase: Joined(make_worker(name, phase=phase)), st.sampled_from(IDS), PHASES)
leaves = st.builds(lambda name: Left(name, "left"), st.sampled_from(IDS))
wishes = st.frozensets(st.sampled_from(IDS))


@settings(max_examples=300)
@given(st.lists(st.one_of(joins, leaves, wishes), max_size=30))
def test_drains_what_is_passed_on_adds_up_to_leases_with_drains_laid_over(
    history: list[Joined | Left | frozenset[WorkerId]],
) -> None:
    """router/drains.py, 1 and 2."""
    drains, passed_on = Drains(), dict[WorkerId, WorkerState]()
    leases, drained = dict[WorkerId, WorkerState](), frozenset[WorkerId]()

    def told(changes: list[Joined | Left]) -> None:
        for change in changes:
            if isinstance(change, Joined):
                passed_on[change.state.spec.id] = change.state
            else:
                passed_on.pop(change.worker_id, None)

    for step in history:
        before = dict(passed_on)
        match step:
            case Joined(state):
                leases[state.spec.id] = state
                told([drains.on_membership(step)])
            case Left(worker_id):
                leases.pop(worker_id, None)
                told([drains.on_membership(step)])
            case wanted:
                drained = wanted
                changes = drains.on_drained(wanted)
                told(list(changes))
                changed = {name for name in passed_on if passed_on[name] != before[name]}
                assert {change.state.spec.id for change in changes} == changed, "2: these and no others"
        for worker_id, lease in leases.items():
            shown = passed_on[worker_id]
            if lease.phase is Phase.READY and worker_id in drained:
                assert shown.phase is Phase.DRAINING, "1"
            else:
                assert shown == lease, "1"
        assert passed_on.keys() == leases.keys()


@given(st.integers(0, 2**32), st.integers(10, 200))
def test_class_counts_every_arrival_ends_once(seed: int, num_steps: int) -> None:
    """router/class_counts.py, 1 to 4, over random days of a real core."""
    counts = ClassCounts()
    core = make_core(seed)

    def observe(now_s: float, event: Event, commands: Sequence[Command]) -> None:
        counts.observe(now_s, event, commands)
        assert sum(counts.waiting.values()) == core.num_waiting, "4"
        assert all(counts.waiting.values()), "4"

    history = History(core, Random(seed), observe)
    history.run(num_steps)
    assert counts.num_live == len(history.live)
    history.end()
    assert counts.num_live == 0, "3"
    assert counts.waiting == {}, "4"
    assert sum(count.arrived for count in counts.by_class.values()) == history.num_arrived
    assert counts.by_class.keys() <= {terms.class_name for terms in CLASSES}
    for count in counts.by_class.values():
        ended = count.answered + count.failed + count.cancelled + sum(count.rejected.values())
        assert count.arrived == ended, "1"
        assert count.promised_met <= count.promised <= count.judged <= count.answered, "2"
        assert count.promised_met <= count.met <= count.judged, "2"


# Each look: how long after the last, and what each process has counted since the last look, or that it is new.
sources = st.dictionaries(st.sampled_from("ab"), st.tuples(st.booleans(), st.integers(0, 5)), max_size=2)
looks = st.lists(st.tuples(st.sampled_from([0.3, 1.0, 2.5]), sources), min_size=1, max_size=40)


@settings(max_examples=300)
@given(looks, st.sampled_from([2.0, 5.0, 20.0]))
def test_counter_window_is_what_was_counted_in_it(
    history: list[tuple[float, dict[str, tuple[bool, int]]]], asked_s: float
) -> None:
    """controlplane/counter_window.py, 1 to 4: a twin remembers every single count."""
    window = CounterWindow(window_s=20.0, step_s=1.0)
    now_s, counted = 0.0, dict[str, float]()
    known: set[str] = set()
    log: list[tuple[float, float]] = []  # when it was seen, how many
    times: list[float] = []
    for place, (after_s, seen) in enumerate(history):
        now_s += after_s
        rise = 0.0
        for name, (is_new, number) in seen.items():
            if is_new and number < counted.get(name, 0.0):
                counted[name] = float(number)  # it has started again: smaller than it was
                rise += number
                continue
            before = counted.get(name, 0.0)
            counted[name] = before + number
            if name in known or place > 0:  # invariant 2
                rise += number
            known.add(name)
        known |= seen.keys()
        window.observe(now_s, {name: {("n",): counted[name]} for name in seen})
        log.append((now_s, rise))
        times.append(now_s)
        real_s, rises = window.increase(asked_s)
        assert 0.0 <= real_s <= now_s - times[0]
        assert rises.get(("n",), 0.0) == sum(number for at_s, number in log if at_s > now_s - real_s + 1e-9)
        assert all(rise > 0 for rise in rises.values()), "1"
        if now_s - times[0] >= asked_s + 3.5:
            assert real_s >= asked_s - 1e-9, "it reaches as far back as was asked, where there is so much"
    assert len(window._looks) <= 20 / 1.0 + 3, "4"


@given(st.lists(st.sampled_from("abcde"), max_size=60))
def test_counter_window_keeps_the_totals_that_rose_last(rising: list[str]) -> None:
    """controlplane/counter_window.py, 5."""
    window, counted = CounterWindow(window_s=20.0, max_keys=3), dict[str, float]()
    window.observe(0.0, {})
    for place, name in enumerate(rising):
        counted[name] = counted.get(name, 0.0) + 1.0
        window.observe(place + 1.0, {"one": {(key,): value for key, value in counted.items()}})
        assert len(window._totals) <= 3
        assert window.increase(1.0)[1].get((name,), 1.0) == 1.0
    newest = list(dict.fromkeys(reversed(rising)))[:3]
    assert window._totals.keys() == {(name,) for name in newest}


levels = st.dictionaries(st.sampled_from("ab"), st.integers(0, 3), max_size=2)


@settings(max_examples=300)
@given(
    st.lists(st.tuples(st.sampled_from([0.0, 0.3, 1.0, 2.5]), levels), min_size=1, max_size=40),
    st.sampled_from([2.0, 5.0, 20.0]),
    st.sampled_from([0.0, 4.0]),
)
def test_gauge_window_knows_the_most_there_was(
    history: list[tuple[float, dict[str, int]]], asked_s: float, ago_s: float
) -> None:
    """controlplane/gauge_window.py, 1 and 2: a twin remembers every look, at the time at which its step began."""
    window, now_s, began_s = GaugeWindow(20.0), 0.0, float("-inf")
    log: list[tuple[float, dict[str, int]]] = []
    for after_s, seen in history:
        now_s += after_s
        began_s = began_s if now_s - began_s < 1.0 else now_s
        log.append((began_s, seen))
        window.observe(now_s, seen)
        until_s = began_s - ago_s
        wanted: dict[str, float] = {}
        for at_s, numbers in log:
            if until_s - asked_s < at_s <= until_s and at_s >= began_s - 20.0:
                wanted |= {key: number for key, number in numbers.items() if number > wanted.get(key, 0.0)}
        assert window.most(asked_s, until_s if ago_s else None) == wanted, "2"
    assert len(window._looks) <= 22, "1"
