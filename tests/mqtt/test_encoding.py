"""What the encoder refuses to write: each packet that the specification does not allow."""

from __future__ import annotations

import pytest

from mqtt import properties as p
from mqtt.encoding import encode
from mqtt.errors import LocalProtocolError
from mqtt.packets import (
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
    Will,
)

REFUSED: list[tuple[int, Packet, str]] = [
    (5, Connect("c", 4), "MQTT-3.1.2-2"),
    (3, Connect("c", 3), "MQTT-3.1.2-2"),
    (4, Connect("", 4, clean_start=False), "MQTT-3.1.1:3.1.3-8"),
    (4, Connect("c", 4, password=b"x"), "MQTT-3.1.1:3.1.2-22"),
    (4, Connect("c", 4, properties={p.RECEIVE_MAXIMUM: 1}), "MQTT-2.2.2"),
    (4, Connect("c", 4, keep_alive=65_536), "MQTT-3.1.2.10"),
    (5, Connect("c\0", 5), "MQTT-1.5.4-2"),
    (5, Connect("c", 5, will=Will("a/+")), "MQTT-3.3.2-2"),
    (5, Connect("c", 5, will=Will("")), "MQTT-4.7.3-1"),
    (5, Connect("c", 5, will=Will("w", qos=3)), "MQTT-3.1.2-12"),
    (5, Connect("c", 5, will=Will("w", properties={p.TOPIC_ALIAS: 1})), "MQTT-2.2.2.2"),
    (5, Connect("c", 5, properties={p.AUTHENTICATION_DATA: b""}), "MQTT-3.1.2.11.10"),
    (4, Connack(True, 0x87), "MQTT-3.2.2-6"),
    (4, Connack(False, 0x95), "MQTT-3.1.1:3.2.2-6"),
    (5, Connack(False, 0x8E), "MQTT-3.2.2-8"),
    (4, Publish("t", qos=3, packet_id=1), "MQTT-3.3.1-4"),
    (4, Publish("t", qos=-1, packet_id=1), "MQTT-3.3.1-4"),
    (4, Publish("t", qos=1), "MQTT-2.2.1-3"),
    (4, Publish("t", qos=1, packet_id=65_536), "MQTT-2.2.1-3"),
    (4, Publish("t", packet_id=1), "MQTT-2.2.1-2"),
    (4, Publish("t", dup=True), "MQTT-3.3.1-2"),
    (4, Publish(""), "MQTT-4.7.3-1"),
    (5, Publish(""), "MQTT-4.7.3-1"),
    (4, Publish("a/#"), "MQTT-3.3.2-2"),
    (4, Publish("t", properties={p.CONTENT_TYPE: "x"}), "MQTT-2.2.2"),
    (5, Publish("t", properties={p.RECEIVE_MAXIMUM: 1}), "MQTT-2.2.2.2"),
    (5, Publish("t", properties={0x7F: 1}), "MQTT-2.2.2.2"),
    (4, Puback(0), "MQTT-2.2.1-3"),
    (4, Puback(1, 0x97), "MQTT-3.1.1:3.4.2"),
    (4, Pubrec(1, 0x80), "MQTT-3.1.1:3.5.2"),
    (5, Puback(1, 0x92), "MQTT-3.4.2-1"),
    (5, Pubrec(1, 0x01), "MQTT-3.5.2-1"),
    (5, Pubrel(1, 0x80), "MQTT-3.6.2-1"),
    (5, Pubcomp(1, 0x10), "MQTT-3.7.2-1"),
    (4, Subscribe(1, []), "MQTT-3.8.3-2"),
    (4, Subscribe(1, [Subscription("a", 3)]), "MQTT-3.8.3.1"),
    (4, Subscribe(1, [Subscription("a", no_local=True)]), "MQTT-3.1.1:3.8.3-4"),
    (4, Subscribe(1, [Subscription("a#")]), "MQTT-4.7.1-1"),
    (5, Subscribe(1, [Subscription("a", retain_handling=3)]), "MQTT-3.8.3.1"),
    (5, Subscribe(1, [Subscription("$share/g/a", no_local=True)]), "MQTT-3.8.3-4"),
    (5, Subscribe(1, [Subscription("$share//a")]), "MQTT-4.8.2-1"),
    (4, Suback(1, []), "MQTT-3.9.3"),
    (5, Suback(1, [3]), "MQTT-3.9.3-2"),
    (4, Unsubscribe(1, []), "MQTT-3.10.3-2"),
    (4, Unsubscribe(1, ["+a"]), "MQTT-4.7.1-2"),
    (5, Unsuback(1, []), "MQTT-3.11.3"),
    (5, Unsuback(1, [1]), "MQTT-3.11.3-2"),
    (4, Disconnect(0x80), "MQTT-3.1.1:3.14"),
    (5, Disconnect(0x10), "MQTT-3.14.2-1"),
    (4, Auth(), "MQTT-3.1.1:2.2.1"),
    (5, Auth(0x18), "MQTT-3.15.2.2.2"),
    (5, Auth(0x20, {p.AUTHENTICATION_METHOD: "m"}), "MQTT-3.15.2-1"),
]


@pytest.mark.parametrize(("version", "packet", "clause"), REFUSED)
@pytest.mark.conformance(*sorted({clause for _, _, clause in REFUSED if "-" in clause[5:]}))
def test_a_packet_that_is_not_allowed_is_the_callers_fault(
    version: int, packet: Packet, clause: str
) -> None:
    with pytest.raises(LocalProtocolError) as fault:
        encode(packet, version)
    assert fault.value.clause == clause


def test_a_refused_message_is_never_acknowledged_to_3_1_1_by_mistake() -> None:
    with pytest.raises(LocalProtocolError):
        encode(Puback(1, 0x97), 4)
    assert encode(Puback(1, 0x10), 4) == b"\x40\x02\x00\x01"  # stored, nobody listening: fine


@pytest.mark.conformance("MQTT-3.1.1:3.9.3-2")
def test_subscriptions_refused_for_any_reason_are_0x80_in_3_1_1() -> None:
    assert encode(Suback(1, [2, 0x87, 0x8F]), 4) == b"\x90\x05\x00\x01\x02\x80\x80"


def test_unsuback_of_3_1_1_leaves_reason_codes_out() -> None:
    assert encode(Unsuback(1, [0x11]), 4) == b"\xb0\x02\x00\x01"
