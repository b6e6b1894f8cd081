"""Topic aliases that the peer has set on one connection (MQTT 5.0 section 3.3.2.3.4)."""

from __future__ import annotations

from typing import AnyStr

from mqtt.errors import ProtocolError
from mqtt.reason_codes import ReasonCode

__all__ = ["resolve_alias"]


def resolve_alias(
    topics: dict[int, AnyStr], alias: int, topic: AnyStr, maximum: int, clause: str
) -> AnyStr:
    """Return the topic of a PUBLISH with an alias; a topic beside the alias sets it.

    Args:
        topics: By alias: the peer's, on this connection [MQTT-3.3.2-7].
        alias: Of the PUBLISH.
        topic: Its topic name, empty where the alias stands for it.
        maximum: The highest alias this end takes.
        clause: What the peer goes against with a higher one.

    Raises:
        ProtocolError: 0x94, the alias is above the maximum; 0x82, it was not set.
    """
    if alias > maximum:
        raise ProtocolError(
            ReasonCode.TOPIC_ALIAS_INVALID, f"topic alias {alias}, the maximum is {maximum}", clause
        )
    if topic:
        topics[alias] = topic
        return topic
    known = topics.get(alias)
    if known is None:
        raise ProtocolError(
            ReasonCode.PROTOCOL_ERROR, f"topic alias {alias} was not set", "MQTT-3.3.2.3.4"
        )
    return known
