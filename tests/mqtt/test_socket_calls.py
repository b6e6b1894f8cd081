"""Reading and writing many sockets at a call: C and Python do the same."""

from __future__ import annotations

import errno
import os
import resource
import select
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from mqtt.broker.net import socket_calls
from mqtt.broker.net.socket_calls import ACCEPT_MAX, EVENTS_MAX, WRITABLE

# Where nothing was built, Python is held to the same by itself.
CALLS = {
    "python": (socket_calls._receive, socket_calls._send, socket_calls._accept),
    "in use": (socket_calls.receive, socket_calls.send, socket_calls.accept),
}


@pytest.fixture(params=CALLS)
def receive(request: pytest.FixtureRequest) -> Any:
    return CALLS[request.param][0]


@pytest.fixture(params=CALLS)
def send(request: pytest.FixtureRequest) -> Any:
    return CALLS[request.param][1]


@pytest.fixture(params=CALLS)
def accept(request: pytest.FixtureRequest) -> Any:
    return CALLS[request.param][2]


@pytest.fixture
def epoll() -> Iterator[select.epoll]:
    with select.epoll() as epoll:
        yield epoll


@pytest.fixture
def pairs() -> Iterator[list[tuple[socket.socket, socket.socket]]]:
    pairs = [socket.socketpair() for _ in range(4)]
    for near, far in pairs:
        near.setblocking(False)
        far.settimeout(60)
    yield pairs
    for near, far in pairs:
        near.close()
        far.close()


def by_descriptor(found: list[Any]) -> dict[int, list[Any]]:
    told: dict[int, list[Any]] = {}
    for descriptor, what in zip(found[::2], found[1::2], strict=True):
        told.setdefault(descriptor, []).append(what)
    return told


def test_data_end_and_error_of_those_that_are_ready_are_told(
    receive: Any, epoll: select.epoll, pairs: list[tuple[socket.socket, socket.socket]]
) -> None:
    (one, _), (two, _), (three, _), (quiet, _) = pairs
    for near, _ in pairs:
        epoll.register(near.fileno(), select.EPOLLIN)
    pairs[0][1].send(b"first")
    pairs[1][1].close()
    pairs[2][1].send(bytes(2000))
    told = by_descriptor(receive(epoll, bytearray(4096), 1024))
    assert told == {one.fileno(): [b"first"], two.fileno(): [b""], three.fileno(): [bytes(1024)]}
    assert quiet.fileno() not in told
    again = by_descriptor(receive(epoll, bytearray(4096), 1024))
    assert again == {two.fileno(): [b""], three.fileno(): [bytes(976)]}


def test_a_reset_is_an_error_number(receive: Any, epoll: select.epoll) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        far = socket.create_connection(server.getsockname())
        near, _ = server.accept()
        with near:
            near.setblocking(False)
            epoll.register(near.fileno(), 0)  # told of it though it watches for nothing
            far.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
            far.close()
            assert epoll.poll(10)
            found = receive(epoll, bytearray(512), 64)
            assert found == [near.fileno(), -errno.ECONNRESET]


def test_room_to_write_is_told_after_what_was_read(
    receive: Any, epoll: select.epoll, pairs: list[tuple[socket.socket, socket.socket]]
) -> None:
    near, far = pairs[0]
    epoll.register(near.fileno(), select.EPOLLOUT)
    assert receive(epoll, bytearray(512), 64) == [near.fileno(), WRITABLE]
    far.send(b"data")
    epoll.modify(near.fileno(), select.EPOLLIN | select.EPOLLOUT)
    found = receive(epoll, bytearray(512), 64)
    assert found == [near.fileno(), b"data", near.fileno(), WRITABLE]


def test_what_has_no_room_comes_with_the_next_calls(
    receive: Any, epoll: select.epoll, pairs: list[tuple[socket.socket, socket.socket]]
) -> None:
    for near, far in pairs:
        epoll.register(near.fileno(), select.EPOLLIN)
        far.send(bytes(1000))
    got = {near.fileno(): 0 for near, _ in pairs}
    for _ in range(10):
        for descriptor, whats in by_descriptor(receive(epoll, bytearray(512), 100)).items():
            got[descriptor] += sum(len(what) for what in whats)
    assert set(got.values()) == {1000}


def test_who_sends_without_end_leaves_the_others_their_share(
    receive: Any, epoll: select.epoll, pairs: list[tuple[socket.socket, socket.socket]]
) -> None:
    for near, far in pairs:
        epoll.register(near.fileno(), select.EPOLLIN)
        far.send(bytes(100_000))
    for _ in range(3):
        told = by_descriptor(receive(epoll, bytearray(800), 800))
        assert {len(whats[0]) for whats in told.values()} == {200}
        assert len(told) == len(pairs)


def test_a_closed_epoll_and_other_objects_are_refused(receive: Any, send: Any) -> None:
    epoll = select.epoll()
    epoll.close()
    with pytest.raises((OSError, ValueError)):
        receive(epoll, bytearray(512), 64)
    with select.epoll() as epoll, pytest.raises(ValueError, match="a byte"):
        receive(epoll, bytearray(EVENTS_MAX - 1), 64)
    for wrong in ({"1": b""}, {1: "text"}):
        with pytest.raises(TypeError):
            send(wrong)


def test_what_is_taken_whole_is_not_told(
    send: Any, pairs: list[tuple[socket.socket, socket.socket]]
) -> None:
    assert send({near.fileno(): b"%d" % index for index, (near, _) in enumerate(pairs)}) is None
    assert [far.recv(10) for _, far in pairs] == [b"0", b"1", b"2", b"3"]
    assert send({}) is None


def test_what_is_not_taken_whole_is_told_by_descriptor(
    send: Any, pairs: list[tuple[socket.socket, socket.socket]]
) -> None:
    (full, _), (taken, far), (gone, other), _ = pairs
    other.close()
    data = bytes(8 << 20)
    found = send({full.fileno(): data, taken.fileno(): b"x", gone.fileno(): b"y"})
    sent = found[1]
    assert 0 < sent < len(data)
    assert found == [full.fileno(), sent, gone.fileno(), -errno.EPIPE]
    assert far.recv(10) == b"x"
    assert send({full.fileno(): b"z"}) == [full.fileno(), -errno.EAGAIN]


def _listening(family: int, address: Any) -> socket.socket:
    listening = socket.socket(family)
    listening.bind(address)
    listening.listen(ACCEPT_MAX + 10)
    listening.setblocking(False)
    return listening


@pytest.mark.parametrize(
    ("family", "host"), [(socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1")]
)
def test_those_who_wait_are_accepted_with_their_addresses(
    accept: Any, family: int, host: str
) -> None:
    with _listening(family, (host, 0)) as listening:
        assert accept(listening, 5) == []
        clients = [socket.create_connection(listening.getsockname()[:2]) for _ in range(3)]
        accepted = accept(listening, 2) + accept(listening, 2)
        assert accepted[1::2] == [client.getsockname() for client in clients]
        for descriptor, client in zip(accepted[::2], clients, strict=True):
            assert not os.get_blocking(descriptor)
            assert not os.get_inheritable(descriptor)
            client.sendall(b"x")
            with socket.socket(fileno=descriptor) as near:
                near.settimeout(60)
                assert near.recv(2) == b"x"
            client.close()
        assert accept(listening, 2) == []


def test_of_a_unix_socket_there_is_no_address(accept: Any, tmp_path: Path) -> None:
    with _listening(socket.AF_UNIX, str(tmp_path / "s")) as listening:
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(str(tmp_path / "s"))
            descriptor, address = accept(listening, 5)
        os.close(descriptor)
        assert address is None


def test_no_more_are_accepted_at_once_than_there_is_room_for(accept: Any) -> None:
    with _listening(socket.AF_INET, ("127.0.0.1", 0)) as listening:
        clients = [socket.create_connection(listening.getsockname()) for _ in range(ACCEPT_MAX + 5)]
        accepted = accept(listening, ACCEPT_MAX + 5)
        assert len(accepted) == 2 * ACCEPT_MAX
        accepted += accept(listening, ACCEPT_MAX)
        for client in clients:
            client.close()
        for descriptor in accepted[::2]:
            os.close(descriptor)


def test_without_descriptors_those_who_were_accepted_are_told_first(accept: Any) -> None:
    with _listening(socket.AF_INET, ("127.0.0.1", 0)) as listening:
        clients = [socket.create_connection(listening.getsockname()) for _ in range(3)]
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        free = os.dup(0)  # the lowest that is free: with it there is room for one
        os.close(free)
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (free + 1, hard))
            descriptor, _ = accept(listening, 3)
            with pytest.raises(OSError, match="Too many open files"):
                accept(listening, 3)
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        assert descriptor == free
        os.close(descriptor)
        for client in clients:
            client.close()
