"""From an engine to the workers that its data-parallel ranks are."""

from dataclasses import replace

import pytest

from kvstore.types import WorkerId
from tests.builders import make_worker
from workers.ranks import by_rank, engine_of, rank_id
from workers.types import Phase, RankState, WorkerLoad

ENGINE = WorkerId("decode-0")


def test_an_engine_of_one_rank_is_one_worker() -> None:
    engine = make_worker("decode-0")
    assert by_rank(engine) == (engine,)
    assert engine.spec.rank is None, "nothing is asked for by number"


def test_each_rank_is_a_worker_with_its_own_cache_and_load() -> None:
    loads = WorkerLoad(3, 1, 70), WorkerLoad(0, 0, 2)
    engine = make_worker("decode-0", phase=Phase.DRAINING, kv_blocks_total=300)
    engine = replace(engine, ranks=(RankState(100, loads[0]), RankState(200, loads[1])))
    first, second = by_rank(engine)
    assert (first.spec.id, second.spec.id) == ("decode-0", "decode-0/1")
    assert (first.spec.rank, second.spec.rank) == (0, 1)
    assert (first.spec.kv_blocks_total, second.spec.kv_blocks_total) == (100, 200)
    assert (first.load, second.load) == loads
    assert first.phase is second.phase is Phase.DRAINING
    assert first.spec.address == second.spec.address == engine.spec.address


@pytest.mark.parametrize("rank", [0, 1, 17])
def test_a_rank_names_its_engine(rank: int) -> None:
    assert engine_of(rank_id(ENGINE, rank)) == ENGINE
