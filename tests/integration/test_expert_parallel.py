"""Experts divided over two ranks of a real engine: counted, placed at run time, and still the same model.

The same weights in float32 on one rank are the reference. One engine runs at a time.
"""

import asyncio
import threading
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import aiohttp
import httpx
import pytest

from controlplane.expert_placer import ExpertPlacer
from controlplane.placement.settings import ExpertSettings
from tests.engine_counters import wait_until
from tests.moe_model import EXPERTS, LAYERS, TOP_K, make_moe_model
from tests.supervised_engine import SupervisedEngine, supervised_engine
from workers.expert_client import ExpertClient, PlacementBusyError, PlacementRefusedError
from workers.expert_placement import ExpertReport
from workers.settings import EngineSettings, ExpertParallelSettings

pytestmark = [pytest.mark.cluster, pytest.mark.own_cluster, pytest.mark.timeout(600)]

START_S = 300.0
RANKS = 2
REDUNDANT = 2
SLOTS = EXPERTS + REDUNDANT
TOLERANCE = 1e-3  # of a logprob; another expert's weights make a difference of about 1
PROMPTS = [
    "The quick brown fox jumps over the lazy dog and runs to the river, where it drinks and sleeps.",
    "import os\n\ndef main() -> None:\n    for index in range(10):\n        print(index, os.getpid())\n",
    "Zwei Dinge erfuellen das Gemuet mit immer neuer Bewunderung: 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16.",
]
Placement = list[list[int]]
START: Placement = [[0, 1, 2, 3, 4, 5, 6, 7, 0, 1]] * LAYERS  # vLLM's own
# Each expert moves, some to the other rank; expert 7 and 3 have three slots, on both ranks.
MOVED: Placement = [[7, 6, 5, 4, 3, 2, 1, 0, 7, 7], [3, 1, 7, 5, 0, 3, 2, 4, 6, 3]]

# One window of little load is reason enough to move experts.
CHEAP_MOVES = ExpertSettings(mode="apply", min_tokens_per_expert=1.0, expert_bytes=1.0, expert_s_per_token=1.0)

_T = TypeVar("_T")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The checkpoint."""
    folder = tmp_path_factory.mktemp("moe")
    make_moe_model(folder)
    return folder


def settings(experts: ExpertParallelSettings | None) -> EngineSettings:
    # Probes would count as tokens; that the engine's process ends is seen at once all the same.
    return EngineSettings(dtype="float32", max_model_len_tokens=1024, experts=experts, probe_interval_s=3600)


@pytest.fixture(scope="module")
def reference(model: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[list[list[float]], list[str]]:
    """Prompt logprobs and greedy texts of the same model on a single rank, without expert parallelism."""
    with supervised_engine(tmp_path_factory.mktemp("single"), model, settings(None)) as engine:
        address = engine.wait_until_ready(START_S).spec.address
        return [prompt_logprobs(address, prompt)[0] for prompt in PROMPTS], [text(address, p) for p in PROMPTS]


@pytest.fixture(scope="module", params=["tensor", "data"])
def engine(
    request: pytest.FixtureRequest, model: Path, reference: Any, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[SupervisedEngine]:
    """Two ranks; the reference has been made, and its engine stopped, before."""
    experts = ExpertParallelSettings.model_validate(
        {f"{request.param}_parallel": RANKS, "redundant_experts": REDUNDANT}
    )
    with supervised_engine(tmp_path_factory.mktemp(request.param), model, settings(experts)) as running:
        running.wait_until_ready(START_S)
        yield running


def complete(address: str, prompt: str, rank: int | None = None, **fields: Any) -> dict[str, Any]:
    headers = {} if rank is None else {"X-data-parallel-rank": str(rank)}
    body = {"model": "m", "prompt": prompt, "temperature": 0, **fields}
    response = httpx.post(f"{address}/v1/completions", json=body, headers=headers, timeout=120)
    assert response.status_code == 200, response.text
    answer: dict[str, Any] = response.json()
    return answer


def prompt_logprobs(address: str, prompt: str, rank: int | None = None) -> tuple[list[float], int]:
    """Of each token but the first, and the number of tokens; such requests do not use the prefix cache."""
    answer = complete(address, prompt, rank, max_tokens=1, prompt_logprobs=0)
    entries = answer["choices"][0]["prompt_logprobs"][1:]
    return [next(iter(entry.values()))["logprob"] for entry in entries], answer["usage"]["prompt_tokens"]


def text(address: str, prompt: str) -> str:
    return str(complete(address, prompt, max_tokens=24, ignore_eos=True)["choices"][0]["text"])


def data_ranks(engine: SupervisedEngine) -> list[int | None]:
    """Where to send requests so that each data-parallel rank gets some."""
    experts = engine.plan.engine.experts
    assert experts is not None
    return list(range(experts.data_parallel)) if experts.data_parallel > 1 else [None]


def ask(engine: SupervisedEngine, question: Callable[[ExpertClient], Awaitable[_T]]) -> _T:
    async def body() -> _T:
        async with aiohttp.ClientSession() as session:
            return await question(ExpertClient(session))

    return asyncio.run(body())


def report(engine: SupervisedEngine) -> ExpertReport:
    return ask(engine, lambda client: client.report(engine.state))


def place(engine: SupervisedEngine, slots: Placement, parts: Placement | None = None) -> None:
    reply = ask(engine, lambda client: client.place(engine.state, slots, parts))
    assert [list(row) for row in reply.slots] == slots


def as_lists(table: tuple[tuple[int, ...], ...]) -> Placement:
    return [list(row) for row in table]


def check_logprobs(engine: SupervisedEngine, reference: tuple[list[list[float]], list[str]]) -> int:
    """All prompts on all data-parallel ranks; the number of tokens that went through the model."""
    total = 0
    for rank in data_ranks(engine):
        for prompt, expected in zip(PROMPTS, reference[0], strict=True):
            found, tokens = prompt_logprobs(engine.state.spec.address, prompt, rank)
            assert found == pytest.approx(expected, abs=TOLERANCE)
            total += tokens
    return total


def test_it_is_the_same_model_and_every_token_is_counted(engine: SupervisedEngine, reference: Any) -> None:
    before = report(engine)
    assert (before.experts, before.ranks, before.slots_per_rank) == (EXPERTS, RANKS, SLOTS // RANKS)
    assert as_lists(before.slots) == START
    tokens = check_logprobs(engine, reference)
    after = report(engine)
    for layer in range(LAYERS):
        grown = [b - a for a, b in zip(before.expert_tokens[layer], after.expert_tokens[layer], strict=True)]
        assert min(grown) >= 0
        assert sum(grown) == tokens * TOP_K
    assert after.epoch == before.epoch
    assert after.steps > before.steps


def test_another_placement_is_applied_at_run_time(engine: SupervisedEngine, reference: Any) -> None:
    epoch, placements = engine.state.spec.epoch, report(engine).placements
    before = report(engine)
    place(engine, MOVED)
    empty = report(engine)
    assert as_lists(empty.slots) == MOVED
    assert empty.placements == placements + 1
    assert sum(map(sum, empty.slot_tokens)) == 0
    assert empty.expert_tokens == before.expert_tokens, "counters of experts go on"
    tokens = check_logprobs(engine, reference)
    after = report(engine)
    for layer, row in enumerate(MOVED):
        by_expert = [0] * EXPERTS
        for expert, count in zip(row, after.slot_tokens[layer], strict=True):
            by_expert[expert] += count
        grown = [b - a for a, b in zip(before.expert_tokens[layer], after.expert_tokens[layer], strict=True)]
        assert by_expert == grown, "each token went to a slot that holds its expert now"
        assert sum(grown) == tokens * TOP_K
        assert all(after.slot_tokens[layer][slot] for slot, expert in enumerate(row) if row.count(expert) == 3)
    assert engine.state.spec.epoch == epoch, "the engine was not restarted"


def test_parts_divide_an_experts_tokens_among_its_slots(engine: SupervisedEngine, reference: Any) -> None:
    parts = [[6 if slot == 0 else 1 for slot in range(SLOTS)] for _ in range(LAYERS)]  # of expert 0, that is 6 : 1
    place(engine, START, parts)
    check_logprobs(engine, reference)
    after = report(engine)
    assert as_lists(after.parts) == parts
    for tokens in after.slot_tokens:
        assert tokens[0] > 2 * tokens[8]
    place(engine, START)
    assert as_lists(report(engine).parts) == [[1] * SLOTS] * LAYERS


@pytest.mark.parametrize(
    ("slots", "reason"),
    [
        ([START[0]], "1 layers; the model has 2"),
        ([START[0][:-1]] * LAYERS, "9 slots; the engine has 10"),
        ([[8, *START[0][1:]]] * LAYERS, "expert 8; experts go from 0 to 7"),
        ([START[0], [0, 1, 2, 3, 4, 5, 6, 6, 0, 1]], r"slots\[1\]: no slot for expert 7"),
    ],
)
def test_a_bad_placement_is_refused_and_nothing_changes(
    engine: SupervisedEngine, slots: Placement, reason: str
) -> None:
    before = report(engine)
    with pytest.raises(PlacementRefusedError, match=reason):
        place(engine, slots)
    assert report(engine) == before


def test_what_is_no_placement_is_refused(engine: SupervisedEngine) -> None:
    url = f"{engine.state.spec.address}/headrace/experts/placement"
    for body in (b"", b"{}", b'{"slots": [[0.5]]}', b'{"slots": [], "more": 1}', b"\xff"):
        assert httpx.post(url, content=body, timeout=30).status_code == 400
    assert httpx.get(url, timeout=30).status_code == 405
    assert "/headrace/experts" not in httpx.get(f"{engine.state.spec.address}/openapi.json", timeout=30).text


def test_requests_go_on_while_experts_move(engine: SupervisedEngine, reference: Any) -> None:
    """Same greedy texts, no failed request, and one placement at a time."""
    address = engine.state.spec.address
    done, texts, failures = threading.Event(), [set[str]() for _ in PROMPTS], list[BaseException]()

    def keep_asking(index: int) -> None:
        try:
            while not done.is_set():
                texts[index].add(text(address, PROMPTS[index]))
        except BaseException as error:
            failures.append(error)

    askers = [threading.Thread(target=keep_asking, args=(index,)) for index in range(len(PROMPTS))]
    for asker in askers:
        asker.start()
    try:
        for round_ in range(10):
            place(engine, MOVED if round_ % 2 == 0 else START)

        async def all_at_once(client: ExpertClient) -> list[Any]:
            plans = [client.place(engine.state, MOVED) for _ in range(6)]
            return await asyncio.gather(*plans, return_exceptions=True)

        outcomes = ask(engine, all_at_once)
    finally:
        done.set()
        for asker in askers:
            asker.join()
    assert not failures
    assert [found or {""} for found in texts] == [{expected} for expected in reference[1]]
    assert all(not isinstance(o, BaseException) or isinstance(o, PlacementBusyError) for o in outcomes)
    assert any(not isinstance(o, BaseException) for o in outcomes)
    assert any(isinstance(o, PlacementBusyError) for o in outcomes)
    assert as_lists(report(engine).slots) == MOVED


class Placing:
    """The control plane's placer, looking at the engine when it is told to."""

    def __init__(self, engine: SupervisedEngine) -> None:
        self._engine = engine
        self.placer: ExpertPlacer | None = None
        self.now_s = 0.0

    def look(self) -> str:
        """One look, ten seconds after the last; the decision."""

        async def body(client: ExpertClient) -> str:
            if self.placer is None:
                self.placer = ExpertPlacer(client, CHEAP_MOVES, lambda: [self._engine.state])
            self.placer.client = client
            self.now_s += 10.0
            await self.placer.look(self.now_s)
            return self.placer.status()[0].decision

        return ask(self._engine, body)


@pytest.fixture(scope="module")
def placing(engine: SupervisedEngine) -> Placing:
    return Placing(engine)


def test_loads_are_collected_and_a_plan_is_made_and_applied(
    engine: SupervisedEngine, placing: Placing, reference: Any
) -> None:
    loads = report(engine).expert_tokens
    hottest = [sorted(range(EXPERTS), key=lambda expert: -row[expert]) for row in loads]
    place(engine, [[*order[:5], *order[5:], *order[6:]] for order in hottest])  # rank 0 has the five hottest
    epoch, before = engine.state.spec.epoch, report(engine)
    assert placing.look() == "too little load so far"
    for _ in range(3):
        check_logprobs(engine, reference)
    decision = placing.look()
    assert decision.startswith("move"), decision
    after = report(engine)
    assert after.placements == before.placements + 1
    assert after.slots != before.slots
    check_logprobs(engine, reference)
    assert engine.state.spec.epoch == epoch, "the engine was not restarted"


def test_an_engine_that_lost_a_rank_is_started_again_and_gets_its_placement_back(
    engine: SupervisedEngine, placing: Placing, reference: Any
) -> None:
    if len(data_ranks(engine)) > 1:
        pytest.skip("once is enough: a minute")
    placing.look()
    first = engine.state.spec
    old = report(engine)
    (rank,) = engine.processes("VLLM::Worker_TP1")
    rank.kill()
    wait_until(lambda: any("engine failed" in line for line in engine.lines), "its failure is noticed", 120)
    engine.wait_until_ready(START_S, after_epoch=first.epoch)
    new = report(engine)
    assert new.epoch > old.epoch
    assert as_lists(new.slots) == START, "a new engine has vLLM's own placement"
    check_logprobs(engine, reference)
    assert "put back" in placing.look()
    assert report(engine).slots == old.slots
    check_logprobs(engine, reference)
