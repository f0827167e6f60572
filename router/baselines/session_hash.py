"""A session stays where it was. Pure.

Source: production-stack's session router (`routers/routing_logic.py`, a hash ring) and vllm-router
(`policies/consistent_hash.rs`, `policies/rendezvous_hash.rs`). Of the two ways to hash consistently this is the second:
the worker whose hash with the session is highest, so that a worker that leaves moves only its own sessions, and one
that joins takes only what becomes its own. As in production-stack, a request without a session goes to the least
loaded worker.
"""

from random import Random

import xxhash

from router.baselines.load import LeastLoaded
from router.baselines.pools import PerPool
from router.choice.view import Side, View


class SessionHash:
    """Rendezvous hashing of the session over a pool's workers."""

    def __init__(self, rng: Random) -> None:
        self._without_session = LeastLoaded(rng)

    def __call__(self, view: View, side: Side) -> int:
        """The session's position."""
        session = view.request.session
        if not session:
            return self._without_session(view, side)
        weights = [xxhash.xxh3_64_intdigest(f"{session}\0{worker_id}".encode()) for worker_id in side.ids]
        return weights.index(max(weights))


def session_hash(rng: Random) -> PerPool:
    """The session's worker, in each pool."""
    rule = SessionHash(rng)
    return PerPool(mixed=rule, prefill=rule, decode=rule)
