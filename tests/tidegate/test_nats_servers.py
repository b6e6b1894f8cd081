"""Ports for servers of our own: kept for them until they listen."""

from __future__ import annotations

import socket

import pytest

from tidegate.nats_servers import free_ports


def test_a_port_given_out_is_nobodys_but_a_servers() -> None:
    """A client whose own port it would be, or another who asks for any, does not get it."""
    for port in free_ports(5):
        with socket.socket() as client, pytest.raises(OSError, match="in use"):
            client.bind(("127.0.0.1", port))
        with socket.create_server(("127.0.0.1", port)) as server:  # sets SO_REUSEADDR
            with socket.create_connection(("127.0.0.1", port), timeout=5):
                server.accept()[0].close()
            with pytest.raises(OSError, match="in use"):
                socket.create_server(("127.0.0.1", port))
        with socket.create_server(("127.0.0.1", port)):  # a server that is started again
            pass


def test_ports_given_out_differ() -> None:
    assert len(set(free_ports(200))) == 200
