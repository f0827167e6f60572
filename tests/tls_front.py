"""Ends TLS in front of a server that has none. Plain connections may pass through, so that servers find each other.

A Sentinel and the servers it watches know one port for each server; clients are told the same port. So the front looks
at the first byte: 0x16 begins a TLS handshake, anything else is a server's own plain connection.
"""

import asyncio
import contextlib
import socket
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager


@asynccontextmanager
async def tls_front(
    host: str, port: int, backend_port: int, context: ssl.SSLContext, *, plain_too: bool
) -> AsyncIterator[None]:
    """Listen on `port` and pass on to `backend_port` what comes over TLS, and what comes plain if `plain_too`."""
    listener = socket.create_server((host, port))
    listener.setblocking(False)
    accepting = asyncio.create_task(_accept(listener, host, backend_port, context, plain_too))
    try:
        yield
    finally:
        accepting.cancel()
        await asyncio.gather(accepting, return_exceptions=True)
        listener.close()


async def _accept(
    listener: socket.socket, host: str, backend_port: int, context: ssl.SSLContext, plain_too: bool
) -> None:
    async with asyncio.TaskGroup() as group:
        while True:
            client, _ = await asyncio.get_running_loop().sock_accept(listener)
            group.create_task(_serve(client, host, backend_port, context, plain_too))


async def _serve(client: socket.socket, host: str, backend_port: int, context: ssl.SSLContext, plain_too: bool) -> None:
    loop = asyncio.get_running_loop()
    near = asyncio.StreamReader()
    protocol = asyncio.StreamReaderProtocol(near)
    with contextlib.suppress(OSError):
        try:
            is_tls = await _first_byte(client) == b"\x16" or not plain_too
        except BaseException:
            client.close()
            raise
        transport, _ = await loop.connect_accepted_socket(lambda: protocol, client, ssl=context if is_tls else None)
        near_writer = asyncio.StreamWriter(transport, protocol, near, loop)
        try:
            far, far_writer = await asyncio.open_connection(host, backend_port)
            try:
                await _join(near, near_writer, far, far_writer)
            finally:
                far_writer.close()
        finally:
            near_writer.close()
            transport.abort()  # a TLS farewell would wait for an answer


async def _first_byte(client: socket.socket) -> bytes:
    loop = asyncio.get_running_loop()
    readable = asyncio.Event()
    loop.add_reader(client, readable.set)
    try:
        await readable.wait()
    finally:
        loop.remove_reader(client)
    return client.recv(1, socket.MSG_PEEK)


async def _join(
    near: asyncio.StreamReader,
    near_writer: asyncio.StreamWriter,
    far: asyncio.StreamReader,
    far_writer: asyncio.StreamWriter,
) -> None:
    """Until either side ends."""
    copies = [asyncio.create_task(_copy(near, far_writer)), asyncio.create_task(_copy(far, near_writer))]
    try:
        await asyncio.wait(copies, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for copy in copies:
            copy.cancel()
        await asyncio.gather(*copies, return_exceptions=True)


async def _copy(source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
    while data := await source.read(65536):
        sink.write(data)
        await sink.drain()
