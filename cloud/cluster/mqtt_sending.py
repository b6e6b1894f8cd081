"""Messages of this node's clients on their way to other nodes, sessions that last and shares.

Where a message goes is the topic's `Reach`; which way, its QoS: docs/adr/0009-mqtt-across-nodes.md.

Invariant: `publish` is True when the answer has to wait for the log, and then what waits is in the
tickets already.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final

import structlog

from cloud.cluster.mqtt_interest import Group, Interest, Reach
from cloud.cluster.mqtt_outbox import Outbox
from cloud.cluster.mqtt_sessions import SessionRecords
from cloud.cluster.mqtt_tickets import Tickets
from cloud.cluster.mqtt_wire import Carried, Record, encode_message, shard_of
from mqtt.broker.bus import BusRouter
from mqtt.broker.core import Core
from mqtt.server_messages import Message
from mqtt.session import Session
from mqtt.session_subscriptions import ShareGroup
from runtime.logs import limited

__all__ = ["Sending"]

log = structlog.get_logger(component="mqtt-cluster")

_LOG_EVERY_S: Final = 10.0
_OVERHEAD: Final = 2048  # bytes of a batch and a message besides topic, payload and properties


class Sending:
    """The way out of one node's broker.

    Args:
        payload_bytes_max: Of one message of the engine.
        outbox: What leaves the node.
        tickets: What answers wait for.
        interest: Who wants what.
        records: Of the sessions here, for the ids of their wills.

    Attributes:
        instance: This node's present name.
        message_bytes_max: Topic, payload and properties of what can leave a node.
        wills: By client id, of connected clients.
    """

    def __init__(
        self,
        payload_bytes_max: int,
        outbox: Outbox,
        tickets: Tickets,
        interest: Interest,
        records: SessionRecords,
    ) -> None:
        self.instance = ""
        self.message_bytes_max = payload_bytes_max - 2 * _OVERHEAD
        self.wills: dict[str, Message] = {}
        self._outbox = outbox
        self._tickets = tickets
        self._interest = interest
        self._records = records
        self._arriving: tuple[Message | None, int, int] = (None, 0, 0)
        self._core: Core
        self._router: BusRouter

    def arriving(self, message: Message, session: Session, packet_id: int) -> None:
        """Note that a message is a QoS 2 publish of a lasting session; `publish` comes next."""
        self._arriving = (message, packet_id, self._records.arrive(session.client_id))

    def attach(self, core: Core, router: BusRouter) -> None:
        """Take the broker."""
        self._core = core
        self._router = router

    def publish(self, message: Message, reach: Reach) -> bool:
        """Send a message to where `reach` says; True when its answer has to wait for the log."""
        data = self._encoded(message)
        if len(data) > self.message_bytes_max + _OVERHEAD:  # no client's: those were refused
            self._outbox.dropped += 1
            limited(log, "large", _LOG_EVERY_S).warning(
                "mqtt_message_too_large", topic=message.topic.decode(), size=len(data)
            )
            return False
        if message.publisher in self.wills and self.wills[message.publisher] is message:
            self._publish_will(message, reach, data)
            return True
        waits = False
        if message.qos:
            for shard in reach.shards:
                self._outbox.to_log(f"s.{shard}", data)
                waits = True
        if message.qos and reach.logged:
            self._outbox.to_log(f"a.{self.instance}", data)
            waits = True
        else:
            for instance in reach.nodes:
                self._outbox.to_node(instance, data)
        for group in reach.groups:
            waits = self.share(message, group) or waits
        return waits

    def _publish_will(self, message: Message, reach: Reach, data: bytes) -> None:
        """As `publish`, but under the will's own id: an heir may try too."""
        held = self._records.held.get(message.publisher or "")
        will_id = held.record.will_id if held is not None else ""
        subjects = [(f"s.{shard}", f"s{shard}") for shard in reach.shards if message.qos]
        if reach.nodes:
            subjects.append((f"a.{self.instance}", "a"))
        for subject, word in subjects:
            self._outbox.once(subject, data, f"will:{will_id}:{word}")
        for group in reach.groups:
            self.share(message, group)

    def share(self, message: Message, group: Group, *, waiting: bool = True) -> bool:
        """Send a message to one member of a group; True when it is in the log's hands."""
        instance = group.choose()
        name = group.topic_filter
        if instance is None:
            client_id = group.choose_waiting() if waiting and message.qos else None
            if client_id is None:
                return False
            data = self._encoded(message, name, client_id)
            self._outbox.to_log(f"s.{shard_of(client_id)}", data)
            return True
        if message.qos:
            self._outbox.to_log(f"g.{instance}", self._encoded(message, name))
            return True
        if instance != self.instance:
            self._outbox.to_node(instance, self._encoded(message, name))
        else:
            self.give_unlogged(message, name)
        return False

    def give_unlogged(self, message: Message, group: str) -> None:
        members = self._router.group(group)
        if members is not None:
            self._router.deliver_shared(message, members, self._core.now_s)

    def reroute(
        self, message: Message, group: ShareGroup, done: Callable[[], object], *, waiting: bool
    ) -> bool:
        """Put a shared message into the log for another member."""
        known = self._interest.group(group.topic_filter)
        if known is None or not message.qos or not self.share(message, known, waiting=waiting):
            return False
        self._tickets.when_done(done)
        return True

    def elsewhere(self, group: str, message: Message, done: Callable[[], object]) -> bool:
        known = self._interest.group(group)
        if known is None or not self.share(message, known):
            return False
        self._tickets.when_done(done)
        return True

    def _encoded(self, message: Message, group: str = "", client_id: str = "") -> bytes:
        recorder = self._core.recorder
        assert recorder is not None
        arriving, packet_id, number = self._arriving
        if arriving is not message:
            packet_id = number = 0
        return encode_message(
            Carried(
                message.topic,
                message.payload,
                message.qos,
                message.retain,
                message.properties,
                recorder.wall_expiry_us(message.expires_s),
                message.publisher,
                group,
                client_id,
                packet_id,
                number,
            )
        )

    async def fire(self, record: Record) -> None:
        """Publish the will of a record that is this node's now; the log has it when it returns."""
        saved = record.saved
        assert saved.will_topic is not None
        expires_s = float(saved.will_expiry_s) if saved.will_expiry_s > 0 else 0.0
        will = Message(
            saved.will_topic,
            saved.will_payload,
            saved.will_flags & 3,
            bool(saved.will_flags & 4),
            saved.will_properties,
            expires_s,
            saved.client_id,
        )
        core = self._core
        route = self._router.routes[will.topic]
        if route.lane >= 0 and core.capture is not None:
            core.publish_will(_nobody(core, saved.client_id, saved.version), will, None)
        else:
            if expires_s:
                will.expires_s += core.refresh()
            if will.retain:
                self._router.retain(will, route.name)
            data = self._encoded(will)
            reach = self._interest.reach(route.name)
            for shard in reach.shards if reach is not None and will.qos else ():
                self._outbox.once(f"s.{shard}", data, f"will:{record.will_id}:s{shard}")
            self._outbox.once("a.all", data, f"will:{record.will_id}:a")
            for group in reach.groups if reach is not None else ():
                self.share(will, group)
        durable = asyncio.Event()
        self._tickets.when_done(durable.set)
        await durable.wait()


def _nobody(core: Core, client_id: str, version: int) -> Session:
    session = Session(client_id, core.policy)
    session.version = version
    return session
