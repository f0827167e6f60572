"""Invariants of router/http/acceptor.py."""

import asyncio
import os
import resource
import socket

import pytest

from tests.http_server import GET, run, serving, until


def test_all_that_wait_are_taken_in_one_turn() -> None:
    async def test() -> None:
        async with serving() as served:
            waiting = []
            for _ in range(200):
                sock = socket.socket()
                sock.setblocking(False)
                with pytest.raises(BlockingIOError):
                    sock.connect(("127.0.0.1", served.port))
                waiting.append(sock)
            for _ in range(10):  # one to take them, the rest to make protocols of them
                await asyncio.sleep(0)
            assert served.server.num_connections == 200
            for sock in waiting:
                sock.close()

    run(test)


def test_without_descriptors_connections_wait(caplog: pytest.LogCaptureFixture) -> None:
    """Invariant 2."""

    async def test() -> None:
        async with serving() as served:
            soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
            sock = socket.socket()
            sock.setblocking(False)
            lowest_free = os.dup(0)
            os.close(lowest_free)
            resource.setrlimit(resource.RLIMIT_NOFILE, (lowest_free, hard))
            try:
                with pytest.raises(BlockingIOError):
                    sock.connect(("127.0.0.1", served.port))
                await until(lambda: "no connection can be accepted" in caplog.text, "it is logged")
                assert served.server.num_connections == 0
            finally:
                resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
            loop = asyncio.get_running_loop()
            await loop.sock_sendall(sock, GET)
            assert (await loop.sock_recv(sock, 1000)).startswith(b"HTTP/1.1 200")
            sock.close()

    run(test)
