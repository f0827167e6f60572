"""Ports for a child that insists on being told its ports."""

import socket

import pytest

from workers.ports import free_port_runs, free_ports


def test_ports_are_different_and_can_be_bound() -> None:
    ports = free_ports("127.0.0.1", 20)
    assert len(set(ports)) == 20
    for port in ports:
        with socket.socket() as sock:
            sock.bind(("127.0.0.1", port))


def test_a_port_in_use_is_not_given_out() -> None:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        sock.listen()
        taken = sock.getsockname()[1]
        assert all(taken not in free_ports("127.0.0.1", 50) for _ in range(20))


@pytest.mark.skipif(not socket.has_ipv6, reason="no IPv6 here")
def test_ipv6_hosts() -> None:
    try:
        (port,) = free_ports("::1", 1)
    except OSError:
        pytest.skip("no IPv6 loopback here")
    with socket.socket(socket.AF_INET6) as sock:
        sock.bind(("::1", port))


def test_an_address_that_is_not_ours_is_an_error() -> None:
    with pytest.raises(OSError, match="assign requested address"):
        free_ports("203.0.113.1", 1)


def test_runs_are_adjacent_and_do_not_overlap() -> None:
    firsts = free_port_runs("127.0.0.1", (1, 3, 3, 2))
    ports = [first + step for first, length in zip(firsts, (1, 3, 3, 2), strict=True) for step in range(length)]
    assert len(set(ports)) == 9
    for port in ports:
        with socket.socket() as sock:
            sock.bind(("127.0.0.1", port))
