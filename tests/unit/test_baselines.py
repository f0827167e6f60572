"""Each baseline's rule, on a fleet small enough to see the answer."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from random import Random

import pytest
from msgspec import structs

from kvstore.types import RequestId, WorkerId
from router.baselines import BASELINES
from router.baselines.cache_aware import RayPrefix
from router.baselines.papers import Mooncake
from router.baselines.pools import PerPool
from router.choice.cost import Costs
from router.choice.interfaces import Pick, RoutingPolicy
from router.choice.view import View
from router.fleet.prefill_work import PrefillWork
from router.fleet.table import FleetTable
from router.types import NO_OVERLAP, Overlap, Request
from tests.builders import make_decode, make_overlap, make_prefill, make_request, make_table, make_view, make_worker
from workers.types import WorkerState

PROMPT = 320  # ten blocks of the builders' overlap
SEEDS = range(20)


def pick(policy: RoutingPolicy, view: View) -> tuple[WorkerId | None, WorkerId]:
    """Who was picked, by id."""
    picked = policy.pick(view, Costs(view, 8))
    assert picked is not None
    prefill = None if picked.prefill is None else view.prefill.ids[picked.prefill]
    return prefill, view.decode.ids[picked.decode]


def picks(
    name: str, table: FleetTable, blocks: Mapping[int, int] | None = None, request: Request | None = None
) -> set[tuple[WorkerId | None, WorkerId]]:
    """What a policy picks under many seeds, each from the start."""
    request = request or make_request(num_prompt_tokens=PROMPT)
    overlap = make_overlap(blocks) if blocks else NO_OVERLAP
    return {pick(BASELINES[name](Random(seed)), make_view(table, request, overlap)) for seed in SEEDS}


def mixed(*running_seqs: int) -> FleetTable:
    """Workers m0, m1, ... with so many sequences."""
    return make_table(*(make_worker(f"m{i}", running_seqs=seqs) for i, seqs in enumerate(running_seqs)))


def with_kv(worker: WorkerState, kv_tokens: int) -> WorkerState:
    load = replace(worker.load, kv_blocks_used=kv_tokens // 32, kv_tokens_used=kv_tokens)
    return replace(worker, load=load)


def promise(table: FleetTable, worker_id: str, tokens: int, work_s: float, number: int = 0) -> None:
    """A prompt that is not computed yet."""
    table.promise_prefill(
        WorkerId(worker_id), RequestId(f"x{number}"), PrefillWork(tokens, 0.0, work_s), 0.0, is_observed=True
    )


@pytest.mark.parametrize("name", BASELINES)
def test_nobody_can_decode(name: str) -> None:
    view = make_view(make_table(make_prefill()), make_request())
    assert BASELINES[name](Random(0)).pick(view, Costs(view, 8)) is None


@pytest.mark.parametrize("name", BASELINES)
def test_a_prefill_pool_is_always_used(name: str) -> None:
    table = make_table(make_prefill(), make_decode())
    promise(table, "prefill-1", 10**6, 1000.0)
    assert picks(name, table) == {("prefill-1", "decode-1")}


def test_round_robin_takes_each_in_turn() -> None:
    policy = BASELINES["round_robin"](Random(0))
    view = make_view(mixed(9, 0, 0), make_request())
    assert [pick(policy, view)[1] for _ in range(4)] == ["m0", "m1", "m2", "m0"]


def test_round_robin_has_a_turn_for_each_pool() -> None:
    policy = BASELINES["round_robin"](Random(0))
    view = make_view(make_table(make_prefill("p0"), make_prefill("p1"), make_decode("d0"), make_decode("d1")))
    assert [pick(policy, view) for _ in range(2)] == [("p0", "d0"), ("p1", "d1")]


def test_least_loaded_has_the_fewest_requests() -> None:
    assert picks("least_loaded", mixed(3, 1, 2)) == {(None, "m1")}
    assert picks("least_loaded", mixed(3, 1, 1)) == {(None, "m1"), (None, "m2")}


def test_a_prefill_worker_is_loaded_by_its_prompts() -> None:
    table = make_table(make_prefill("p0"), make_prefill("p1"), make_decode())
    promise(table, "p0", 10, 0.1)
    assert picks("least_loaded", table) == {("p1", "decode-1")}


def test_power_of_two_never_takes_the_worst() -> None:
    policy = BASELINES["power_of_two"](Random(0))
    view = make_view(mixed(0, 5, 9), make_request())
    seen = Counter(pick(policy, view)[1] for _ in range(300))
    assert set(seen) == {"m0", "m1"}
    assert seen[WorkerId("m0")] > seen[WorkerId("m1")] > 50  # two pairs of three have m0


def test_a_session_stays_and_a_leaving_worker_moves_only_its_own() -> None:
    sessions = [structs.replace(make_request(), session=f"s{i}") for i in range(60)]
    workers = [make_worker(f"m{i}", running_seqs=i) for i in range(4)]
    policy = BASELINES["session_hash"](Random(0))

    def homes(table: FleetTable) -> dict[str, WorkerId]:
        return {request.session: pick(policy, make_view(table, request))[1] for request in sessions}

    before, after = homes(make_table(*workers)), homes(make_table(*workers[:3]))
    assert homes(make_table(*workers)) == before
    assert set(before.values()) == {"m0", "m1", "m2", "m3"}
    assert {s: home for s, home in before.items() if home != "m3"} == {
        s: home for s, home in after.items() if before[s] != "m3"
    }
    assert picks("session_hash", make_table(*workers)) == {(None, "m0")}  # without a session: the least loaded


def test_dynamo_weighs_uncached_prefill_against_decode_in_one_unit() -> None:
    request = make_request(num_prompt_tokens=PROMPT)
    workers = [with_kv(make_worker("m0"), 288), with_kv(make_worker("m1"), 0)]
    assert picks("dynamo", make_table(*workers), {0: 8}, request) == {(None, "m1")}  # 64 + 288 > 320
    assert picks("dynamo", make_table(*workers), {0: 9}, request) == {(None, "m0"), (None, "m1")}  # 32 + 288 = 320
    assert picks("dynamo", make_table(*workers[1:], make_worker("m2")), {0: 1}, request) == {(None, "m1")}


def test_dynamo_counts_the_prompts_on_their_way() -> None:
    table = mixed(0, 0)
    promise(table, "m0", 500, 0.1)
    assert picks("dynamo", table) == {(None, "m1")}
    assert picks("dynamo", table, {0: 9}) == {(None, "m1")}


def test_dynamo_gives_decode_workers_no_credit_for_overlap() -> None:
    table = make_table(make_prefill(), with_kv(make_decode("d0"), 64), make_decode("d1"))
    assert picks("dynamo", table, {1: 9}) == {("prefill-1", "d1")}


def test_llmd_sums_queue_kv_and_prefix() -> None:
    table = mixed(0, 0)
    assert picks("llmd", table, {1: 5}) == {(None, "m1")}
    promise(table, "m1", 500, 0.1)  # the longest queue loses 2, half a prefix wins 1.5
    assert picks("llmd", table, {1: 5}) == {(None, "m0")}
    assert picks("llmd", table, {1: 9}) == {(None, "m1")}  # 2.7


def test_llmd_prefers_free_kv() -> None:
    table = make_table(with_kv(make_worker("m0"), 1600), make_worker("m1"))
    assert picks("llmd", table, {0: 1, 1: 1}) == {(None, "m1")}


def test_llmd_spreads_cold_requests() -> None:
    policy = BASELINES["llmd"](Random(0))
    view = make_view(mixed(0, 0, 0), make_request())
    assert {pick(policy, view)[1] for _ in range(3)} == {"m0", "m1", "m2"}
    first, second = ([pick(policy, view)[1] for _ in range(3)] for _ in range(2))
    assert first == second  # each again in the order of its last


def test_llmd_decode_workers_are_scored_by_active_requests_and_prefix() -> None:
    decode = [make_worker("d0", make_decode().spec.role, running_seqs=4), make_decode("d1")]
    table = make_table(make_prefill(), *decode)
    assert picks("llmd", table) == {("prefill-1", "d1")}
    assert picks("llmd", table, {1: 6}) == {("prefill-1", "d1")}  # 1.8 of prefix against 2 of load
    assert picks("llmd", table, {1: 8}) == {("prefill-1", "d0")}


@pytest.mark.parametrize(("name", "most_even"), [("sglang", 64), ("vllm_router", 32)])
def test_cache_aware_follows_the_match_until_load_is_unequal(name: str, most_even: int) -> None:
    assert picks(name, mixed(most_even, 0), {0: 6}) == {(None, "m0")}
    assert picks(name, mixed(most_even + 1, 0), {0: 6}) == {(None, "m1")}
    assert picks(name, mixed(1001, 800), {0: 6}) == {(None, "m1") if name == "vllm_router" else (None, "m0")}


def test_below_the_threshold_sglang_takes_the_smallest_tree_and_vllm_router_the_shortest_queue() -> None:
    table = make_table(make_worker("m0", running_seqs=1), with_kv(make_worker("m1"), 64))
    assert picks("sglang", table, {1: 3}) == {(None, "m0")}
    assert picks("sglang", table, {1: 4}) == {(None, "m1")}
    assert picks("vllm_router", mixed(1, 0, 2), {2: 5}) == {(None, "m1")}
    assert picks("vllm_router", mixed(1, 0, 2), {2: 6}) == {(None, "m2")}


def test_ray_takes_the_least_loaded_of_the_best_matches() -> None:
    table = mixed(7, 500, 3, 0)
    assert picks("ray_prefix", table, {0: 1, 1: 1}) == {(None, "m0")}
    assert picks("ray_prefix", table, {0: 1, 1: 9}) == {(None, "m1")}  # its imbalance threshold is infinite


def test_ray_takes_the_smallest_tree_without_a_match_and_the_better_of_two_where_load_is_unequal() -> None:
    table = make_table(with_kv(make_worker("m0"), 64), make_worker("m1", running_seqs=9), make_worker("m2"))
    assert picks("ray_prefix", table) == {(None, "m2")}
    policy = RayPrefix(Random(0), imbalanced_threshold=5)
    view = make_view(table, make_request(num_prompt_tokens=PROMPT), make_overlap({1: 9}))
    assert {policy(view, view.decode) for _ in range(50)} == {0, 2}


def test_mooncake_takes_the_least_ttft_and_the_shortest_step() -> None:
    table = make_table(make_prefill("p0"), make_prefill("p1"), make_decode("d0"), make_worker("d1", running_seqs=5))
    promise(table, "p0", 300, 0.03)
    assert picks("mooncake", table) == {("p1", "d0")}
    assert picks("mooncake", table, {0: 9}) == {("p0", "d0")}  # 288 cached tokens are worth 58 ms


def test_mooncake_copies_a_prefix_that_is_much_longer_elsewhere() -> None:
    table = make_table(make_prefill("p0"), make_prefill("p1"), make_decode())
    promise(table, "p0", 300, 0.03)
    view = make_view(table, make_request(num_prompt_tokens=PROMPT), make_overlap({0: 9, 1: 3}))
    assert pick(Mooncake(Random(0), kvcache_balancing_threshold=4.0), view)[0] == "p0"
    assert pick(Mooncake(Random(0), kvcache_balancing_threshold=2.0), view)[0] == "p1"


def test_preble_exploits_a_long_prefix_and_explores_else() -> None:
    table = mixed(0, 0)

    def first_picks(blocks: int) -> list[WorkerId]:
        policy = BASELINES["preble"](Random(0))
        request = make_request(num_prompt_tokens=PROMPT)
        view = make_view(table, request, make_overlap({0: blocks}))
        return [pick(policy, view)[1] for _ in range(3)]

    assert first_picks(6) == ["m0", "m0", "m0"]
    assert first_picks(4) == ["m0", "m1", "m0"]  # own prefill counts, and so does what was sent before


def test_preble_forgets_after_three_minutes() -> None:
    policy = BASELINES["preble"](Random(0))
    table, request = mixed(0, 0), make_request(num_prompt_tokens=PROMPT)

    def at(now_s: float, overlap: Overlap = NO_OVERLAP) -> WorkerId:
        return pick(policy, make_view(table, request, overlap, now_s))[1]

    assert at(0.0, make_overlap({0: 9})) == "m0"
    assert at(179.0) == "m1"
    assert at(180.5) == "m0"  # only m1's work is remembered


def test_pools_have_their_own_rules() -> None:
    policy = PerPool(mixed=lambda *_: 0, prefill=lambda *_: 1, decode=lambda *_: 2)
    decode = [make_decode(f"d{i}") for i in range(3)]
    view = make_view(make_table(*decode))
    assert policy.pick(view, Costs(view, 8)) == Pick(None, 0)
    view = make_view(make_table(make_prefill("p0"), make_prefill("p1"), *decode))
    assert policy.pick(view, Costs(view, 8)) == Pick(1, 2)
