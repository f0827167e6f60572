"""The mirror against a brute-force twin, under any history. Numbers: invariants of workers/kv_mirror.py."""

from dataclasses import dataclass

from hypothesis import given, settings
from hypothesis import strategies as st

from kvstore.kv_types import KvChange, Tier
from tests.kv_twin import Follower, Prompt, Twin, removed
from workers.kv_batch import ChangeBatch
from workers.kv_event_codec import AllBlocksCleared, KvEvent
from workers.kv_mirror import KvMirror

prompts = st.builds(
    Prompt,
    tokens=st.lists(st.integers(0, 1), min_size=4, max_size=14).map(tuple),
    lora_name=st.sampled_from([None, None, "adapter"]),
    salt=st.sampled_from([None, None, "pepper"]),
    extras=st.lists(st.sampled_from([(), (), (("image", 0),), (b"digest",)]), max_size=4).map(tuple),
)
tiers = st.sampled_from([Tier.DEVICE, Tier.DEVICE, Tier.HOST, Tier.DISK])


@dataclass(frozen=True)
class Lost:
    """Events were lost here."""


@dataclass(frozen=True)
class History:
    """What happens to one engine, in batches."""

    prompts: list[Prompt]
    engine_size: int
    size_tokens: int
    batches: list[list[KvEvent | Lost]]


@st.composite
def histories(draw: st.DrawFn) -> History:
    known = draw(st.lists(prompts, min_size=1, max_size=4))
    engine_size, size_tokens = draw(st.integers(1, 4)), draw(st.integers(1, 6))
    keys = sorted({key for prompt in known for key in prompt.keys(engine_size)}, key=repr)

    def stores() -> st.SearchStrategy[KvEvent]:
        def of(prompt: Prompt) -> st.SearchStrategy[KvEvent]:
            count = len(prompt.keys(engine_size))
            bounds = st.tuples(st.integers(0, count), st.integers(0, count), tiers)
            whole = st.tuples(st.just(0), st.integers(0, count), tiers)
            return (whole | bounds).map(lambda b: prompt.stored(engine_size, min(b[:2]), max(b[:2]), b[2]))

        return st.sampled_from(known).flatmap(of)

    removals = st.tuples(st.lists(st.sampled_from(keys), max_size=4), tiers).map(lambda kt: removed(*kt))
    rare = st.sampled_from([AllBlocksCleared(), Lost()])
    event = st.one_of(stores(), stores(), stores(), removals, removals, removals, rare)
    return History(known, engine_size, size_tokens, draw(st.lists(st.lists(event, max_size=4), max_size=12)))


def run(mirror: KvMirror, twin: Twin, batch: list[KvEvent | Lost]) -> list[KvChange]:
    """The same to both."""
    changes: list[KvChange] = []
    for event in batch:
        if isinstance(event, Lost):
            changes.append(mirror.distrust())
            twin.distrust()
        else:
            changes += mirror.apply([event])
            twin.apply(event)
    return changes


@settings(max_examples=250)
@given(histories())
def test_the_mirror_equals_its_twin_and_followers_equal_the_mirror(history: History) -> None:
    """Invariants 1 to 4 and 7. A batch on its way out has the same effect."""
    twin = Twin(history.prompts, history.engine_size, history.size_tokens)
    mirror = KvMirror(history.size_tokens, max_blocks=100_000)
    follower, late_follower = Follower(twin.parent_of), Follower(twin.parent_of)
    batch_out = ChangeBatch()
    for batch in history.batches:
        changes = run(mirror, twin, batch)
        follower.apply(changes)
        batch_out.add(changes)
        expected = twin.reachable()
        shown = mirror.snapshot()
        assert {tier: set(hashes) for tier, hashes in shown.items()} == expected
        assert all(len(hashes) == len(set(hashes)) for hashes in shown.values())
        assert follower.held == {tier: expected.get(tier, set()) for tier in Tier}
        assert len(mirror) == twin.num_held
        refollower = Follower(twin.parent_of)
        for tier, hashes in shown.items():
            for block_hash in hashes:
                parent = twin.parent_of[block_hash]
                assert parent is None or parent in refollower.held[tier], "a snapshot lists parents first"
                refollower.held[tier].add(block_hash)
    for part in batch_out.take(3):
        assert sum(len(change.hashes) for change in part) <= 3
        late_follower.apply(part)
    assert late_follower.held == follower.held


@settings(max_examples=200)
@given(histories(), st.integers(1, 20))
def test_with_little_room_the_mirror_knows_less_and_nothing_wrong(history: History, max_blocks: int) -> None:
    """Invariants 1, 2 and 5."""
    twin = Twin(history.prompts, history.engine_size, history.size_tokens)
    mirror = KvMirror(history.size_tokens, max_blocks)
    follower = Follower(twin.parent_of)
    for batch in history.batches:
        follower.apply(run(mirror, twin, batch))
        assert mirror.num_known <= max_blocks
        assert 0 <= len(mirror) <= mirror.num_known
        truth = twin.reachable()
        shown = {tier: set(hashes) for tier, hashes in mirror.snapshot().items()}
        assert all(hashes <= truth[tier] for tier, hashes in shown.items())
        assert follower.held == {tier: shown.get(tier, set()) for tier in Tier}


@given(histories())
def test_a_batch_of_events_is_the_events_one_by_one(history: History) -> None:
    together = KvMirror(history.size_tokens, max_blocks=100_000)
    single = KvMirror(history.size_tokens, max_blocks=100_000)
    twin = Twin(history.prompts, history.engine_size, history.size_tokens)
    one, other = Follower(twin.parent_of), Follower(twin.parent_of)
    for batch in history.batches:
        events = [event for event in batch if not isinstance(event, Lost)]
        one.apply(together.apply(events))
        for event in events:
            other.apply(single.apply([event]))
        assert one.held == other.held
