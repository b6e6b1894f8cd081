"""Publishes by devices connected to the cloud itself: readings with this node as their gateway.

Their identity is (node id, the stream's own epoch, seq); the next seq is found in the ledger at
start. What waits while an append is under way goes into the next one, so devices share commits.

Invariants: one append at a time, so seqs rise in the order of arrival; a publish is settled only
after its append returned; an append that failed is repeated with the same parts until it is
stored, so no seq is ever used for two readings. What goes into one append unpacks to far less than
an entry's reader takes (bridge/columnar.py, Limits).
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

import structlog

from bridge.devices import DeviceIds
from bridge.readings import FLAG_PROPERTIES, FLAG_RETAIN, Readings, Source
from cloud.ingest_parts import Encoded, PartEncoder
from cloud.stream.contract import Stream, StreamError, StreamFull
from mqtt.broker.seams import PublishRun
from mqtt.errors import MalformedPacket
from mqtt.frames import parse_publishes
from mqtt.reason_codes import ReasonCode
from runtime.logs import limited

__all__ = ["DeviceIngest", "DeviceStats"]

log = structlog.get_logger(component="ingest")

_GROUP_READINGS_MAX = 2_000
_GROUP_BYTES_MAX = 4 << 20  # a run more at most
_RUN_BYTES_MAX = 24 << 20
_RETRY_S = 0.1
_RETRY_MAX_S = 5.0
_CLOSE_S = 5.0
_LOG_EVERY_S = 10.0


@dataclass(slots=True)
class DeviceStats:
    """Counters since start."""

    readings: int = 0
    appends: int = 0
    retries: int = 0


class DeviceIngest:
    """Takes runs of the device lane.

    Args:
        stream: Where entries go.
        node_id: The gateway id of these readings.
        devices: Finds the device of a topic.
        released: Called with the bytes of a run once it is settled.
        encoded: Called with each part about to be appended and its readings.
    """

    def __init__(
        self,
        stream: Stream,
        node_id: str,
        devices: DeviceIds,
        *,
        released: Callable[[int], None],
        encoded: Encoded | None = None,
    ) -> None:
        self.stats = DeviceStats()
        self.full = False  # the stream takes nothing now
        self._stream = stream
        self._node_id = node_id
        self._devices = devices
        self._released = released
        self._encoder = PartEncoder(encoded)
        self._next_seq = 1
        self._runs: deque[PublishRun] = deque()
        self._wake = asyncio.Event()
        self._closing = False
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Find the next seq and begin.

        Raises:
            StreamError: the ledger cannot be read.
        """
        for line in await self._stream.ledger():
            if (line.gateway, line.epoch) == (self._node_id, self._stream.own_epoch):
                last = line.held[-1][1] if line.held else 0
                self._next_seq = max(line.assigned, last) + 1
        self._task = asyncio.create_task(self._work(), name="ingest-devices")

    async def close(self) -> None:
        """Append what was taken if that goes soon; what is not appended stays unacknowledged."""
        if self._task is not None:
            self._closing = True
            self._wake.set()
            _, late = await asyncio.wait({self._task}, timeout=_CLOSE_S)
            for task in late:
                task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
            self._task = None

    def take(self, run: PublishRun) -> None:
        """Take a run; it is settled when its readings are durable."""
        self._runs.append(run)
        self._wake.set()

    async def _work(self) -> None:
        while not self._closing or self._runs:
            await self._wake.wait()
            self._wake.clear()
            while self._runs:
                runs, readings = self._next_group()
                code = 0
                try:
                    if len(readings):
                        await self._append(readings)
                except Exception:  # nothing was appended, and the next group may fare better
                    log.exception("ingest_error", readings=len(readings))
                    code = int(ReasonCode.IMPLEMENTATION_SPECIFIC_ERROR)
                for run in runs:
                    self._answer(run, code)

    def _answer(self, run: PublishRun, code: int) -> None:
        try:
            run.settled(run, code)
        except Exception:  # one connection's fault must not cost the others their answer
            log.exception("settle_broke", client_id=run.client.client_id)
        self._released(len(run.frames))

    def _next_group(self) -> tuple[list[PublishRun], Readings]:
        """Return the runs that go together and their readings, with the next seqs."""
        group = _Group(self._devices)
        runs: list[PublishRun] = []
        size = 0
        while self._runs and len(group.payloads) < _GROUP_READINGS_MAX and size < _GROUP_BYTES_MAX:
            run = self._runs.popleft()
            if len(run.frames) > _RUN_BYTES_MAX:
                log.error("publish_too_large", client_id=run.client.client_id, size=len(run.frames))
                self._answer(run, ReasonCode.QUOTA_EXCEEDED)
                continue
            size += len(run.frames)
            try:
                group.add(run)
            except MalformedPacket:
                log.exception("unreadable_run", client_id=run.client.client_id)
                self._answer(run, ReasonCode.UNSPECIFIED_ERROR)
                continue
            runs.append(run)
        return runs, group.readings(self._next_seq)

    async def _append(self, readings: Readings) -> None:
        """Append for as long as it takes, always the same parts."""
        source = (self._node_id, self._stream.own_epoch)
        parts = [part for ((_, part),) in self._encoder.parts([source], [readings])]
        last = readings.seqs[-1]
        pause_s = _RETRY_S
        while True:
            try:
                await self._stream.append(
                    parts, assigned={(self._node_id, self._stream.own_epoch): last}
                )
                break
            except StreamError as error:
                self.full = isinstance(error, StreamFull)
                self.stats.retries += 1
                limited(log, "append", _LOG_EVERY_S).warning("append_repeated", error=str(error))
            await asyncio.sleep(pause_s)
            pause_s = min(2 * pause_s, _RETRY_MAX_S)
        self.full = False
        self._next_seq = last + 1
        self.stats.appends += 1
        self.stats.readings += len(readings)


class _Group:
    """Columns being filled from runs."""

    __slots__ = ("_devices", "_flags", "_index", "_places", "_properties", "_sources", "_times",
                 "payloads")  # fmt: skip

    def __init__(self, devices: DeviceIds) -> None:
        self._devices = devices
        self._places: dict[tuple[bytes, str], int] = {}
        self._sources: list[Source] = []
        self._index: list[int] = []
        self._times: list[int] = []
        self._flags: list[int] = []
        self._properties: list[bytes] = []
        self.payloads: list[bytes] = []

    def add(self, run: PublishRun) -> None:
        client_id = run.client.client_id
        for first_byte, topic, _, properties, payload in parse_publishes(
            run.frames, run.client.protocol_version
        ):
            place = self._places.get((topic, client_id))
            if place is None:
                place = self._places[topic, client_id] = len(self._sources)
                name = topic.decode()
                self._sources.append((name, self._devices.device(name, client_id)))
            self._index.append(place)
            self._times.append(run.time_us)
            self._flags.append(
                first_byte >> 1 & 3
                | (FLAG_RETAIN if first_byte & 1 else 0)
                | (FLAG_PROPERTIES if properties else 0)
            )
            self._properties.append(properties)
            self.payloads.append(payload)

    def readings(self, first_seq: int) -> Readings:
        return Readings(
            range(first_seq, first_seq + len(self.payloads)),
            self._sources,
            self._index,
            self._times,
            self._flags,
            self.payloads,
            self._properties,
        )
