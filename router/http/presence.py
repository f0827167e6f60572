"""Whether a client is still there that cannot be heard: its input has ended, or nobody reads it.

The end of input may be the client's end or not. And where nobody reads, it stays behind what was not read. Something
sent tells: a closed socket answers with a reset, and the kernel then has the connection in the state CLOSE.
"""

import asyncio
import socket
from collections.abc import Callable

_TCP_CLOSE = 7  # tcpi_state, first byte of Linux's tcp_info
_SOON_S = 0.05  # within most round trips; what comes later is seen the next time
_PERIOD_S = 2.0


class Presence:
    """Sends something, looks what came of it, and does so every two seconds until stopped."""

    __slots__ = ("_on_gone", "_probe", "_timer", "_transport")

    def __init__(self, transport: asyncio.Transport, probe: Callable[[], None], on_gone: Callable[[], None]) -> None:
        """`probe` sends something, if anything may be sent."""
        self._transport = transport
        self._probe = probe
        self._on_gone = on_gone
        self._ask()

    def stop(self) -> None:
        """Ask no more."""
        self._timer.cancel()

    def _ask(self) -> None:
        self._probe()
        self._timer = asyncio.get_running_loop().call_later(_SOON_S, self._look)

    def _look(self) -> None:
        if _is_closed(self._transport):
            self._on_gone()
        else:
            self._timer = asyncio.get_running_loop().call_later(_PERIOD_S, self._ask)


def _is_closed(transport: asyncio.Transport) -> bool:
    """By Linux; False where that cannot be known."""
    try:
        info = transport.get_extra_info("socket").getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)
    except (OSError, AttributeError):
        return False
    return bool(info[0] == _TCP_CLOSE)
