"""From messages to bytes, for 3.1.1 and 5 alike: MQTT 5.0 and 3.1.1 section 3.

What this writes, `mqtt.decoding` reads back to an equal message. A message that the specification
does not allow is the caller's fault and raises `LocalProtocolError` before any byte is made.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from mqtt.errors import LocalProtocolError
from mqtt.packets import (
    PACKET_NAMES,
    Auth,
    Connack,
    Connect,
    Disconnect,
    Packet,
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
)
from mqtt.primitives import encode_binary, encode_string, encode_variable_integer
from mqtt.properties import (
    AUTHENTICATION_DATA,
    AUTHENTICATION_METHOD,
    TOPIC_ALIAS,
    WILL,
    Properties,
    encode_properties,
)
from mqtt.reason_codes import ALLOWED, connect_return_code, describe
from mqtt.topics import TopicFault, topic_filter_fault, topic_name_fault

__all__ = ["encode"]


def encode(packet: Packet, version: int) -> bytes:
    """Return the packet as it goes on the wire.

    Args:
        packet: The message; a 3.1.1 CONNACK or SUBACK takes MQTT 5 reason codes and sends the
            return code nearest to them; a 3.1.1 UNSUBACK leaves its reason codes out.
        version: 4 or 5.

    Raises:
        LocalProtocolError: the message is not allowed in that version; the clause says why.
    """
    packet_type = packet.packet_type
    body = _ENCODERS[packet_type](packet, version)
    if packet_type == 3:
        return body  # has its fixed header: the flags are its own
    first_byte = packet_type << 4 | (2 if packet_type in (6, 8, 10) else 0)
    size = len(body)
    if size < 0x80:
        return b"%c%c%b" % (first_byte, size, body)
    return b"%c%b%b" % (first_byte, encode_variable_integer(size), body)


def _encode_connect(packet: Connect, version: int) -> bytes:
    if packet.protocol_version != version or version not in (4, 5):
        raise LocalProtocolError(
            f"CONNECT for version {packet.protocol_version} on a version {version} connection",
            "MQTT-3.1.2-2",
        )
    if version < 5:
        if packet.password is not None and packet.username is None:  # [MQTT-3.1.1:3.1.2-22]
            raise LocalProtocolError("password without a user name", "MQTT-3.1.1:3.1.2-22")
        if not packet.client_id and not packet.clean_start:  # [MQTT-3.1.1:3.1.3-8]
            raise LocalProtocolError(
                "an empty client id needs clean session 1", "MQTT-3.1.1:3.1.3-8"
            )
    if not 0 <= packet.keep_alive <= 0xFFFF:
        raise LocalProtocolError(f"keep alive of {packet.keep_alive} s", "MQTT-3.1.2.10")
    flags = 2 if packet.clean_start else 0
    parts = [b"\0\4MQTT", b"", packet.keep_alive.to_bytes(2, "big")]
    parts.append(_properties(packet.properties, 1, version))
    parts.append(encode_string(packet.client_id))
    will = packet.will
    if will is not None:
        _check_name(will.topic_name)
        _check_qos(will.qos, "MQTT-3.1.2-12")
        flags |= 4 | will.qos << 3 | (0x20 if will.retain else 0)
        parts.append(_properties(will.properties, WILL, version))
        parts.append(encode_string(will.topic_name))
        parts.append(encode_binary(will.payload))
    if packet.username is not None:
        flags |= 0x80
        parts.append(encode_string(packet.username))
    if packet.password is not None:
        flags |= 0x40
        parts.append(encode_binary(packet.password))
    parts[1] = bytes((version, flags))
    return b"".join(parts)


def _encode_connack(packet: Connack, version: int) -> bytes:
    if packet.session_present and packet.reason_code:  # [MQTT-3.2.2-6]
        raise LocalProtocolError("session present with a refusal", "MQTT-3.2.2-6")
    if version < 5:
        code = connect_return_code(packet.reason_code)
        if code is None:  # [MQTT-3.1.1:3.2.2-6]
            raise LocalProtocolError(
                f"MQTT 3.1.1 has no return code for {describe(packet.reason_code)}",
                "MQTT-3.1.1:3.2.2-6",
            )
    else:
        code = _reason(packet.reason_code, 2, "MQTT-3.2.2-8")
    head = bytes((1 if packet.session_present else 0, code))
    return head + _properties(packet.properties, 2, version)


def _encode_publish(packet: Publish, version: int) -> bytes:
    qos = packet.qos
    _check_qos(qos, "MQTT-3.3.1-4")
    properties = packet.properties
    if packet.topic_name or version < 5 or TOPIC_ALIAS not in properties:
        _check_name(packet.topic_name)
    parts = [encode_string(packet.topic_name)]
    if qos:
        parts.append(_packet_id(packet.packet_id))
    elif packet.packet_id:  # [MQTT-2.2.1-2]
        raise LocalProtocolError("packet identifier with QoS 0", "MQTT-2.2.1-2")
    elif packet.dup:  # [MQTT-3.3.1-2]
        raise LocalProtocolError("DUP with QoS 0", "MQTT-3.3.1-2")
    parts.append(_properties(properties, 3, version))
    parts.append(packet.payload)
    size = sum(map(len, parts))
    first_byte = 0x30 | qos << 1 | (1 if packet.retain else 0) | (8 if packet.dup else 0)
    return b"%c%b%b" % (first_byte, encode_variable_integer(size), b"".join(parts))


def _encode_ack(packet: Puback | Pubrec | Pubrel | Pubcomp, version: int) -> bytes:
    packet_id = _packet_id(packet.packet_id)
    code = packet.reason_code
    properties = packet.properties
    packet_type = packet.packet_type
    if version < 5:
        if code >= 0x80:  # never acknowledge by mistake what was refused
            raise LocalProtocolError(
                f"MQTT 3.1.1 cannot refuse with {PACKET_NAMES[packet_type]} {describe(code)}",
                f"MQTT-3.1.1:3.{packet_type}.2",
            )
        _properties(properties, packet_type, version)
        return packet_id
    if not code and not properties:
        return packet_id
    _reason(code, packet_type, f"MQTT-3.{packet_type}.2-1")
    if not properties:
        return packet_id + bytes((code,))
    return packet_id + bytes((code,)) + encode_properties(properties, packet_type)


def _encode_subscribe(packet: Subscribe, version: int) -> bytes:
    if not packet.subscriptions:  # [MQTT-3.8.3-2]
        raise LocalProtocolError("SUBSCRIBE without a topic filter", "MQTT-3.8.3-2")
    parts = [_packet_id(packet.packet_id), _properties(packet.properties, 8, version)]
    for subscription in packet.subscriptions:
        _check_filter(subscription.topic_filter, version)
        parts.append(encode_string(subscription.topic_filter))
        parts.append(bytes((_subscription_options(subscription, version),)))
    return b"".join(parts)


def _subscription_options(subscription: Subscription, version: int) -> int:
    _check_qos(subscription.qos, "MQTT-3.8.3.1")
    options = subscription.qos
    if subscription.no_local:
        if subscription.topic_filter.startswith("$share/"):  # [MQTT-3.8.3-4]
            raise LocalProtocolError("no local on a shared subscription", "MQTT-3.8.3-4")
        options |= 4
    if subscription.retain_as_published:
        options |= 8
    if not 0 <= subscription.retain_handling <= 2:
        raise LocalProtocolError(
            f"retain handling is {subscription.retain_handling}", "MQTT-3.8.3.1"
        )
    options |= subscription.retain_handling << 4
    if version < 5 and options > 2:  # [MQTT-3.1.1:3.8.3-4]
        raise LocalProtocolError(
            "MQTT 3.1.1 has no subscription options but QoS", "MQTT-3.1.1:3.8.3-4"
        )
    return options


def _encode_suback(packet: Suback, version: int) -> bytes:
    codes = packet.reason_codes
    if not codes:
        raise LocalProtocolError("SUBACK without a code", "MQTT-3.9.3")
    for code in set(codes):
        _reason(code, 9, "MQTT-3.9.3-2")
    if version < 5 and max(codes) > 2:  # [MQTT-3.1.1:3.9.3-2]
        codes = [code if code <= 2 else 0x80 for code in codes]
    head = _packet_id(packet.packet_id) + _properties(packet.properties, 9, version)
    return head + bytes(codes)


def _encode_unsubscribe(packet: Unsubscribe, version: int) -> bytes:
    if not packet.topic_filters:  # [MQTT-3.10.3-2]
        raise LocalProtocolError("UNSUBSCRIBE without a topic filter", "MQTT-3.10.3-2")
    parts = [_packet_id(packet.packet_id), _properties(packet.properties, 10, version)]
    for topic_filter in packet.topic_filters:
        _check_filter(topic_filter, version)
        parts.append(encode_string(topic_filter))
    return b"".join(parts)


def _encode_unsuback(packet: Unsuback, version: int) -> bytes:
    head = _packet_id(packet.packet_id) + _properties(packet.properties, 11, version)
    if version < 5:
        return head
    if not packet.reason_codes:
        raise LocalProtocolError("UNSUBACK without a code", "MQTT-3.11.3")
    for code in packet.reason_codes:
        _reason(code, 11, "MQTT-3.11.3-2")
    return head + bytes(packet.reason_codes)


def _encode_ping(_packet: Packet, _version: int) -> bytes:
    return b""


def _encode_disconnect(packet: Disconnect, version: int) -> bytes:
    code = packet.reason_code
    if version < 5:
        if code:
            raise LocalProtocolError(
                f"MQTT 3.1.1 cannot disconnect with {describe(code)}", "MQTT-3.1.1:3.14"
            )
        return _properties(packet.properties, 14, version)
    _reason(code, 14, "MQTT-3.14.2-1")
    if packet.properties:
        return bytes((code,)) + encode_properties(packet.properties, 14)
    return bytes((code,)) if code else b""


def _encode_auth(packet: Auth, version: int) -> bytes:
    if version < 5:
        raise LocalProtocolError("MQTT 3.1.1 has no AUTH", "MQTT-3.1.1:2.2.1")
    _reason(packet.reason_code, 15, "MQTT-3.15.2-1")
    if not packet.reason_code and not packet.properties:
        return b""
    if AUTHENTICATION_METHOD not in packet.properties:
        raise LocalProtocolError("AUTH without authentication method", "MQTT-3.15.2.2.2")
    return bytes((packet.reason_code,)) + encode_properties(packet.properties, 15)


_ENCODERS: Final[dict[int, Callable[[Any, int], bytes]]] = {
    1: _encode_connect,
    2: _encode_connack,
    3: _encode_publish,
    4: _encode_ack,
    5: _encode_ack,
    6: _encode_ack,
    7: _encode_ack,
    8: _encode_subscribe,
    9: _encode_suback,
    10: _encode_unsubscribe,
    11: _encode_unsuback,
    12: _encode_ping,
    13: _encode_ping,
    14: _encode_disconnect,
    15: _encode_auth,
}


def _packet_id(packet_id: int) -> bytes:
    if not 0 < packet_id <= 0xFFFF:  # [MQTT-2.2.1-3] [MQTT-3.1.1:2.3.1-1]
        raise LocalProtocolError(f"packet identifier is {packet_id}", "MQTT-2.2.1-3")
    return packet_id.to_bytes(2, "big")


def _properties(properties: Properties, packet: int, version: int) -> bytes:
    if version < 5:
        if properties:
            raise LocalProtocolError("MQTT 3.1.1 has no properties", "MQTT-2.2.2")
        return b""
    if AUTHENTICATION_DATA in properties and AUTHENTICATION_METHOD not in properties:
        raise LocalProtocolError(
            "authentication data without authentication method", "MQTT-3.1.2.11.10"
        )
    return encode_properties(properties, packet)


def _reason(code: int, packet_type: int, clause: str) -> int:
    if code not in ALLOWED[packet_type]:
        raise LocalProtocolError(
            f"{PACKET_NAMES[packet_type]} must not carry reason code {describe(code)}", clause
        )
    return code


def _check_qos(qos: int, clause: str) -> None:
    if not 0 <= qos <= 2:
        raise LocalProtocolError(f"QoS is {qos}", clause)


def _check_name(topic_name: str) -> None:
    _raise(topic_name_fault(topic_name, levels_max=0x10000))


def _check_filter(topic_filter: str, version: int) -> None:
    _raise(topic_filter_fault(topic_filter, shared=version >= 5, levels_max=0x10000))


def _raise(fault: TopicFault | None) -> None:
    if fault is not None:
        raise LocalProtocolError(fault.detail, fault.clause)
