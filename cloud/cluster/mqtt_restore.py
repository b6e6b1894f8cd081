"""A lasting session made again from its record and what its shard of the log holds behind that.

Pure: entries in, what `SessionRegistry.restore` takes out. MQTT 5.0 section 4.4: what may have
been sent keeps its packet identifier and comes first, in its order.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final

from cloud.cluster.mqtt_fabric import LogEntry
from cloud.cluster.mqtt_wire import Carried, Inflight, Record, WireError, decode_batch, position_of
from mqtt.broker.changes import (
    UNSENT,
    DeliverySaved,
    InboundSaved,
    MessageSaved,
    StoredState,
    SubscriptionSaved,
)
from mqtt.session import identifier_property
from mqtt.topics import matches, split_shared

__all__ = ["restored_state"]

_PACKET_IDS: Final = 0xFFFF
_APART: Final = 0x8000  # identifiers that an owner which died may have used are far away


def restored_state(
    record: Record, entries: Sequence[LogEntry], queue_max: int, *, orderly: bool
) -> tuple[StoredState, list[Inflight]]:
    """Return a session as a store would have held it, and its deliveries from the log.

    Args:
        record: As its last owner wrote it.
        entries: Of the session's shard, all behind the record's cursor, in order.
        queue_max: Deliveries that are taken; more are left out, as a full queue does.
        orderly: The last owner let go of it: the record tells all packet identifiers in use.
    """
    client_id = record.saved.client_id
    state = StoredState([record.saved])
    for topic_filter, (options, identifier, _) in record.subscriptions.items():
        state.subscriptions.append(SubscriptionSaved(client_id, topic_filter, options, identifier))
    named = {one.position: one for one in record.inflight}
    done = set(record.done)
    state.messages += record.messages
    state.deliveries += record.deliveries
    used = {one.packet_id for one in record.inflight}
    used |= {one.packet_id for one in record.deliveries}
    ids = _free_ids(record.next_packet_id + (0 if orderly else _APART), used)
    inflight: list[Inflight] = []
    for position, carried in _behind(record.cursor, entries):
        one = named.get(position)
        if one is None and position not in done and len(inflight) < queue_max:
            one = _delivery(record, position, carried, ids)
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


def _behind(cursor: int, entries: Sequence[LogEntry]) -> Iterator[tuple[int, Carried]]:
    """Yield the messages behind a position; a batch that came twice counts once."""
    numbers: dict[str, int] = {}
    for entry in entries:
        try:
            batch = decode_batch(entry.data)
        except WireError:
            continue  # the reader has said so
        if batch.instance:
            if batch.number <= numbers.get(batch.instance, 0):
                continue
            numbers[batch.instance] = batch.number
        for index, carried in enumerate(batch.messages):
            position = position_of(entry.seq, index)
            if position > cursor:
                yield position, carried


def _delivery(
    record: Record, position: int, carried: Carried, ids: Iterator[int]
) -> Inflight | None:
    """Return what a session is owed of a message; None for nothing."""
    client_id = record.saved.client_id
    if carried.client_id:
        if carried.client_id != client_id:
            return None
        options = record.subscriptions.get(carried.group, (carried.qos, 0, 0))[0]
        qos = min(carried.qos, options & 3)
        keep = carried.retain and bool(options & 8)
        return Inflight(next(ids), position, qos, UNSENT, keep, b"", carried.group) if qos else None
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
    if not qos:
        return None
    return Inflight(next(ids), position, qos, UNSENT, int(keep), identifiers, "")


def _free_ids(first: int, used: set[int]) -> Iterator[int]:
    packet_id = first
    while True:
        packet_id = packet_id % _PACKET_IDS + 1
        if packet_id not in used:
            used.add(packet_id)
            yield packet_id
