"""The simulator itself: nothing is lost, nothing is made up, and the same seed gives the same run."""

import math
from collections.abc import Callable
from dataclasses import replace
from heapq import heappop, heappush
from itertools import count
from random import Random

import pytest

from kvstore.types import RequestId
from router.baselines import BASELINES
from router.choice.policy import LeastCost
from tests.builders import make_terms
from tests.sim.block_cache import BlockCache
from tests.sim.clients import Clients, Outcome
from tests.sim.engine import Engine, Job
from tests.sim.fleet import Fleet
from tests.sim.hardware import Hardware
from tests.sim.report import report
from tests.sim.simulation import PolicyFactory, Simulation
from tests.sim.workload import Arrival, Lengths, Shape, generate

EXACT = Hardware(noise=0.0)
SHAPE = Shape(rate_per_s=30, duration_s=8, num_systems=5, turns=2, think_s=0.5, output=Lengths(40))


class Clock:
    """A heap of calls."""

    def __init__(self) -> None:
        self.now_s = 0.0
        self._heap: list[tuple[float, int, Callable[[float], None]]] = []
        self._numbers = count()

    def at(self, time_s: float, call: Callable[[float], None]) -> None:
        heappush(self._heap, (time_s, next(self._numbers), call))

    def run(self) -> None:
        while self._heap:
            self.now_s, _, call = heappop(self._heap)
            call(self.now_s)


class Bench:
    """One engine, and when its jobs had their first token and their last."""

    def __init__(self, hardware: Hardware = EXACT) -> None:
        self.clock = Clock()
        self.engine = Engine(hardware, self.clock.at, Random(0))
        self.first_at_s: dict[str, float] = {}
        self.done_at_s: dict[str, float] = {}
        self.jobs: dict[str, Job] = {}

    def submit(self, name: str, prompt: int, output: int, at_s: float, chain: tuple[int, ...] = ()) -> None:
        def first(job: Job, now_s: float) -> None:
            self.first_at_s[job.request_id] = now_s

        def done(job: Job, now_s: float) -> None:
            self.done_at_s[job.request_id] = now_s

        job = self.jobs[name] = Job(RequestId(name), 1, prompt, output, chain, first, done)
        self.clock.at(at_s, lambda now_s: self.engine.submit(job, now_s))


def simulate(policy: PolicyFactory, fleet: Fleet, arrivals: list[Arrival], seed: int = 0) -> Simulation:
    simulation = Simulation(policy, fleet, seed=seed)
    simulation.run(arrivals)
    return simulation


def facts(outcomes: list[Outcome]) -> list[tuple[float, float, float, int, str]]:
    return [
        (o.first_arrived_at_s, o.first_token_at_s, o.done_at_s, o.cached_tokens, o.decision.decode.spec.id)
        for o in outcomes
        if o.decision is not None
    ]


def test_a_lone_request_takes_what_the_roofline_says() -> None:
    bench = Bench()
    bench.submit("a", 1000, 3, 1.0)
    bench.clock.run()
    prefill_s = EXACT.step_s(1000, 1000 * 500, 0, 0)
    assert bench.first_at_s["a"] == pytest.approx(1.0 + prefill_s)
    assert bench.done_at_s["a"] == pytest.approx(bench.first_at_s["a"] + 2 * EXACT.step_s(0, 0, 1, 1001))


def test_a_long_prompt_is_computed_in_chunks_beside_the_others() -> None:
    bench = Bench(replace(EXACT, max_batched_tokens=512))
    bench.submit("a", 100, 200, 0.0)
    bench.submit("b", 2000, 1, 0.1)
    bench.clock.run()
    engine = bench.engine
    assert engine.prefilled_tokens == 2100
    assert bench.done_at_s["b"] - 0.1 > 4 * EXACT.step_s(500, 0, 1, 0)
    assert bench.done_at_s["a"] > bench.done_at_s["b"]  # nobody was kept from decoding
    assert engine.itl_count == 199


def test_an_arrival_waits_for_the_step_under_way_and_not_for_the_leap() -> None:
    bench = Bench()
    bench.submit("a", 100, 1000, 0.0)
    bench.submit("b", 100, 1, 1.0)
    bench.clock.run()
    assert bench.first_at_s["b"] - 1.0 < 2 * EXACT.step_s(100, 0, 1, 1100) + EXACT.step_s(0, 0, 1, 1100)
    assert bench.engine.itl_count == 999


def test_a_prefix_is_found_by_the_next_request_and_its_last_token_is_computed() -> None:
    bench = Bench()
    chain = tuple(range(10))
    bench.submit("a", 640, 1, 0.0, chain)
    bench.submit("b", 640, 1, 1.0, chain)
    bench.submit("c", 650, 1, 2.0, chain)
    bench.clock.run()
    assert [bench.jobs[name].cached_tokens for name in "abc"] == [0, 576, 640]


def test_a_sequence_waits_for_kv_room_and_then_runs() -> None:
    bench = Bench(replace(EXACT, kv_tokens=1280))
    bench.submit("a", 640, 100, 0.0)
    bench.submit("b", 640, 100, 0.0)
    bench.clock.run()
    assert bench.first_at_s["b"] > bench.done_at_s["a"]
    assert bench.engine.cache.used_blocks == 0


def test_blocks_are_evicted_children_first_and_the_oldest_chain_first() -> None:
    cache = BlockCache(6)
    for chain in ([1, 2, 3], [1, 4, 5]):
        held = chain[: cache.match(chain)]
        assert cache.take(held, 3 - len(held))
        cache.commit(chain[len(held) :])
        cache.release(chain, 0)
    assert cache.changes() == ([], [1, 2, 3, 4, 5])
    assert cache.take([], 5)
    assert cache.changes() == ([3, 2, 5, 4], [])
    assert not cache.take([1], 1)
    assert cache.take([1], 0)
    assert cache.used_blocks == 6


@pytest.mark.parametrize(
    "fleet", [Fleet(mixed=3), Fleet(prefill=1, decode=2), Fleet(mixed=2, num_routers=3)], ids=["mixed", "pd", "routers"]
)
def test_every_request_has_one_outcome_and_every_token_is_computed_once(fleet: Fleet) -> None:
    arrivals = generate(SHAPE, 1)
    simulation = simulate(LeastCost, fleet, arrivals)
    turns = []
    for arrival in arrivals:
        turn = arrival.turn
        while True:
            turns.append(turn)
            if turn.next is None:
                break
            turn = turn.next
    assert len(simulation.outcomes) == len(turns)
    assert {id(o.turn) for o in simulation.outcomes} == {id(turn) for turn in turns}
    assert all(o.first_arrived_at_s < o.first_token_at_s <= o.done_at_s for o in simulation.outcomes)
    engines = [worker.engine for worker in simulation.workers.values()]
    assert all(engine.running_seqs == engine.waiting_seqs == engine.cache.used_blocks == 0 for engine in engines)
    handed = sum(o.decision is not None and o.decision.prefill is not None for o in simulation.outcomes)
    computed = sum(o.turn.num_prompt_tokens - o.cached_tokens for o in simulation.outcomes)
    assert sum(engine.prefilled_tokens for engine in engines) == computed + handed  # a received prompt's last token
    assert (handed > 0) == (fleet.prefill > 0)


@pytest.mark.parametrize("name", ["least_cost", "dynamo", "preble"])
def test_a_run_is_repeatable(name: str) -> None:
    policy = LeastCost if name == "least_cost" else BASELINES[name]
    fleet, arrivals = Fleet(mixed=3, num_routers=2), generate(SHAPE, 1)
    assert facts(simulate(policy, fleet, arrivals).outcomes) == facts(simulate(policy, fleet, arrivals).outcomes)
    assert facts(simulate(policy, fleet, arrivals).outcomes) != facts(simulate(policy, fleet, arrivals, 1).outcomes)


def test_what_routers_predict_is_what_engines_hold_once_reports_have_come() -> None:
    shape = replace(SHAPE, rate_per_s=2, duration_s=30)
    simulation = simulate(LeastCost, Fleet(mixed=2, index_delay_s=0.0), generate(shape, 1))
    predicted = [(o.decision.forecast.overlap_tokens, o.cached_tokens) for o in simulation.outcomes if o.decision]
    assert sum(a == b for a, b in predicted) >= 0.97 * len(predicted)  # else two that began at the same time


def test_the_report_counts_each_class() -> None:
    simulation = simulate(LeastCost, Fleet(mixed=3), generate(SHAPE, 1))
    said = report(simulation)
    assert list(said.classes) == ["chat"]
    assert said.total.asked == said.total.served == len(simulation.outcomes)
    assert said.total.good == sum(o.is_good for o in simulation.outcomes)
    assert 0.0 < said.hit_rate < 1.0
    assert said.imbalance >= 1.0
    assert said.total.rejected == {}
    assert not math.isnan(said.total.ttft_s[2])


def test_twice_the_load_keeps_promises_and_places_and_starves_no_class() -> None:
    """Prompts and answers share steps, answers differ in length, prompts are found in caches or not."""
    classes = [
        (make_terms(class_name="interactive", ttft_s=0.5, tpot_s=0.04, value=4.0, deadline_s=30.0), 0.3),
        (make_terms(class_name="chat", ttft_s=2.0, tpot_s=0.06, value=2.0), 0.5),
        (make_terms(class_name="batch", ttft_s=20.0, tpot_s=0.2, deadline_s=120.0, best_effort_ok=True), 0.2),
    ]
    shape = Shape(105.0, 20.0, prompt=Lengths(600), num_systems=50, system=Lengths(3000, 0.4), classes=classes)
    simulation = Simulation(LeastCost, Fleet(mixed=4), clients=Clients(admission=True, come_back=3))
    simulation.run(generate(shape, 1))
    said = report(simulation, from_s=8.0)
    assert said.total.promised > 500 and said.total.came_back > 100
    assert said.total.promises_kept >= 0.97
    assert said.total.truthful >= 0.9
    assert all(found.goodput_per_s > 8.0 for found in said.classes.values())


def test_nobody_is_asked_for_terms_where_admission_is_off() -> None:
    simulation = Simulation(LeastCost, Fleet(mixed=1), clients=Clients(admission=False))
    outcomes = simulation.run(generate(replace(SHAPE, rate_per_s=200, duration_s=2), 1))
    assert all(o.reject is None and o.decision is not None and not o.decision.promised for o in outcomes)
