"""PostgreSQL: rows as DESIGN section 7 has them, once each, through every kind of failure."""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from itertools import pairwise
from typing import Any

import asyncpg
import pytest

from bridge.commands import Correction
from bridge.readings import FLAG_PROPERTIES, FLAG_RETAIN, Readings
from cloud.config import StorageConfig
from cloud.database import DatabaseError
from cloud.sinks.contract import DecodedEntry, FencedSink, SinkFenced, SinkUnavailable
from cloud.sinks.postgres import PostgresSink
from cloud.sinks.postgres_link import PostgresPlace
from runtime.clock import ManualClock
from tests.kit.cloud import EPOCH, decoded, ends
from tests.kit.postgres import PostgresServer, postgres_server
from tests.kit.proxy import Proxy
from tests.kit.readings import one_per_row, readings_of

STREAM = 0xAAAA_BBBB_CCCC_DDDD
ALL = dict.fromkeys(range(64), 1)
SQL_EPOCH = EPOCH - (1 << 64)
SLICE_US = 604_800_000_000


@pytest.fixture(scope="module")
def server() -> Iterator[PostgresServer]:
    with postgres_server() as server:
        yield server


@pytest.fixture(autouse=True)
def no_upkeep_by_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cloud.sinks.postgres._UPKEEP_INTERVAL_S", 1e6)


@pytest.fixture
async def url(server: PostgresServer) -> str:
    return await server.new_database()


@asynccontextmanager
async def opened(
    url: str, config: StorageConfig | None = None, *, stream: int = STREAM, token: int = 1,
    clock: ManualClock | None = None, claim: bool = True,
) -> AsyncIterator[PostgresSink]:  # fmt: skip
    place = PostgresPlace(f"{url}?sslmode=disable")
    sink = PostgresSink(place, config or StorageConfig(), clock or ManualClock())
    await sink.open(stream)
    try:
        if claim:
            await sink.claim(dict.fromkeys(range(64), token))
        yield sink
    finally:
        await sink.close()


async def one(server: PostgresServer, url: str, sql: str, *values: object) -> Any:
    """Return the first value of the first row."""
    return (await server.rows(url, sql, *values))[0][0]


async def seqs_stored(server: PostgresServer, url: str) -> list[int]:
    return [
        row[0] for row in await server.rows(url, "SELECT seq FROM tidegate.readings ORDER BY 1")
    ]


# ---- rows ----------------------------------------------------------------------------------------


async def test_a_reading_is_a_row(server: PostgresServer, url: str) -> None:
    readings = Readings(
        [5, 6, 7],
        [("devices/d1/state", "d1")],
        [0, 0, 0],
        [1_700_000_000_000_000, 1_700_000_000_500_000, -5],
        [1, 2 | FLAG_RETAIN | FLAG_PROPERTIES, 0],
        [b'{"t": 21.5}', b"\xff\xfe", b"a\0b"],
        [b"", b"\x01\x01", b""],
    )
    entries = decoded(readings)
    async with opened(url) as sink:
        assert isinstance(sink, FencedSink)
        await sink.write(entries, ends(entries))
    found = await server.rows(url, "SELECT * FROM tidegate.readings ORDER BY seq")
    topic = "devices/d1/state"
    assert found == [
        ("gw", SQL_EPOCH, 5, "d1", topic, 1_700_000_000_000_000, 77, 1, '{"t": 21.5}', None,
         None, None),
        ("gw", SQL_EPOCH, 6, "d1", topic, 1_700_000_000_500_000, 77, 2, None, b"\xff\xfe",
         True, b"\x01\x01"),
        ("gw", SQL_EPOCH, 7, "d1", topic, -5, 77, 0, None, b"a\0b", None, None),
    ]  # fmt: skip


async def test_json_payloads_are_queried_as_json(server: PostgresServer, url: str) -> None:
    entries = decoded(one_per_row(100))
    odd = decoded(readings_of([b"no json", b"\xff", b'"\\u0000"', b""], seqs=range(501, 505)),
                  position=2)  # fmt: skip
    async with opened(url) as sink:
        await sink.write(entries, ends(entries))
        await sink.write(odd, ends(odd))
    sql = "SELECT sum((tidegate.payload_json(payload) ->> 'n')::int) FROM tidegate.readings"
    assert await one(server, url, sql) == 5050


async def test_what_comes_twice_is_stored_once(server: PostgresServer, url: str) -> None:
    entries = decoded(one_per_row(100))
    again = decoded(one_per_row(100), appended_us=99, position=2)
    overlap = decoded(one_per_row(100, first_seq=51), appended_us=SLICE_US * 3, position=3)
    behind = decoded(one_per_row(30, first_seq=31), appended_us=101, position=4)
    async with opened(url) as sink:
        for some in (entries, entries, again, overlap, behind):
            await sink.write(some, ends(some))
        assert (sink.stats.rows, sink.stats.duplicates) == (150, 180)
    assert await seqs_stored(server, url) == list(range(1, 151))
    sql = "SELECT max(received_us) FROM tidegate.readings WHERE seq <= 100"
    assert await one(server, url, sql) == 77


async def test_twice_in_one_write_is_stored_once(server: PostgresServer, url: str) -> None:
    first = decoded(one_per_row(40, first_seq=11))
    second = decoded(one_per_row(40, first_seq=31), appended_us=99, position=2)
    async with opened(url) as sink:
        await sink.write([*first, *second], ends(second))
    assert await seqs_stored(server, url) == list(range(11, 71))


async def test_a_second_sink_knows_what_the_first_has_stored(
    server: PostgresServer, url: str
) -> None:
    late = decoded(one_per_row(50, first_seq=101))
    early = decoded(one_per_row(120), appended_us=99, position=2)
    async with opened(url) as sink:
        await sink.write(late, ends(late))
    async with opened(url, token=2) as sink:
        await sink.write(early, ends(early))
    assert await seqs_stored(server, url) == list(range(1, 151))


async def test_cursors_belong_to_one_stream(url: str) -> None:
    entries = decoded(one_per_row(10))
    async with opened(url) as sink:
        await sink.write(entries, ends(entries))
        assert await sink.cursors() == ends(entries)
    async with opened(url, stream=STREAM + 1) as sink:
        assert await sink.cursors() == {}
        await sink.write(entries, ends(entries))
        assert sink.stats.duplicates == 10


async def test_a_dead_letter_is_passed_over(url: str) -> None:
    async with opened(url) as sink:
        (one,) = decoded(one_per_row(1), position=9)
        await sink.pass_over(one.entry)
        assert await sink.cursors() == {one.entry.partition: 9}


async def test_rows_lost_by_hand_come_back(server: PostgresServer, url: str) -> None:
    entries = decoded(one_per_row(100))
    async with opened(url) as sink:
        await sink.write(entries, ends(entries))
        await server.rows(url, "DELETE FROM tidegate.readings WHERE seq BETWEEN 11 AND 20")
        for some in entries:
            await sink.write([some], {})  # as `tidegate replay` does
        assert sink.stats.rows == 110
        assert await sink.cursors() == ends(entries)
    assert await seqs_stored(server, url) == list(range(1, 101))


async def test_rows_put_back_by_hand_do_not_stand_in_the_way(
    server: PostgresServer, url: str
) -> None:
    entries = decoded(one_per_row(100))
    async with opened(url) as sink:
        await sink.write(entries, ends(entries))
        await server.rows(url, "DELETE FROM tidegate.stored")
        await server.rows(url, "DELETE FROM tidegate.readings WHERE seq > 50")
        await server.rows(url, "UPDATE tidegate.cursors SET position = 0")
    async with opened(url, token=2) as sink:
        await sink.write(entries, ends(entries))
        assert sink.stats.rows == 50
    assert await seqs_stored(server, url) == list(range(1, 101))


@pytest.mark.parametrize("way", ["straight", "careful"])
async def test_rows_are_written_in_the_order_of_the_stream(
    server: PostgresServer, url: str, way: str
) -> None:
    """Also where the planner would have them in another: joined piece by piece by a hash."""
    name = url.rpartition("/")[2]
    for setting in ("work_mem = '64kB'", "enable_nestloop = off", "enable_mergejoin = off"):
        await server.rows(url, f"ALTER DATABASE {name} SET {setting}")
    entries = decoded(one_per_row(5_000, devices=8))
    async with opened(url) as sink:
        await sink.write(entries, ends(entries))
        # somebody follows the table by a column of his own, which is not to be NULL
        await server.rows(url, "ALTER TABLE tidegate.readings ADD COLUMN written bigserial")
        if way == "careful":  # readings put back by hand stand in the way of others
            await server.rows(url, "DELETE FROM tidegate.stored")
            await server.rows(url, "UPDATE tidegate.cursors SET position = 0")
            await server.rows(url, "DELETE FROM tidegate.readings WHERE seq > 100")
        else:
            entries = decoded(one_per_row(5_000, devices=8, first_seq=5_001), position=2)
        await server.rows(
            url,
            "INSERT INTO tidegate.readings SELECT 'other', 1, n, 'd' || n % 8, 't', 1, 77, 1, 'x'"
            " FROM generate_series(1, 100000) n",
        )
        await server.rows(url, "ANALYZE tidegate.readings")
        sink._drop_connection()
        sink.stats = replace(sink.stats, rows=0)
        await sink.claim(ALL)
        await sink.write(entries, ends(entries))
        assert sink.stats.rows == (4_900 if way == "careful" else 5_000)
    by_device: dict[str, list[int]] = {}
    for device, seq in await server.rows(
        url, "SELECT device, seq FROM tidegate.readings WHERE gateway = 'gw' ORDER BY written"
    ):
        by_device.setdefault(device, []).append(seq)
    assert len(by_device) == 8
    assert all(seqs == sorted(seqs) for seqs in by_device.values())


async def test_twice_in_one_careful_write_is_stored_once(server: PostgresServer, url: str) -> None:
    first = decoded(one_per_row(40, first_seq=11, devices=1))
    second = decoded(one_per_row(40, first_seq=31, devices=1), appended_us=99, position=2)
    async with opened(url) as sink:
        await sink.write([*first, *second], {})
    assert await seqs_stored(server, url) == list(range(11, 71))


# ---- whose turn it is ----------------------------------------------------------------------------


async def test_an_older_token_writes_nothing(server: PostgresServer, url: str) -> None:
    entries = decoded(one_per_row(20, devices=1))
    (partition,) = ends(entries)
    async with opened(url, token=5) as old, opened(url, claim=False) as new:
        assert await new.claim({partition: 6}) == {partition: 0}
        with pytest.raises(SinkFenced) as caught:
            await old.write(entries, ends(entries))
        assert caught.value.partitions == {partition}
        with pytest.raises(SinkFenced):
            await old.pass_over(entries[0].entry)
        with pytest.raises(SinkFenced):
            await old.claim({partition: 5})
        assert await seqs_stored(server, url) == []
        await new.write(entries, ends(entries))
    assert await seqs_stored(server, url) == list(range(1, 21))


async def test_a_holder_that_stands_still_within_a_write_is_cut_off(
    server: PostgresServer, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It has the cursor locked; the next holder does not wait for it, and it writes nothing."""
    entries = decoded(one_per_row(20, devices=1))
    (partition,) = ends(entries)
    async with opened(url, token=5) as old, opened(url, claim=False) as new:
        stalled, go_on = asyncio.Event(), asyncio.Event()
        finish = old._writer._finish

        async def stall(*arguments: Any) -> None:
            stalled.set()
            await go_on.wait()
            await finish(*arguments)

        monkeypatch.setattr(old._writer, "_finish", stall)
        writing = asyncio.create_task(old.write(entries, ends(entries)))
        await stalled.wait()
        async with asyncio.timeout(60):
            while True:
                try:
                    position = await new.claim({partition: 6})
                    break
                except SinkUnavailable:
                    continue
        assert position == {partition: 0}
        await new.write(entries, ends(entries))
        go_on.set()
        with pytest.raises((SinkUnavailable, SinkFenced)):
            await writing
    assert await seqs_stored(server, url) == list(range(1, 21))


class Holder:
    """A node that believes a partition is its own: it goes on from where it stands until fenced."""

    def __init__(self, sink: PostgresSink, proxy: Proxy, rng: random.Random) -> None:
        self.sink = sink
        self.proxy = proxy
        self.position = 0
        self.writing: asyncio.Task[None] | None = None
        self.go_on = asyncio.Event()
        self._records = sink._writer._records
        self._rng = rng

    async def claim(self, token: int) -> None:
        (partition,) = PARTITION
        while True:
            try:
                self.position = (await self.sink.claim({partition: token}))[partition]
            except SinkUnavailable:
                self.proxy.heal()
                continue
            return

    def begin(self, stream: Sequence[DecodedEntry], fault: str) -> None:
        """Write on, with a fault in the first write."""
        self.go_on.clear()
        self.sink._writer._records = self._records  # type: ignore[method-assign]
        if fault == "answers lost":
            self.proxy.down.swallow = True
        elif fault == "cut":
            self.proxy.cut_after(up=self._rng.randrange(200, 20_000))
        elif fault == "stalled":
            self._stall(self._rng.randrange(1, 100))
        self.writing = asyncio.create_task(self._write(stream))

    def _stall(self, rows: int) -> None:
        """Stand still in the middle of the next COPY."""

        async def stalling(*arguments: Any) -> AsyncIterator[Any]:
            self.sink._writer._records = self._records  # type: ignore[method-assign]
            left = rows
            async for row in self._records(*arguments):
                left -= 1
                if not left:
                    await self.go_on.wait()
                yield row

        self.sink._writer._records = stalling  # type: ignore[method-assign]

    async def _write(self, stream: Sequence[DecodedEntry]) -> None:
        while self.position < len(stream):
            some = stream[self.position : self.position + self._rng.randrange(1, 4)]
            try:
                await self.sink.write(some, ends(some))
            except SinkUnavailable:
                await asyncio.sleep(0.01)
                continue
            except SinkFenced:
                return
            self.position = some[-1].entry.position


PARTITION = {decoded(one_per_row(1, devices=1))[0].entry.partition}


@pytest.mark.parametrize("seed", range(3))
async def test_holders_that_follow_one_another_write_once_and_in_order(
    server: PostgresServer, url: str, seed: int
) -> None:
    """Old holders stall in a COPY, lose answers to commits, are cut off, and wake up too late."""
    print(f"seed {seed}")
    rng = random.Random(seed)
    stream = [
        decoded(one_per_row(50, devices=1, first_seq=50 * n + 1), position=n + 1)[0]
        for n in range(60)
    ]
    async with AsyncExitStack() as stack:
        holders = []
        for _ in range(3):
            proxy = await stack.enter_async_context(Proxy("127.0.0.1", server.port))
            through = url.replace(str(server.port), str(proxy.port))
            sink = await stack.enter_async_context(opened(through, claim=False))
            holders.append(Holder(sink, proxy, rng))
        await holders[0].claim(1)
        await server.rows(url, "ALTER TABLE tidegate.readings ADD COLUMN written bigserial")
        faults = ["stalled", "answers lost", "cut", ""]
        rng.shuffle(faults)
        for token, fault in enumerate(faults, 2):
            old, new = holders[token % 3], holders[(token + 1) % 3]
            await old.claim(2 * token)
            old.begin(stream[: 12 * (token - 1)], fault)
            await asyncio.sleep(rng.uniform(0.0, 0.1))
            await new.claim(2 * token + 1)  # while the old one is at it
            new.begin(stream[: 12 * token], "")
            assert new.writing is not None
            assert old.writing is not None
            async with asyncio.timeout(60):
                await new.writing
                old.go_on.set()
                old.proxy.cut()
                old.proxy.heal()
                await old.writing
        last = holders[0]
        await last.claim(99)
        last.begin(stream, "")
        assert last.writing is not None
        await last.writing
    rows = await server.rows(url, "SELECT seq FROM tidegate.readings ORDER BY written")
    assert [seq for (seq,) in rows] == list(range(1, 3001))


# ---- failures ------------------------------------------------------------------------------------


@pytest.mark.parametrize("rows", [20, 8_000])
async def test_a_server_killed_anywhere_in_a_write(
    server: PostgresServer, url: str, rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """kill -9 between the first COPY and the end: nothing of it is there, then all of it once."""
    entries = decoded(one_per_row(rows))
    async with opened(url) as sink:
        finish = sink._writer._finish
        monkeypatch.setattr(sink._writer, "_finish", _then(finish, server.kill))
        with pytest.raises(SinkUnavailable):
            await sink.write(entries, ends(entries))
        with pytest.raises(SinkUnavailable, match="nobody listens"):
            await sink.write(entries, ends(entries))
        server.start()
        monkeypatch.setattr(sink._writer, "_finish", finish)
        assert await seqs_stored(server, url) == []
        await sink.write(entries, ends(entries))
    assert await seqs_stored(server, url) == list(range(1, rows + 1))


async def test_a_driver_confused_by_a_servers_death_is_no_fault_of_an_entry(
    server: PostgresServer, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It says so in another way than when the line breaks; the connection is not used again."""
    entries = decoded(one_per_row(5))
    async with opened(url) as sink:
        confused = sink._connection

        def fails() -> None:
            raise asyncpg.InternalClientError("cannot switch to state 15")

        finish = sink._writer._finish
        monkeypatch.setattr(sink._writer, "_finish", _then(finish, fails))
        with pytest.raises(SinkUnavailable, match="cannot switch"):
            await sink.write(entries, ends(entries))
        monkeypatch.setattr(sink._writer, "_finish", finish)
        await sink.write(entries, ends(entries))
        assert sink._connection is not confused
    assert await seqs_stored(server, url) == [1, 2, 3, 4, 5]


def _then(finish: Any, act: Any) -> Any:
    async def both(*arguments: Any) -> None:
        await finish(*arguments)
        act()

    return both


@pytest.mark.parametrize("answer_lost", [True, False])
async def test_a_commit_of_unknown_outcome(
    server: PostgresServer, answer_lost: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The line is cut at the COMMIT, on the way there or on the way back; once in both cases."""
    url = await server.new_database()
    entries = decoded(one_per_row(100))
    async with Proxy("127.0.0.1", server.port) as proxy:
        through = url.replace(str(server.port), str(proxy.port))
        async with opened(through) as sink:
            finish = sink._writer._finish

            def cut() -> None:
                way = proxy.down if answer_lost else proxy.up
                way.swallow = True

            monkeypatch.setattr(sink._writer, "_finish", _then(finish, cut))
            writing = asyncio.create_task(sink.write(entries, ends(entries)))
            if answer_lost:
                async with asyncio.timeout(60):
                    while not await server.rows(url, "SELECT FROM tidegate.readings LIMIT 1"):
                        await asyncio.sleep(0.01)
            else:
                await asyncio.sleep(0.1)
            await proxy.refuse()
            with pytest.raises(SinkUnavailable):
                await writing
            monkeypatch.setattr(sink._writer, "_finish", finish)
            proxy.heal()
            await proxy.listen()
            await sink.write(entries, ends(entries))
            expected = (0, 0) if answer_lost else (100, 0)
            assert (sink.stats.rows, sink.stats.duplicates) == expected
    assert await seqs_stored(server, url) == list(range(1, 101))


async def test_a_database_that_may_only_be_read_blames_no_entry(
    server: PostgresServer, url: str
) -> None:
    entries = decoded(one_per_row(10))
    name = url.rpartition("/")[2]
    async with opened(url) as sink:
        await server.rows(url, f"ALTER DATABASE {name} SET default_transaction_read_only = on")
        sink._drop_connection()
        with pytest.raises(SinkUnavailable, match="read-only"):
            await sink.write(entries, ends(entries))
        await server.rows(
            url + "?options=-cdefault_transaction_read_only%3Doff",
            f"ALTER DATABASE {name} RESET ALL",
        )
        sink._drop_connection()
        await sink.write(entries, ends(entries))
    assert await seqs_stored(server, url) == list(range(1, 11))


@pytest.mark.parametrize(
    ("altered", "restored", "says"),
    [
        ("ALTER COLUMN qos TYPE integer", "ALTER COLUMN qos TYPE smallint", "qos is integer"),
        ("ALTER COLUMN qos TYPE text", "ALTER COLUMN qos TYPE smallint USING 0", "qos is text"),
        ("RENAME COLUMN topic TO name", "RENAME COLUMN name TO topic", "topic is missing"),
        ("ADD COLUMN site text NOT NULL", "DROP COLUMN site", "null value in column .site"),
        ("ADD CHECK (qos > 5) NOT VALID", "DROP CONSTRAINT readings_qos_check", "qos_check"),
        ("ADD UNIQUE (device, received_us)",
         "DROP CONSTRAINT readings_device_received_us_key", "received_us_key"),
    ],
)  # fmt: skip
async def test_a_table_altered_by_hand_blames_no_entry(
    server: PostgresServer, url: str, altered: str, restored: str, says: str
) -> None:
    entries = decoded(one_per_row(10, devices=1))
    async with opened(url) as sink:
        await sink.write((), {1: 0})  # the tables are there
        for connected in (True, False):  # while it works, and before it begins
            await server.rows(url, f"ALTER TABLE tidegate.readings {altered}")
            if not connected:
                sink._drop_connection()
            with pytest.raises(SinkUnavailable, match=says) as caught:
                await sink.write(entries, ends(entries))
            assert "\n" not in str(caught.value)
            await server.rows(url, f"ALTER TABLE tidegate.readings {restored}")
        await sink.write(entries, ends(entries))
    assert await seqs_stored(server, url) == list(range(1, 11))


async def test_a_lost_slice_is_made_again(server: PostgresServer, url: str) -> None:
    entries = decoded(one_per_row(10))
    more = decoded(one_per_row(10, first_seq=11), position=2)
    async with opened(url) as sink:
        await sink.write(entries, ends(entries))
        await server.rows(url, "DROP TABLE tidegate.readings_0")
        await server.rows(url, "DELETE FROM tidegate.slices")
        with pytest.raises(SinkUnavailable):
            await sink.write(more, ends(more))
        await sink.write(more, ends(more))
    assert await seqs_stored(server, url) == list(range(11, 21))


async def test_an_entry_that_cannot_be_a_row_is_blamed(server: PostgresServer, url: str) -> None:
    entries = decoded(one_per_row(2, devices=1))
    readings = entries[0].readings
    bad = [
        replace(readings, times_us=[1, 1 << 70]),
        replace(
            readings, sources=[("devices/d0/" + "é" * 10, "".join(map(chr, range(0x4E00, 0x8E00))))]
        ),
        replace(readings, sources=[("devices/\0/x", "d0")]),
    ]
    async with opened(url) as sink:
        for some in bad:
            with pytest.raises((asyncpg.PostgresError, ValueError, OverflowError)):
                await sink.write([replace(entries[0], readings=some)], ends(entries))
        assert await sink.cursors() == {}
        await sink.write(entries, ends(entries))
    assert await seqs_stored(server, url) == [1, 2]


@pytest.mark.parametrize("setting", ["synchronous_commit", "commit_delay"])
async def test_a_server_that_may_lose_commits_is_refused(
    server: PostgresServer, url: str, setting: str
) -> None:
    name = url.rpartition("/")[2]
    value = {"synchronous_commit": "off", "commit_delay": "1"}[setting]
    await server.rows(url, f"ALTER DATABASE {name} SET {setting} = {value}")
    async with opened(url, claim=False) as sink:
        if setting == "commit_delay":  # any other setting is the operator's
            await sink.claim(ALL)
        else:
            with pytest.raises(SinkUnavailable, match="synchronous_commit is off"):
                await sink.claim(ALL)


async def test_a_table_that_a_crash_would_empty_is_refused(
    server: PostgresServer, url: str
) -> None:
    async with opened(url):
        pass
    await server.rows(url, "ALTER TABLE tidegate.stored SET UNLOGGED")
    async with opened(url, claim=False) as sink:
        with pytest.raises(SinkUnavailable, match="unlogged"):
            await sink.claim(ALL)


async def test_other_encodings_are_refused(server: PostgresServer) -> None:
    url = await server.new_database("LATIN1")
    async with opened(url, claim=False) as sink:
        with pytest.raises(SinkUnavailable, match="UTF8"):
            await sink.claim(ALL)


async def test_tables_of_a_newer_version_are_refused(server: PostgresServer, url: str) -> None:
    async with opened(url):
        pass
    await server.rows(url, "UPDATE tidegate.meta SET value = 99 WHERE key = 'version'")
    async with opened(url, claim=False) as sink:
        with pytest.raises(SinkUnavailable, match="version 99"):
            await sink.claim(ALL)


async def test_several_nodes_make_the_tables_at_once(server: PostgresServer, url: str) -> None:
    sinks = [PostgresSink(PostgresPlace(url), StorageConfig(), ManualClock()) for _ in range(5)]
    for sink in sinks:
        await sink.open(STREAM)
    await asyncio.gather(*(sink.claim({n: 1}) for n, sink in enumerate(sinks)))
    for sink in sinks:
        await sink.close()
    assert await one(server, url, "SELECT count(*) FROM tidegate.cursors") == 5


@pytest.mark.parametrize(
    "url",
    [
        "mysql://x/y",
        "postgresql://host",
        "postgresql://host:port/db",
        "postgresql://",
        "x",
        "postgresql://one:1,two:port/db",
    ],
)
def test_malformed_addresses(url: str) -> None:
    with pytest.raises(DatabaseError, match=r"storage.url: expected postgresql://"):
        PostgresPlace(url)


def test_several_servers_are_named_without_secrets() -> None:
    place = PostgresPlace("postgresql://me:hunter2@one,[::1]:5433,two:1/db?sslmode=disable")
    assert str(place) == "postgresql://one:5432,::1:5433,two:1/db"


@pytest.mark.parametrize("schema", ["", "a;b", "A", "1a", "a" * 64])
def test_malformed_schemas(schema: str) -> None:
    with pytest.raises(DatabaseError, match=r"storage.schema"):
        PostgresPlace("postgresql://host/db", schema)


async def test_the_password_is_never_shown(
    server: PostgresServer, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    secret = "hunter2hunter2"
    place = PostgresPlace(f"postgresql://me:{secret}@127.0.0.1:{server.port}/absent")
    shown = [str(place), repr(place), repr(StorageConfig(url=place.url))]
    for bad in (place, PostgresPlace(f"postgresql://me:{secret}@127.0.0.1:1/x")):
        sink = PostgresSink(bad, StorageConfig(), ManualClock())
        await sink.open(STREAM)
        with pytest.raises(SinkUnavailable) as caught:
            await sink.claim(ALL)
        shown += [str(caught.value), repr(caught.value)]
        await sink.close()
    assert secret not in "\n".join([*shown, caplog.text])


# ---- retention -----------------------------------------------------------------------------------


async def test_old_slices_go_and_stay_in_the_ledger(server: PostgresServer, url: str) -> None:
    clock = ManualClock()
    now_us = clock.wall_us()
    config = StorageConfig(age_max_s=14 * 86_400, slice_s=7 * 86_400)
    old = decoded(one_per_row(3000), appended_us=now_us)
    async with opened(url, config, clock=clock) as sink:
        await sink.write(old, ends(old))
        clock.advance(14 * 86_400 - 1)
        young = decoded(one_per_row(50, first_seq=5001), appended_us=clock.wall_us(), position=2)
        await sink.write(young, ends(young))
        await sink.keep_up()
        assert sink.stats.expired == 0
        clock.advance(8 * 86_400)
        await sink.keep_up()
        assert sink.stats.expired == 3000
        again = decoded(one_per_row(3000), appended_us=now_us, position=3)
        await sink.write(again, ends(again))  # seen once more, after a restore for instance
        assert sink.stats.duplicates == 3000
        await sink.write(old[:1], {})  # or replayed by hand
    assert await seqs_stored(server, url) == list(range(5001, 5051))
    assert (
        await one(server, url, "SELECT range_agg(seqs)::text FROM tidegate.expired") == "{[1,3001)}"
    )


async def test_a_large_table_loses_its_oldest_slices(server: PostgresServer, url: str) -> None:
    clock = ManualClock()
    config = StorageConfig(file_bytes_max=1_500_000, slice_s=60)
    async with opened(url, config, clock=clock) as sink:
        for n in range(10):
            payloads = [bytes(1000) for _ in range(200)]
            some = readings_of(payloads, seqs=range(n * 200 + 1, n * 200 + 201))
            entries = decoded(some, appended_us=clock.wall_us(), position=n + 1)
            await sink.write(entries, ends(entries))
            clock.advance(60)
        await sink.keep_up()
        expired = sink.stats.expired
        assert 0 < sink.stats.file_bytes <= 1_500_000
        assert 0 < expired < 2000
    assert await seqs_stored(server, url) == list(range(expired + 1, 2001))


async def test_the_ranges_stored_are_made_few(server: PostgresServer, url: str) -> None:
    async with opened(url) as sink:
        for n in range(30):
            entries = decoded(one_per_row(10, first_seq=n * 10 + 1), position=n + 1)
            await sink.write(entries, ends(entries))
        assert await one(server, url, "SELECT count(*) FROM tidegate.stored") == 30
        await sink.keep_up()
        assert await server.rows(url, "SELECT seqs::text FROM tidegate.stored") == [("{[1,301)}",)]
        again = decoded(one_per_row(300), appended_us=5, position=99)
        await sink.write(again, ends(again))
        assert sink.stats.duplicates == 300


async def test_slices_of_any_length_fit_beside_each_other(server: PostgresServer, url: str) -> None:
    seq = 1
    for number, (slice_s, at_s) in enumerate([(600, 1000), (3600, 700), (60, 3599), (86_400, 9)]):
        async with opened(url, StorageConfig(slice_s=slice_s), token=number + 1) as sink:
            entries = decoded(
                readings_of([b"1"] * 2, seqs=[seq, seq + 1]), appended_us=at_s * 1_000_000,
                position=number + 1,
            )  # fmt: skip
            await sink.write(entries, ends(entries))
        seq += 2
    assert await seqs_stored(server, url) == list(range(1, 9))
    spans = await server.rows(url, "SELECT from_us, to_us FROM tidegate.slices ORDER BY 1")
    assert all(before[1] <= after[0] for before, after in pairwise(spans))


# ---- clocks put right ----------------------------------------------------------------------------


async def test_a_correction_reaches_what_is_stored_and_what_comes(
    server: PostgresServer, url: str
) -> None:
    first = decoded(readings_of([b"1"] * 3, times_us=[10, 20, 30]))
    later = decoded(readings_of([b"1"] * 3, seqs=[4, 5, 6], times_us=[40, 50, 60]), position=2)
    correction = Correction(EPOCH, 2, 5, 1000, 7)
    async with opened(url) as sink, opened(url, token=1) as other:
        await sink.write(first, ends(first))
        assert await other.correct("gw", correction) == 2
        assert await sink.correct("gw", correction) == 0
        await sink.write(later, ends(later))
    found = await server.rows(url, "SELECT seq, time_us FROM tidegate.readings ORDER BY seq")
    assert found == [(1, 10), (2, 1020), (3, 1030), (4, 1040), (5, 1050), (6, 60)]
