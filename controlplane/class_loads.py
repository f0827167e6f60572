"""Loads of experts by class of traffic: engines' windows and routers' counts, put together. Part of the control plane.

Invariants
 1. Profiles are of a model: every engine that serves it teaches them.
 2. A window's classes are those of the tokens that routers counted between its two reports of the engine.
 3. Where routers counted nothing, nothing is said by class. With no class or one, plans are made as without.
"""

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field

import msgspec
import numpy as np

from controlplane.class_token_counts import ClassTokenCounts, Mark
from controlplane.placement.class_profiles import ClassProfiles, Profiles
from controlplane.placement.class_scenarios import class_scenarios
from controlplane.placement.loads import ExpertLoadWindow
from controlplane.placement.objective import balancedness
from controlplane.placement.types import Placement, Scenario, Tokens, Topology

_Model = tuple[str, tuple[int, ...]]  # name, (layers, experts)


class ClassStatus(msgspec.Struct, frozen=True):
    """One class on one engine, as operators see it."""

    name: str
    share: float  # of the last window's tokens, by the routers' counts
    confidence: float  # 0: taken to ask for what all do; near 1: its own profile is known
    balancedness: float  # of this class alone, where the engine's experts are; mean over layers


@dataclass(slots=True)
class _Seen:
    """Of one engine."""

    mark: Mark
    model: _Model | None = None
    windows: deque[tuple[ExpertLoadWindow, Mapping[str, float]]] = field(default_factory=deque)


@dataclass(slots=True)
class ClassLoads:
    """Of the fleet."""

    half_life_s: float  # of what is known of a class
    num_windows: int = 64
    counts: ClassTokenCounts = field(default_factory=ClassTokenCounts)
    _models: dict[_Model, ClassProfiles] = field(default_factory=dict)
    _latest: dict[_Model, Profiles] = field(default_factory=dict)
    _engines: dict[str, _Seen] = field(default_factory=dict)

    def begin(self, engine: str) -> None:
        """A window begins; earlier ones are kept."""
        mark = self.counts.mark(engine)
        self._engines.setdefault(engine, _Seen(mark)).mark = mark

    def forget(self, engine: str) -> None:
        """It has left. What it taught stays."""
        self._engines.pop(engine, None)

    def end(self, window: ExpertLoadWindow) -> None:
        """An engine's window ended, and the next begins. Raises PlacementError."""
        seen = self._engines[window.engine]
        classes = self.counts.since(window.engine, seen.mark)
        seen.mark = self.counts.mark(window.engine)
        model = window.model, window.tokens.shape
        if seen.model != model:
            seen.model, seen.windows = model, deque(maxlen=self.num_windows)
        seen.windows.append((window, classes))
        if classes:
            self._models.setdefault(model, ClassProfiles(self.half_life_s)).add(
                window.tokens, classes, window.ended_at_s
            )

    def scenarios(self, engine: str) -> list[Scenario]:
        """Loads that the mix of classes may bring to this engine. A second for the largest models with many classes."""
        seen = self._engines[engine]
        profiles = self._models.get(seen.model) if seen.model is not None else None
        latest = profiles.estimate() if profiles is not None else None
        if latest is None or seen.model is None:
            return []
        self._latest[seen.model] = latest
        return class_scenarios(latest, seen.windows[-1][0].tokens)

    def status(self, engine: str, placement: Placement, topology: Topology) -> list[ClassStatus]:
        """By class of the last window, the largest first; as of the last call of `scenarios`."""
        seen = self._engines[engine]
        latest = self._latest.get(seen.model) if seen.model is not None else None
        classes = seen.windows[-1][1] if seen.windows else {}
        if latest is None:
            return []
        total = sum(classes.values())
        found = []
        for name, profile, confidence in zip(latest.names, latest.shares, latest.confidence, strict=True):
            if name in classes:
                even = float(balancedness(placement, topology, profile).mean())
                found.append(ClassStatus(name, classes[name] / total, float(confidence), even))
        return sorted(found, key=lambda status: (-status.share, status.name))

    def loads(self, engine: str) -> list[ExpertLoadWindow]:
        """The sum of the windows kept, divided by class; one item for each class, by name. Raises KeyError."""
        seen = self._engines[engine]
        latest = self._latest.get(seen.model) if seen.model is not None else None
        if latest is None:
            return []
        sums: dict[str, Tokens] = {}
        for window, classes in seen.windows:
            for name, tokens in latest.split(window.tokens, classes).items():
                sums[name] = sums.get(name, np.zeros_like(tokens)) + tokens
        last = seen.windows[-1][0]
        window_s = sum(window.window_s for window, _ in seen.windows)
        return [
            ExpertLoadWindow(last.model, engine, last.engine_epoch, name, window_s, last.ended_at_s, sums[name])
            for name in sorted(sums)
            if sums[name].any(axis=1).all()
        ]
