"""Tokens by class between two looks. Numbers: invariants of controlplane/class_token_counts.py."""

from controlplane.class_token_counts import ClassTokenCounts
from router.class_tokens import encode


def said(**tokens: float) -> bytes:
    """A replica's record of engine m."""
    return encode({"m": tokens, "n": {"chat": 7.0}})


def test_replicas_add_up() -> None:
    counts = ClassTokenCounts()
    counts.take_in({"a": said(chat=5.0), "b": said(chat=1.0)})
    mark = counts.mark("m")
    assert counts.since("m", mark) == {}
    counts.take_in({"a": said(chat=8.0, code=2.0), "b": said(chat=2.0)})
    assert counts.since("m", mark) == {"chat": 4.0, "code": 2.0}
    assert counts.since("n", counts.mark("n")) == {}


def test_a_replica_counts_from_when_it_was_heard_of() -> None:
    """Invariant 1."""
    counts = ClassTokenCounts()
    mark = counts.mark("m")
    counts.take_in({"a": said(chat=1000.0)})
    assert counts.since("m", mark) == {}
    counts.take_in({"a": said(chat=1003.0)})
    assert counts.since("m", mark) == {"chat": 3.0}


def test_a_replica_that_went_is_not_forgotten_at_once() -> None:
    """Invariant 2."""
    counts = ClassTokenCounts(num_replicas=2)
    counts.take_in({"a": said(chat=1.0)})
    mark = counts.mark("m")
    counts.take_in({"a": said(chat=4.0)})
    counts.take_in({"b": said(chat=1.0)})
    assert counts.since("m", mark) == {"chat": 3.0}
    counts.take_in({"b": said(chat=2.0), "c": said(chat=1.0)})
    assert counts.since("m", mark) == {"chat": 1.0}


def test_counters_that_went_back_say_nothing() -> None:
    counts = ClassTokenCounts()
    counts.take_in({"a": said(chat=10.0)})
    mark = counts.mark("m")
    counts.take_in({"a": said(chat=4.0), "b": b"not ours"})
    assert counts.since("m", mark) == {}
