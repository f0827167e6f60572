"""What a routing policy is. Pure."""

from typing import NamedTuple, Protocol

from router.choice.cost import Costs
from router.choice.view import View


class Pick(NamedTuple):
    """Positions in the sides of a view. `prefill` is None where the decode worker does its own prefill."""

    prefill: int | None
    decode: int
    num_near_equal: int = 1  # ways among which it was drawn


class RoutingPolicy(Protocol):
    """Pure choice among workers that are all eligible."""

    def pick(self, view: View, costs: Costs) -> Pick | None:
        """The best way to serve `view.request`; None: nobody can. Reserves nothing.

        A policy may remember what it picked (round robin, session hash); it may not look at anything but its
        arguments, and draws only from a seeded generator of its own: decisions have to be repeatable.
        """
        ...
