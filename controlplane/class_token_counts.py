"""How many tokens of each class an engine computed between two looks, from what router replicas say. Pure.

Invariants
 1. A replica counts from the first time that it was heard of: it may have counted for days before.
 2. What a replica said last stays known when it goes, as long as there are no more than `num_replicas`.
"""

from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass

from router.class_tokens import EngineTokens, decode

Mark = Mapping[str, Mapping[str, float]]  # replica -> class -> tokens of one engine


@dataclass(slots=True)
class _Replica:
    first: EngineTokens
    last: EngineTokens


class ClassTokenCounts:
    """Of the whole fleet."""

    def __init__(self, *, num_replicas: int = 256) -> None:
        self._num_replicas = num_replicas
        self._replicas: OrderedDict[str, _Replica] = OrderedDict()

    def take_in(self, records: Mapping[str, bytes]) -> None:
        """What lies on the board now."""
        for replica_id, data in sorted(records.items()):
            tokens = decode(data)
            if tokens is None:
                continue
            known = self._replicas.setdefault(replica_id, _Replica(tokens, tokens))
            known.last = tokens
            self._replicas.move_to_end(replica_id)
        while len(self._replicas) > self._num_replicas:
            self._replicas.popitem(last=False)

    def mark(self, engine: str) -> Mark:
        """What has been counted of an engine until now."""
        return {replica_id: known.last.get(engine, {}) for replica_id, known in self._replicas.items()}

    def since(self, engine: str, mark: Mark) -> dict[str, float]:
        """Tokens by class since then; a counter that went back says nothing."""
        found: dict[str, float] = {}
        for replica_id, known in self._replicas.items():
            before = mark.get(replica_id)
            if before is None:
                before = known.first.get(engine, {})
            for name, tokens in known.last.get(engine, {}).items():
                found[name] = found.get(name, 0.0) + max(0.0, tokens - before.get(name, 0.0))
        return {name: tokens for name, tokens in found.items() if tokens > 0.0}
