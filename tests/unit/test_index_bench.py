"""The benches of the prefix index run, at a thousandth of their size. What they measure is not looked at."""

import pytest

from tests.bench.index import print_tables, summary
from tests.bench.index_apply import measure_apply
from tests.bench.index_depths import measure_depths
from tests.bench.index_memory import in_fresh_process, measure_flat, measure_one_holder
from tests.bench.index_peers import PEERS, measure_peer
from tests.bench.index_workload import CASES, overlaps, stores


@pytest.mark.parametrize("case", CASES)
def test_our_index_and_the_plain_dict_answer_right(case: str) -> None:
    for peer in ("headrace", "plain dict"):
        measured = measure_peer(peer, case, 5000, num_matches=30)  # checks the first answers itself
        assert {"match_p50_us", "match_p99_us", "store_us_per_block", "bytes_per_block"} <= measured.keys()


@pytest.mark.parametrize("case", CASES)
def test_the_workload_stores_what_it_says(case: str) -> None:
    held: dict[int, int] = {}
    for worker, chain, depth in stores(case, 1):  # one prompt
        held[worker] = max(depth, held.get(worker, 0))
        assert depth <= len(chain)
    assert held == overlaps(case, 0)


def test_the_small_benches_run() -> None:
    assert set(measure_depths(5000, (1, 3))) == {"1", "3"}
    assert all(rate > 0 for rate in measure_apply(2000, 64).values())
    for in_dict in (False, True):
        assert measure_one_holder(20_000, in_dict)["longest_pause_ms"] > 0


@pytest.mark.parametrize("kind", ["removes", "no-removes", "restarts"])
def test_flat_memory_is_within_the_budget_by_the_index_s_own_count(kind: str) -> None:
    measured = measure_flat(kind, 100_000, 2 << 20)
    assert len(measured["rss_mib"]) == 10
    assert measured["most_bytes_used_mib"] <= measured["budget_mib"]
    assert (measured["refused"] > 0) == (kind != "removes")


def test_a_peer_that_is_not_there_is_skipped_by_name(capsys: pytest.CaptureFixture[str]) -> None:
    absent = in_fresh_process("no such module", module="tests.bench.no_such_module")
    assert "No module named" in absent["skipped"]
    ours = in_fresh_process("headrace", "shared", "500", module="tests.bench.index_peers")
    assert "skipped" not in ours
    measured = {
        "peers": {case: {peer: ours if peer == "headrace" else absent for peer in PEERS} for case in CASES},
        "depths": {"1": 1.0},
        "memory": {"one-holder": {"bytes_per_block": 1.0, "worst_bytes_per_block": 1.0}},
        "apply": {"apply_per_s": 1.0},
    }
    print_tables(measured)
    assert "skipped: " in capsys.readouterr().out
    assert {"match_p50_us", "match_p99_us", "bytes_per_block", "apply_per_s", "peers"} <= summary(measured).keys()
