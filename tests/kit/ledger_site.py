"""Gateways with real journals and a node's real ingest, stream and sinks, and what is true of them.

No network: batches go by hand, so that each may be lost, doubled or cut off from its answer. The
truth is what devices had acknowledged and what the cloud acknowledged to gateways, noted as it
happened; nothing of the ledger. `compare` holds storage, ledger and truth against one another.
"""

from __future__ import annotations

import asyncio
import json
import shutil
import sqlite3
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bridge.commands import Correction, Welcome, open_message
from bridge.devices import DeviceIds
from bridge.envelope import Tombstone as LinkTombstone
from cloud.config import CloudConfig, IngestConfig, SinksConfig, StorageConfig, StreamConfig
from cloud.corrections import CorrectionLog
from cloud.dead_letters import opened_offline
from cloud.ingest import CloudCapture
from cloud.ledger import Balance
from cloud.ledger_account import SourceBalance
from cloud.ledger_files import balance_files
from cloud.replay import replay
from cloud.sinks.contract import DecodedEntry
from cloud.sinks.decoded import DecodedEntries
from cloud.sinks.runner import SinkRunner
from cloud.sinks.storage import StorageSink
from cloud.stream.embedded import EmbeddedStream
from edge.clock_repair import ClockRepair
from edge.config import ClockConfig, JournalConfig, LaneConfig
from edge.contract import Lane
from edge.journal import Journal
from edge.segments import Segment, pack_segment
from runtime.clock import ManualClock
from tests.kit.cloud import RecordingSink, Uplink, query
from tests.kit.journals import publish_frame, readings_in

__all__ = ["LIMITS", "Card", "LedgerSite", "Reading", "Traffic"]

DEVICE_IDS = DeviceIds(("devices/{device}/#",))
POISON = 17  # a sink that is not storage cannot take values that this divides
_TOLERANCE_US = 5_100_000
_SMALL = {"policy": "drop-oldest", "bytes_max": 3_000, "thin_after_s": 0.0}
LIMITS: dict[str, LaneConfig] = {
    "none": LaneConfig(),
    "drop": LaneConfig(**_SMALL),
    "one-of": LaneConfig(**_SMALL, thin="one-of", thin_keep_one_of=3),
    "aggregate": LaneConfig(**_SMALL, thin="aggregate", thin_interval_s=60),
}

# gateway, device, readings, urgent, then: keep, send, or "answer lost"
Traffic = Sequence[tuple[str, str, int, bool, str]]


@dataclass(slots=True, frozen=True)
class Reading:
    """One reading that a device has its PUBACK for."""

    payload: bytes
    true_us: int  # when it really was
    boot: int  # of its gateway


@dataclass
class Card:
    """One journal with its clock, and what is true of it."""

    folder: Path
    clock: ManualClock
    limit: str
    journal: Journal
    repair: ClockRepair
    acked: dict[int, Reading] = field(default_factory=dict)  # by seq
    safe: set[int] = field(default_factory=set)  # seqs the cloud has acknowledged
    told: int = 0  # the highest seq the cloud was told of
    stones: dict[tuple[int, int, str], int] = field(default_factory=dict)  # counts told the cloud
    put_back: bool = False  # from a backup: it goes on past seqs that may have been given out
    boot: int = 1
    compared: set[int] = field(default_factory=set)  # boots that learnt the true time

    @property
    def path(self) -> Path:
        return self.folder / "journal.db"


class LedgerSite:
    """Two gateways and a node below `folder`.

    Attributes:
        clock: The cloud's, which is right.
        lost: Cards that are gone: gateway, epoch, and what was on them.
        on_try, on_ack: Told of each reading offered, and of each that a device has its PUBACK for.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.clock = ManualClock()
        self.cards: dict[str, Card] = {}
        self.lost: list[tuple[str, int, Card]] = []
        self.taken: set[tuple[str, int, int]] = set()  # by the sink that is not storage
        self.on_try: Callable[[bytes], None] = lambda _payload: None
        self.on_ack: Callable[[str, int, int, bytes], None] = lambda *_: None
        self._made = 0
        self._values = 0

    # ---- the cloud

    async def start_cloud(self) -> None:
        """Start the node."""
        path = self.folder / "cloud"
        self.stream = await EmbeddedStream.open(
            path / "stream.db", StreamConfig(disk_reserve_bytes=0), self.clock
        )
        self.storage = StorageSink(path / "storage.db", StorageConfig(linger_ms=0), self.clock)
        config = SinksConfig(tries_max=2, retry_s=0.001)
        sinks = [self.storage, _Picky(self.taken)]
        self.runners = [SinkRunner(s, self.stream, DecodedEntries(1000), config) for s in sinks]
        for runner in self.runners:
            await runner.start()
        self.corrections = CorrectionLog(path / "corrections.db")
        await self.corrections.open()
        for gateway, correction in await self.corrections.all():  # as cloud/commands/part.py does
            await self.storage.correct(gateway, correction)
        self.capture = CloudCapture(self.stream, IngestConfig(), "node", self.clock)
        await self.capture.start()

    async def stop_cloud(self) -> None:
        """Stop the node in order."""
        await self.capture.close()
        for runner in self.runners:
            await runner.stop()
        await self.corrections.close()
        await self.stream.close()

    async def drained(self) -> None:
        """Wait until the sinks have everything."""
        for runner in self.runners:
            await runner.drained()

    async def roll_storage_back(self, since: Traffic) -> None:
        """Put a storage of before `since` in place; its cursors are as old, so it fills again."""
        await self.stop_cloud()
        storage, backup = self.folder / "cloud" / "storage.db", self.folder / "storage-backup.db"
        shutil.copyfile(storage, backup)
        await self.start_cloud()
        await self.carry(since)
        await self.stop_cloud()
        _forget_log(storage)
        shutil.copyfile(backup, storage)
        await self.start_cloud()

    async def delete_rows_and_replay(self, modulus: int) -> None:
        """Rows vanish by hand: the ledger names them, and a replay brings them back."""
        await self.drained()
        await self.stop_cloud()
        storage = self.folder / "cloud" / "storage.db"
        with sqlite3.connect(storage) as connection:
            gone = connection.execute("DELETE FROM readings WHERE seq % ? = 0", (modulus,)).rowcount
        connection.close()
        report = await self.balance()
        assert sum(b - a + 1 for one in report.sources for a, b in one.lost) == gone
        config = CloudConfig(data=self.folder)
        async with opened_offline(self.folder, config, self.clock) as (stream, (runner,)):
            done = await replay(stream, runner, report)
            assert (done.gone, done.refused) == (0, 0)
        await self.start_cloud()

    # ---- gateways

    async def insert_card(self, gateway: str, limit: str = "none") -> Card:
        """Put a new card in a gateway."""
        self._made += 1
        return await self.insert(gateway, self.folder / f"card-{self._made}", limit)

    async def insert(
        self, gateway: str, folder: Path, limit: str = "none", *, boot: int = 1
    ) -> Card:
        """Put a card in a gateway as it is."""
        clock = ManualClock(self.clock.wall_us(), boot_id=f"boot-{boot}")
        card = Card(folder, clock, limit, *await self._open(folder, clock, limit))
        card.boot = boot
        self.cards[gateway] = card
        return card

    async def _open(
        self, folder: Path, clock: ManualClock, limit: str
    ) -> tuple[Journal, ClockRepair]:
        config = JournalConfig(disk_reserve_bytes=0, live=LIMITS[limit])
        journal = await Journal.open(folder / "journal.db", config, clock)
        repair = ClockRepair(
            folder / "clock.db", ClockConfig(), clock, lambda: (journal.epoch, journal.last_seq)
        )
        await repair.start()
        journal.on_commit(repair.committed)
        return journal, repair

    async def _close(self, card: Card) -> None:
        await card.journal.close()
        await card.repair.stop()

    async def close(self) -> None:
        """Stop everything."""
        for card in self.cards.values():
            await self._close(card)
        await self.stop_cloud()

    async def publish(self, gateway: str, device: str, count: int, *, urgent: bool) -> None:
        """A device publishes, now here, now there; it gets its PUBACKs."""
        card = self.cards[gateway]
        payloads = [b"%d" % (self._values + n) for n in range(count)]
        self._values += count
        for payload in payloads:
            self.on_try(payload)
        frames = b"".join(publish_frame(f"devices/{device}/v", one) for one in payloads)
        body = pack_segment(Segment(4, device, card.clock.wall_us(), count, frames))
        lane = Lane.URGENT if urgent else Lane.LIVE
        await card.journal.append([(lane, count, body)])
        first = card.journal.last_seq - count + 1
        assert not card.acked.keys() & set(range(first, first + count)), "a seq was used twice"
        for seq, payload in enumerate(payloads, first):
            card.acked[seq] = Reading(payload, self.clock.wall_us(), card.boot)
            self.on_ack(gateway, card.journal.epoch, seq, payload)

    async def send_some(self, gateway: str, commits: int, *, answered: bool) -> bool:
        """Send the oldest readings of each lane; return False when there was nothing to send."""
        card = self.cards[gateway]
        journal = card.journal
        uplink = Uplink(self.capture, gateway, epoch=journal.epoch)  # a connection of its own
        stones = list(journal.tombstones())
        batches: list[bytes] = []
        trims: list[tuple[Lane, Sequence[int]]] = []
        for lane in Lane:
            some = (await journal.read(lane, 0, bytes_max=1 << 20))[:commits]
            if some:
                readings = readings_in(some, DEVICE_IDS)
                batches.append(uplink.batch(readings, lane=lane, assigned=journal.last_seq))
                trims.append((lane, readings.seqs))
        if stones:
            carried = [LinkTombstone(int(s.lane), s.first_seq, s.last_seq, s.count, s.reason,
                                     max(0, s.time_us)) for s in stones]  # fmt: skip
            empty = readings_in([], DEVICE_IDS)
            batches.append(uplink.batch(empty, tombstones=carried, assigned=journal.last_seq))
        if not batches:
            return False
        uplink.send(*batches)
        assert set(await uplink.answered()) == {0}
        card.told = max(card.told, journal.last_seq)
        card.stones.update({(s.lane, s.first_seq, s.reason): s.count for s in stones})
        if answered:
            for lane, seqs in trims:
                card.safe.update(seqs)
                await journal.trim(lane, seqs[-1])
            await journal.forget_tombstones(stones)
            await self._correct(gateway, card)
        return True

    async def _correct(self, gateway: str, card: Card) -> None:
        """Tell a gateway the true time, and take its corrections."""
        self.pass_time(11)  # what still grows is corrected now and then only
        link = _Link()
        card.repair.linked(link)
        welcome = Welcome(card.journal.epoch, 0, self.clock.wall_us())
        card.repair.welcomed(welcome, card.clock.monotonic_s())
        await card.repair.turn()
        while link.said:
            correction, answered = link.said.pop(0)
            await self.corrections.add(gateway, correction)
            await self.storage.correct(gateway, correction)
            answered(0)
            await card.repair.turn()
        card.repair.unlinked()
        card.compared.add(card.boot)

    async def send_all(self, gateway: str) -> None:
        """Send until there is nothing left."""
        while await self.send_some(gateway, 1000, answered=True):
            pass

    async def carry(self, traffic: Traffic) -> None:
        """Let devices publish and gateways send, before whatever happens next."""
        for gateway, device, count, urgent, then in traffic:
            await self.publish(gateway, device, count, urgent=urgent)
            self.pass_time(1)
            if then != "keep":
                await self.send_some(gateway, 3, answered=then == "send")

    def pass_time(self, seconds: float) -> None:
        """Let time pass everywhere."""
        self.clock.advance(seconds)
        for card in self.cards.values():
            card.clock.advance(seconds)

    async def restart_gateway(self, gateway: str, *, boots: bool = False) -> None:
        """Stop a gateway in order and start it again; with `boots` its machine as well."""
        card = self.cards[gateway]
        await self._close(card)
        if boots:
            card.boot += 1
            card.clock = ManualClock(card.clock.wall_us(), 5.0, f"boot-{card.boot}")
        card.journal, card.repair = await self._open(card.folder, card.clock, card.limit)

    async def crash_gateway(self, gateway: str) -> None:
        """The process is gone; the next one finds the files as they were at that moment."""
        card = self.cards[gateway]
        self._made += 1
        after = self.folder / f"card-{self._made}"
        after.mkdir()
        for file in card.folder.glob("*.*"):
            if file.suffix != ".lock":
                shutil.copyfile(file, after / file.name)
        await self._close(card)
        card.folder = after
        card.journal, card.repair = await self._open(after, card.clock, card.limit)

    async def change_card(self, gateway: str, limit: str) -> None:
        """A new card; what the old one had not sent is gone with it."""
        card = self.cards[gateway]
        epoch = card.journal.epoch
        await self._close(card)
        if card.told:
            self.lost.append((gateway, epoch, card))
        shutil.rmtree(card.folder)
        await self.insert_card(gateway, limit)

    async def put_card_back(self, gateway: str, since: Traffic) -> None:
        """The journal is put back from a backup; what it had gathered since went up before."""
        card = self.cards[gateway]
        await self._close(card)
        card.put_back = True
        backup = self.folder / "backup.db"
        shutil.copyfile(card.path, backup)
        card.journal, card.repair = await self._open(card.folder, card.clock, card.limit)
        await self.carry(since)
        await self.send_all(gateway)
        await self._close(card)
        _forget_log(card.path)
        shutil.copyfile(backup, card.path)
        card.journal, card.repair = await self._open(card.folder, card.clock, card.limit)
        await self.carry(since)  # what comes now must not be taken for what came then

    def jump_clock(self, gateway: str, seconds: float) -> None:
        """The wall clock of a gateway is set; the clock since boot goes on."""
        clock = self.cards[gateway].clock
        clock.set_wall(max(0, clock.wall_us() + round(seconds * 1e6)))

    # ---- the truth

    async def balance(self) -> Balance:
        """Return what the ledger says of the files."""
        return await balance_files(self.folder)

    async def settle(self) -> None:
        """Have everything sent, corrected and taken by the sinks."""
        for gateway in self.cards:
            await self.send_all(gateway)
            await self._correct(gateway, self.cards[gateway])
        await self.drained()
        await self.stop_cloud()  # cursors that the stream keeps are saved now and then, and here
        await self.start_cloud()

    async def compare(self, *, tried: frozenset[bytes] = frozenset()) -> None:
        """Hold storage and ledger against the truth.

        Args:
            tried: Payloads that may be stored although nobody was told that they are.
        """
        report = await self.balance()
        sources = {(one.gateway, one.epoch): one for one in report.sources}
        sql = "SELECT gateway, epoch, seq, payload, time_us FROM readings"
        rows: dict[tuple[str, int, int], tuple[bytes, int]] = {
            (g, e, s): (str(p).encode(), t)
            for g, e, s, p, t in query(self.folder / "cloud" / "storage.db", sql)
        }
        expected: set[tuple[str, int, int]] = set()
        for gateway, card in self.cards.items():
            one = sources.get((gateway, card.journal.epoch))
            if one is None:
                assert not card.acked
                continue
            expected |= self._compare_card(gateway, card, one, rows)
        gaps = False
        for gateway, epoch, card in self.lost:
            came = {seq for seq in card.acked if (gateway, epoch, seq) in rows}
            assert card.safe <= came
            one = sources[gateway, epoch]
            told = {seq for seq in card.acked if seq <= card.told}
            absent = {seq for a, b in one.absent for seq in range(a, b + 1)}
            if not card.stones:  # then the loss is known seq by seq
                assert absent == told - came
                assert (one.given_up, one.unexplained) == (0, ())
            assert one.given_up <= sum(card.stones.values())
            assert one.assigned == card.told
            assert one.missing + one.given_up == card.told - len(came)
            assert one.stored == len(came)
            expected |= {(gateway, epoch, seq) for seq in came}
            gaps = gaps or one.missing > 0
        extra = {rows[key][0] for key in rows.keys() - expected}
        assert extra <= tried
        assert report.balanced is not gaps
        self._compare_sink(report, rows, all_seen=not tried)

    def _compare_card(
        self,
        gateway: str,
        card: Card,
        one: SourceBalance,
        rows: dict[tuple[str, int, int], tuple[bytes, int]],
    ) -> set[tuple[str, int, int]]:
        stored: set[tuple[str, int, int]] = set()
        missing: set[int] = set()
        folded = 0
        for seq, reading in card.acked.items():
            key = (gateway, card.journal.epoch, seq)
            if key not in rows:
                missing.add(seq)
                continue
            stored.add(key)
            payload, time_us = rows[key]
            if payload != reading.payload:
                summary = json.loads(payload)["tidegate_thinned"]
                assert summary["min"]["value"] <= int(reading.payload) == summary["max"]["value"]
                folded += summary["count"] - 1
            if reading.boot in card.compared:
                assert abs(time_us - reading.true_us) <= _TOLERANCE_US, (gateway, seq)
        assert not missing & card.safe, "what the cloud acknowledged is stored"
        if card.limit == "none":
            assert not missing
        # seqs that no device was ever told of
        unknown = {s for g, e, s in rows if (g, e) == (gateway, card.journal.epoch)} - set(
            card.acked
        )
        skipped = one.assigned - len(card.acked) - len(unknown)
        assert skipped == 0 or card.put_back
        assert folded <= len(missing)
        assert one.given_up == len(missing) + skipped
        assert (one.lost, one.absent, one.doubled, one.unassigned) == ((), (), (), ())
        assert one.unexplained == ()
        return stored

    def _compare_sink(
        self,
        report: Balance,
        rows: dict[tuple[str, int, int], tuple[bytes, int]],
        *,
        all_seen: bool,
    ) -> None:
        """The sink that cannot take everything: the ledger knows what it took and what not."""
        for one in report.sources:
            taken = {s for g, e, s in self.taken if (g, e) == (one.gateway, one.epoch)}
            for sink in one.sinks:
                if sink.sink == _Picky.name:
                    assert sink.taken == len(taken) or not all_seen
                    assert sink.waiting == 0
                    assert sink.taken + sink.dead_letters == one.held
        for key, (payload, _) in rows.items():
            assert not (_poison(payload) and key in self.taken)


def _poison(payload: bytes) -> bool:
    return payload.isdigit() and int(payload) % POISON == 0


def _forget_log(path: Path) -> None:
    """Remove what belongs to a database that is about to be replaced."""
    for left in path.parent.glob(f"{path.name}-*"):
        left.unlink()


class _Picky(RecordingSink):
    """A sink whose cursors the stream keeps, and which cannot take some values."""

    name = "picky"

    def __init__(self, taken: set[tuple[str, int, int]]) -> None:
        super().__init__("picky")
        self._taken = taken

    async def write(self, entries: Sequence[DecodedEntry], cursors: Any) -> None:
        for one in entries:
            if any(map(_poison, one.readings.payloads)):
                raise ValueError("a value that does not fit")
        for one in entries:
            source = (one.entry.gateway, one.entry.epoch)
            self._taken.update((*source, seq) for seq in one.readings.seqs)
        await asyncio.sleep(0)


class _Link:
    """A way to the cloud that keeps what is said until it is answered."""

    def __init__(self) -> None:
        self.said: list[tuple[Correction, Callable[[int], None]]] = []

    def say(self, payload: bytes, answered: Callable[[int], None]) -> bool:
        message = open_message(payload)
        assert isinstance(message, Correction)
        self.said.append((message, answered))
        return True
