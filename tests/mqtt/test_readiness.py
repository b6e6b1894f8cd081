"""Watching sockets for others: who is told of what, and who is not any more."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import pytest

from mqtt.broker.net.readiness import READABLE, WRITABLE, Readiness


class Noting:
    """Notes what it is told."""

    def __init__(self) -> None:
        self.told: list[int] = []
        self.aborted = 0
        self.then: Callable[[], None] = lambda: None

    def on_ready(self, events: int) -> None:
        self.told.append(events)
        self.then()

    def abort(self) -> None:
        self.aborted += 1


@pytest.fixture
async def readiness() -> AsyncIterator[Readiness]:
    watching = Readiness(asyncio.get_running_loop())
    yield watching
    watching.close()


@pytest.fixture
def pairs() -> Iterator[list[tuple[socket.socket, socket.socket]]]:
    made = [socket.socketpair() for _ in range(3)]
    yield made
    for pair in made:
        for sock in pair:
            sock.close()


async def turns(count: int = 5) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


async def test_each_is_told_of_its_own_socket(readiness: Readiness, pairs: Any) -> None:
    (one, far), (two, _), _ = pairs
    first, second = Noting(), Noting()
    readiness.watch(one.fileno(), first)
    readiness.watch(two.fileno(), second)
    far.send(b"x")
    await turns()
    assert first.told
    assert set(first.told) == {READABLE}
    assert second.told == []
    one.recv(1)
    readiness.change(two.fileno(), READABLE, READABLE | WRITABLE)
    del first.told[:]
    await turns()
    assert (first.told, set(second.told)) == ([], {WRITABLE})


async def test_nobody_is_told_of_what_is_not_wanted(readiness: Readiness, pairs: Any) -> None:
    near, far = pairs[0]
    noting, successor = Noting(), Noting()
    readiness.watch(near.fileno(), noting)
    readiness.change(near.fileno(), READABLE, 0)
    far.close()  # an end is told of by epoll whether it is wanted or not
    await turns()
    assert noting.told == []
    readiness.hand_over(near.fileno(), successor)
    readiness.change(near.fileno(), 0, READABLE)
    await turns()
    assert noting.told == []
    assert successor.told[0] & READABLE


@pytest.mark.parametrize("wanted", [0, READABLE])
async def test_who_has_forgotten_a_socket_is_not_told_in_the_same_turn(
    readiness: Readiness, pairs: Any, wanted: int
) -> None:
    watchers = [Noting(), Noting()]
    sockets = [pair[0] for pair in pairs[:2]]
    for sock, watcher, other in zip(sockets, watchers, reversed(sockets), strict=True):
        readiness.watch(sock.fileno(), watcher)

        def forget(sock: socket.socket = sock, other: socket.socket = other) -> None:
            for each in (sock, other):
                if not wanted:
                    readiness.change(each.fileno(), READABLE, 0)
                readiness.forget(each.fileno(), wanted)

        watcher.then = forget
    for _, far in pairs:
        far.send(b"x")
    await turns()
    assert sorted(len(watcher.told) for watcher in watchers) == [0, 1]


async def test_one_that_fails_is_ended_and_the_others_are_told(
    readiness: Readiness, pairs: Any
) -> None:
    told: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _loop, context: told.append(context))
    watchers = [Noting() for _ in pairs]

    def fail() -> None:
        readiness.forget(pairs[0][0].fileno(), READABLE)
        raise RuntimeError("bad")

    watchers[0].then = fail
    for (near, far), watcher in zip(pairs, watchers, strict=True):
        readiness.watch(near.fileno(), watcher)
        far.send(b"x")
    await turns()
    assert [bool(watcher.told) for watcher in watchers] == [True] * 3
    assert [watcher.aborted for watcher in watchers] == [1, 0, 0]
    assert [str(context["exception"]) for context in told] == ["bad"]


async def test_a_socket_that_cannot_be_watched_is_not(readiness: Readiness, pairs: Any) -> None:
    with pytest.raises(OSError, match="descriptor"):
        readiness.watch(10_000_000, Noting())


async def test_closing_ends_whoever_is_left_once(pairs: Any) -> None:
    readiness = Readiness(asyncio.get_running_loop())
    noting = Noting()
    readiness.watch(pairs[0][0].fileno(), noting)
    readiness.forget(pairs[0][0].fileno(), READABLE)
    left = Noting()
    left.then = lambda: None
    readiness.watch(pairs[1][0].fileno(), left)
    readiness.close()
    pairs[1][1].send(b"x")
    await turns()
    assert (noting.aborted, left.aborted, left.told) == (0, 1, [])
