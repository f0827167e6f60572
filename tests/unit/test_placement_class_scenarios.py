"""Loads that a change of the mix of classes would bring, and what planning for them is worth."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from controlplane.placement.class_profiles import ClassProfiles, Profiles
from controlplane.placement.class_scenarios import class_scenarios
from controlplane.placement.cost import Aim
from controlplane.placement.eplb import linear
from controlplane.placement.objective import Prices
from controlplane.placement.rebalance import Rebalancer
from controlplane.placement.simulate import Ours, replay
from controlplane.placement.types import Placement, Tokens, Topology
from tests.placement_cases import domains

EIGHT = Topology.even(1, 8, 9)
PRICES = Prices(expert_bytes=12.6e6, token_bytes=0.0)
WINDOW_S = 60.0
NAMES = tuple(domains())
TRUE = np.stack([load / load.sum(axis=1, keepdims=True) for load in domains().values()])
PARTS = np.array([0.6, 0.39, 0.01, 0.0])
KNOWN = Profiles(NAMES, TRUE, np.ones(len(NAMES)), PARTS, np.tensordot(PARTS, TRUE, 1))


def test_each_class_may_ask_more() -> None:
    chat, code, law = class_scenarios(KNOWN, 50.0 * TRUE[0])
    assert [item.name for item in (chat, code, law)] == ["more chat", "more code", "more law"], "prose has faded"
    assert {item.weight for item in (chat, code, law)} == {0.0}
    assert np.allclose(chat.tokens, TRUE[0])
    assert np.allclose(code.tokens, 0.5 * TRUE[0] + 0.5 * TRUE[1])
    _, alone, _ = class_scenarios(KNOWN, TRUE[0], reach=1.0)
    assert np.allclose(alone.tokens, TRUE[1])


def test_one_class_alone_says_nothing() -> None:
    lonely = replace(KNOWN, parts=np.array([1.0, 0.001, 0.0, 0.0]))
    assert class_scenarios(lonely, TRUE[0]) == []


@dataclass
class ByClass:
    """The rebalancer, told the mix of every window."""

    rebalancer: Rebalancer
    mixes: Sequence[Mapping[str, float]]
    profiles: ClassProfiles = field(default_factory=lambda: ClassProfiles(3600.0))
    windows: int = 0

    def after(self, tokens: Tokens, current: Placement) -> Placement:
        at_s = WINDOW_S * self.windows
        self.profiles.add(tokens, self.mixes[self.windows], at_s)
        self.windows += 1
        found = self.profiles.estimate()
        assert found is not None
        self.rebalancer.placement = current
        self.rebalancer.observe(tokens, at_s, WINDOW_S, class_scenarios(found, tokens))
        return replace(self.rebalancer.placement, shares=None)


def test_plans_for_classes_serve_a_changing_mix_better_and_move_less() -> None:
    rng = np.random.default_rng(0)
    mixes = [rng.dirichlet([1.0] * len(NAMES)) for _ in range(24)]
    windows = [
        np.stack([rng.multinomial(50_000, row / row.sum()) for row in np.tensordot(mix, TRUE, 1)]).astype(np.float64)
        for mix in mixes
    ]
    start, aim = linear(3, 64, EIGHT), Aim(horizon_s=WINDOW_S)
    without = replay(windows, Ours(Rebalancer(EIGHT, PRICES, start, aim), WINDOW_S), EIGHT, PRICES, start)
    told = [dict(zip(NAMES, mix.tolist(), strict=True)) for mix in mixes]
    by_class = replay(windows, ByClass(Rebalancer(EIGHT, PRICES, start, aim), told), EIGHT, PRICES, start)
    assert by_class.balancedness > without.balancedness + 0.02
    assert by_class.moved_bytes < without.moved_bytes
