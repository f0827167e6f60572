"""What a router remembers of decisions. Numbers are invariants of `router/explain/decision_store.py`."""

from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from kvstore.types import RequestId
from router.events import Reject, RejectReason, RequestArrived, RequestCancelled, Woken
from router.explain.decision_store import RECORD_OVERHEAD_BYTES, DecisionHistory, DecisionStore
from router.explain.explainer import Explainer
from router.explain.explanation import decode
from tests.builders import make_request

puts = st.tuples(st.just("put"), st.sampled_from("abcdefgh"), st.sampled_from(["x", "y", "a"]), st.integers(0, 40))
takes = st.tuples(st.just("take"), st.integers(0, 4))


@given(max_records=st.integers(0, 5), room=st.integers(0, 5), steps=st.lists(puts | takes, max_size=40))
def test_the_store_is_a_bounded_list(max_records: int, room: int, steps: list[tuple[object, ...]]) -> None:
    """Invariants 1, 2 and 3, against a list that is searched from its end."""
    max_bytes = room * (RECORD_OVERHEAD_BYTES + 20)
    store = DecisionStore(max_records=max_records, max_bytes=max_bytes)
    twin: list[tuple[str, str, bytes]] = []
    untaken: list[str] = []

    def size_bytes() -> int:
        return sum(len(data) + RECORD_OVERHEAD_BYTES for _, _, data in twin)

    for number, step in enumerate(steps):
        if step[0] == "put":
            _, name, public_id, size = step
            assert isinstance(name, str) and isinstance(public_id, str) and isinstance(size, int)
            data = bytes([number % 256]) * size
            store.put(RequestId(name), public_id, data)
            twin = [record for record in twin if record[0] != name]
            if len(data) + RECORD_OVERHEAD_BYTES <= max_bytes and max_records > 0:
                twin.append((name, public_id, data))
                untaken = [other for other in untaken if other != name] + [name]
            while len(twin) > max_records or size_bytes() > max_bytes:
                del twin[0]
            untaken = [name for name in untaken if name in [record[0] for record in twin]]
        else:
            limit = step[1]
            assert isinstance(limit, int)
            due, untaken = untaken[:limit], untaken[limit:]
            found = {record[0]: (record[1], record[2]) for record in twin}
            assert store.take(limit) == [found[name] for name in due]
        store.validate()
        assert len(store) == len(twin)
        assert store.num_bytes == size_bytes()
        for name in "abcdefghxy":
            by_id = [data for at, _, data in twin if at == name]
            by_public_id = [data for _, public_id, data in twin if public_id == name]
            assert store.get(name) == next(iter(by_id + by_public_id[::-1]), None)


def test_eviction_costs_the_same_however_many_are_waiting_to_be_taken() -> None:
    store = DecisionStore(max_records=1000, max_bytes=1 << 30)
    for number in range(20_000):
        store.put(RequestId(str(number)), "the same id from every client", b"")
    store.validate()
    assert len(store.take(5000)) == 1000
    assert store.take(5000) == []


def make_history() -> DecisionHistory:
    """Of ten requests."""
    explainer = Explainer(router="r", policy="p", unix_offset_s=0.0)
    return DecisionHistory(explainer, DecisionStore(max_records=10, max_bytes=1 << 20))


def test_a_history_knows_requests_that_live_and_that_ended() -> None:
    history = make_history()
    request = make_request("r1")
    history.announce(request.id, "public")
    history.observe(1.0, RequestArrived(request), [])
    for name in ("r1", "public"):
        data = history.get(name)
        assert data is not None
        assert decode(data).outcome == "waiting"
    assert history.take(5) == []
    history.observe(2.0, RequestCancelled(request.id), [])
    for name in ("r1", "public"):
        data = history.get(name)
        assert data is not None
        assert decode(data).outcome == "cancelled"
    assert history.take(5) == [("public", data)]
    assert history.get("r2") is None


def test_headers_are_there_for_what_is_known() -> None:
    history = make_history()
    request = make_request("r1")
    history.observe(1.0, RequestArrived(request), [])
    assert history.headers(request.id)["x-headrace-policy"] == "p"
    history.observe(2.0, Woken(), [Reject(request.id, RejectReason.KV_FULL, "", 1.0)])
    assert history.headers(request.id)["x-headrace-rejected"] == "kv_full"
    assert history.headers(RequestId("r2")) == {}


def test_a_repeated_public_id_stands_for_the_newest_request() -> None:
    history = make_history()
    for number, reason in enumerate((RejectReason.KV_FULL, RejectReason.OVER_SHARE)):
        request = make_request(f"r{number}")
        history.announce(request.id, "again")
        history.observe(float(number), RequestArrived(request), [Reject(request.id, reason, "", 1.0)])
    ended = history.get("again")
    assert ended is not None
    assert decode(ended).request_id == "r1"
    again = replace(make_request(), id=RequestId("r2"))
    history.announce(again.id, "again")
    history.observe(3.0, RequestArrived(again), [])
    living = history.get("again")
    assert living is not None
    assert decode(living).request_id == "r2"
