"""Names with several addresses, of which some are dead: they refuse, say nothing, or hang."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import replace

import pytest

from edge.uplink import Uplink
from edge.uplink_addresses import Addresses, open_socket
from edge.uplink_config import Endpoint, UplinkConfig
from edge.uplink_socket import LinkBytes
from tests.kit.cloud_peer import CloudPeer
from tests.kit.journals import MemoryJournal
from tests.kit.processes import free_ports
from tests.kit.sites import until
from tests.kit.turns import all_accepted
from tests.kit.uplinks import FAST, numbered, uplink_to

GOOD, OTHER = "127.0.0.1", "127.0.0.2"
NAME = "cloud.example"
PATIENT = replace(FAST, connect_timeout_s=60)  # a busy machine is no dead address
Serve = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]
SIX = (socket.AF_INET6, socket.SOCK_STREAM, 6, "")
FOUR = (socket.AF_INET, socket.SOCK_STREAM, 6, "")


@pytest.fixture
def named(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The addresses of NAME, in the order the resolver gives them."""
    addresses: list[str] = []

    def getaddrinfo(_host: str, port: int, *_: object, **__: object) -> list[tuple[object, ...]]:
        return [(*FOUR, (address, port)) for address in addresses]

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    return addresses


@contextmanager
def black_hole(port: int) -> Iterator[None]:
    """Have OTHER say nothing at all to who dials it: its queue is full, SYNs are dropped."""
    with contextlib.ExitStack() as stack:
        server = stack.enter_context(socket.socket())
        server.bind((OTHER, port))
        server.listen(0)
        for _ in range(3):
            filler = stack.enter_context(socket.socket())
            filler.setblocking(False)
            filler.connect_ex((OTHER, port))
        yield


@asynccontextmanager
async def dialling(
    cloud: CloudPeer, journal: MemoryJournal, config: UplinkConfig = FAST
) -> AsyncIterator[Uplink]:
    """Run an uplink to NAME at the port of `cloud`."""
    async with uplink_to(journal, f"mqtt://{NAME}:{cloud.port}", config=config) as uplink:
        yield uplink


async def test_an_address_that_says_nothing_costs_a_moment_and_not_the_link(
    named: list[str],
) -> None:
    named += [OTHER, GOOD]
    journal = MemoryJournal()
    journal.capture(numbered(0, 100))
    async with CloudPeer() as cloud:
        with black_hole(cloud.port):
            async with dialling(cloud, journal, PATIENT) as uplink:
                await journal.until_trimmed()
                assert uplink.status().dials == 1
    assert len(cloud.rows) == 100


async def test_every_address_has_its_turn_within_the_time_there_is(named: list[str]) -> None:
    named += [OTHER, OTHER, OTHER, OTHER, GOOD]
    journal = MemoryJournal()
    journal.capture(numbered(0, 10))
    async with CloudPeer() as cloud:
        with black_hole(cloud.port):
            async with dialling(cloud, journal, replace(FAST, connect_timeout_s=2)):
                await journal.until_trimmed()
    assert len(cloud.rows) == 10


async def test_an_address_whose_server_does_not_answer_is_dialled_last_the_next_time(
    named: list[str],
) -> None:
    named += [OTHER, GOOD]
    journal = MemoryJournal()
    journal.capture(numbered(0, 100))
    tried = []

    async def fail(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        tried.append(writer)
        await reader.read(100)  # CONNECT, which is never answered
        writer.close()

    async with CloudPeer() as cloud:
        server = await asyncio.start_server(fail, OTHER, cloud.port)
        async with dialling(cloud, journal, PATIENT) as uplink:
            await journal.until_trimmed()
            assert uplink.status().dials == 2
            cloud.cut()  # one that has answered is the first to be dialled again
            journal.capture(numbered(100, 1))
            await journal.until_trimmed()
        server.close()
    assert len(tried) == 1
    assert len(cloud.rows) == 101


async def test_a_server_that_stops_answering_is_left_for_another_address(named: list[str]) -> None:
    named += [GOOD, OTHER]
    journal = MemoryJournal()
    async with CloudPeer(lambda _batch, _n: None) as mute, CloudPeer() as good:
        passing: set[asyncio.Task[None] | None] = set()
        moved = await asyncio.start_server(_pass_on(good.port, passing), OTHER, mute.port)
        async with dialling(mute, journal, replace(FAST, ack_timeout_s=1)):
            journal.capture(numbered(0, 10))
            await journal.until_trimmed()
        moved.close()
        await all_accepted()
        await until("all is passed on", lambda: not passing)
    assert len(good.rows) == 10


def _pass_on(port: int, passing: set[asyncio.Task[None] | None]) -> Serve:
    """Return a server that is the one at `port`; `passing` has its tasks."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        passing.add(asyncio.current_task())
        there, back = await asyncio.open_connection(GOOD, port)

        async def forward(source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
            with contextlib.suppress(OSError):
                while data := await source.read(65536):
                    sink.write(data)
            sink.close()

        await asyncio.gather(forward(reader, back), forward(there, writer))
        passing.discard(asyncio.current_task())

    return serve


async def test_when_none_accepts_the_last_ones_reason_is_told_and_all_are_paid_for(
    named: list[str],
) -> None:
    named += [OTHER, GOOD]
    (port,) = free_ports(1)
    counts = LinkBytes()
    with pytest.raises(ConnectionRefusedError):
        await open_socket(Endpoint(NAME, port, False), Addresses(), 5, counts)
    assert counts.out >= 2 * 52, "a SYN each"


async def test_a_name_without_addresses_is_told(named: list[str]) -> None:
    assert named == []
    with pytest.raises(OSError, match="no address"):
        await open_socket(Endpoint(NAME, 1, False), Addresses(), 5, LinkBytes())


def test_families_take_turns_and_what_failed_goes_last() -> None:
    six = [(*SIX, (f"::{n}", 1, 0, 0)) for n in (1, 2)]
    four = [(*FOUR, (f"10.0.0.{n}", 1)) for n in (1, 2)]
    addresses = Addresses()
    assert addresses.order([*six, *four]) == [six[0], four[0], six[1], four[1]]
    addresses.dialled(six[0][4])
    assert addresses.order([*six, *four]) == [four[0], six[1], four[1], six[0]]
    addresses.answered(six[0][4])
    assert addresses.order([*six, *four])[0] == six[0]
