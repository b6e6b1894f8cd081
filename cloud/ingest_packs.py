"""What is appended of several sources at the same time is encoded together, as packs.

The readings of a pack are split by partition together; those of a lane and partition share a body
(bridge/shared_entry.py). A pack begins at once when nothing is under way; else when what is under
way was appended, and those answered had a moment to send more; but at the latest `late_s` after the
one before, or half of what the last append took, up to five times that; and as soon as it is full.

Invariant: what one gateway sends cannot make a body that others share unreadable: a pack unpacks to
far less than a reader takes, unless it is of one gateway.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Sequence

from bridge.readings import Readings
from cloud.ingest_parts import PartEncoder
from cloud.stream.contract import Part, Source

__all__ = ["LATE_S", "Group", "Packs"]

LATE_S = 0.02
_LINGER_S = 0.004  # at most, and a quarter of what an append took
_READINGS_MAX = 32_768  # of a pack
_BYTES_MAX = 8 << 20  # of these written out
_TURN_READINGS = 1000  # encoded in one turn of the loop: about 2 ms

_Lane = tuple[int, bool]  # lane, historical


class Group:
    """Readings of one source that go into one append.

    Args:
        source: Whose they are.
        lane: The lane they came by, and whether they waited through an outage.
        readings: One or more.
        size: Their bytes written out, at most.
    """

    __slots__ = ("begun_s", "encoded", "lane", "readings", "size", "source", "waits_for")

    def __init__(self, source: Source, lane: _Lane, readings: Readings, size: int) -> None:
        self.source = source
        self.lane = lane
        self.readings = readings
        self.size = size
        self.begun_s = 0.0  # when it was encoded
        self.encoded: asyncio.Future[list[Part] | None] | None = None
        self.waits_for: Packs | None = None  # till it is encoded

    def hurry(self) -> None:
        """Have what it waits for begin now: something live waits for it."""
        if self.waits_for is not None:
            self.waits_for.begin_now()


class Packs:
    """The packs of one class of appends, one after the other.

    Args:
        encoder: Makes parts.
        late_s: A pack does not wait longer for the one before it.
    """

    def __init__(self, encoder: PartEncoder, *, late_s: float = LATE_S) -> None:
        self._encoder = encoder
        self._late_s = late_s
        self._waiting: list[Group] = []
        self._readings = 0  # that wait
        self._under_way = 0  # groups encoded and not appended
        self._begun_s = 0.0  # the last pack
        self._took_s = 0.0  # the append that ended last
        self._free_s = 0.0  # till then those answered may send more
        self._now = False
        self._wake = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    async def encode(self, group: Group) -> list[Part] | None:
        """Return the parts of a group; None when it could not be encoded with the others.

        Whoever asked calls `appended` once they are in the stream, or are not.
        """
        encoded: asyncio.Future[list[Part] | None] = asyncio.get_running_loop().create_future()
        group.encoded = encoded
        group.waits_for = self
        self._waiting.append(group)
        self._readings += len(group.readings)
        if self._readings >= _READINGS_MAX:
            self._wake.set()
        if self._task is None:
            self._task = asyncio.create_task(self._work(), name="ingest-pack")
        return await encoded

    def appended(self, group: Group) -> None:
        """Note that a group's append has ended."""
        now_s = asyncio.get_running_loop().time()
        self._under_way -= 1
        self._took_s = now_s - group.begun_s
        if not self._under_way:
            self._free_s = now_s + min(_LINGER_S, self._took_s / 4, self._late_s)
            self._wake.set()

    def begin_now(self) -> None:
        """Have what waits wait no longer."""
        self._now = True
        self._wake.set()

    async def _work(self) -> None:
        """Make packs for as long as anything waits."""
        try:
            while self._waiting:
                await self._pause()
                pack = self._next()
                found = await self._encode(pack)
                self._under_way += len(pack)
                self._begun_s = asyncio.get_running_loop().time()
                for group, parts in zip(pack, found, strict=True):
                    group.begun_s = self._begun_s
                    if group.encoded is not None and not group.encoded.done():
                        group.encoded.set_result(parts)
        finally:
            self._task = None

    async def _pause(self) -> None:
        """Return when the next pack shall begin."""
        loop = asyncio.get_running_loop()
        await asyncio.sleep(0)  # what comes in this turn goes together
        while self._readings < _READINGS_MAX and not self._now:
            late_s = min(max(self._late_s, self._took_s / 2), 5 * self._late_s)
            due_s = self._begun_s + late_s if self._under_way else self._free_s
            if loop.time() >= due_s:
                return
            self._wake.clear()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout_at(due_s):
                    await self._wake.wait()

    def _next(self) -> list[Group]:
        """Take what goes into the next pack."""
        readings = size = count = 0
        for group in self._waiting:
            readings += len(group.readings)
            size += group.size
            if count and (readings > _READINGS_MAX or size > _BYTES_MAX):
                break
            count += 1
        pack, self._waiting = self._waiting[:count], self._waiting[count:]
        for group in pack:
            group.waits_for = None
            self._readings -= len(group.readings)
        self._now = self._now and bool(self._waiting)
        return pack

    async def _encode(self, pack: Sequence[Group]) -> list[list[Part] | None]:
        """Return the parts of each group; None for those of a lane that cannot be encoded."""
        found: list[list[Part] | None] = [None] * len(pack)
        by_lane: dict[_Lane, list[int]] = {}
        for place, group in enumerate(pack):
            by_lane.setdefault(group.lane, []).append(place)
        for places in by_lane.values():
            # whatever it was, each is tried by itself
            with contextlib.suppress(Exception):
                parts = await self._encode_lane([pack[place] for place in places])
                for place, one in zip(places, parts, strict=True):
                    found[place] = one
        return found

    async def _encode_lane(self, groups: Sequence[Group]) -> list[list[Part]]:
        lane, historical = groups[0].lane
        parts: list[list[Part]] = [[] for _ in groups]
        encoding = self._encoder.parts(
            [group.source for group in groups],
            [group.readings for group in groups],
            lane=lane,
            historical=historical,
        )
        encoded = 0
        for found in encoding:
            for place, part in found:
                parts[place].append(part)
                encoded += part.count
            if encoded >= _TURN_READINGS or not found:
                encoded = 0
                await asyncio.sleep(0)
        return parts
