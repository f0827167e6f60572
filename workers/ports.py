"""Free ports for a child that insists on being told its ports."""

import socket


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
