"""The pure parts of the fake engine: its plan, its text, its block cache."""

import json
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from workers.fake.blocks import BlockCache, BlockRemoved, BlockStored, HeldBlocks, chain_hashes
from workers.fake.model import StopScanner, TokenSource, detokenize, render_chat, tokenize
from workers.fake.plan import Action, Fault, FaultScript, Match, Plan, PlanError, Timing, load_plan

_CHAT, _COMPLETIONS = "/v1/chat/completions", "/v1/completions"


def _script(*faults: tuple[Match, Action]) -> FaultScript:
    return FaultScript(Plan(faults=tuple(Fault(match=match, action=action) for match, action in faults)))


def test_empty_plan_is_the_default() -> None:
    assert load_plan("{}") == Plan()


def test_plan_from_json() -> None:
    plan = load_plan(
        json.dumps(
            {
                "timing": {"prefill_s_per_token": 0.001, "max_running_seqs": 4},
                "faults": [
                    {"match": {"route": _CHAT, "nth": 2}, "action": "status", "status": 503},
                    {"match": {"every": 3}, "action": "disconnect_after_chunks", "chunks": 5},
                ],
                "kv_load_failure_policy": "fail",
            }
        )
    )
    assert plan.timing == Timing(prefill_s_per_token=0.001, max_running_seqs=4)
    assert plan.faults[0] == Fault(match=Match(route=_CHAT, nth=2), action=Action.STATUS, status=503)
    assert plan.faults[1].chunks == 5
    assert plan.kv_load_failure_policy == "fail"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("nonsense", "Invalid JSON"),
        ("[]", "plan: "),
        ('{"tming": {}}', "tming: unknown key"),
        ('{"timing": {"prefill_s": 1}}', "timing.prefill_s: unknown key"),
        ('{"timing": {"start_s": "1"}}', "timing.start_s: "),
        ('{"timing": {"start_s": -1}}', "`start_s` must not be negative"),
        ('{"timing": {"max_running_seqs": 0}}', "`max_running_seqs` must be at least 1"),
        ('{"faults": [{"action": "exit"}]}', "faults.0.match: "),
        ('{"faults": [{"match": {}, "action": "exit"}]}', "exactly one of `nth`, `every` and `after_tokens`"),
        ('{"faults": [{"match": {"nth": 1, "every": 1}, "action": "exit"}]}', "exactly one of"),
        ('{"faults": [{"match": {"nth": 0}, "action": "exit"}]}', "at least 1"),
        ('{"faults": [{"match": {"nth": 1, "n": 1}, "action": "exit"}]}', "faults.0.match.n: unknown key"),
        ('{"faults": [{"match": {"nth": 1}, "action": "explode"}]}', "faults.0.action: "),
        ('{"faults": [{"match": {"nth": 1}, "action": "status", "status": 200}]}', "400 to 599"),
        ('{"kv_load_failure_policy": "hope"}', "kv_load_failure_policy: "),
    ],
)
def test_wrong_plan_is_refused(text: str, message: str) -> None:
    with pytest.raises(PlanError) as caught:
        load_plan(text)
    assert message in str(caught.value)


def test_each_further_sequence_slows_a_step() -> None:
    timing = Timing(decode_s_per_token=0.02, decode_s_per_seq=0.001, prefill_s_fixed=0.5, prefill_s_per_token=0.01)
    assert timing.step_s(1) == pytest.approx(0.02)
    assert timing.step_s(11) == pytest.approx(0.03)
    assert timing.prefill_s(100) == pytest.approx(1.5)


def test_nth_request_on_its_route_is_struck_once() -> None:
    script = _script((Match(route=_CHAT, nth=2), Action.STATUS))
    struck = [script.on_request(route) is not None for route in (_CHAT, _COMPLETIONS, _CHAT, _CHAT, _CHAT)]
    assert struck == [False, False, True, False, False]


def test_every_counts_generation_routes_where_none_is_named() -> None:
    script = _script((Match(every=2), Action.STATUS))
    routes = (_CHAT, "/health", _COMPLETIONS, "/metrics", _CHAT, _CHAT)
    assert [script.on_request(route) is not None for route in routes] == [False, False, True, False, False, True]


def test_first_fault_in_order_wins_and_all_count() -> None:
    script = _script((Match(nth=2), Action.WEDGE), (Match(every=2), Action.STATUS))
    found = [script.on_request(_CHAT) for _ in range(4)]
    assert [fault and fault.action for fault in found] == [None, Action.WEDGE, None, Action.STATUS]


def test_engine_fault_strikes_with_its_token() -> None:
    script = _script((Match(after_tokens=3), Action.EXIT))
    found = [script.on_token() for _ in range(5)]
    assert [fault is not None for fault in found] == [False, False, True, False, False]
    assert script.on_request(_CHAT) is None


def test_request_fault_after_tokens_strikes_the_next_request() -> None:
    script = _script((Match(after_tokens=2), Action.STATUS))
    assert script.on_request(_CHAT) is None
    assert [script.on_token() for _ in range(2)] == [None, None]
    assert script.on_request("/metrics") is None
    assert script.on_request(_CHAT) is not None
    assert script.on_request(_CHAT) is None


@settings(deadline=None)  # the machine is shared
@given(st.text())
def test_tokens_turn_back_into_their_text(text: str) -> None:
    encodable = text.encode("utf-8", errors="replace").decode()
    assert detokenize(tokenize(encodable)) == encodable


@settings(deadline=None)  # the machine is shared
@given(st.lists(st.integers(0, 1 << 20), max_size=40), st.integers(-9, 9), st.integers(1, 20))
def test_text_goes_on_the_same_from_any_prefix(context: list[int], seed: int, cut: int) -> None:
    source = TokenSource(context, seed)
    made = [source.next_token().token_id for _ in range(24)]
    resumed = TokenSource(context + made[:cut], seed)
    assert [resumed.next_token().token_id for _ in range(24 - cut)] == made[cut:]


def test_seed_and_context_change_the_text() -> None:
    texts = set()
    for context, seed in ((b"one", 0), (b"one", 1), (b"two", 0)):
        source = TokenSource(list(context), seed)
        texts.add(detokenize([source.next_token().token_id for _ in range(20)]))
    assert len(texts) == 3


def test_chat_goes_on_from_a_final_message() -> None:
    question = {"role": "user", "content": [{"type": "text", "text": "why?"}]}
    begun = {"role": "assistant", "content": "beca"}
    fresh = render_chat({"messages": [question]})
    resumed = render_chat(
        {"messages": [question, begun], "add_generation_prompt": False, "continue_final_message": True}
    )
    assert resumed == fresh + "beca"
    assert render_chat({"messages": [question], "tools": [{"type": "function"}]}) != fresh


@settings(deadline=None)  # the machine is shared
@given(st.text("ab", max_size=30), st.lists(st.text("ab", min_size=1, max_size=4), max_size=3))
def test_stop_scanner_agrees_with_search(text: str, stops: list[str]) -> None:
    scanner = StopScanner(stops, include_stop=False)
    shown, ended = "", False
    for character in text:
        part, stop = scanner.feed(character)
        shown += part
        if stop is not None:
            ended = True
            break
    shown += scanner.flush()
    # What ends first ends the text; of those that end together, what began first.
    ends = [text.index(stop) + len(stop) for stop in stops if stop in text]
    if not ends:
        assert (shown, ended) == (text, False)
    else:
        first = min(ends)
        begin = min(first - len(stop) for stop in stops if text[:first].endswith(stop))
        assert (shown, ended) == (text[:begin], True)


_BLOCK, _CAPACITY = 2, 6
_PROMPTS = st.lists(st.integers(0, 1), min_size=1, max_size=9)
_STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("hold"), _PROMPTS, st.sampled_from([None, "salt"])),
        st.tuples(st.just("store"), st.integers(0, 3), st.integers(0, 12)),
        st.tuples(st.just("append"), st.integers(0, 3), st.integers(0, 1)),
        st.tuples(st.just("release"), st.integers(0, 3), st.none()),
    ),
    max_size=40,
)


class _NaiveCache:
    """The same cache, slowly: every sequence lists its blocks by their whole prefix."""

    def __init__(self) -> None:
        self.sequences: list[tuple[list[int], str | None, list[tuple[object, ...]]]] = []
        self.remembered: list[tuple[object, ...]] = []  # oldest use first

    def held(self) -> list[tuple[object, ...]]:
        return sorted({block for _, _, blocks in self.sequences for block in blocks}, key=str)

    def used(self) -> int:
        loose = sum(-(-len(tokens) // _BLOCK) - len(blocks) for tokens, _, blocks in self.sequences)
        return len(self.held()) + loose

    def try_hold(self, tokens: list[int], salt: str | None) -> int | None:
        known = {*self.held(), *self.remembered}
        prefixes = [(salt, *tokens[:end]) for end in range(_BLOCK, len(tokens), _BLOCK)]
        shared = []
        for prefix in prefixes:
            if prefix not in known:
                break
            shared.append(prefix)
        self.sequences.append((list(tokens), salt, list(shared)))
        if self.used() > _CAPACITY:
            self.sequences.pop()
            return None
        self.remembered = [block for block in self.remembered if block not in shared]
        self.forget()
        return len(shared) * _BLOCK

    def forget(self) -> None:
        while self.remembered and self.used() + len(self.remembered) > _CAPACITY:
            self.remembered.pop(0)

    def append(self, index: int, token: int) -> None:
        self.sequences[index][0].append(token)
        self.forget()

    def store(self, index: int, computed: int) -> None:
        tokens, salt, blocks = self.sequences[index]
        for end in range((len(blocks) + 1) * _BLOCK, computed + 1, _BLOCK):
            blocks.append((salt, *tokens[:end]))
        self.remembered = [block for block in self.remembered if block not in blocks]

    def release(self, index: int) -> None:
        _, _, blocks = self.sequences.pop(index)
        held = self.held()
        self.remembered += [block for block in reversed(blocks) if block not in held]
        self.forget()

    def hashes(self) -> set[int]:
        return {_hash_of(block) for block in (*self.held(), *self.remembered)}


def _hash_of(block: tuple[object, ...]) -> int:
    salt, *tokens = block
    assert salt is None or isinstance(salt, str)
    return chain_hashes([int(str(token)) for token in tokens], _BLOCK, salt)[-1]


@settings(deadline=None)  # the machine is shared
@given(_STEPS)
def test_block_cache_agrees_with_a_naive_one(steps: list[tuple[str, object, object]]) -> None:
    cache, naive = BlockCache(_CAPACITY, _BLOCK), _NaiveCache()
    held: list[HeldBlocks] = []
    published: Counter[int] = Counter()
    for verb, first, second in steps:
        _apply(verb, first, second, cache, naive, held)
        for event in cache.take_events():
            if isinstance(event, BlockStored):
                published.update(dict.fromkeys(event.block_hashes, 1))
            elif isinstance(event, BlockRemoved):
                for block_hash in event.block_hashes:
                    del published[block_hash]
        assert cache.used_blocks == naive.used()
        assert cache.findable() == naive.hashes()
        assert set(published) == cache.findable()  # whoever follows the events knows the cache


def _apply(
    verb: str, first: object, second: object, cache: BlockCache, naive: _NaiveCache, held: list[HeldBlocks]
) -> None:
    if verb == "hold":
        assert isinstance(first, list)
        salt = second if isinstance(second, str) else None
        got = cache.try_hold(first, salt)
        assert (got and got.cached_tokens) == naive.try_hold(first, salt)
        if got is not None:
            held.append(got)
        return
    assert isinstance(first, int)
    if first >= len(held):
        return
    if verb == "append":
        assert isinstance(second, int)
        cache.append(held[first], second)
        naive.append(first, second)
    elif verb == "store":
        assert isinstance(second, int)
        computed = min(second, len(held[first].tokens))
        cache.store(held[first], computed)
        naive.store(first, computed)
    else:
        cache.release(held.pop(first))
        naive.release(first)


def test_stored_event_continues_its_chain() -> None:
    cache = BlockCache(8, 2)
    held = cache.try_hold([1, 2, 3, 4, 5], "salt", "session")
    assert held is not None
    cache.store(held, 4)
    cache.append(held, 6)
    cache.store(held, 6)
    first, second = cache.take_events()
    assert isinstance(first, BlockStored)
    assert isinstance(second, BlockStored)
    assert first.block_hashes == chain_hashes([1, 2, 3, 4], 2, "salt")
    assert (first.parent_block_hash, first.token_ids) == (None, [1, 2, 3, 4])
    assert first.extra_keys == [("salt",), None]
    assert (second.parent_block_hash, second.token_ids) == (first.block_hashes[-1], [5, 6])
    assert second.session_id == "session"


def test_last_block_of_a_sequence_is_forgotten_first() -> None:
    cache = BlockCache(3, 2)
    held = cache.try_hold([1, 2, 3, 4, 5, 6], None)
    assert held is not None
    cache.store(held, 6)
    cache.release(held)
    cache.take_events()
    assert cache.try_hold([9], None) is not None
    (event,) = cache.take_events()
    assert isinstance(event, BlockRemoved)
    assert event.block_hashes == chain_hashes([1, 2, 3, 4, 5, 6], 2, None)[-1:]
