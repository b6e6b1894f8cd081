"""The ledger against a model: whatever crashes, moves or is put back, it tells the truth.

Gateways with real journals, a node's real ingest, stream and storage, driven by Hypothesis without
a network: batches go by hand, so that every one may be lost, doubled or cut off from its answer. A
crash leaves the files as the system has them at that moment; what the disk itself may still lose is
the matter of tests/edge/test_journal_power.py. The model keeps, for each journal, what was
acknowledged to devices and what the cloud acknowledged to it; nothing of the ledger.
"""

from __future__ import annotations

import asyncio
import shutil
import tempfile
from collections.abc import Coroutine
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule

from bridge.devices import DeviceIds
from bridge.envelope import Tombstone as LinkTombstone
from cloud.config import CloudConfig, IngestConfig, SinksConfig, StorageConfig, StreamConfig
from cloud.dead_letters import opened_offline
from cloud.ingest import CloudCapture
from cloud.ledger import Balance
from cloud.ledger_files import balance_files
from cloud.replay import replay
from cloud.sinks.decoded import DecodedEntries
from cloud.sinks.runner import SinkRunner
from cloud.sinks.storage import StorageSink
from cloud.stream.embedded import EmbeddedStream
from edge.config import JournalConfig
from edge.contract import Lane
from edge.journal import Journal
from edge.readings import readings_of
from edge.segments import Segment, pack_segment
from runtime.clock import ManualClock
from tests.kit.cloud import Uplink, query
from tests.kit.journals import publish_frame

T = TypeVar("T")
GATEWAYS = st.sampled_from(["gw-1", "gw-2"])
DEVICES = st.sampled_from(["d1", "d2", "d3"])
TEN_YEARS_S = 10 * 365 * 86_400
TRAFFIC = st.lists(
    st.tuples(
        GATEWAYS,
        DEVICES,
        st.integers(1, 9),  # readings
        st.booleans(),  # urgent
        st.sampled_from(["keep", "send", "answer lost"]),
    ),
    min_size=1,
    max_size=5,
)
DEVICE_IDS = DeviceIds(("devices/{device}/#",))


Traffic = list[tuple[str, str, int, bool, str]]


@dataclass
class Card:
    """One journal and what is true of it."""

    folder: Path
    journal: Journal
    acked: dict[int, bytes] = field(default_factory=dict)  # by seq: a device has its PUBACK
    told: int = 0  # the highest seq the cloud was told of

    @property
    def path(self) -> Path:
        return self.folder / "journal.db"


class LedgerModel(RuleBasedStateMachine):
    """Devices, gateways, cards, a node and its storage."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp(prefix="ledger-model-"))
        self.loop = asyncio.Runner()
        self.clock = ManualClock()
        self.cards: dict[str, Card] = {}
        self.lost: list[tuple[str, int, dict[int, bytes], int]] = []  # cards that are gone
        self.uplinks: dict[str, Uplink] = {}
        self.made = 0
        self.values = 0

    def do(self, work: Coroutine[Any, Any, T]) -> T:
        return self.loop.run(work)

    def carry(self, traffic: Traffic) -> None:
        """Let devices publish and gateways send, before whatever happens next."""
        for gateway, device, count, urgent, then in traffic:
            self.publish(gateway, device, count, urgent=urgent)
            if then != "keep":
                self.do(self.send_some(gateway, 3, answered=then == "send"))

    @initialize()
    def begin(self) -> None:
        self.do(self.start_cloud())
        for gateway in ("gw-1", "gw-2"):
            self.cards[gateway] = self.do(self.new_card())

    def teardown(self) -> None:
        try:
            if self.cards:
                self.settle_and_compare()
        finally:
            for card in self.cards.values():
                self.do(card.journal.close())
            if self.cards:
                self.do(self.stop_cloud())
            self.loop.close()
            shutil.rmtree(self.folder)

    # ---- the cloud

    async def start_cloud(self) -> None:
        config = StreamConfig(disk_reserve_bytes=0)
        path = self.folder / "cloud"
        self.stream = await EmbeddedStream.open(path / "stream.db", config, self.clock)
        sink = StorageSink(path / "storage.db", StorageConfig(linger_ms=0), self.clock)
        self.runner = SinkRunner(sink, self.stream, DecodedEntries(1000), SinksConfig())
        await self.runner.start()
        self.capture = CloudCapture(self.stream, IngestConfig(), "node", self.clock)
        await self.capture.start()
        self.uplinks.clear()

    async def stop_cloud(self) -> None:
        await self.capture.close()
        await self.runner.stop()
        await self.stream.close()

    @rule(traffic=TRAFFIC)
    def restart_cloud(self, traffic: Traffic) -> None:
        self.carry(traffic)
        self.do(self.stop_cloud())
        self.do(self.start_cloud())

    @rule(traffic=TRAFFIC, since=TRAFFIC)
    def roll_storage_back(self, traffic: Traffic, since: Traffic) -> None:
        """Put an old storage in place; its cursors are as old, so it fills again by itself."""
        self.carry(traffic)
        self.do(self.stop_cloud())
        storage, backup = self.folder / "cloud" / "storage.db", self.folder / "storage-backup.db"
        shutil.copyfile(storage, backup)
        self.do(self.start_cloud())
        self.carry(since)
        self.do(self.stop_cloud())
        for left in (self.folder / "cloud").glob("storage.db-*"):
            left.unlink()
        shutil.copyfile(backup, storage)
        self.do(self.start_cloud())

    @rule(modulus=st.integers(2, 5), traffic=TRAFFIC)
    def delete_rows_and_replay(self, traffic: Traffic, modulus: int) -> None:
        """Rows vanish by hand: the ledger names them, and a replay brings them back."""
        self.carry(traffic)
        import sqlite3

        self.do(self.runner.drained())
        self.do(self.stop_cloud())
        storage = self.folder / "cloud" / "storage.db"
        with sqlite3.connect(storage) as connection:
            gone = connection.execute("DELETE FROM readings WHERE seq % ? = 0", (modulus,)).rowcount
        connection.close()
        report = self.balance()
        assert sum(b - a + 1 for one in report.sources for a, b in one.lost) == gone
        self.do(self.replay(report))
        self.do(self.start_cloud())

    async def replay(self, report: Balance) -> None:
        config = CloudConfig(data=self.folder)
        async with opened_offline(self.folder, config, self.clock) as (stream, (storage,)):
            done = await replay(stream, storage, report)
            assert (done.gone, done.refused) == (0, 0)

    # ---- gateways

    async def new_card(self) -> Card:
        self.made += 1
        folder = self.folder / f"card-{self.made}"
        return Card(folder, await self.open_journal(folder))

    async def open_journal(self, folder: Path) -> Journal:
        return await Journal.open(
            folder / "journal.db", JournalConfig(disk_reserve_bytes=0), self.clock
        )

    def publish(self, gateway: str, device: str, count: int, *, urgent: bool) -> None:
        """A device publishes, now here, now there; it gets its PUBACKs."""
        card = self.cards[gateway]
        payloads = [b"%d" % (self.values + n) for n in range(count)]
        self.values += count
        frames = b"".join(publish_frame(f"devices/{device}/v", one) for one in payloads)
        body = pack_segment(Segment(4, device, self.clock.wall_us(), count, frames))
        lane = Lane.URGENT if urgent else Lane.LIVE
        self.do(card.journal.append([(lane, count, body)]))
        first = card.journal.last_seq - count + 1
        assert not card.acked.keys() & set(range(first, first + count)), "a seq was used twice"
        card.acked.update(zip(range(first, first + count), payloads, strict=True))

    async def send_some(self, gateway: str, commits: int, *, answered: bool) -> bool:
        """Send the oldest readings of each lane; return False when there was nothing to send."""
        card = self.cards[gateway]
        journal = card.journal
        uplink = self.uplinks.get(gateway)
        if uplink is None:
            uplink = Uplink(self.capture, gateway, epoch=journal.epoch)
        self.uplinks.pop(gateway, None)  # each sending is a connection of its own
        stones = list(journal.tombstones())
        batches: list[bytes] = []
        trims: list[tuple[Lane, int]] = []
        for lane in Lane:
            some = (await journal.read(lane, 0, bytes_max=1 << 20))[:commits]
            if some:
                readings = readings_of(some, DEVICE_IDS)
                batches.append(uplink.batch(readings, lane=lane, assigned=journal.last_seq))
                trims.append((lane, readings.seqs[-1]))
        if stones:
            carried = [LinkTombstone(int(s.lane), s.first_seq, s.last_seq, s.count, s.reason,
                                     max(0, s.time_us)) for s in stones]  # fmt: skip
            empty = readings_of([], DEVICE_IDS)
            batches.append(uplink.batch(empty, tombstones=carried, assigned=journal.last_seq))
        if not batches:
            return False
        uplink.send(*batches)
        assert set(await uplink.answered()) == {0}
        card.told = max(card.told, journal.last_seq)
        if answered:
            for lane, seq in trims:
                await journal.trim(lane, seq)
            await journal.forget_tombstones(stones)
        return True

    @rule(gateway=GATEWAYS, traffic=TRAFFIC)
    def restart_gateway(self, traffic: Traffic, gateway: str) -> None:
        self.carry(traffic)
        card = self.cards[gateway]
        self.do(card.journal.close())
        card.journal = self.do(self.open_journal(card.folder))

    @rule(gateway=GATEWAYS, traffic=TRAFFIC)
    def crash_gateway(self, traffic: Traffic, gateway: str) -> None:
        """The process is gone; the next one finds the files as they were at that moment."""
        self.carry(traffic)
        card = self.cards[gateway]
        self.made += 1
        after = self.folder / f"card-{self.made}"
        after.mkdir()
        for file in card.folder.glob("journal.*"):
            if file.suffix != ".lock":
                shutil.copyfile(file, after / file.name)
        self.do(card.journal.close())
        card.folder, card.journal = after, self.do(self.open_journal(after))

    @rule(gateway=GATEWAYS, traffic=TRAFFIC)
    def change_card(self, traffic: Traffic, gateway: str) -> None:
        """A new card; what the old one had not sent is gone with it."""
        self.carry(traffic)
        card = self.cards[gateway]
        epoch = card.journal.epoch
        self.do(card.journal.close())
        if card.told:
            self.lost.append((gateway, epoch, card.acked, card.told))
        shutil.rmtree(card.folder)
        self.cards[gateway] = self.do(self.new_card())

    @rule(gateway=GATEWAYS, traffic=TRAFFIC, since=TRAFFIC)
    def put_card_back(self, gateway: str, traffic: Traffic, since: Traffic) -> None:
        """The journal is put back from a backup; what it had gathered since went up before."""
        self.carry(traffic)
        card = self.cards[gateway]
        self.do(card.journal.close())
        backup = self.folder / "backup.db"
        shutil.copyfile(card.path, backup)
        card.journal = self.do(self.open_journal(card.folder))
        self.carry(since)
        self.do(self.send_all(gateway))
        self.do(card.journal.close())
        for left in card.folder.glob("journal.db-*"):
            left.unlink()
        shutil.copyfile(backup, card.path)
        card.journal = self.do(self.open_journal(card.folder))
        self.carry(since)  # what comes now must not be taken for what came then

    @rule(years=st.sampled_from([-1, 1]), seconds=st.integers(0, 100), traffic=TRAFFIC)
    def jump_clock(self, traffic: Traffic, years: int, seconds: int) -> None:
        """The wall clock is set ten years off; the clock since boot goes on."""
        self.carry(traffic)
        target = self.clock.wall_us() + years * TEN_YEARS_S * 1_000_000
        self.clock.set_wall(max(0, target))
        self.clock.advance(seconds)

    # ---- the truth

    async def send_all(self, gateway: str) -> None:
        while await self.send_some(gateway, 1000, answered=True):
            pass

    def balance(self) -> Balance:
        return self.do(balance_files(self.folder))

    def settle_and_compare(self) -> None:
        """Everything goes up and is stored; then storage, ledger and model say the same."""
        for gateway in self.cards:
            self.do(self.send_all(gateway))
        self.do(self.runner.drained())
        storage = self.folder / "cloud" / "storage.db"
        sql = "SELECT gateway, epoch, seq, payload FROM readings"
        rows = {(g, e, s): str(p).encode() for g, e, s, p in query(storage, sql)}
        report = self.balance()
        sources = {(one.gateway, one.epoch): one for one in report.sources}
        expected = 0
        gaps = False
        for gateway, card in self.cards.items():
            epoch = card.journal.epoch
            expected += len(card.acked)
            for seq, payload in card.acked.items():
                assert rows[gateway, epoch, seq] == payload
            if card.acked:
                one = sources[gateway, epoch]
                assert one.stored == len(card.acked)
                assert (one.lost, one.absent, one.doubled, one.unassigned) == ((), (), (), ())
        for gateway, epoch, acked, told in self.lost:
            one = sources[gateway, epoch]
            came = {seq for seq in acked if (gateway, epoch, seq) in rows}
            assert all(rows[gateway, epoch, seq] == acked[seq] for seq in came)
            absent = {seq for a, b in one.absent for seq in range(a, b + 1)}
            assert absent == {seq for seq in acked if seq <= told} - came
            assert one.stored == len(came)
            expected += len(came)
            gaps = gaps or bool(absent)
        assert len(rows) == expected
        assert report.balanced is not gaps


LedgerModel.TestCase.settings = settings(
    max_examples=14,
    stateful_step_count=7,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
)
TestLedgerModel = LedgerModel.TestCase
