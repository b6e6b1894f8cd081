"""The way of one reading: each hop with its time, from what each place itself keeps.

    gateway    captured; in the journal, trimmed, given up or set aside there
    batch      when its batch came in, with which others
    stream     partition and position; its entry, or that it is trimmed
    sinks      taken, waiting or dead
    storage    the row
    alerts     what that very reading set off

Nothing is derived from a neighbour: a hop that cannot show the reading says so. docs/ledger.md.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

from bridge.errors import BatchError
from bridge.intervals import IntervalSet, Range
from bridge.shared_entry import EntryReader
from cloud.ledger import may_still_send
from cloud.ledger_account import ranges_text
from cloud.query_time import iso
from cloud.sinks.schema import epoch_text
from cloud.stream.contract import Arrival, DeadLetter, Entry, GivenUp, SourceLedger

__all__ = [
    "AlertSeen",
    "AlertTrace",
    "Hop",
    "JournalPlace",
    "JournalTrace",
    "Row",
    "StorageTrace",
    "StreamTrace",
    "Trace",
    "TraceError",
    "Traced",
    "trace",
]


class TraceError(Exception):
    """Nothing can be traced; one line that says what was not found and what there is."""


@dataclass(slots=True, frozen=True)
class Hop:
    """One place, and what it says of the reading."""

    place: str
    time_us: int | None  # when it was there; None when the place does not tell
    text: str


@dataclass(slots=True, frozen=True)
class Trace:
    """The way of one reading.

    `verdict` is a word: stored, waiting, given-up, dead-letter, or lost; "given-up or waiting"
    where a tombstone gives up only some of what has not come, and the journal is not here.
    """

    gateway: str
    epoch: int
    seq: int
    hops: tuple[Hop, ...]
    verdict: str

    def lines(self) -> list[str]:
        """Return it as text, one hop a line."""
        lines = [f"{self.gateway} {epoch_text(self.epoch)} seq {self.seq}: {self.verdict}"]
        for hop in self.hops:
            when = iso(hop.time_us) if hop.time_us is not None else ""
            lines.append(f"  {hop.place:9} {when:27} {hop.text}")
        return lines


@dataclass(slots=True, frozen=True)
class Row:
    """A row of storage, its payload only by size."""

    device: str
    topic: str
    time_us: int
    received_us: int
    qos: int
    payload_bytes: int


@dataclass(slots=True, frozen=True)
class JournalPlace:
    """What a journal says of one of its seqs."""

    lane: str  # "" when no row is left to tell
    state: str  # "waiting", "gone", "dead-letter", "given-up" or "not assigned"
    time_us: int | None
    text: str


@dataclass(slots=True, frozen=True)
class AlertSeen:
    """One transition of an alert at the event time of the reading."""

    rule: str
    state: str
    decided_us: int


class StreamTrace(Protocol):
    """The part of a stream a trace reads; a `Stream` is one."""

    async def ledger(self) -> list[SourceLedger]:
        """Return every source."""
        ...

    async def arrival(self, gateway: str, epoch: int, seq: int) -> Arrival | None:
        """Return the append that brought a seq."""
        ...

    async def read(
        self, partition: int, after: int, *, entries_max: int, bytes_max: int
    ) -> list[Entry]:
        """Return entries past a position."""
        ...

    async def dead_letters(self, sink: str | None = None) -> list[DeadLetter]:
        """Return dead letters."""
        ...


class StorageTrace(Protocol):
    """A storage that can be asked for one row."""

    async def row(self, gateway: str, epoch: int, seq: int) -> Row | None:
        """Return a row."""
        ...

    async def expired(self, gateway: str, epoch: int, seq: int) -> bool:
        """Return True when retention has deleted the row."""
        ...


class JournalTrace(Protocol):
    """A journal that can be asked for one seq."""

    async def place(self, seq: int) -> tuple[int, JournalPlace]:
        """Return the journal's epoch, and what it says of a seq."""
        ...


class AlertTrace(Protocol):
    """Alerts that can be asked what a reading set off."""

    async def at(self, device: str, time_us: int) -> list[AlertSeen]:
        """Return the transitions of a device's alerts at an event time."""
        ...


@dataclass(slots=True)
class Traced:
    """Where to look; what is None cannot be looked at."""

    stream: StreamTrace
    storage: StorageTrace | None = None
    journal: JournalTrace | None = None
    alerts: AlertTrace | None = None
    sinks: Mapping[str, Mapping[int, int]] = field(default_factory=dict)  # positions


async def trace(places: Traced, gateway: str, seq: int, epoch: int | None = None) -> list[Trace]:
    """Follow a reading; one trace an epoch of the gateway in which that seq was assigned.

    Raises:
        TraceError: the gateway, its epoch or the seq is not known.
    """
    lines = await places.stream.ledger()
    of_gateway = [line for line in lines if line.gateway == gateway]
    if not of_gateway:
        names = sorted({line.gateway for line in lines})
        known = f"there is {', '.join(names[:12])}" if names else "it is empty"
        raise TraceError(f"gateway '{gateway}' is not in the ledger; {known}")
    if epoch is not None:
        epochs = ", ".join(epoch_text(line.epoch) for line in of_gateway)
        of_gateway = [line for line in of_gateway if line.epoch == epoch]
        if not of_gateway:
            raise TraceError(f"{gateway} has no epoch {epoch_text(epoch)}; it has {epochs}")
    newest = may_still_send(lines)
    found = []
    ends = []
    for line in of_gateway:
        assigned, place = await _at_edge(places, line, seq)
        if (gateway, line.epoch) not in newest:  # in use is another journal: nothing comes of it
            line = replace(line, settled=None)  # noqa: PLW2901 - what the line is worth now
        before = line.origin.after_seq if line.origin is not None else 0  # another epoch's
        if before < seq <= assigned:
            found.append(await _follow(places, line, seq, place))
        ends.append(f"{assigned} in epoch {epoch_text(line.epoch)}")
    if not found:
        raise TraceError(f"{gateway} never assigned seq {seq}; it has come to {', '.join(ends)}")
    return found


async def _at_edge(places: Traced, line: SourceLedger, seq: int) -> tuple[int, JournalPlace | None]:
    """Return how far the gateway has assigned, and what its journal says, if it is here."""
    assigned = max([line.assigned, *(last for _, last in line.held[-1:])])
    if places.journal is None:
        return assigned, None
    epoch, place = await places.journal.place(seq)
    if epoch != line.epoch or place.state == "not assigned":
        return assigned, None
    return max(assigned, seq), place


async def _follow(
    places: Traced, line: SourceLedger, seq: int, at_edge: JournalPlace | None
) -> Trace:
    source = (line.gateway, line.epoch)
    hops: list[Hop] = []
    row = await places.storage.row(*source, seq) if places.storage is not None else None
    if at_edge is not None:
        hops.append(Hop("gateway", at_edge.time_us, at_edge.text))
    stones = [stone for stone in line.given_up if stone.first_seq <= seq <= stone.last_seq]
    hops += [
        Hop("gateway", stone.time_us, f"{stone.reason}: {stone.count} of lane {stone.lane} in seq "
            f"{ranges_text([(stone.first_seq, stone.last_seq)])} given up")
        for stone in stones
    ]  # fmt: skip
    held = _holds(line.held, seq)
    unclear = at_edge is None and not held and _gives_up_some(line, stones)
    if unclear:
        hops.append(Hop("gateway", None, "others of that range may still wait in its journal"))
    told = at_edge is None and not held and line.settled is not None and seq > line.settled
    if told and not stones:
        text = f"waits in its journal, as far as it said: it is done with seq 1-{line.settled}"
        hops.append(Hop("gateway", line.settled_us, text))
    arrival = await places.stream.arrival(*source, seq)
    in_stream, partition, position, event_us = await _in_stream(places, source, seq, arrival, row)
    if event_us is not None:
        hops.insert(0, Hop("captured", event_us, "the time it bears"))
    hops += in_stream
    if held and arrival is None:
        hops.append(Hop("batch", None, "held by the stream; too long ago to tell its batch"))
    dead = [
        letter
        for letter in await places.stream.dead_letters()
        if (letter.entry.gateway, letter.entry.epoch) == source
        and _holds(letter.entry.seq_ranges, seq)
    ]
    hops += [Hop(letter.sink, letter.time_us, f"dead letter after {letter.tries} tries: "
             f"{letter.cause}") for letter in dead]  # fmt: skip
    waiting = _sink_hops(places, partition, position, {letter.sink for letter in dead}, hops)
    expired = await _storage_hop(places, source, seq, row, hops)
    if row is not None and places.alerts is not None:
        hops += [
            Hop("alert", seen.decided_us, f"{seen.rule} {seen.state}")
            for seen in await places.alerts.at(row.device, row.time_us)
        ]
    dead_storage = any(letter.sink == "storage" for letter in dead)
    verdict = _verdict(
        stored=row is not None or expired,
        dead=dead_storage or (at_edge is not None and at_edge.state == "dead-letter"),
        waiting=waiting
        or (told and not stones)
        or (at_edge is not None and at_edge.state == "waiting"),
        given_up=bool(stones) or (at_edge is not None and at_edge.state == "given-up"),
        held=held,
    )
    if unclear and verdict == "given-up":
        verdict = "given-up or waiting"
    return Trace(line.gateway, line.epoch, seq, tuple(hops), verdict)


def _gives_up_some(line: SourceLedger, stones: Sequence[GivenUp]) -> bool:
    """Return True when more is missing in the ranges of tombstones than they give up."""
    held = IntervalSet(line.held)
    missing = IntervalSet()
    for stone in stones:
        missing.update(held.missing(stone.first_seq, stone.last_seq))
    return missing.count() > sum(stone.count for stone in stones)


def _verdict(*, stored: bool, dead: bool, waiting: bool, given_up: bool, held: bool) -> str:
    if stored:
        return "stored"
    if dead:
        return "dead-letter"
    if waiting:
        return "waiting"
    return "given-up" if given_up and not held else "lost"


async def _in_stream(
    places: Traced,
    source: tuple[str, int],
    seq: int,
    arrival: Arrival | None,
    row: Row | None,
) -> tuple[list[Hop], int, int, int | None]:
    """Return the hops of batch and stream, where its entry lies, and the time the reading bears."""
    event_us = row.time_us if row is not None else None
    if arrival is None:
        return [], -1, 0, event_us
    spans = ranges_text(arrival.seq_ranges, 4)
    hops = [Hop("batch", arrival.arrived_us, f"with {arrival.count} readings new: seq {spans}")]
    for partition, position in arrival.places:
        entries = await places.stream.read(partition, position - 1, entries_max=1, bytes_max=1)
        if not entries or entries[0].position != position:
            continue
        entry = entries[0]
        if (entry.gateway, entry.epoch) != source or not _holds(entry.seq_ranges, seq):
            continue
        text = f"partition {partition}, position {position}: entry of {entry.count} readings, "
        hops.append(Hop("stream", entry.appended_us, f"{text}{len(entry.body)} bytes"))
        return hops, partition, position, event_us if row is not None else _event_us(entry, seq)
    where = ", ".join(f"{partition}:{position}" for partition, position in arrival.places[:8])
    hops.append(Hop("stream", None, f"entry trimmed; it lay in partition:position {where}"))
    return hops, -1, 0, event_us


def _event_us(entry: Entry, seq: int) -> int | None:
    """Return the time a reading of an entry bears; None when the entry cannot be read."""
    try:
        readings = EntryReader().read(entry.body, entry.gateway, entry.epoch).readings
    except BatchError:
        return None
    for one, time_us in zip(readings.seqs, readings.times_us, strict=True):
        if one == seq:
            return time_us
    return None


def _sink_hops(
    places: Traced, partition: int, position: int, dead: set[str], hops: list[Hop]
) -> bool:
    """Say how far each sink is; return True while storage has not come to the entry."""
    if partition < 0:
        return False
    for name, positions in sorted(places.sinks.items()):
        if name in dead or name == "storage":
            continue
        reached = positions.get(partition, 0)
        done = "taken" if reached >= position else "waiting"
        hops.append(Hop(name, None, f"{done}: the sink is at position {reached}"))
    return places.sinks.get("storage", {}).get(partition, 0) < position


async def _storage_hop(
    places: Traced, source: tuple[str, int], seq: int, row: Row | None, hops: list[Hop]
) -> bool:
    """Say what storage has; return True when retention has deleted it."""
    if row is not None:
        text = f"row of device {row.device}, topic {row.topic}, QoS {row.qos}"
        hops.append(Hop("storage", None, f"{text}, {row.payload_bytes} bytes"))
        return False
    if places.storage is None:
        return False
    expired = await places.storage.expired(*source, seq)
    hops.append(Hop("storage", None, "row deleted by retention" if expired else "no row"))
    return expired


def _holds(ranges: Sequence[Range], seq: int) -> bool:
    return any(first <= seq <= last for first, last in ranges)
