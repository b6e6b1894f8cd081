"""Sources: where readings come from, when they are due, and how to have them again.

`Generated` makes them from a profile: all is a function of (seed, device, counter), so nothing is
kept. `Replayed` reads a trace twice: once to learn its devices (and that it is sound), then as it
is sent. Invariants: a device's counters rise by one from 0; due times of a device never fall.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from device_sim.config import SimConfig
from device_sim.profiles import make_model
from device_sim.signals import child, unit
from device_sim.traces import Record, TraceError, read_trace
from mqtt.properties import Properties

__all__ = ["Generated", "Message", "Replayed", "group_of"]

_BLOCK: Final = 16  # readings whose times are laid out together
_BURST_SHARE: Final = 0.1  # of blocks
_JITTER: Final = 0.4  # intervals
_BURST_STEP: Final = 0.1  # intervals between the readings of a burst


@dataclass(slots=True)
class Message:
    """One reading ready to be published, but for its stamp."""

    topic: str
    payload: bytes
    qos: int
    retain: bool = False
    properties: Properties | None = None


class Generated:
    """A fleet of one profile."""

    def __init__(self, config: SimConfig, start_s: float) -> None:
        prefix = f"{config.client_prefix}{{}}"
        self._models = [
            make_model(config.profile, index, child(config.seed, 1))
            for index in range(config.devices)
        ]
        self.clients: Sequence[str] = [prefix.format(model.client_id) for model in self._models]
        self._prefixes = [
            config.topic_prefix.replace("{client}", client) for client in self.clients
        ]
        schedules = child(config.seed, 2)
        self._schedules = array("Q", (child(schedules, device) for device in range(config.devices)))
        begins = [self._begin(device) for device in range(config.devices)]
        self._begins = array("d", (begin for begin, _ in begins))
        self._first_places = array("B", (first for _, first in begins))
        self._interval_s = 1.0 / config.device_rate_per_s
        self._speed = config.speed or 1.0
        self._start_s = start_s
        self._qos = config.qos

    def due_s(self, device: int, counter: int) -> float:
        """Return when a reading is due, in seconds after the start.

        Steady but for some jitter, with one block in ten sent as a burst and a silence; the mean
        rate of each block is exact. A device begins somewhere in its first block, not at its head.
        """
        place = self._place(device, counter + self._first_places[device])
        return (place - self._begins[device]) * self._interval_s

    def _place(self, device: int, number: int) -> float:
        """Return when the reading `number` of a device's schedule is due, in intervals."""
        seed = self._schedules[device]
        block, place = divmod(number, _BLOCK)
        if unit(seed, block) < _BURST_SHARE:
            room = _BLOCK - _BLOCK * _BURST_STEP
            return block * _BLOCK + room * unit(seed + 1, block) + place * _BURST_STEP
        return number + _JITTER * unit(seed + 2, number)

    def _begin(self, device: int) -> tuple[float, int]:
        """Return where in its schedule a device begins, and with which reading."""
        begin = _BLOCK * unit(self._schedules[device], -1)
        first = next(n for n in range(2 * _BLOCK) if self._place(device, n) >= begin)
        return begin, first

    def message(self, device: int, counter: int) -> Message:
        """Return a reading."""
        topic, payload = self._content(device, counter)
        return Message(topic, payload, self._qos)

    def _content(self, device: int, counter: int) -> tuple[str, bytes]:
        time_s = self._start_s + self.due_s(device, counter) * self._speed
        topic, payload = self._models[device].reading(counter, time_s)
        return self._prefixes[device] + topic, payload

    def history(self, counts: Sequence[int]) -> Iterator[tuple[int, int, str, bytes]]:
        """Yield (device, counter, topic, payload) for `counts[device]` readings of each."""
        for device, count in enumerate(counts):
            for counter in range(count):
                yield device, counter, *self._content(device, counter)


class Replayed:
    """A trace, each group of its topics a device.

    Raises:
        TraceError: the trace cannot be read to its end, or holds nothing.
    """

    def __init__(self, config: SimConfig, path: Path) -> None:
        self._path = path
        self._config = config
        self._devices: dict[str, int] = {}  # by topic
        by_client: dict[str, int] = {}
        first_ms, last_ms, self.records = 0, 0, 0
        for record in read_trace(path):
            if not self.records:
                first_ms = last_ms = record.time_ms
            last_ms = max(last_ms, record.time_ms)
            self.records += 1
            if record.topic not in self._devices:
                client = config.client_prefix + group_of(record.topic, config.group)
                self._devices[record.topic] = by_client.setdefault(client, len(by_client))
        if not self.records:
            raise TraceError(path, "", "holds no records")
        self.clients: Sequence[str] = list(by_client)
        self._prefixes = [
            config.topic_prefix.replace("{client}", client) for client in self.clients
        ]
        self._first_ms = first_ms
        # the next round begins a mean interval after the last record
        self._span_ms = (last_ms - first_ms) * (self.records + 1) / self.records
        self.total = self.records * config.replay_loops
        if config.count:
            self.total = min(self.total, config.count)

    def feed(self) -> Iterator[tuple[float, int, Message]]:
        """Yield (due in seconds after the start, device, message) in the order of the trace."""
        speed = self._config.speed
        for offset_ms, device, record in self._records():
            due_s = offset_ms / 1000.0 / speed if speed else 0.0
            yield due_s, device, self._message(device, record)

    def _records(self) -> Iterator[tuple[float, int, Record]]:
        left = self.total
        latest_ms = 0.0
        for loop in range(self._config.replay_loops):
            for record in read_trace(self._path):
                if not left:
                    return
                left -= 1
                offset_ms = record.time_ms - self._first_ms + loop * self._span_ms
                latest_ms = max(latest_ms, offset_ms)  # a step back in the trace is no time
                yield latest_ms, self._device(record), record

    def _device(self, record: Record) -> int:
        device = self._devices.get(record.topic)
        if device is None:
            raise TraceError(self._path, "", "changed while it was replayed")
        return device

    def _message(self, device: int, record: Record) -> Message:
        topic = self._prefixes[device] + record.topic
        if self._config.keep_qos:
            return Message(topic, record.payload, record.qos, record.retain, record.properties)
        return Message(topic, record.payload, self._config.qos, properties=record.properties)

    def history(self, counts: Sequence[int]) -> Iterator[tuple[int, int, str, bytes]]:
        """Yield (device, counter, topic, payload) for `counts[device]` readings of each."""
        told = [0] * len(self.clients)
        for _, device, record in self._records():
            counter = told[device]
            if counter < counts[device]:
                told[device] = counter + 1
                yield device, counter, self._prefixes[device] + record.topic, record.payload


def group_of(topic: str, group: str) -> str:
    """Return the name of the device a topic belongs to, as known software lays its topics out.

    Args:
        topic: A topic name.
        group: "device", or "topic" for a device of its own for each topic.
    """
    levels = topic.split("/")
    if group == "topic" or len(levels) == 1:
        return topic.replace("/", "-")
    first, second = levels[0], levels[1]
    if first in {"zigbee2mqtt", "tele", "stat", "cmnd", "shellies", "devices"} and second:
        return second
    if first == "owntracks" and len(levels) > 2:
        return f"{second}-{levels[2]}"
    if second in {"sensor", "binary_sensor", "switch", "status", "events"} and first:
        return first
    return "-".join(levels[:-1]) or second  # everything but what is measured
