"""What nodes say to one another about MQTT: batches of messages and the records of sessions.

CBOR, each with a version first; a node that cannot read it drops it with a warning, so that a
newer release next to an older one costs messages of new kinds and never a process.

A *position* names one message of the log for good: the entry's number and its place in the batch.
"""

from __future__ import annotations

import struct
from base64 import urlsafe_b64encode
from collections.abc import Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from typing import Any, Final, NamedTuple
from zlib import crc32

import cbor2

from mqtt.broker.changes import DeliverySaved, MessageSaved, SessionSaved

__all__ = [
    "SHARDS",
    "Batch",
    "Carried",
    "Inflight",
    "Record",
    "WireError",
    "decode",
    "decode_batch",
    "decode_record",
    "encode",
    "encode_batch",
    "encode_message",
    "encode_record",
    "key_of",
    "position_of",
    "shard_of",
]

SHARDS: Final = 16  # of lasting sessions; fixed once a cluster has a log
_VERSION: Final = 3
_INFLIGHT: Final = struct.Struct("<HQBBB")  # packet id, position, QoS, progress, retain
_KEY_BYTES_MAX: Final = 256
_NOBODY: Final = SessionSaved("", 4, 0, 0, None, b"", b"", 0, 0, -1)


class WireError(Exception):
    """Bytes of another node that cannot be read."""


class Carried(NamedTuple):
    """One message on its way between nodes; `expires_us` is wall clock, 0 for never."""

    topic: bytes
    payload: bytes
    qos: int
    retain: bool
    properties: bytes
    expires_us: int
    publisher: str | None
    group: str = ""  # the shared subscription whose member it is for, with `$share/`
    client_id: str = ""  # the one lasting session it is for
    packet_id: int = 0  # of a QoS 2 publish of a lasting session: its identifier,
    number: int = 0  # and its number among those: it rises, over owners too


class Batch(NamedTuple):
    """Messages of one node to one subject, in order."""

    instance: str  # who sent it
    number: int  # rises by one a batch of this instance and subject
    messages: list[Carried]


class Inflight(NamedTuple):
    """A delivery of a lasting session that may have been sent under a packet identifier."""

    packet_id: int
    position: int
    qos: int
    progress: int  # as `mqtt.broker.changes`
    retain: int
    identifiers: bytes
    share: str


@dataclass(slots=True)
class Record:
    """What the cluster keeps of one session.

    Invariant: every message of the session's shard up to `cursor` is done with; behind it, those
    in `done` are, and those in `inflight` have packet identifiers.
    """

    owner: str = ""  # the instance that has it; "" for none
    saved: SessionSaved = _NOBODY
    subscriptions: dict[str, tuple[int, int, int]] = field(default_factory=dict)
    # filter -> (options, identifier, number of the log's entry after which it counts)
    cursor: int = 0  # a position
    done: list[int] = field(default_factory=list)
    inflight: list[Inflight] = field(default_factory=list)
    inbound: list[int] = field(default_factory=list)
    received: int = 0  # number of the last QoS 2 publish that went into `inbound`
    messages: list[MessageSaved] = field(default_factory=list)  # that are not in the log
    deliveries: list[DeliverySaved] = field(default_factory=list)  # of those
    next_packet_id: int = 1
    stamp: str = ""  # of this very write: who, and its count
    will_id: str = ""  # new with each CONNECT that has a will: it is published once

    @property
    def lasting(self) -> bool:
        """Return False when all that is kept is the will of a session that ends with its client."""
        return self.saved.expiry_s > 0


def position_of(seq: int, index: int) -> int:
    """Return the position of the `index`th message of an entry."""
    return seq << 16 | index


def shard_of(client_id: str) -> int:
    """Return the shard of the log that a lasting session reads."""
    return crc32(client_id.encode()) % SHARDS


def key_of(kind: str, name: str) -> str:
    """Return the key of a state: `kind`, and any name as the engine takes it."""
    raw = name.encode()
    if len(raw) > _KEY_BYTES_MAX:
        return f"{kind}.{urlsafe_b64encode(sha256(raw).digest()).decode().rstrip('=')}_h"
    return f"{kind}.{urlsafe_b64encode(raw).decode().rstrip('=')}_"


def encode(value: object) -> bytes:
    """Return a message of the nodes' own."""
    return cbor2.dumps([_VERSION, value])


def decode(data: bytes) -> Any:
    """Return what `encode` was given.

    Raises:
        WireError: it cannot be read.
    """
    try:
        version, value = cbor2.loads(data)
    except Exception as error:  # noqa: BLE001 - whatever the decoder makes of foreign bytes
        raise WireError(f"not readable: {error!r}") from None
    if version != _VERSION:
        raise WireError(f"version {version}, this node knows {_VERSION}")
    return value


def encode_message(carried: Carried) -> bytes:
    """Return one message, for `encode_batch`."""
    return cbor2.dumps(list(carried))


def encode_batch(instance: str, number: int, messages: Sequence[bytes]) -> bytes:
    """Return messages that `encode_message` has encoded as one entry."""
    return encode([instance, number, list(messages)])


def decode_batch(data: bytes) -> Batch:
    """Return what `encode_batch` was given.

    Raises:
        WireError: it cannot be read.
    """
    try:
        instance, number, messages = decode(data)
        return Batch(instance, number, [Carried(*cbor2.loads(one)) for one in messages])
    except WireError:
        raise
    except Exception as error:  # noqa: BLE001 - whatever the decoder makes of foreign bytes
        raise WireError(f"no batch: {error!r}") from None


def encode_record(record: Record) -> bytes:
    """Return the state of a session: a head that every node reads, and the rest in one piece."""
    plain = [one for one in record.inflight if not one.identifiers and not one.share]
    special = [list(one) for one in record.inflight if one.identifiers or one.share]
    pack = _INFLIGHT.pack
    rest = cbor2.dumps(
        [
            struct.pack(f"<{len(record.done)}Q", *record.done),
            b"".join([pack(*one[:5]) for one in plain]),
            special,
            record.inbound,
            [list(one) for one in record.messages],
            [list(one) for one in record.deliveries],
        ]
    )
    return encode(
        [
            record.owner,
            list(record.saved),
            record.subscriptions,
            record.cursor,
            record.next_packet_id,
            record.stamp,
            record.will_id,
            record.received,
            rest,
        ]
    )


def decode_record(data: bytes, *, head: bool = False) -> Record:
    """Return what `encode_record` was given.

    Args:
        data: Of a state.
        head: Leave out what only an owner needs: done, inflight, inbound, messages, deliveries.

    Raises:
        WireError: it cannot be read.
    """
    try:
        owner, saved, subscriptions, cursor, *short, rest = decode(data)
        next_packet_id, stamp, will_id, received = short
        record = Record(
            owner,
            SessionSaved(*saved),
            {name: (one[0], one[1], one[2]) for name, one in subscriptions.items()},
            cursor,
            next_packet_id=next_packet_id,
            stamp=stamp,
            will_id=will_id,
            received=received,
        )
        if not head:
            _decode_rest(record, rest)
    except WireError:
        raise
    except Exception as error:  # noqa: BLE001 - as above
        raise WireError(f"no record of a session: {error!r}") from None
    return record


def _decode_rest(record: Record, rest: bytes) -> None:
    done, plain, special, inbound, messages, deliveries = cbor2.loads(rest)
    record.done = list(struct.unpack(f"<{len(done) // 8}Q", done))
    record.inflight = [
        Inflight(packet_id, position, qos, progress, retain, b"", "")
        for packet_id, position, qos, progress, retain in _INFLIGHT.iter_unpack(plain)
    ]
    if special:  # in the order in which they were given: by position
        record.inflight += [Inflight(*one) for one in special]
        record.inflight.sort(key=lambda one: one.position)
    record.inbound = inbound
    record.messages = [MessageSaved(*one) for one in messages]
    record.deliveries = [DeliverySaved(*one) for one in deliveries]
