"""Shares as whole parts, and back."""

from dataclasses import replace

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from controlplane.placement.eplb import eplb_global
from controlplane.placement.objective import balancedness
from controlplane.placement.parts import PARTS, parts_of, shares_of
from controlplane.placement.split import fast_shares
from controlplane.placement.types import Topology, check_placement
from tests.placement_cases import domains, placed


def test_a_share_is_so_many_of_sixteen() -> None:
    placement = replace(placed([[0, 1, 0, 2]], 3, 2), shares=np.array([[0.25, 1.0, 0.75, 1.0]]))
    assert parts_of(placement).tolist() == [[4, 1, 12, 1]]
    assert shares_of(placement.slots, parts_of(placement), 3).tolist() == [[0.25, 1.0, 0.75, 1.0]]


def test_an_empty_slot_has_none() -> None:
    placement = replace(placed([[0, 1, -1, -1]], 2, 2), shares=np.array([[1.0, 1.0, 0.0, 0.0]]))
    assert parts_of(placement).tolist() == [[1, 1, 0, 0]]


@given(st.lists(st.floats(0.0, 1.0), min_size=1, max_size=60))
def test_every_expert_keeps_a_part(weights: list[float]) -> None:
    shares = np.array([weights]) + 1e-9
    placement = replace(placed([[0] * len(weights)], 1, len(weights)), shares=shares / shares.sum())
    parts = parts_of(placement)
    assert parts.sum() >= 1
    assert parts.max() <= max(PARTS, 1)
    found = shares_of(placement.slots, parts, 1)
    assert abs(found.sum() - 1.0) < 1e-9


def test_little_is_lost_by_rounding() -> None:
    topology, loads = Topology.even(1, 8, 10), domains()
    placement = eplb_global(loads["law"], topology)
    exact = replace(placement, shares=fast_shares(placement, topology, loads["code"]))
    rounded = replace(placement, shares=shares_of(placement.slots, parts_of(exact), 64))
    check_placement(rounded, topology)
    best, found = (balancedness(each, topology, loads["code"]) for each in (exact, rounded))
    assert (found > 0.97 * best).all()
