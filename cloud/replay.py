"""Closes gaps of storage from the stream: for one that was rolled back, restored or edited by hand.

The ledger says which seqs the stream took and storage has no row of; the entries that hold them,
as far as they are kept (`stream.replay_s`), are written once more. Storage's key lets no reading in
twice, so replaying too much does no harm, and the cursor stays where it is. docs/ledger.md, Replay.
"""

from __future__ import annotations

from dataclasses import dataclass

from bridge.intervals import IntervalSet
from cloud.ledger import Balance
from cloud.sinks.contract import SinkUnavailable
from cloud.sinks.runner import SinkRunner
from cloud.stream.contract import Entry, Source, Stream

__all__ = ["Replayed", "replay"]

_READ_BYTES = 4 << 20


@dataclass(slots=True, frozen=True)
class Replayed:
    """What a replay did."""

    entries: int  # written once more
    refused: int  # entries that storage could not take
    found: int  # lost readings whose entries were there
    gone: int  # lost readings whose entries are not kept any more

    def line(self) -> str:
        """Return it as one line."""
        text = f"{self.found} readings replayed from {self.entries} entries"
        if self.refused:
            text += f", {self.refused} entries could not be written"
        if self.gone:
            text += f"; {self.gone} are not in the stream any more"
        return text


async def replay(stream: Stream, storage: SinkRunner, before: Balance) -> Replayed:
    """Write the entries that hold lost readings into storage once more.

    Args:
        stream: Where they are.
        storage: The storage sink's runner.
        before: A thorough balance: what is lost by it is looked for.

    Raises:
        SinkUnavailable: storage cannot be written now.
        StreamError: the stream cannot be read.
    """
    lost: dict[Source, IntervalSet] = {
        (source.gateway, source.epoch): IntervalSet(source.lost)
        for source in before.sources
        if source.lost
    }
    wanted = sum(ranges.count() for ranges in lost.values())
    entries = refused = found = 0
    for partition in (await stream.stats()).last_positions if lost else ():
        after = 0
        while True:
            some = await stream.read(partition, after, entries_max=256, bytes_max=_READ_BYTES)
            if not some:
                break
            after = some[-1].position
            for entry in some:
                count = _overlap(lost, entry)
                if not count:
                    continue
                try:
                    await storage.offer_again(entry)
                except SinkUnavailable:
                    raise
                except Exception:  # noqa: BLE001 - this entry is to blame, and stays lost
                    refused += 1
                    continue
                entries += 1
                found += count
    return Replayed(entries, refused, found, wanted - found)


def _overlap(lost: dict[Source, IntervalSet], entry: Entry) -> int:
    """Return how many lost readings an entry holds."""
    ranges = lost.get((entry.gateway, entry.epoch))
    if ranges is None:
        return 0
    count = 0
    for first, last in entry.seq_ranges:
        missing = sum(b - a + 1 for a, b in ranges.missing(first, last))
        count += last - first + 1 - missing
    return count
