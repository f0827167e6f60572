"""Loads that the mix of classes may bring next, for the planner. Pure.

The forecast knows where loads go if things go on as they do. What it cannot know is which class asks more tomorrow. So
for each class there is a load half-way between the last window's and that of this class alone. No window need have had
such a mix: that takes profiles by class. Half-way, because loads that go one way and do not come back are served worse
the farther a plan looks aside (docs/experts.md has both). A class of which little is known asks for what all do, and
its load says little new. Weights are 0: these loads count for the worst case (`experts.risk`), not for the expected.
"""

from controlplane.placement.class_profiles import Profiles
from controlplane.placement.types import Scenario, Tokens

_REACH = 0.5
_LEAST_PART = 0.01  # of the model's traffic of late: a class with less has faded


def class_scenarios(profiles: Profiles, tokens: Tokens, *, reach: float = _REACH) -> list[Scenario]:
    """One for each class of late, by name; none where there is one class. `tokens`: of the last window.

    `reach`: how far from there to a class alone, 0 to 1.
    """
    now = tokens / tokens.sum(axis=1, keepdims=True)
    found = [
        Scenario(f"more {name}", reach * profile + (1.0 - reach) * now, 0.0)
        for name, profile, part in sorted(
            zip(profiles.names, profiles.shares, profiles.parts, strict=True), key=lambda item: item[0]
        )
        if part >= _LEAST_PART
    ]
    return found if len(found) > 1 else []
