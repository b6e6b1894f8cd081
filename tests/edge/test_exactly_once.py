"""QoS 2 across a crash of the gateway: each publish is one reading, and one local delivery.

The journal and the sessions' file are committed one after the other. Here the sessions' file is
locked, so that the journal has publishes which the sessions do not know; then the files are copied
as a crash would leave them, and a gateway starts on the copy.
"""

from __future__ import annotations

import asyncio
import sqlite3
import subprocess
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, closing, contextmanager
from pathlib import Path

import pytest

import edge.capture
from edge.config import EdgeConfig, EdgeHttpConfig, JournalConfig
from edge.contract import Lane
from edge.service import EdgeService
from mqtt.broker.session_store import SqliteSessionStore
from mqtt.packets import (
    V5,
    V311,
    Connack,
    Connect,
    Pubcomp,
    Publish,
    Pubrec,
    Pubrel,
    Suback,
    Subscribe,
    Subscription,
)
from mqtt.properties import SESSION_EXPIRY_INTERVAL
from runtime.clock import ManualClock, SystemClock
from tests.kit.brokers import WireClient
from tests.kit.journal_files import fill, journal_at, payloads_in, read_all

VERSIONS = pytest.mark.parametrize("version", [V311, V5])
TOPIC = "devices/d1/t"


@asynccontextmanager
async def gateway(folder: Path) -> AsyncIterator[EdgeService]:
    """Run a gateway without a cloud."""
    config = EdgeConfig(
        data=folder,
        gateway="gw-1",
        host="127.0.0.1",
        port=0,
        journal=JournalConfig(disk_reserve_bytes=0),
        http=EdgeHttpConfig(enabled=False),
    )
    service = EdgeService(config, SystemClock())
    try:
        await service.start()
        yield service
    finally:
        await service.stop()


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Keep the sessions' file from being written."""
    with closing(sqlite3.connect(folder / "edge" / "sessions.db", isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        try:
            yield
        finally:
            other.execute("ROLLBACK")


async def crashed(folder: Path, name: str) -> Path:
    """Return a copy of a gateway's files as they are now; by another process, so that no lock of
    this one is given up."""
    copy = folder.parent / name
    await asyncio.to_thread(subprocess.run, ["cp", "-r", folder, copy], check=True)
    return copy


async def lasting(
    service: EdgeService, client_id: str, version: int, *, present: bool
) -> WireClient:
    """Connect to a session that lasts."""
    client = await WireClient.open(service.port, version)
    properties = {SESSION_EXPIRY_INTERVAL: 3600} if version == V5 else {}
    client.send(Connect(client_id, version, clean_start=False, properties=properties))
    assert (await client.receive(Connack)).session_present == present
    return client


def send(client: WireClient, *ids: int, dup: bool = False, payload: bytes = b"reading") -> None:
    """Publish with QoS 2."""
    client.send(*(Publish(TOPIC, payload + b" %d" % n, 2, dup=dup, packet_id=n) for n in ids))


async def readings(service: EdgeService, count: int) -> list[bytes]:
    """Wait until the journal holds `count` readings, and return their payloads."""
    assert service._parts is not None
    journal = service._parts.journal
    async with asyncio.timeout(60):
        while journal.last_seq < count:
            await asyncio.sleep(0.005)
    return payloads_in(await journal.read(Lane.LIVE, 0, bytes_max=1 << 20))


async def finish(client: WireClient, *ids: int) -> None:
    """See exchanges through after their PUBREC."""
    for number in ids:
        client.send(Pubrel(number))
        assert (await client.receive(Pubcomp)).packet_id == number
    await client.close()


@asynccontextmanager
async def between_the_commits(
    tmp_path: Path, version: int, *ids: int
) -> AsyncIterator[tuple[Path, EdgeService]]:
    """Give the files of a gateway that crashed between the two commits of some publishes."""
    folder = tmp_path / "first"
    async with gateway(folder) as service:
        reader = await lasting(service, "reader", version, present=False)
        reader.send(Subscribe(1, [Subscription("#", 2)]))
        await reader.receive(Suback)
        await reader.close()
        writer = await lasting(service, "writer", version, present=False)
        send(writer, 1)
        assert (await writer.receive(Pubrec)).packet_id == 1
        writer.send(Pubrel(1))
        await writer.receive(Pubcomp)
        with locked(folder):
            send(writer, *ids)
            await readings(service, 1 + len(ids))
            copy = await crashed(folder, "second")
        yield copy, service
        await writer.close()


@VERSIONS
async def test_a_publish_that_only_the_journal_knew_is_not_taken_twice(
    tmp_path: Path, version: int
) -> None:
    async with between_the_commits(tmp_path, version, 1, 2, 3) as (copy, _):
        expected = [b"reading %d" % n for n in (1, 1, 2, 3)]
        async with gateway(copy) as service:
            writer = await lasting(service, "writer", version, present=True)
            for _ in range(2):  # and again, however often
                send(writer, 1, 2, 3, dup=True)
                assert [(await writer.receive(Pubrec)).packet_id for _ in range(3)] == [1, 2, 3]
            await finish(writer, 1, 2, 3)
            assert await readings(service, 4) == expected
            reader = await lasting(service, "reader", version, present=True)
            got = [packet for packet in await reader.settled() if isinstance(packet, Publish)]
            assert [packet.payload for packet in got] == expected
            await reader.close()


@VERSIONS
async def test_it_is_known_after_another_crash_as_well(tmp_path: Path, version: int) -> None:
    async with between_the_commits(tmp_path, version, 1, 2) as (copy, _):
        async with gateway(copy) as service:
            other = await lasting(service, "other", version, present=False)
            send(other, 9)  # the mark moves on
            await other.receive(Pubrec)
            third = await crashed(copy, "third")
            await other.close()
        async with gateway(third) as service:
            writer = await lasting(service, "writer", version, present=True)
            send(writer, 1, 2, dup=True)
            assert [(await writer.receive(Pubrec)).packet_id for _ in range(2)] == [1, 2]
            await finish(writer, 1, 2)
            assert len(await readings(service, 4)) == 4
            fourth = await crashed(third, "fourth")
        async with gateway(fourth) as service:  # and forgotten once it has ended
            writer = await lasting(service, "writer", version, present=True)
            send(writer, 1, 2, dup=True)
            await writer.receive(Pubrec)
            await writer.receive(Pubrec)
            await finish(writer, 1, 2)
            assert len(await readings(service, 6)) == 6


@pytest.mark.parametrize(("dup", "payload"), [(False, b"reading"), (True, b"another")])
@VERSIONS
async def test_another_publish_under_its_identifier_is_taken(
    tmp_path: Path, version: int, dup: bool, payload: bytes
) -> None:
    async with between_the_commits(tmp_path, version, 1) as (copy, _), gateway(copy) as service:
        writer = await lasting(service, "writer", version, present=True)
        send(writer, 1, dup=dup, payload=payload)
        assert (await writer.receive(Pubrec)).packet_id == 1
        await finish(writer, 1)
        assert (await readings(service, 3))[-1] == payload + b" 1"


@VERSIONS
async def test_a_new_session_of_the_same_client_does_not_inherit_it(
    tmp_path: Path, version: int
) -> None:
    async with between_the_commits(tmp_path, version, 1) as (copy, _), gateway(copy) as service:
        client = await WireClient.open(service.port, version)
        client.send(Connect("writer", version, clean_start=True))
        await client.receive(Connack)
        send(client, 1, dup=True)
        assert (await client.receive(Pubrec)).packet_id == 1
        await finish(client, 1)
        assert len(await readings(service, 3)) == 3


async def test_after_an_orderly_end_nothing_is_left_to_be_found(tmp_path: Path) -> None:
    async with between_the_commits(tmp_path, V5, 1, 2):
        pass
    store = SqliteSessionStore(tmp_path / "first" / "edge" / "sessions.db")
    state = await store.open()
    await store.close()
    assert state.recovered == []
    assert sorted(row.packet_id for row in state.inbound) == [1, 2]
    assert state.mark is not None
    assert state.mark.seq == 3


async def test_the_mark_moves_on_without_any_qos_2(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(edge.capture, "MARK_BYTES", 2000)
    async with gateway(tmp_path / "first") as service:
        client = await lasting(service, "writer", V5, present=False)
        for number in range(1, 20):
            client.send(Publish(TOPIC, bytes(300), 1, packet_id=number))
            await client.next()
        await client.close()
    store = SqliteSessionStore(tmp_path / "first" / "edge" / "sessions.db")
    state = await store.open()
    await store.close()
    assert state.mark is not None
    assert state.mark.seq > 10


async def test_what_the_cloud_has_stays_in_the_journal_until_the_mark_is_durable(
    tmp_path: Path,
) -> None:
    clock = ManualClock()
    async with journal_at(tmp_path, clock=clock) as journal:
        await fill(journal, 40, readings=1)
        journal.hold_after(20)
        await journal.trim(Lane.LIVE, 40)
        clock.advance(60)
        await journal.flush()
        assert await read_all(journal) == []  # nobody is given it
        kept = [commit async for commit in journal.committed_after(20, bytes_max=100)]
        assert [commit.first_seq for commit in kept] == list(range(21, 41))
        assert [c async for c in journal.committed_after(0, bytes_max=100)] == kept
        journal.hold_after(None)
        clock.advance(60)
        await journal.maintain()
        assert [c async for c in journal.committed_after(0, bytes_max=100)] == []
