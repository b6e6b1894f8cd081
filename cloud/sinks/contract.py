"""What a sink is to the runner: it takes decoded entries and knows how far it got.

A sink has a cursor per partition. One that has a store of its own commits rows and cursors in one
transaction there and answers `cursors()`; any other returns None and the runner keeps the cursors
in the stream, after `write` returned: entries written but not yet committed come again after a
crash, so such a sink is at least once. DESIGN section 3, cloud.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

from bridge.readings import Readings
from cloud.stream.contract import Entry

__all__ = [
    "BulkSink",
    "DecodedEntry",
    "FencedSink",
    "HandOverSink",
    "Sink",
    "SinkFenced",
    "SinkUnavailable",
    "SinkWentBack",
    "TurnSink",
    "WriteBounds",
]


class SinkUnavailable(Exception):  # noqa: N818 - a state of the sink, not a fault of an entry
    """The sink cannot take anything now: no entry is to blame, all of them wait."""


class SinkFenced(Exception):  # noqa: N818 - a state of the holder
    """Others hold some partitions by now: nothing was written, and nothing may be.

    Attributes:
        partitions: Which; never empty.
    """

    def __init__(self, partitions: frozenset[int]) -> None:
        super().__init__(f"taken over by another node: partitions {sorted(partitions)}")
        self.partitions = partitions


class SinkWentBack(Exception):  # noqa: N818 - a state of the store
    """The store has lost what it had committed, cursors too: nothing was written.

    Attributes:
        partitions: Which have to be gone on with from where the store stands now; never empty.
    """

    def __init__(self, partitions: frozenset[int]) -> None:
        super().__init__(f"the store went back: partitions {sorted(partitions)}")
        self.partitions = partitions


@dataclass(slots=True, frozen=True)
class WriteBounds:
    """How much a sink wants in one write, at most."""

    readings_max: int
    bytes_max: int  # of the entries as they are in the stream


@dataclass(slots=True, frozen=True)
class DecodedEntry:
    """One entry with its readings; shared by all sinks, so none may change it."""

    entry: Entry
    readings: Readings
    historical: bool  # they waited at the edge through an outage
    payload_bytes: int = field(init=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "payload_bytes", sum(map(len, self.readings.payloads)))


class Sink(Protocol):
    """One consumer of the stream, driven by `SinkRunner`."""

    @property
    def name(self) -> str:
        """A stable word: names the cursors, the metrics and the dead letters."""
        ...

    @property
    def linger_s(self) -> float:
        """How long the runner may wait for more before a write; 0 when latency counts."""
        ...

    async def open(self, stream_epoch: int) -> None:
        """Make ready to write; called once before anything else.

        Args:
            stream_epoch: Which stream the positions will be of.
        """
        ...

    async def cursors(self) -> Mapping[int, int] | None:
        """Return the position reached by partition, or None when the stream is to keep them."""
        ...

    async def write(self, entries: Sequence[DecodedEntry], cursors: Mapping[int, int]) -> None:
        """Take `entries`, all or none of them; then `cursors` is where the sink stands.

        Args:
            entries: In stream order within each partition; never empty.
            cursors: The new position of each partition that `entries` touches.

        Raises:
            SinkUnavailable: try everything again later.
            SinkWentBack: a store of its own stands before what it has committed.
            Exception: some entry cannot be taken; the runner finds out which.
        """
        ...

    async def pass_over(self, entry: Entry) -> None:
        """Move a cursor past an entry without its data: it was set aside as a dead letter.

        Only called on a sink that keeps its own cursors, which stands right before `entry`.
        """
        ...

    async def close(self) -> None:
        """Save what is to be saved and release everything."""
        ...


@runtime_checkable
class FencedSink(Sink, Protocol):
    """A sink with a store that several nodes may write: it knows whose turn it is.

    `write` and `pass_over` raise `SinkFenced` once a partition was claimed with a higher token.
    """

    async def claim(self, tokens: Mapping[int, int]) -> Mapping[int, int]:
        """Take partitions over; from here on writers with lower tokens are refused.

        Args:
            tokens: The fencing token by partition: rises from holder to holder.

        Returns:
            The position of each of them.

        Raises:
            SinkFenced: of some a higher token is known; the others are claimed.
            SinkUnavailable: nothing may be assumed claimed; try again later.
        """
        ...


@runtime_checkable
class TurnSink(Sink, Protocol):
    """A sink with something to do between writes: it is told which partitions are its own."""

    def turns(self, partitions: Collection[int]) -> None:
        """Work on these partitions from here on, and on no others."""
        ...


@runtime_checkable
class HandOverSink(TurnSink, Protocol):
    """A sink whose state goes over to the next holder of a partition."""

    async def give_up(self, partitions: Collection[int]) -> None:
        """End with partitions and keep their state; afterwards others may have them at once."""
        ...

    def kept(self) -> Mapping[int, int] | None:
        """Return the positions whose state outlasts this node; None: all that was written.

        What lies behind them must stay in the stream.
        """
        ...


@runtime_checkable
class BulkSink(Sink, Protocol):
    """A sink that wants large writes, of few partitions each."""

    bounds: WriteBounds
