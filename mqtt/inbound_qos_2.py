"""QoS 2 publishes that a client has sent, by packet identifier, until their PUBREL.

They are the session's: it outlives the connection (MQTT 5.0 sections 4.1 and 4.3.3).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final
from zlib import crc32

from mqtt.errors import ProtocolError
from mqtt.reason_codes import ReasonCode

if TYPE_CHECKING:
    from mqtt.session import Session

__all__ = [
    "AGAIN",
    "ASKED",
    "CAPTURED",
    "NEW",
    "PENDING",
    "SETTLED",
    "note_qos_2",
    "publish_check",
]

# What is known of an identifier in `Session.inbound`:
PENDING: Final = 0  # received, not yet durable
SETTLED: Final = 1  # PUBREC may be sent (again)
ASKED: Final = 2  # not yet durable, and the PUBLISH came again meanwhile
# Below 0: captured before a crash, `~state` is its `publish_check`.

# Whether a publish came before:
NEW: Final = 0
AGAIN: Final = 1
CAPTURED: Final = 2


def note_qos_2(session: Session, packet_id: int, maximum: int) -> int:
    """Take note of the packet identifier of a QoS 2 publish; return what was known of it.

    That is AGAIN when it is in use: the publish is not to be delivered again [MQTT-4.3.3-10];
    NEW; or below 0, `~publish_check` of what was captured under it before a crash that came before
    anything else was done: if it is the same publish, it is CAPTURED.

    Args:
        session: Has the identifiers.
        packet_id: Of the publish.
        maximum: Identifiers that may be in use.

    Raises:
        ProtocolError: 0x93, there are as many.
    """
    inbound = session.inbound
    if inbound is None:
        inbound = session.inbound = {}
    state = inbound.get(packet_id)
    if state is not None and state >= 0:
        return AGAIN
    if state is None and len(inbound) >= maximum:
        raise ProtocolError(
            ReasonCode.RECEIVE_MAXIMUM_EXCEEDED,
            f"{len(inbound)} QoS 2 publishes wait for their PUBREL",
            "MQTT-3.3.4-7",
        )
    inbound[packet_id] = PENDING
    return NEW if state is None else state


def publish_check(topic: bytes, payload: bytes) -> int:
    """Return a CRC-32 by which a PUBLISH that is sent again is told from another one."""
    return crc32(payload, crc32(topic))
