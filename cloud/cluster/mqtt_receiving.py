"""Messages of other nodes, and all of the log, handed on to the sessions of this node.

Invariants:
- every entry of the log is read once, in order; what this node published itself is passed over in
  `a`, and of `g` only what is its own is taken;
- a batch that stands in the log twice is handed on once.
"""

from __future__ import annotations

from functools import partial
from typing import Final

import structlog

from cloud.cluster.mqtt_arrivals import Arrivals
from cloud.cluster.mqtt_backlog import Backlogs
from cloud.cluster.mqtt_fabric import LogEntry
from cloud.cluster.mqtt_sending import Sending
from cloud.cluster.mqtt_shares import Shares
from cloud.cluster.mqtt_wire import Carried, WireError, decode_batch, position_of, shard_of
from mqtt.broker.bus import BusRouter
from mqtt.broker.changes import RetainedSaved
from mqtt.broker.core import Core
from mqtt.errors import MqttError
from mqtt.server_messages import Message
from runtime.logs import limited

__all__ = ["Receiving"]

log = structlog.get_logger(component="mqtt-cluster")

_LOG_EVERY_S: Final = 10.0


class Receiving:
    """The way into one node's broker.

    Args:
        sending: For shared messages without a log, which a member here gets.
        arrivals: Is told of the QoS 2 publishes in the log.

    Attributes:
        instance: This node's present name.
        position: Of the log: up to here all was handed on.
        entries: Of the log, read so far.
    """

    def __init__(self, sending: Sending, arrivals: Arrivals) -> None:
        self.instance = ""
        self.position = 0
        self.entries = 0
        self._sending = sending
        self._arrivals = arrivals
        self._numbers: dict[tuple[str, str], int] = {}  # last batch by instance and subject
        self._core: Core
        self._router: BusRouter
        self._shares: Shares
        self._backlogs: Backlogs

    def attach(self, core: Core, router: BusRouter, shares: Shares, backlogs: Backlogs) -> None:
        """Take the broker."""
        self._core = core
        self._router = router
        self._shares = shares
        self._backlogs = backlogs

    def forget(self, instance: str) -> None:
        """A node has gone, and its name with it."""
        for key in [key for key in self._numbers if key[0] == instance]:
            del self._numbers[key]

    def received(self, data: bytes) -> None:
        """Take QoS 0 messages of another node."""
        try:
            batch = decode_batch(data)
        except WireError as error:
            limited(log, "wire", _LOG_EVERY_S).warning("mqtt_batch_not_read", error=str(error))
            return
        self._core.refresh()
        for carried in batch.messages:
            self._give(carried, 0, 0)

    def read(self, entry: LogEntry) -> None:
        """Take an entry of the log."""
        self.entries += 1
        kind, _, word = entry.subject.partition(".")
        mine = word == self.instance
        if (kind == "g") == mine or kind == "s":  # others' `a`, our own `g`, every shard
            try:
                batch = decode_batch(entry.data)
            except WireError as error:
                limited(log, "wire", _LOG_EVERY_S).warning("mqtt_batch_not_read", error=str(error))
            else:
                if self._is_new(batch.instance, entry.subject, batch.number):
                    try:
                        self._hand_on(entry, kind, word, batch.messages)
                    except Exception:  # one message's fault must not end the reading
                        log.exception("mqtt_entry_not_handed_on", seq=entry.seq)
        self.position = entry.seq
        self._shares.passed(entry.seq)

    def _is_new(self, instance: str, subject: str, number: int) -> bool:
        """Return False for a batch that is in the log twice."""
        if not instance:
            return True
        key = (instance, subject)
        if number <= self._numbers.get(key, 0):
            return False
        self._numbers[key] = number
        return True

    def _hand_on(self, entry: LogEntry, kind: str, word: str, messages: list[Carried]) -> None:
        self._core.refresh()
        for carried in messages:
            if carried.packet_id and carried.publisher:
                self._arrivals.note(carried.publisher, carried.number, carried.packet_id)
        if kind == "s":
            shard = int(word)
            for index, carried in enumerate(messages):
                self._give_lasting(carried, shard, -position_of(entry.seq, index))
        else:
            for index, carried in enumerate(messages):
                self._give(carried, entry.seq, index)

    def message(self, carried: Carried) -> Message | None:
        recorder = self._core.recorder
        assert recorder is not None
        expires_s = recorder.monotonic_expiry_s(carried.expires_us)
        if expires_s and expires_s <= self._core.now_s:
            return None
        return Message(
            carried.topic,
            carried.payload,
            carried.qos,
            carried.retain,
            carried.properties,
            expires_s,
            carried.publisher,
        )

    def _give(self, carried: Carried, seq: int, index: int) -> None:
        message = self.message(carried)
        if message is None:
            return
        if carried.group:
            if carried.qos:
                self._shares.give(seq, index, carried.group, message, self._core.now_s)
            else:
                self._sending.give_unlogged(message, carried.group)
            return
        try:
            route = self._router.routes[carried.topic]
        except MqttError as error:
            limited(log, "topic", _LOG_EVERY_S).warning("mqtt_topic_refused", error=str(error))
            return
        self._router.deliver_here(message, route, self._core.now_s)

    def _give_lasting(self, carried: Carried, shard: int, store_id: int) -> None:
        message = self.message(carried)
        if message is None:
            return
        message.store_id = store_id
        now_s = self._core.now_s
        if carried.client_id:
            session = self._core.registry.sessions.get(carried.client_id)
            if session is None or session.recorder is None:
                return
            if not self._backlogs.takes(session, message.size, -store_id):
                return
            entry = (session.subscriptions or {}).get(carried.group)
            qos = min(message.qos, entry.qos) if entry is not None else message.qos
            identifier = entry.identifiers if entry is not None else b""
            group = self._router.group(carried.group)
            session.offer(message, qos, False, identifier, now_s, group)
            return
        try:
            route = self._router.routes[carried.topic]
        except MqttError:
            return
        takes = partial(self._backlogs.takes, position=-store_id)
        self._router.deliver_logged(message, route, shard, shard_of, now_s, takes)

    def apply_retained(self, name: str, change: RetainedSaved | None) -> None:
        if change is None:
            self._router.apply_retained(name, None)
            return
        recorder = self._core.recorder
        assert recorder is not None
        message = Message(
            change.topic,
            change.payload,
            change.qos,
            True,
            change.properties,
            recorder.monotonic_expiry_s(change.expires_us),
            change.publisher,
        )
        self._router.apply_retained(name, message)
