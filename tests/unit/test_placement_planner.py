"""Plans on real and made loads: how good, how many moves, for whom."""

import numpy as np
import pytest

from controlplane.placement.cost import Aim, Costs
from controlplane.placement.eplb import eplb_global, keep_places, linear
from controlplane.placement.exact import exact_equal
from controlplane.placement.objective import Prices, balancedness, dispatch_share, moved_slots, rank_loads
from controlplane.placement.planner import plan
from controlplane.placement.simulate import served
from controlplane.placement.types import EMPTY, Placement, PlacementError, Rank, Scenario, Topology, scenario_tokens
from controlplane.placement.unseen import plan_unseen, with_unseen
from tests.placement_cases import domain_loads, domains, skewed

NO_DISPATCH = Prices(token_bytes=0.0)
EIGHT = Topology.even(1, 8, 9)


@pytest.mark.parametrize("domain", ["chat", "code", "law", "prose"])
def test_one_domain_is_served_evenly(domain: str) -> None:
    found = plan([Scenario(domain, domains()[domain])], EIGHT, NO_DISPATCH)
    assert found.balancedness[domain].mean() >= 0.99
    assert found.total_s <= found.bound_s / 0.99


def test_four_domains_are_served_evenly_at_once() -> None:
    scenarios = [Scenario(name, load) for name, load in domains().items()]
    found = plan(scenarios, EIGHT, NO_DISPATCH)
    mean = sum(load for load in domains().values())
    eplb = eplb_global(np.asarray(mean), EIGHT)
    assert min(float(values.min()) for values in found.balancedness.values()) >= 0.94
    assert min(balancedness(eplb, EIGHT, load).min() for load in domains().values()) < 0.75


def test_few_moves_bring_most_of_the_gain() -> None:
    loads = domains()
    before = plan([Scenario("code", loads["code"])], EIGHT, NO_DISPATCH).placement
    now = [Scenario("law", loads["law"])]
    few = plan(now, EIGHT, NO_DISPATCH, previous=before, max_moves=24)
    eplb = keep_places(eplb_global(loads["law"], EIGHT), before)
    assert few.moved_slots <= 24 < moved_slots(eplb, before).sum() / 5
    old = balancedness(before, EIGHT, loads["law"]).mean()
    assert few.balancedness["law"].mean() > old + 0.8 * (1.0 - old)


def test_dear_moves_are_not_made() -> None:
    loads = domains()
    before = plan([Scenario("code", loads["code"])], EIGHT, NO_DISPATCH).placement
    dear = Prices(expert_bytes=1e15, token_bytes=0.0)
    found = plan([Scenario("law", loads["law"])], EIGHT, dear, previous=before)
    assert found.moved_slots == 0 and found.total_s == found.kept_s
    assert np.array_equal(found.placement.slots, before.slots)


def test_slow_rank_gets_less() -> None:
    topology = Topology((Rank(0, speed=0.5), *(Rank(0) for _ in range(7))), 9)
    found = plan([Scenario("law", domains()["law"])], topology, NO_DISPATCH)
    tokens = rank_loads(found.placement, topology, domains()["law"]) * topology.speeds
    assert found.balancedness["law"].min() > 0.95
    assert (tokens[:, 0] < 0.56 * tokens[:, 1:].mean(axis=1)).all()


def test_dead_rank_is_replaced_from_redundant_slots() -> None:
    loads = domains()
    before = plan([Scenario("law", loads["law"])], Topology.even(1, 9, 9), NO_DISPATCH).placement
    broken = Topology.even(1, 9, 9).with_dead([rank != 4 for rank in range(9)])
    needed = plan([Scenario("law", loads["law"])], broken, NO_DISPATCH, previous=before, max_moves=0)
    assert (needed.placement.slots[:, 36:45] == EMPTY).all()
    assert needed.moved_slots == needed.needed_slots > 0
    better = plan([Scenario("law", loads["law"])], broken, NO_DISPATCH, previous=before)
    assert better.balancedness["law"].mean() > max(0.98, needed.balancedness["law"].mean())


def test_dear_nodes_draw_copies_of_busy_experts_apart() -> None:
    topology, tokens = Topology.even(2, 8, 5), skewed(1, num_layers=4, num_experts=32)
    cheap, dear = (
        plan([Scenario("skewed", tokens)], topology, Prices(token_bytes=size)).placement for size in (0.0, 1e6)
    )
    assert dispatch_share(dear, topology, tokens).mean() < dispatch_share(cheap, topology, tokens).mean()


def test_near_the_exact_solver() -> None:
    topology, gaps = Topology.even(1, 3, 3), []
    for seed in range(6):
        tokens = skewed(seed, num_layers=1, num_experts=7)
        best = exact_equal(tokens, topology).stragglers
        found = plan([Scenario("skewed", tokens)], topology, NO_DISPATCH, aim=Aim(risk=0.0))
        gaps.append(float((rank_loads(found.placement, topology, tokens).max(axis=1) / best).max()) - 1.0)
    assert min(gaps) > -1e-6
    assert max(gaps) < 0.12 and np.mean(gaps) < 0.05


def test_best_split_serves_at_least_as_evenly() -> None:
    scenarios = [Scenario(name, load) for name, load in domains().items()]
    equal, best = (plan(scenarios, EIGHT, NO_DISPATCH, aim=Aim(splits_best=splits)) for splits in (False, True))
    assert best.total_s <= equal.total_s
    assert best.placement.shares is not None and equal.placement.shares is None


def test_moves_are_dearer_from_another_node() -> None:
    topology = Topology.even(2, 4, 2)
    before = Placement(np.array([[0, 1, 2, 3, 4, 5, 6, 7]]), 8, 2)
    costs = Costs.of([Scenario("even", np.ones((1, 8)))], topology, Prices(), before, Aim())
    assert costs.moving_s[0, 0, 0] == 0.0
    assert 0.0 < costs.moving_s[0, 0, 1] < costs.moving_s[0, 0, 2] == costs.moving_s[0, 0, 3]


def _apart(seed: int = 0) -> list[Scenario]:
    """Each load busies experts that the others leave idle."""
    busy = np.kron(np.eye(4), np.full(16, 1.0))[:, None, :]
    noise = np.random.default_rng(seed).lognormal(0.0, 0.5, (4, 3, 64))
    return [Scenario(str(number), load) for number, load in enumerate((0.2 + busy) * noise)]


def test_unseen_loads_are_of_the_kind_seen() -> None:
    seen = _apart()[:3]
    found = with_unseen(seen, num_loads=12)
    assert len(found) == 15 and sum(item.weight for item in found) == pytest.approx(1.0)
    for number, item in enumerate(found[3:]):
        source = seen[number % 3].tokens
        assert np.allclose(np.sort(item.tokens, axis=1), np.sort(source / source.sum(axis=1, keepdims=True), axis=1))
    again = with_unseen(seen, num_loads=12)
    assert all(np.array_equal(a.tokens, b.tokens) for a, b in zip(found, again, strict=True))


def test_unseen_load_is_served_better_where_idle_experts_wait_for_it() -> None:
    gains = []
    for seed in range(5):
        *seen, unseen = _apart(seed)
        plain = plan(seen, EIGHT, NO_DISPATCH).placement
        guarded = plan_unseen(seen, EIGHT, NO_DISPATCH).placement
        plain_is, guarded_is = (served(made, EIGHT, unseen.tokens, splits_best=True) for made in (plain, guarded))
        gains.append(float((guarded_is - plain_is).mean()))
    assert np.mean(gains) > 0.05


def test_after_loads_that_are_alike_the_next_is_served_better_where_busy_experts_wait_for_it() -> None:
    gains = []
    for seed in range(5):
        *seen, unseen = domain_loads(seed)
        mean = np.asarray(sum(item.tokens for item in seen))
        found = plan_unseen(seen, EIGHT, NO_DISPATCH).placement
        ours, eplb = (
            served(made, EIGHT, unseen.tokens, splits_best=True) for made in (found, eplb_global(mean, EIGHT))
        )
        gains.append(float((ours - eplb).mean()))
    assert np.mean(gains) > 0.02


def test_the_more_loads_are_alike_the_more_the_next_is_like_them() -> None:
    likeness = []
    for concentration in (0.3, 4.0, 400.0):
        seen = [Scenario(str(seed), skewed(1, 3, 64) * skewed(seed, 3, 64, concentration)) for seed in range(3)]
        mean = scenario_tokens(seen).mean(axis=0).ravel()
        made = [item.tokens.ravel() for item in with_unseen(seen)[3:]]
        likeness.append(float(np.mean([np.corrcoef(mean, one)[0, 1] for one in made])))
    assert likeness == sorted(likeness) and likeness[-1] > 0.95


def test_of_candidates_the_best_is_taken_as_it_is() -> None:
    loads = domains()
    law = [Scenario("law", loads["law"])]
    good, bad = (plan([Scenario("", loads[name])], EIGHT, NO_DISPATCH).placement for name in ("law", "code"))
    found = plan(law, EIGHT, NO_DISPATCH, candidates=[bad.slots, good.slots])
    assert np.array_equal(found.placement.slots, good.slots)
    worse = plan(law, EIGHT, NO_DISPATCH, candidates=[bad.slots])
    assert np.array_equal(worse.placement.slots, eplb_global(loads["law"], EIGHT).slots)


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"max_moves": -1}, "max_moves"),
        ({"previous": linear(1, 8, Topology.even(1, 4, 2))}, "previous plan has shape"),
        ({"previous": linear(2, 7, Topology.even(1, 4, 3))}, "7 experts"),
    ],
)
def test_refuses_what_does_not_fit(changes: dict[str, object], match: str) -> None:
    tokens = np.ones((2, 8))
    with pytest.raises(PlacementError, match=match):
        plan([Scenario("even", tokens)], Topology.even(1, 4, 3), Prices(), **changes)  # type: ignore[arg-type]


def test_refuses_too_few_slots() -> None:
    with pytest.raises(PlacementError, match="8 experts need as many slots"):
        plan([Scenario("even", np.ones((1, 8)))], Topology.even(1, 3, 2), Prices())


def test_refuses_aims_that_mean_nothing() -> None:
    for change in ({"risk": 1.5}, {"horizon_s": 0.0}, {"num_groups": 0}):
        with pytest.raises(PlacementError):
            Aim(**change)
