"""Free ports for a child that insists on being told its ports."""

import socket
from collections.abc import Sequence


def free_ports(host: str, count: int) -> tuple[int, ...]:
    """`count` different ports free on `host` now. Another process may still take one: the caller starts again."""
    sockets = []
    try:
        for _ in range(count):
            sock = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
            sockets.append(sock)
            sock.bind((host, 0))
        return tuple(sock.getsockname()[1] for sock in sockets)
    finally:
        for sock in sockets:
            sock.close()


def free_port_runs(host: str, lengths: Sequence[int]) -> tuple[int, ...]:
    """The first ports of runs of adjacent ports, for a child that counts up from the port it is told."""
    if max(lengths) == 1:
        return free_ports(host, len(lengths))
    firsts: list[int] = []
    taken: set[int] = set()
    for length in lengths:
        for _ in range(100):
            (first,) = free_ports(host, 1)
            run = range(first, first + length)
            if run[-1] <= 65535 and taken.isdisjoint(run) and all(_is_free(host, port) for port in run):
                firsts.append(first)
                taken.update(run)
                break
        else:
            raise OSError(f"no {length} adjacent free ports on {host}")
    return tuple(firsts)


def _is_free(host: str, port: int) -> bool:
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as sock:
        try:
            sock.bind((host, port))
        except OSError:
            return False
        return True
