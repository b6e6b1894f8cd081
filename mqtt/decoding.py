"""From bytes to messages: one decoder a packet type, for 3.1.1 and 5 alike.

MQTT 5.0 and 3.1.1 section 3. Every rule that can be seen in one packet alone is checked here; what
needs memory of the connection belongs to the machines. A clause is tagged `MQTT-x.y.z-n` by its
number in 5.0 and `MQTT-3.1.1:x.y.z-n` where only 3.1.1 has it or numbers it otherwise.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Literal, TypeAlias

from mqtt.errors import MalformedPacket, ProtocolError, TruncatedPacket, UnsupportedProtocolVersion
from mqtt.filter_calls import native
from mqtt.packets import (
    PACKET_NAMES,
    Auth,
    Connack,
    Connect,
    Disconnect,
    Packet,
    Pingreq,
    Pingresp,
    Puback,
    Pubcomp,
    Publish,
    Pubrec,
    Pubrel,
    Suback,
    Subscribe,
    Subscription,
    Unsuback,
    Unsubscribe,
    Will,
)
from mqtt.primitives import read_binary, read_string, read_two_bytes
from mqtt.properties import (
    AUTHENTICATION_DATA,
    AUTHENTICATION_METHOD,
    SESSION_EXPIRY_INTERVAL,
    SUBSCRIPTION_IDENTIFIER,
    TOPIC_ALIAS,
    USER_PROPERTIES_MAX,
    WILL,
    Properties,
    decode_properties,
)
from mqtt.reason_codes import (
    ALLOWED,
    CONNECT_RETURN_CODES,
    DISCONNECT_FROM_CLIENT,
    DISCONNECT_FROM_SERVER,
    ReasonCode,
    describe,
)
from mqtt.topics import TopicFault, is_plain_filter, topic_filter_fault

__all__ = ["DEFAULT_LIMITS", "Limits", "Role", "connect_version", "decode"]

Role: TypeAlias = Literal["client", "server"]


@dataclass(slots=True, frozen=True)
class Limits:
    """What one packet may make the decoder hold; the packet's size bounds the rest."""

    user_properties_max: int = USER_PROPERTIES_MAX
    subscriptions_max: int = 4096  # topic filters in one SUBSCRIBE or UNSUBSCRIBE


DEFAULT_LIMITS: Final = Limits()

# What each end may receive.
_RECEIVED_BY: Final[dict[str, frozenset[int]]] = {
    "server": frozenset((1, 3, 4, 5, 6, 7, 8, 10, 12, 14, 15)),
    "client": frozenset((2, 3, 4, 5, 6, 7, 9, 11, 13, 14, 15)),
}
_NAMES_AND_LEVELS: Final = (b"\0\4MQTT\4", b"\0\4MQTT\5")
_FLAGS: Final = (0, 0, 0, 0, 0, 0, 2, 0, 2, 0, 2, 0, 0, 0, 0, 0)  # table 2-2, PUBLISH apart
_RESERVED_FLAG_CLAUSES: Final = {
    6: "MQTT-3.6.1-1",
    8: "MQTT-3.8.1-1",
    10: "MQTT-3.10.1-1",
    14: "MQTT-3.14.1-1",
    15: "MQTT-3.15.1-1",
}


def decode(
    first_byte: int,
    body: bytes,
    version: int,
    role: Role | None = None,
    limits: Limits = DEFAULT_LIMITS,
) -> Packet:
    """Return the message in one packet.

    Args:
        first_byte: Packet type and flags.
        body: Everything after the fixed header, whole.
        version: 4 or 5; a CONNECT says its own and ignores it.
        role: Which end receives it, to refuse what only the other may receive; None to allow both.
        limits: What one packet may make the decoder hold.

    Raises:
        MalformedPacket: 0x81, the bytes are no such packet.
        ProtocolError: another reason code, the packet says what is not allowed.
    """
    packet_type = first_byte >> 4
    flags = first_byte & 0x0F
    if packet_type == 3:
        return _decode_publish(flags, body, version, role, limits)
    if packet_type == 0 or (packet_type == 15 and version < 5):
        raise MalformedPacket(f"{PACKET_NAMES[packet_type]} is not allowed", "MQTT-2.1.2")
    if role is not None and packet_type not in _RECEIVED_BY[role]:
        raise ProtocolError(
            ReasonCode.PROTOCOL_ERROR, f"a {role} must not get {PACKET_NAMES[packet_type]}"
        )
    if flags != _FLAGS[packet_type]:  # [MQTT-2.1.3-1] [MQTT-3.1.1:2.2.2-2]
        raise MalformedPacket(
            f"reserved flags of {PACKET_NAMES[packet_type]} are {flags:04b}",
            _RESERVED_FLAG_CLAUSES.get(packet_type, "MQTT-2.1.3-1"),
        )
    decoder = _DECODERS[packet_type]
    assert decoder is not None
    return decoder(body, version, role, limits)


def connect_version(body: bytes) -> int:
    """Return the protocol version, 4 or 5, that a CONNECT's body asks for.

    Raises:
        UnsupportedProtocolVersion: any other, or another protocol name [MQTT-3.1.2-1].
        MalformedPacket: the body is too short to say.
    """
    if body[:7] in _NAMES_AND_LEVELS:
        return body[6]
    name, pos = read_string(body, 0, len(body))
    if pos >= len(body):
        raise TruncatedPacket("CONNECT ends before its protocol version", "MQTT-3.1.2.2")
    level = body[pos]
    if name != "MQTT":  # [MQTT-3.1.2-1]
        answer = 4 if name == "MQIsdp" else 5 if level == 5 else 0
        raise UnsupportedProtocolVersion(name, level, "MQTT-3.1.2-1", answer)
    if level not in (4, 5):  # [MQTT-3.1.2-2]
        raise UnsupportedProtocolVersion(
            name, level, "MQTT-3.1.2-2", _layout_version(level, body[pos + 1 :])
        )
    return level


def _layout_version(level: int, rest: bytes) -> int:
    """Return which CONNACK a client with an unknown protocol level will understand.

    An older level gets 3.1.1's [MQTT-3.1.1:3.1.2-2] (bridges of mosquitto set its top bit). A newer
    one gets it too when its fields lie as in 3.1.1, where no properties precede the client id.
    """
    if level & 0x7F < 5:
        return 4
    pos, end = 3, len(rest)  # after flags and keep-alive
    while pos + 2 <= end:
        pos += 2 + (rest[pos] << 8 | rest[pos + 1])
    return 4 if pos == end else 5


def _decode_connect(body: bytes, _version: int, _role: Role | None, limits: Limits) -> Connect:
    end = len(body)
    version = connect_version(body)
    pos = 7  # after name and level
    if pos >= end:
        raise TruncatedPacket("CONNECT ends before its flags", "MQTT-3.1.2.3")
    flags = body[pos]
    pos += 1
    _check_connect_flags(flags, version)
    keep_alive, pos = read_two_bytes(body, pos, end)
    properties: Properties = {}
    if version >= 5:
        properties, pos = decode_properties(body, pos, end, 1, limits.user_properties_max)
        _check_authentication(properties)
    client_id, pos = read_string(body, pos, end)  # [MQTT-3.1.3-1] the order of the payload
    clean_start = bool(flags & 0x02)
    if version < 5 and not client_id and not clean_start:  # [MQTT-3.1.1:3.1.3-8]
        raise ProtocolError(
            ReasonCode.CLIENT_IDENTIFIER_NOT_VALID,
            "an empty client id needs clean session 1",
            "MQTT-3.1.1:3.1.3-8",
        )
    will = None
    if flags & 0x04:  # [MQTT-3.1.2-9]
        will, pos = _read_will(body, pos, flags, version, limits)
    username = password = None
    if flags & 0x80:  # [MQTT-3.1.2-17]
        username, pos = read_string(body, pos, end)
    if flags & 0x40:  # [MQTT-3.1.2-19]
        password, pos = read_binary(body, pos, end)
    _check_end(pos, end, 1)
    return Connect(
        client_id, version, clean_start, keep_alive, will, username, password, properties
    )


def _check_connect_flags(flags: int, version: int) -> None:
    if flags & 0x01:  # [MQTT-3.1.2-3]
        raise MalformedPacket("reserved CONNECT flag is set", "MQTT-3.1.2-3")
    if flags & 0x04:
        if flags & 0x18 == 0x18:  # [MQTT-3.1.2-12]
            raise MalformedPacket("will QoS is 3", "MQTT-3.1.2-12")
    elif flags & 0x18:  # [MQTT-3.1.2-11]
        raise MalformedPacket("will QoS without a will", "MQTT-3.1.2-11")
    elif flags & 0x20:  # [MQTT-3.1.2-13]
        raise MalformedPacket("will retain without a will", "MQTT-3.1.2-13")
    if version < 5 and flags & 0xC0 == 0x40:  # [MQTT-3.1.1:3.1.2-22]
        raise MalformedPacket("password without a user name", "MQTT-3.1.1:3.1.2-22")


def _read_will(body: bytes, pos: int, flags: int, version: int, limits: Limits) -> tuple[Will, int]:
    end = len(body)
    properties: Properties = {}
    if version >= 5:
        properties, pos = decode_properties(body, pos, end, WILL, limits.user_properties_max)
    topic_name, pos = read_string(body, pos, end)  # [MQTT-3.1.3-11]
    _check_topic_name(topic_name)
    if not topic_name:
        raise ProtocolError(
            ReasonCode.TOPIC_NAME_INVALID, "topic name of the will is empty", "MQTT-4.7.3-1"
        )
    payload, pos = read_binary(body, pos, end)
    will = Will(topic_name, payload, flags >> 3 & 3, bool(flags & 0x20), properties)
    return will, pos


def _decode_connack(body: bytes, version: int, _role: Role | None, limits: Limits) -> Connack:
    end = len(body)
    if end < 2:
        raise MalformedPacket("CONNACK is too short", "MQTT-3.2.2")
    flags, code = body[0], body[1]
    if flags > 1:  # [MQTT-3.2.2-1]
        raise MalformedPacket("reserved CONNACK flags are set", "MQTT-3.2.2-1")
    properties: Properties = {}
    if version < 5:
        _check_end(2, end, 2)
        if code > 5:
            raise ProtocolError(
                ReasonCode.PROTOCOL_ERROR, f"CONNACK return code {code}", "MQTT-3.1.1:3.2.2.3"
            )
        code = CONNECT_RETURN_CODES[code]
    else:
        _check_reason(code, 2, "MQTT-3.2.2-8")
        properties, pos = decode_properties(body, 2, end, 2, limits.user_properties_max)
        _check_end(pos, end, 2)
        _check_authentication(properties)
    if flags and code:  # [MQTT-3.2.2-6]
        raise ProtocolError(
            ReasonCode.PROTOCOL_ERROR, "session present with a refusal", "MQTT-3.2.2-6"
        )
    return Connack(bool(flags), code, properties)


def _decode_publish(
    flags: int, body: bytes, version: int, role: Role | None, limits: Limits
) -> Publish:
    end = len(body)
    qos = flags >> 1 & 3
    if qos == 3:  # [MQTT-3.3.1-4]
        raise MalformedPacket("PUBLISH with QoS 3", "MQTT-3.3.1-4")
    if not qos and flags & 8:  # [MQTT-3.3.1-2]
        raise MalformedPacket("PUBLISH with DUP and QoS 0", "MQTT-3.3.1-2")
    topic_name, pos = read_string(body, 0, end)  # [MQTT-3.3.2-1]
    _check_topic_name(topic_name)
    packet_id = 0
    if qos:
        packet_id, pos = _read_packet_id(body, pos, end)
    properties: Properties = {}
    if version >= 5:
        properties, pos = decode_properties(body, pos, end, 3, limits.user_properties_max)
        if role == "server" and SUBSCRIPTION_IDENTIFIER in properties:  # [MQTT-3.3.4-6]
            raise ProtocolError(
                ReasonCode.PROTOCOL_ERROR,
                "PUBLISH to a server has a subscription identifier",
                "MQTT-3.3.4-6",
            )
        if not topic_name and TOPIC_ALIAS not in properties:
            raise ProtocolError(
                ReasonCode.PROTOCOL_ERROR,
                "PUBLISH has neither topic name nor topic alias",
                "MQTT-3.3.2.1",
            )
    elif not topic_name:  # [MQTT-4.7.3-1]
        raise ProtocolError(ReasonCode.TOPIC_NAME_INVALID, "topic name is empty", "MQTT-4.7.3-1")
    return Publish(
        topic_name, body[pos:], qos, bool(flags & 1), bool(flags & 8), packet_id, properties
    )


_Ack: TypeAlias = Puback | Pubrec | Pubrel | Pubcomp


def _acknowledgement(
    cls: type[_Ack], clause: str
) -> Callable[[bytes, int, Role | None, Limits], _Ack]:
    """Return the decoder of one of the four packets that settle a PUBLISH."""
    packet_type = cls.packet_type

    def decode_ack(body: bytes, version: int, _role: Role | None, limits: Limits) -> _Ack:
        end = len(body)
        packet_id, pos = _read_packet_id(body, 0, end)
        if end == 2:
            return cls(packet_id)
        if version < 5:
            _check_end(pos, end, packet_type)
        code = body[2]
        _check_reason(code, packet_type, clause)
        if end == 3:
            return cls(packet_id, code)
        properties, pos = decode_properties(body, 3, end, packet_type, limits.user_properties_max)
        _check_end(pos, end, packet_type)
        return cls(packet_id, code, properties)

    return decode_ack


def _decode_subscribe(body: bytes, version: int, _role: Role | None, limits: Limits) -> Subscribe:
    end = len(body)
    packet_id, pos = _read_packet_id(body, 0, end)
    properties: Properties = {}
    if version >= 5:
        properties, pos = decode_properties(body, pos, end, 8, limits.user_properties_max)
    subscriptions: list[Subscription] = []
    if native is not None:
        limit = limits.subscriptions_max
        subscriptions, pos = native.subscriptions(Subscription, body, pos, limit)
    text = body.decode("ascii") if pos < end and body.isascii() else ""  # once for all filters
    while pos < end:
        start = pos + 2
        after = start + (body[pos] << 8 | body[pos + 1]) if text and start < end else end
        topic_filter = text[start:after]
        if after < end and topic_filter and is_plain_filter(topic_filter):
            pos = after
        else:
            topic_filter, pos = _read_filter(body, pos, version)
        if pos >= end:
            raise MalformedPacket("SUBSCRIBE ends before subscription options", "MQTT-3.8.3-2")
        options = body[pos]
        if options <= 2:  # the QoS, and nothing else
            subscriptions.append(Subscription(topic_filter, options))
        else:
            subscriptions.append(_subscription(topic_filter, options, version))
        pos += 1
        if len(subscriptions) > limits.subscriptions_max:
            raise ProtocolError(
                ReasonCode.QUOTA_EXCEEDED,
                f"more than {limits.subscriptions_max} topic filters in one SUBSCRIBE",
            )
    if not subscriptions:  # [MQTT-3.8.3-2] [MQTT-3.1.1:3.8.3-3]
        raise ProtocolError(
            ReasonCode.PROTOCOL_ERROR, "SUBSCRIBE without a topic filter", "MQTT-3.8.3-2"
        )
    return Subscribe(packet_id, subscriptions, properties)


def _subscription(topic_filter: str, options: int, version: int) -> Subscription:
    qos = options & 3
    if version < 5:
        if options > 2:  # [MQTT-3.1.1:3.8.3-4]
            raise MalformedPacket(f"requested QoS is {options}", "MQTT-3.1.1:3.8.3-4")
        return Subscription(topic_filter, qos)
    if options & 0xC0:  # [MQTT-3.8.3-5]
        raise MalformedPacket("reserved subscription options are set", "MQTT-3.8.3-5")
    if qos == 3:
        raise ProtocolError(ReasonCode.PROTOCOL_ERROR, "maximum QoS is 3", "MQTT-3.8.3.1")
    retain_handling = options >> 4
    if retain_handling == 3:
        raise ProtocolError(ReasonCode.PROTOCOL_ERROR, "retain handling is 3", "MQTT-3.8.3.1")
    if options & 4 and topic_filter.startswith("$share/"):  # [MQTT-3.8.3-4]
        raise ProtocolError(
            ReasonCode.PROTOCOL_ERROR, "no local on a shared subscription", "MQTT-3.8.3-4"
        )
    return Subscription(topic_filter, qos, bool(options & 4), bool(options & 8), retain_handling)


def _decode_suback(body: bytes, version: int, _role: Role | None, limits: Limits) -> Suback:
    end = len(body)
    packet_id, pos = _read_packet_id(body, 0, end)
    properties: Properties = {}
    if version >= 5:
        properties, pos = decode_properties(body, pos, end, 9, limits.user_properties_max)
    codes = list(body[pos:])
    if not codes:
        raise ProtocolError(ReasonCode.PROTOCOL_ERROR, "SUBACK without a code", "MQTT-3.9.3")
    if version >= 5:
        for code in codes:
            _check_reason(code, 9, "MQTT-3.9.3-2")
    elif not {0, 1, 2, 0x80}.issuperset(codes):  # [MQTT-3.1.1:3.9.3-2]
        raise ProtocolError(
            ReasonCode.PROTOCOL_ERROR, "SUBACK with a reserved return code", "MQTT-3.1.1:3.9.3-2"
        )
    return Suback(packet_id, codes, properties)


def _decode_unsubscribe(
    body: bytes, version: int, _role: Role | None, limits: Limits
) -> Unsubscribe:
    end = len(body)
    packet_id, pos = _read_packet_id(body, 0, end)
    properties: Properties = {}
    if version >= 5:
        properties, pos = decode_properties(body, pos, end, 10, limits.user_properties_max)
    filters: list[str] = []
    while pos < end:
        topic_filter, pos = _read_filter(body, pos, version)
        filters.append(topic_filter)
        if len(filters) > limits.subscriptions_max:
            raise ProtocolError(
                ReasonCode.QUOTA_EXCEEDED,
                f"more than {limits.subscriptions_max} topic filters in one UNSUBSCRIBE",
            )
    if not filters:  # [MQTT-3.10.3-2]
        raise ProtocolError(
            ReasonCode.PROTOCOL_ERROR, "UNSUBSCRIBE without a topic filter", "MQTT-3.10.3-2"
        )
    return Unsubscribe(packet_id, filters, properties)


def _decode_unsuback(body: bytes, version: int, _role: Role | None, limits: Limits) -> Unsuback:
    end = len(body)
    packet_id, pos = _read_packet_id(body, 0, end)
    if version < 5:
        _check_end(pos, end, 11)
        return Unsuback(packet_id)
    properties, pos = decode_properties(body, pos, end, 11, limits.user_properties_max)
    codes = list(body[pos:])
    if not codes:
        raise ProtocolError(ReasonCode.PROTOCOL_ERROR, "UNSUBACK without a code", "MQTT-3.11.3")
    for code in codes:
        _check_reason(code, 11, "MQTT-3.11.3-2")
    return Unsuback(packet_id, codes, properties)


def _decode_pingreq(body: bytes, _version: int, _role: Role | None, _limits: Limits) -> Pingreq:
    _check_end(0, len(body), 12)
    return Pingreq()


def _decode_pingresp(body: bytes, _version: int, _role: Role | None, _limits: Limits) -> Pingresp:
    _check_end(0, len(body), 13)
    return Pingresp()


def _decode_disconnect(body: bytes, version: int, role: Role | None, limits: Limits) -> Disconnect:
    end = len(body)
    if version < 5:
        if role == "client":
            raise ProtocolError(
                ReasonCode.PROTOCOL_ERROR, "a server must not send DISCONNECT in MQTT 3.1.1"
            )
        _check_end(0, end, 14)
        return Disconnect()
    if not end:
        return Disconnect()
    code = body[0]
    _check_reason(code, 14, "MQTT-3.14.2-1")
    allowed = DISCONNECT_FROM_CLIENT if role == "server" else DISCONNECT_FROM_SERVER
    if role is not None and code not in allowed:
        raise ProtocolError(
            ReasonCode.PROTOCOL_ERROR,
            f"a {role} must not get DISCONNECT {describe(code)}",
            "MQTT-3.14.2-1",
        )
    if end == 1:
        return Disconnect(code)
    properties, pos = decode_properties(body, 1, end, 14, limits.user_properties_max)
    _check_end(pos, end, 14)
    if role == "client" and SESSION_EXPIRY_INTERVAL in properties:  # [MQTT-3.14.2-2]
        raise ProtocolError(
            ReasonCode.PROTOCOL_ERROR,
            "a server's DISCONNECT has a session expiry interval",
            "MQTT-3.14.2-2",
        )
    return Disconnect(code, properties)


def _decode_auth(body: bytes, _version: int, role: Role | None, limits: Limits) -> Auth:
    end = len(body)
    if not end:
        return Auth()
    code = body[0]
    _check_reason(code, 15, "MQTT-3.15.2-1")
    if role is not None and code == (0x00 if role == "server" else 0x19):  # table 3-11
        raise ProtocolError(
            ReasonCode.PROTOCOL_ERROR,
            f"a {role} must not get AUTH {describe(code)}",
            "MQTT-3.15.2-1",
        )
    properties, pos = decode_properties(body, 1, end, 15, limits.user_properties_max)
    _check_end(pos, end, 15)
    if AUTHENTICATION_METHOD not in properties:
        raise ProtocolError(
            ReasonCode.PROTOCOL_ERROR, "AUTH without authentication method", "MQTT-3.15.2.2.2"
        )
    return Auth(code, properties)


_DECODERS: Final[tuple[Callable[[bytes, int, Role | None, Limits], Packet] | None, ...]] = (
    None,
    _decode_connect,
    _decode_connack,
    None,  # PUBLISH: its flags carry meaning
    _acknowledgement(Puback, "MQTT-3.4.2-1"),
    _acknowledgement(Pubrec, "MQTT-3.5.2-1"),
    _acknowledgement(Pubrel, "MQTT-3.6.2-1"),
    _acknowledgement(Pubcomp, "MQTT-3.7.2-1"),
    _decode_subscribe,
    _decode_suback,
    _decode_unsubscribe,
    _decode_unsuback,
    _decode_pingreq,
    _decode_pingresp,
    _decode_disconnect,
    _decode_auth,
)


def _read_packet_id(body: bytes, pos: int, end: int) -> tuple[int, int]:
    after = pos + 2
    if after > end:
        raise TruncatedPacket("packet ends before its packet identifier", "MQTT-2.2.1")
    packet_id = body[pos] << 8 | body[pos + 1]
    if not packet_id:  # [MQTT-2.2.1-3] [MQTT-2.2.1-4] [MQTT-3.1.1:2.3.1-1]
        # It can be parsed and says what is not allowed: a protocol error (section 4.13.1).
        raise ProtocolError(ReasonCode.PROTOCOL_ERROR, "packet identifier is 0", "MQTT-2.2.1-3")
    return packet_id, after


def _read_filter(body: bytes, pos: int, version: int) -> tuple[str, int]:
    topic_filter, pos = read_string(body, pos, len(body))  # [MQTT-3.8.3-1] [MQTT-3.10.3-1]
    fault: TopicFault | None = topic_filter_fault(
        topic_filter, shared=version >= 5, levels_max=len(body)
    )
    if fault is not None:
        raise ProtocolError(ReasonCode.TOPIC_FILTER_INVALID, fault.detail, fault.clause)
    return topic_filter, pos


def _check_topic_name(topic_name: str) -> None:
    if "+" in topic_name or "#" in topic_name:  # [MQTT-3.3.2-2]
        raise ProtocolError(
            ReasonCode.TOPIC_NAME_INVALID,
            f"topic name {topic_name[:80]!r} has a wildcard",
            "MQTT-3.3.2-2",
        )


def _check_reason(code: int, packet_type: int, clause: str) -> None:
    if code not in ALLOWED[packet_type]:
        raise ProtocolError(
            ReasonCode.PROTOCOL_ERROR,
            f"{PACKET_NAMES[packet_type]} must not carry reason code {describe(code)}",
            clause,
        )


def _check_authentication(properties: Properties) -> None:
    if AUTHENTICATION_DATA in properties and AUTHENTICATION_METHOD not in properties:
        raise ProtocolError(
            ReasonCode.PROTOCOL_ERROR,
            "authentication data without authentication method",
            "MQTT-3.1.2.11.10",
        )


def _check_end(pos: int, end: int, packet_type: int) -> None:
    if pos != end:
        raise MalformedPacket(
            f"{PACKET_NAMES[packet_type]} has {end - pos} bytes after its end", "MQTT-2.1.4"
        )
