"""What can be done about a sink's dead letters: name them, look, try again, throw away.

To redrive is to offer the entry to its sink once more, under its own identity, so that storage
takes each reading once. To discard is a loss that somebody decided: its seqs become tombstones of
reason `discarded` whose lane is the sink's name, durable before the letter goes. docs/ledger.md.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Protocol

from bridge.errors import BatchError
from bridge.shared_entry import EntryReader
from cloud.config import CloudConfig
from cloud.ledger_account import DISCARDED, ranges_text
from cloud.query_time import iso
from cloud.sinks.decoded import DecodedEntries
from cloud.sinks.runner import SinkRunner
from cloud.sinks.schema import epoch_text
from cloud.storage import make_storage
from cloud.stream.contract import DeadLetter, GivenUp, Stream
from cloud.stream.embedded import EmbeddedStream
from runtime.clock import Clock

__all__ = [
    "DeadLetterUnknown",
    "chosen",
    "discard",
    "letter_id",
    "letter_line",
    "letter_lines",
    "opened_offline",
    "redrive",
]

_SHOWN_READINGS = 20
_SHOWN_BYTES = 80


class LetterView(Protocol):
    """The part of a stream that is asked; a `Stream` is one."""

    async def dead_letters(self, sink: str | None = None) -> list[DeadLetter]:
        """Return dead letters, of one sink or of all."""
        ...


class DeadLetterUnknown(Exception):  # noqa: N818 - what was asked for, as LookupError
    """No dead letter has that id; one line."""


def letter_id(letter: DeadLetter) -> str:
    """Return the name by which people speak of a letter: sink:partition:position."""
    return f"{letter.sink}:{letter.entry.partition}:{letter.entry.position}"


def letter_line(letter: DeadLetter) -> str:
    """Return a letter as one line."""
    entry = letter.entry
    return (
        f"{letter_id(letter)}  {iso(letter.time_us)}  {entry.gateway} {epoch_text(entry.epoch)} seq"
        f" {ranges_text(entry.seq_ranges, 4)} ({entry.count})  {letter.tries} tries: {letter.cause}"
    )


def letter_lines(letter: DeadLetter) -> list[str]:
    """Return a letter as text: what it is, and its readings as far as they can be read."""
    entry = letter.entry
    taken = f"  entry of {len(entry.body)} bytes, taken {iso(entry.appended_us)}"
    lines = [letter_line(letter), taken]
    try:
        readings = EntryReader().read(entry.body, entry.gateway, entry.epoch).readings
    except BatchError as error:
        return [*lines, f"  its body cannot be read: {error}"]
    for index in range(min(len(readings), _SHOWN_READINGS)):
        topic, device = readings.sources[readings.source_index[index]]
        payload = repr(readings.payloads[index][:_SHOWN_BYTES])[2:-1]
        lines.append(
            f"  seq {readings.seqs[index]}  {iso(readings.times_us[index])}  {device}  {topic}"
            f"  {payload}"
        )
    more = len(readings) - _SHOWN_READINGS
    return [*lines, f"  and {more} more"] if more > 0 else lines


async def chosen(stream: LetterView, ids: Sequence[str] | None) -> list[DeadLetter]:
    """Return the letters of some ids, or all with None.

    Raises:
        DeadLetterUnknown: an id is none of them.
        StreamError: the stream cannot be read.
    """
    letters = await stream.dead_letters()
    if ids is None:
        return letters
    by_id = {letter_id(letter): letter for letter in letters}
    for one in ids:
        if one not in by_id:
            raise DeadLetterUnknown(f"no dead letter '{one}'; there are {len(by_id)}, see list")
    return [by_id[one] for one in dict.fromkeys(ids)]


async def redrive(runners: Sequence[SinkRunner], letters: Sequence[DeadLetter]) -> int:
    """Offer letters to their sinks once more; return how many were taken.

    Raises:
        DeadLetterUnknown: the sink of a letter does not run here.
        SinkUnavailable: a sink can take nothing now.
        StreamError: the stream cannot be read or written.
    """
    by_name = {runner.name: runner for runner in runners}
    by_sink: dict[str, list[tuple[int, int]]] = {}
    for letter in letters:
        if letter.sink not in by_name:
            raise DeadLetterUnknown(
                f"{letter_id(letter)}: sink '{letter.sink}' does not run here; ask the node: --url"
            )
        by_sink.setdefault(letter.sink, []).append((letter.entry.partition, letter.entry.position))
    taken = 0
    for name, places in by_sink.items():
        taken += (await by_name[name].redrive(places))[0]
    return taken


async def discard(stream: Stream, letters: Sequence[DeadLetter], now_us: int) -> int:
    """Throw letters away for good, with tombstones; return how many readings that were.

    Raises:
        StreamError: the stream cannot be written; what was not thrown away is still there.
    """
    readings = 0
    for letter in letters:
        entry = letter.entry
        stones = [
            GivenUp(entry.gateway, entry.epoch, letter.sink, first, last, last - first + 1,
                    DISCARDED, now_us)
            for first, last in entry.seq_ranges
        ]  # fmt: skip
        await stream.append((), stones)
        await stream.forget_dead_letter(letter.sink, entry.partition, entry.position)
        readings += entry.count
    return readings


@asynccontextmanager
async def opened_offline(
    data: Path, config: CloudConfig, clock: Clock
) -> AsyncIterator[tuple[Stream, list[SinkRunner]]]:
    """Open stream and storage of a node that does not run.

    The runner only redrives: it is never started, so nothing else is written.

    Raises:
        StreamError, DatabaseError: a file is in use, absent or cannot be written.
    """
    async with contextlib.AsyncExitStack() as stack:
        stream = await EmbeddedStream.open(data / "cloud" / "stream.db", config.stream, clock)
        stack.push_async_callback(stream.close)
        storage = make_storage(data, config.storage, clock)
        await storage.open(stream.epoch)
        stack.push_async_callback(storage.close)
        yield stream, [SinkRunner(storage, stream, DecodedEntries(0), config.sinks)]
