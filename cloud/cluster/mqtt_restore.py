"""A lasting session made again from its record and what its shard of the log holds behind that.

Pure: entries in, what `SessionRegistry.restore` takes out. MQTT 5.0 section 4.4: what may have
been sent keeps its packet identifier and comes first, in its order.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Final, NamedTuple

from cloud.cluster.mqtt_fabric import LogEntry
from cloud.cluster.mqtt_wire import Carried, Inflight, Record, WireError, decode_batch, position_of
from mqtt.broker.changes import (
    DeliverySaved,
    InboundSaved,
    MessageSaved,
    StoredState,
    SubscriptionSaved,
)
from mqtt.session_subscriptions import identifier_property
from mqtt.topics import matches, split_shared

__all__ = ["Owed", "messages_from", "next_packet_id", "owed", "restored_state"]

_PACKET_IDS: Final = 0xFFFF
_APART: Final = 0x8000  # identifiers that an owner which died may have used are far away


class Owed(NamedTuple):
    """One message as one session gets it."""

    qos: int
    retain: bool
    identifiers: bytes
    share: str  # the shared subscription's filter, "" for none


def restored_state(
    record: Record, entries: Iterable[LogEntry]
) -> tuple[StoredState, list[Inflight]]:
    """Return a session as a store would have held it, and its deliveries that are in the log.

    Args:
        record: As its last owner wrote it.
        entries: Of the session's shard, from its cursor to the last delivery that has a packet
            identifier. What it is owed besides is not looked at (cloud/cluster/mqtt_backlog.py).
    """
    client_id = record.saved.client_id
    state = StoredState([record.saved])
    for topic_filter, (options, identifier, _) in record.subscriptions.items():
        state.subscriptions.append(SubscriptionSaved(client_id, topic_filter, options, identifier))
    state.messages += record.messages
    state.deliveries += record.deliveries
    named = {one.position: one for one in record.inflight}
    inflight: list[Inflight] = []
    for position, carried in messages_from(entries, record.cursor + 1, {}):
        one = named.get(position)
        if one is None:
            continue
        inflight.append(one)
        state.messages.append(
            MessageSaved(
                -position,
                carried.topic,
                carried.payload,
                carried.properties,
                carried.qos,
                int(carried.retain),
                carried.expires_us,
                carried.publisher,
            )
        )
        state.deliveries.append(
            DeliverySaved(
                client_id,
                one.packet_id,
                -position,
                one.qos,
                one.retain,
                one.identifiers,
                one.share,
                one.progress,
            )
        )
    state.inbound += [InboundSaved(client_id, packet_id) for packet_id in record.inbound]
    return state, inflight


def next_packet_id(record: Record, *, orderly: bool) -> int:
    """Return where a restored session's packet identifiers begin.

    Args:
        record: As its last owner wrote it.
        orderly: That owner let go of it: all identifiers that a client may know are in it. Else
            some may have been used since, and new ones begin far away from them.
    """
    return (record.next_packet_id + (0 if orderly else _APART)) % _PACKET_IDS + 1


def messages_from(
    entries: Iterable[LogEntry], first: int, numbers: dict[str, int]
) -> Iterator[tuple[int, Carried]]:
    """Yield messages with their positions, from one on; a batch that came twice counts once.

    Args:
        entries: Of one subject, in order.
        first: The first position wanted.
        numbers: The last batch of each instance; kept up to date.
    """
    for entry in entries:
        try:
            batch = decode_batch(entry.data)
        except WireError:
            continue  # the reader has said so
        if batch.instance:
            if batch.number < numbers.get(batch.instance, 0):
                continue
            numbers[batch.instance] = batch.number + 1
        for index, carried in enumerate(batch.messages):
            position = position_of(entry.seq, index)
            if position >= first:
                yield position, carried


def owed(record: Record, position: int, carried: Carried) -> Owed | None:
    """Return what a session is owed of a message; None for nothing."""
    client_id = record.saved.client_id
    if carried.client_id:
        if carried.client_id != client_id:
            return None
        options = record.subscriptions.get(carried.group, (carried.qos, 0, 0))[0]
        qos = min(carried.qos, options & 3)
        keep = carried.retain and bool(options & 8)
        return Owed(qos, keep, b"", carried.group) if qos else None
    topic_name = carried.topic.decode()
    qos, keep, identifiers = 0, False, b""
    for topic_filter, (options, identifier, since) in record.subscriptions.items():
        share_name, plain = split_shared(topic_filter)
        if share_name is not None or position >> 16 <= since or not matches(plain, topic_name):
            continue
        if options & 4 and carried.publisher == client_id:  # [MQTT-3.8.3-3]
            continue
        qos = max(qos, min(carried.qos, options & 3))
        keep = keep or (carried.retain and bool(options & 8))
        identifiers += identifier_property(identifier)
    return Owed(qos, keep, identifiers, "") if qos else None
