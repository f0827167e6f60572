"""The routers' board and the records of their decisions against a real server."""

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from pathlib import Path

import pytest

from kvstore.board import Board, open_board
from kvstore.connection import RedisLink
from kvstore.decision_records import MAX_RECORD_BYTES, DecisionRecords
from kvstore.errors import RedisUnavailableError
from kvstore.settings import BoardSettings
from kvstore.types import RequestId
from router.class_tokens import decode
from router.explain.decision_store import DecisionHistory, DecisionStore
from router.explain.explainer import Explainer
from router.replicas import ReplicaExchange
from tests.builders import make_core
from tests.redis_servers import Servers, plain_server


def run(folder: Path, test: Callable[[Servers, Board], Awaitable[None]]) -> None:
    """Run `test` on an empty server."""

    async def body() -> None:
        async with plain_server(folder) as servers, open_board(servers.url, "ns") as board:
            await test(servers, board)

    asyncio.run(body())


def decision(number: int) -> tuple[RequestId, bytes]:
    return RequestId(f"r{number}"), f"because {number}".encode()


def test_replicas_read_each_others_newest_records(tmp_path: Path) -> None:
    async def test(servers: Servers, board: Board) -> None:
        assert await board.read_all() == {}
        async with open_board(servers.url, "ns") as other, open_board(servers.url, "elsewhere") as stranger:
            for round_ in range(3):
                await board.publish("a", bytes([round_, 255]), 5.0)
                await other.publish("b", bytes([round_, 0]), 5.0)
            assert await stranger.read_all() == {}
            assert await board.read_all() == await other.read_all() == {"a": b"\x02\xff", "b": b"\x02\x00"}

    run(tmp_path, test)


def test_a_replica_that_is_silent_disappears(tmp_path: Path) -> None:
    async def test(servers: Servers, board: Board) -> None:
        await board.publish("a", b"1", 0.1)
        await board.publish("b", b"2", 5.0)
        await asyncio.sleep(0.2)
        assert await board.read_all() == {"b": b"2"}
        async with servers.servers[0].client() as client:
            assert await client.smembers("{ns}:board") == {"b"}

    run(tmp_path, test)


def test_decisions_are_found_by_request_until_they_expire(tmp_path: Path) -> None:
    async def test(_: Servers, board: Board) -> None:
        assert await board.decisions.put([], 5.0) == 0
        assert await board.decisions.put([decision(1), decision(2), (RequestId("r2"), b"later")], 5.0) == 2
        assert await board.decisions.put([decision(3)], 0.1) == 1
        await asyncio.sleep(0.2)
        found = [await board.decisions.get(RequestId(f"r{number}")) for number in range(4)]
        assert found == [None, b"because 1", b"later", None]

    run(tmp_path, test)


def test_decisions_are_bounded_in_number_and_in_size(tmp_path: Path) -> None:
    async def test(servers: Servers, _: Board) -> None:
        async with AsyncExitStack() as stack:
            link = RedisLink(servers.url)
            stack.push_async_callback(link.close)
            decisions = DecisionRecords(link, "ns", max_records=10)
            for first in range(0, 40, 4):
                await decisions.put([decision(first + step) for step in range(4)], 60.0)
            kept = [number for number in range(40) if await decisions.get(RequestId(f"r{number}")) is not None]
            assert kept == list(range(30, 40))
            large, fits = bytes(MAX_RECORD_BYTES + 1), bytes(MAX_RECORD_BYTES)
            assert await decisions.put([(RequestId("large"), large), (RequestId("fits"), fits)], 60.0) == 1
            assert await decisions.get(RequestId("large")) is None
            assert await decisions.get(RequestId("fits")) == fits
            async with servers.servers[0].client() as client:
                assert await client.dbsize() == 11

    run(tmp_path, test)


def test_a_server_that_is_away_is_one_error(tmp_path: Path) -> None:
    async def test(servers: Servers, board: Board) -> None:
        servers.servers[0].kill()
        calls: list[Callable[[], Awaitable[object]]] = [
            lambda: board.publish("a", b"1", 5.0),
            board.read_all,
            lambda: board.decisions.put([decision(1)], 5.0),
            lambda: board.decisions.get(RequestId("r1")),
        ]
        for call in calls:
            with pytest.raises(RedisUnavailableError):
                await call()

    run(tmp_path, test)


def test_what_engines_computed_by_class_lies_beside_the_promises(tmp_path: Path) -> None:
    async def test(_: Servers, board: Board) -> None:
        history = DecisionHistory(
            Explainer(router="a", policy="least_cost", unix_offset_s=0.0),
            DecisionStore(max_records=8, max_bytes=1 << 20),
        )
        counted = {"m": {"chat": 12.5}}
        exchange = ReplicaExchange(
            board,
            "a",
            BoardSettings(),
            history=history,
            own_report=lambda replica_id: make_core().report(replica_id, 0.0),
            class_tokens=lambda: counted,
            on_reports=lambda _: None,
        )
        await exchange.exchange()
        (record,) = (await board.classes.read_all()).values()
        assert decode(record) == counted
        assert set(await board.read_all()) == {"a"}

    run(tmp_path, test)
