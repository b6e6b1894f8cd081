"""Packets of MQTT 3.1.1 and 5.0 with their bytes, written by hand from the specifications.

One table drives the tests of encoder, decoder, client and server. `VECTORS` holds packets that go
both ways; `ACCEPTED` bytes that are understood but would be written otherwise; `MALFORMED` bytes
that must be refused, with reason code and clause.
"""

from __future__ import annotations

from dataclasses import dataclass

from mqtt import properties as p
from mqtt.packets import (
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

__all__ = ["ACCEPTED", "MALFORMED", "VECTORS", "Malformed", "Vector"]


@dataclass(frozen=True)
class Vector:
    """A packet and its bytes in one version."""

    name: str
    version: int
    text: str  # hexadecimal, spaces between fields
    packet: Packet
    clause: str

    @property
    def data(self) -> bytes:
        return bytes.fromhex(self.text)


@dataclass(frozen=True)
class Malformed:
    """Bytes of one packet that must be refused."""

    name: str
    version: int
    text: str
    reason_code: int
    clause: str
    role: str | None = None  # which end refuses it; None = both

    @property
    def data(self) -> bytes:
        return bytes.fromhex(self.text)


VECTORS: list[Vector] = [
    # CONNECT
    Vector(
        "connect, smallest",
        4,
        "10 0C  0004 4D515454 04 02 0000  0000",
        Connect("", 4, clean_start=True, keep_alive=0),
        "MQTT-3.1.3-6",
    ),
    Vector(
        "connect, session kept",
        4,
        "10 10  0004 4D515454 04 00 003C  0004 64657631",
        Connect("dev1", 4, clean_start=False, keep_alive=60),
        "MQTT-3.1.3-1",
    ),
    Vector(
        "connect with everything",
        4,
        "10 1D  0004 4D515454 04 EE 000A  0001 63  0003 612F62  0002 6279  0001 75  0002 00FF",
        Connect("c", 4, True, 10, Will("a/b", b"by", 1, True), "u", b"\x00\xff"),
        "MQTT-3.1.2-9",
    ),
    Vector(
        "connect, user name without password, empty will",
        4,
        "10 15  0004 4D515454 04 96 0001  0001 63  0001 77  0000  0001 75",
        Connect("c", 4, True, 1, Will("w", b"", 2, False), "u"),
        "MQTT-3.1.2-17",
    ),
    Vector(
        "connect, smallest",
        5,
        "10 0D  0004 4D515454 05 02 0000  00  0000",
        Connect("", 5),
        "MQTT-2.2.2-1",
    ),
    Vector(
        "connect, password without user name",
        5,
        "10 10  0004 4D515454 05 42 0000  00  0000  0001 70",
        Connect("", 5, password=b"p"),
        "MQTT-3.1.2-19",
    ),
    Vector(
        "connect with every property",
        5,
        "10 3E  0004 4D515454 05 C2 FFFF  2A"
        " 11 0000000A  21 0014  27 00010000  22 0005  19 01  17 00"
        " 26 0001 61 0001 62  26 0001 61 0000  15 0001 6D  16 0002 FF00"
        " 0001 63  0001 75  0001 70",
        Connect(
            "c",
            5,
            keep_alive=65535,
            username="u",
            password=b"p",
            properties={
                p.SESSION_EXPIRY_INTERVAL: 10,
                p.RECEIVE_MAXIMUM: 20,
                p.MAXIMUM_PACKET_SIZE: 65536,
                p.TOPIC_ALIAS_MAXIMUM: 5,
                p.REQUEST_RESPONSE_INFORMATION: 1,
                p.REQUEST_PROBLEM_INFORMATION: 0,
                p.USER_PROPERTY: [("a", "b"), ("a", "")],
                p.AUTHENTICATION_METHOD: "m",
                p.AUTHENTICATION_DATA: b"\xff\x00",
            },
        ),
        "MQTT-3.1.2-17",
    ),
    Vector(
        "connect with a will and its properties",
        5,
        "10 36  0004 4D515454 05 0C 0005  00  0001 63"
        " 1F 18 0000003C  01 01  02 00000E10  03 0001 74  08 0001 72  09 0001 64"
        " 26 0001 61 0001 62  0001 77  0003 6D7367",
        Connect(
            "c",
            5,
            clean_start=False,
            keep_alive=5,
            will=Will(
                "w",
                b"msg",
                1,
                False,
                {
                    p.WILL_DELAY_INTERVAL: 60,
                    p.PAYLOAD_FORMAT_INDICATOR: 1,
                    p.MESSAGE_EXPIRY_INTERVAL: 3600,
                    p.CONTENT_TYPE: "t",
                    p.RESPONSE_TOPIC: "r",
                    p.CORRELATION_DATA: b"d",
                    p.USER_PROPERTY: [("a", "b")],
                },
            ),
        ),
        "MQTT-3.1.3-11",
    ),
    # CONNACK
    Vector("connack", 4, "20 02 00 00", Connack(), "MQTT-3.2.2-1"),
    Vector("connack, session present", 4, "20 02 01 00", Connack(True), "MQTT-3.2.2-3"),
    Vector("connack, version", 4, "20 02 00 01", Connack(reason_code=0x84), "MQTT-3.1.1:3.1.2-2"),
    Vector("connack, client id", 4, "20 02 00 02", Connack(reason_code=0x85), "MQTT-3.1.1:3.1.3-8"),
    Vector(
        "connack, unavailable", 4, "20 02 00 03", Connack(reason_code=0x88), "MQTT-3.1.1:3.2.2-4"
    ),
    Vector("connack, password", 4, "20 02 00 04", Connack(reason_code=0x86), "MQTT-3.1.1:3.2.2-4"),
    Vector("connack, not allowed", 4, "20 02 00 05", Connack(reason_code=0x87), "MQTT-3.1.4-2"),
    Vector("connack", 5, "20 03 00 00 00", Connack(), "MQTT-2.2.2-1"),
    Vector("connack, refused", 5, "20 03 00 9F 00", Connack(reason_code=0x9F), "MQTT-3.2.2-8"),
    Vector(
        "connack with every property",
        5,
        "20 3F  01 00  3C"
        " 11 00000001  21 0002  24 01  25 00  27 00000400  12 0001 69  22 0003"
        " 1F 0001 72  26 0001 6B 0001 76  28 00  29 00  2A 00  13 0004"
        " 1A 0001 6F  1C 0001 73  15 0001 6D  16 0001 64",
        Connack(
            True,
            0,
            {
                p.SESSION_EXPIRY_INTERVAL: 1,
                p.RECEIVE_MAXIMUM: 2,
                p.MAXIMUM_QOS: 1,
                p.RETAIN_AVAILABLE: 0,
                p.MAXIMUM_PACKET_SIZE: 1024,
                p.ASSIGNED_CLIENT_IDENTIFIER: "i",
                p.TOPIC_ALIAS_MAXIMUM: 3,
                p.REASON_STRING: "r",
                p.USER_PROPERTY: [("k", "v")],
                p.WILDCARD_SUBSCRIPTION_AVAILABLE: 0,
                p.SUBSCRIPTION_IDENTIFIER_AVAILABLE: 0,
                p.SHARED_SUBSCRIPTION_AVAILABLE: 0,
                p.SERVER_KEEP_ALIVE: 4,
                p.RESPONSE_INFORMATION: "o",
                p.SERVER_REFERENCE: "s",
                p.AUTHENTICATION_METHOD: "m",
                p.AUTHENTICATION_DATA: b"d",
            },
        ),
        "MQTT-3.2.2-16",
    ),
    # PUBLISH
    Vector("publish QoS 0", 4, "30 05  0001 74  6869", Publish("t", b"hi"), "MQTT-2.2.1-2"),
    Vector("publish, no payload", 4, "31 03  0001 74", Publish("t", retain=True), "MQTT-3.3.2-1"),
    Vector(
        "publish QoS 1",
        4,
        "32 07  0001 74  0102  6869",
        Publish("t", b"hi", 1, packet_id=258),
        "MQTT-3.3.1-4",
    ),
    Vector(
        "publish QoS 2, again, retained",
        4,
        "3D 08  0003 C3A974  FFFF  00",
        Publish("ét", b"\0", 2, True, True, 65535),
        "MQTT-3.3.1-1",
    ),
    Vector(
        "publish of 128 bytes",
        4,
        "30 8001  0001 74" + "55" * 125,
        Publish("t", b"U" * 125),
        "MQTT-1.5.5-1",
    ),
    Vector(
        "publish of 16384 bytes",
        5,
        "30 808001  0001 74  00" + "00" * 16380,
        Publish("t", bytes(16380)),
        "MQTT-1.5.5-1",
    ),
    Vector(
        "publish, topic begins with U+FEFF",
        4,
        "30 06  0004 EFBBBF74",
        Publish("\ufefft"),
        "MQTT-1.5.4-3",
    ),
    Vector("publish QoS 0", 5, "30 06  0001 74  00  6869", Publish("t", b"hi"), "MQTT-2.2.2-1"),
    Vector(
        "publish by topic alias",
        5,
        "32 08  0000  0001  03 23 0007",
        Publish("", b"", 1, packet_id=1, properties={p.TOPIC_ALIAS: 7}),
        "MQTT-3.3.2-12",
    ),
    Vector(
        "publish with every property",
        5,
        "34 2B  0001 74  0001  25"
        " 01 00  02 00000005  23 0001  08 0002 2F72  09 0001 64"
        " 26 0001 61 0001 62  0B FFFFFF7F  0B 01  03 0001 63",
        Publish(
            "t",
            b"",
            2,
            packet_id=1,
            properties={
                p.PAYLOAD_FORMAT_INDICATOR: 0,
                p.MESSAGE_EXPIRY_INTERVAL: 5,
                p.TOPIC_ALIAS: 1,
                p.RESPONSE_TOPIC: "/r",
                p.CORRELATION_DATA: b"d",
                p.USER_PROPERTY: [("a", "b")],
                p.SUBSCRIPTION_IDENTIFIER: [268_435_455, 1],
                p.CONTENT_TYPE: "c",
            },
        ),
        "MQTT-3.3.2-19",
    ),
    # Acknowledgements
    Vector("puback", 4, "40 02 0001", Puback(1), "MQTT-2.2.1-5"),
    Vector("pubrec", 4, "50 02 0001", Pubrec(1), "MQTT-2.2.1-5"),
    Vector("pubrel", 4, "62 02 0001", Pubrel(1), "MQTT-3.6.1-1"),
    Vector("pubcomp", 4, "70 02 0001", Pubcomp(1), "MQTT-2.2.1-5"),
    Vector("puback", 5, "40 02 FFFF", Puback(65535), "MQTT-3.4.2-1"),
    Vector("puback, no subscribers", 5, "40 03 0001 10", Puback(1, 0x10), "MQTT-3.4.2-1"),
    Vector(
        "puback, quota, with properties",
        5,
        "40 12 0001 97  0E 1F 0004 66756C6C 26 0001 61 0001 62",
        Puback(1, 0x97, {p.REASON_STRING: "full", p.USER_PROPERTY: [("a", "b")]}),
        "MQTT-3.4.2-3",
    ),
    Vector("pubrec, in use", 5, "50 03 0001 91", Pubrec(1, 0x91), "MQTT-3.5.2-1"),
    Vector(
        "pubrec, success with reason string",
        5,
        "50 08 0001 00  04 1F 0001 72",
        Pubrec(1, 0, {p.REASON_STRING: "r"}),
        "MQTT-3.5.2-2",
    ),
    Vector("pubrel, not found", 5, "62 03 0001 92", Pubrel(1, 0x92), "MQTT-3.6.2-1"),
    Vector("pubcomp, not found", 5, "70 03 0001 92", Pubcomp(1, 0x92), "MQTT-3.7.2-1"),
    # SUBSCRIBE, SUBACK
    Vector(
        "subscribe",
        4,
        "82 0E 000A  0003 612F62 01  0003 632F23 02",
        Subscribe(10, [Subscription("a/b", 1), Subscription("c/#", 2)]),
        "MQTT-3.8.3-2",
    ),
    Vector(
        "subscribe with options",
        5,
        "82 17 000A  02 0B 7F  0001 23 2E  000B 2473686172652F672F2B2F 19",
        Subscribe(
            10,
            [
                Subscription("#", 2, True, True, 2),
                Subscription("$share/g/+/", 1, False, True, 1),
            ],
            {p.SUBSCRIPTION_IDENTIFIER: [127]},
        ),
        "MQTT-3.8.3-3",
    ),
    Vector("suback", 4, "90 06 000A 00 01 02 80", Suback(10, [0, 1, 2, 0x80]), "MQTT-3.9.3-1"),
    Vector(
        "suback",
        5,
        "90 0E 000A 00 00 01 02 80 83 87 8F 97 9E A1 A2",
        Suback(10, [0, 1, 2, 0x80, 0x83, 0x87, 0x8F, 0x97, 0x9E, 0xA1, 0xA2]),
        "MQTT-3.9.3-2",
    ),
    # UNSUBSCRIBE, UNSUBACK
    Vector(
        "unsubscribe",
        4,
        "A2 08 0001  0001 61  0001 62",
        Unsubscribe(1, ["a", "b"]),
        "MQTT-3.10.3-2",
    ),
    Vector(
        "unsubscribe with user property",
        5,
        "A2 0D 0001  07 26 0001 61 0001 62  0001 23",
        Unsubscribe(1, ["#"], {p.USER_PROPERTY: [("a", "b")]}),
        "MQTT-3.10.3-1",
    ),
    Vector("unsuback", 4, "B0 02 0001", Unsuback(1), "MQTT-2.2.1-6"),
    Vector("unsuback", 5, "B0 05 0001 00 00 11", Unsuback(1, [0, 0x11]), "MQTT-3.11.3-2"),
    # Without a body
    Vector("pingreq", 4, "C0 00", Pingreq(), "MQTT-3.1.2-20"),
    Vector("pingreq", 5, "C0 00", Pingreq(), "MQTT-3.1.2-20"),
    Vector("pingresp", 4, "D0 00", Pingresp(), "MQTT-3.12.4-1"),
    Vector("pingresp", 5, "D0 00", Pingresp(), "MQTT-3.12.4-1"),
    # DISCONNECT, AUTH
    Vector("disconnect", 4, "E0 00", Disconnect(), "MQTT-3.14.1-1"),
    Vector("disconnect", 5, "E0 00", Disconnect(), "MQTT-3.14.2-1"),
    Vector("disconnect with will", 5, "E0 01 04", Disconnect(4), "MQTT-3.14.2-1"),
    Vector(
        "disconnect, session expires later",
        5,
        "E0 07 00  05 11 00000E10",
        Disconnect(0, {p.SESSION_EXPIRY_INTERVAL: 3600}),
        "MQTT-3.14.2-2",
    ),
    Vector(
        "disconnect, use another server",
        5,
        "E0 0A 9C  08 1C 0001 73 1F 0001 72",
        Disconnect(0x9C, {p.SERVER_REFERENCE: "s", p.REASON_STRING: "r"}),
        "MQTT-3.14.2-3",
    ),
    Vector("auth, success", 5, "F0 00", Auth(), "MQTT-3.15.1-1"),
    Vector(
        "auth, continue",
        5,
        "F0 0A 18  08 15 0001 6D 16 0001 64",
        Auth(0x18, {p.AUTHENTICATION_METHOD: "m", p.AUTHENTICATION_DATA: b"d"}),
        "MQTT-3.15.2-1",
    ),
]

ACCEPTED: list[Vector] = [
    Vector("3.1.1 allows a longer length", 4, "40 8200 0001", Puback(1), "MQTT-3.1.1:2.2.3"),
    Vector("puback, reason code spelled out", 5, "40 03 0001 00", Puback(1), "MQTT-3.4.2-1"),
    Vector(
        "puback, properties spelled out", 5, "40 04 0001 10 00", Puback(1, 0x10), "MQTT-3.4.2-1"
    ),
    Vector("disconnect, reason code spelled out", 5, "E0 01 00", Disconnect(), "MQTT-3.14.2-1"),
    Vector("disconnect, both spelled out", 5, "E0 02 81 00", Disconnect(0x81), "MQTT-3.14.2-1"),
    Vector(
        "publish with topic name and alias 0 bytes of payload",
        5,
        "30 07  0001 74  03 23 FFFF",
        Publish("t", properties={p.TOPIC_ALIAS: 65535}),
        "MQTT-3.3.2-12",
    ),
    Vector(
        "publish, U+FFFF and a control character are allowed",
        4,
        "30 06  0004 EFBFBF01",
        Publish("\uffff\x01"),
        "MQTT-1.5.4-1",
    ),
]

_CONNECT_4 = "0004 4D515454 04"
_CONNECT_5 = "0004 4D515454 05"

MALFORMED: list[Malformed] = [
    # Fixed header
    Malformed("packet type 0", 4, "00 00", 0x81, "MQTT-2.1.2"),
    Malformed("packet type 0", 5, "00 00", 0x81, "MQTT-2.1.2"),
    Malformed("AUTH in 3.1.1", 4, "F0 00", 0x81, "MQTT-2.1.2"),
    Malformed("remaining length of 5 bytes", 4, "30 FFFFFFFF01", 0x81, "MQTT-2.1.4"),
    Malformed("remaining length of 5 bytes", 5, "30 8080808000", 0x81, "MQTT-2.1.4"),
    Malformed("over-long remaining length", 5, "40 8200 0001", 0x81, "MQTT-1.5.5-1"),
    Malformed("over-long remaining length of 0", 5, "C0 8000", 0x81, "MQTT-1.5.5-1"),
    # CONNECT
    Malformed("name MQIsdp", 4, "10 0E 0006 4D5149736470 03 02 0000 0000", 0x84, "MQTT-3.1.2-1"),
    Malformed("name mqtt", 4, "10 0C 0004 6D717474 04 02 0000 0000", 0x84, "MQTT-3.1.2-1"),
    Malformed("level 3", 4, "10 0C 0004 4D515454 03 02 0000 0000", 0x84, "MQTT-3.1.2-2"),
    Malformed("level 6", 5, "10 0D 0004 4D515454 06 02 0000 00 0000", 0x84, "MQTT-3.1.2-2"),
    Malformed(
        "bridge bit in level", 4, "10 0C 0004 4D515454 84 02 0000 0000", 0x84, "MQTT-3.1.2-2"
    ),
    Malformed("ends in the name", 4, "10 05 0004 4D5154", 0x81, "MQTT-1.5.6"),
    Malformed("ends before the level", 4, "10 06 0004 4D515454", 0x81, "MQTT-3.1.2.2"),
    Malformed("ends before the flags", 4, f"10 07 {_CONNECT_4}", 0x81, "MQTT-3.1.2.3"),
    Malformed("ends before keep alive", 4, f"10 09 {_CONNECT_4} 02 00", 0x81, "MQTT-1.5.2"),
    Malformed("ends before client id", 4, f"10 0A {_CONNECT_4} 02 0000", 0x81, "MQTT-1.5.6"),
    Malformed("reserved flag", 4, f"10 0C {_CONNECT_4} 03 0000 0000", 0x81, "MQTT-3.1.2-3"),
    Malformed("reserved flag", 5, f"10 0D {_CONNECT_5} 03 0000 00 0000", 0x81, "MQTT-3.1.2-3"),
    Malformed(
        "will QoS 3",
        5,
        f"10 13 {_CONNECT_5} 1E 0000 00 0000 00 0001 77 0000",
        0x81,
        "MQTT-3.1.2-12",
    ),
    Malformed("will QoS, no will", 4, f"10 0C {_CONNECT_4} 0A 0000 0000", 0x81, "MQTT-3.1.2-11"),
    Malformed("will retain, no will", 4, f"10 0C {_CONNECT_4} 22 0000 0000", 0x81, "MQTT-3.1.2-13"),
    Malformed("will missing", 4, f"10 0C {_CONNECT_4} 06 0000 0000", 0x81, "MQTT-1.5.6"),
    Malformed(
        "will topic with wildcard",
        4,
        f"10 11 {_CONNECT_4} 06 0000 0000 0001 23 0000",
        0x90,
        "MQTT-3.3.2-2",
    ),
    Malformed(
        "will topic empty", 4, f"10 10 {_CONNECT_4} 06 0000 0000 0000 0000", 0x90, "MQTT-4.7.3-1"
    ),
    Malformed(
        "password without user name",
        4,
        f"10 0F {_CONNECT_4} 42 0000 0000 0001 70",
        0x81,
        "MQTT-3.1.1:3.1.2-22",
    ),
    Malformed(
        "no client id, session kept",
        4,
        f"10 0C {_CONNECT_4} 00 0000 0000",
        0x85,
        "MQTT-3.1.1:3.1.3-8",
    ),
    Malformed("user name missing", 4, f"10 0C {_CONNECT_4} 82 0000 0000", 0x81, "MQTT-1.5.6"),
    Malformed(
        "user name present without flag",
        4,
        f"10 0F {_CONNECT_4} 02 0000 0000 0001 75",
        0x81,
        "MQTT-2.1.4",
    ),
    Malformed(
        "receive maximum 0",
        5,
        f"10 10 {_CONNECT_5} 02 0000 03 21 0000 0000",
        0x82,
        "MQTT-3.1.2.11.3",
    ),
    Malformed(
        "maximum packet size 0",
        5,
        f"10 12 {_CONNECT_5} 02 0000 05 27 00000000 0000",
        0x82,
        "MQTT-3.1.2.11.4",
    ),
    Malformed(
        "request problem information 2",
        5,
        f"10 0F {_CONNECT_5} 02 0000 02 17 02 0000",
        0x82,
        "MQTT-3.1.2.11.7",
    ),
    Malformed(
        "receive maximum twice",
        5,
        f"10 13 {_CONNECT_5} 02 0000 06 21 0001 21 0001 0000",
        0x82,
        "MQTT-3.1.2.11.3",
    ),
    Malformed(
        "authentication data without method",
        5,
        f"10 11 {_CONNECT_5} 02 0000 04 16 0001 64 0000",
        0x82,
        "MQTT-3.1.2.11.10",
    ),
    Malformed(
        "will property among connect properties",
        5,
        f"10 12 {_CONNECT_5} 02 0000 05 18 00000001 0000",
        0x81,
        "MQTT-2.2.2.2",
    ),
    # CONNACK
    Malformed("connack flags", 4, "20 02 02 00", 0x81, "MQTT-3.2.2-1"),
    Malformed("connack flags", 5, "20 03 80 00 00", 0x81, "MQTT-3.2.2-1"),
    Malformed("connack code 6", 4, "20 02 00 06", 0x82, "MQTT-3.1.1:3.2.2.3"),
    Malformed("connack reason code 0x8E", 5, "20 03 00 8E 00", 0x82, "MQTT-3.2.2-8"),
    Malformed("connack too short", 4, "20 01 00", 0x81, "MQTT-3.2.2"),
    Malformed("connack without properties", 5, "20 02 00 00", 0x81, "MQTT-1.5.5"),
    Malformed("connack too long", 4, "20 03 00 00 00", 0x81, "MQTT-2.1.4"),
    Malformed("session present and refused", 5, "20 03 01 87 00", 0x82, "MQTT-3.2.2-6"),
    Malformed("session present and refused", 4, "20 02 01 05", 0x82, "MQTT-3.2.2-6"),
    Malformed("maximum QoS 2", 5, "20 05 00 00 02 24 02", 0x82, "MQTT-3.2.2.3.4"),
    Malformed("connack to a server", 5, "20 03 00 00 00", 0x82, "", "server"),
    # PUBLISH
    Malformed("QoS 3", 4, "36 05 0001 74 0001", 0x81, "MQTT-3.3.1-4"),
    Malformed("DUP with QoS 0", 4, "38 03 0001 74", 0x81, "MQTT-3.3.1-2"),
    Malformed("no topic length", 4, "30 01 00", 0x81, "MQTT-1.5.6"),
    Malformed("topic runs out", 4, "30 03 0002 74", 0x81, "MQTT-1.5.6"),
    Malformed("packet id missing", 4, "32 03 0001 74", 0x81, "MQTT-2.2.1"),
    Malformed("packet id 0", 4, "32 05 0001 74 0000", 0x82, "MQTT-2.2.1-3"),
    Malformed("topic with +", 4, "30 05 0003 612F2B", 0x90, "MQTT-3.3.2-2"),
    Malformed("topic with #", 5, "30 04 0001 23 00", 0x90, "MQTT-3.3.2-2"),
    Malformed("empty topic", 4, "30 02 0000", 0x90, "MQTT-4.7.3-1"),
    Malformed("empty topic without alias", 5, "30 03 0000 00", 0x82, "MQTT-3.3.2.1"),
    Malformed("topic with U+0000", 4, "30 05 0003 610062", 0x81, "MQTT-1.5.4-2"),
    Malformed("topic with a surrogate", 4, "30 05 0003 EDA080", 0x81, "MQTT-1.5.4-1"),
    Malformed("topic with an over-long form", 4, "30 04 0002 C0AF", 0x81, "MQTT-1.5.4-1"),
    Malformed("topic with over-long U+0000", 4, "30 04 0002 C080", 0x81, "MQTT-1.5.4-1"),
    Malformed("topic past U+10FFFF", 4, "30 06 0004 F4908080", 0x81, "MQTT-1.5.4-1"),
    Malformed("topic cut inside a character", 4, "30 03 0001 C3", 0x81, "MQTT-1.5.4-1"),
    Malformed("no property length", 5, "30 03 0001 74", 0x81, "MQTT-1.5.5"),
    Malformed("property length too long", 5, "30 05 0001 74 02 01", 0x81, "MQTT-2.2.2.1"),
    Malformed("property length over-long", 5, "30 05 0001 74 8000", 0x81, "MQTT-1.5.5-1"),
    Malformed("property unknown", 5, "30 06 0001 74 02 04 00", 0x81, "MQTT-2.2.2.2"),
    Malformed("property of CONNECT", 5, "30 07 0001 74 03 21 0001", 0x81, "MQTT-2.2.2.2"),
    Malformed("property cut", 5, "30 06 0001 74 02 23 00", 0x81, "MQTT-1.5.2"),
    Malformed("property without value", 5, "30 05 0001 74 01 01", 0x81, "MQTT-1.5.1"),
    Malformed("expiry cut", 5, "30 08 0001 74 04 02 000000", 0x81, "MQTT-1.5.3"),
    Malformed("payload format 2", 5, "30 06 0001 74 02 01 02", 0x82, "MQTT-3.3.2.3.2"),
    Malformed("payload format twice", 5, "30 08 0001 74 04 01 01 01 01", 0x82, "MQTT-3.3.2.3.2"),
    Malformed("topic alias 0", 5, "30 07 0001 74 03 23 0000", 0x94, "MQTT-3.3.2-8"),
    Malformed("response topic wildcard", 5, "30 08 0001 74 04 08 0001 2B", 0x82, "MQTT-3.3.2-14"),
    Malformed("content type not UTF-8", 5, "30 08 0001 74 04 03 0001 FF", 0x81, "MQTT-1.5.4-1"),
    Malformed(
        "subscription identifier 0", 5, "30 06 0001 74 02 0B 00", 0x82, "MQTT-3.8.2.1.2", "client"
    ),
    Malformed(
        "subscription identifier", 5, "30 06 0001 74 02 0B 01", 0x82, "MQTT-3.3.4-6", "server"
    ),
    Malformed("user property U+0000", 5, "30 0A 0001 74 06 26 0001 00 0000", 0x81, "MQTT-1.5.4-2"),
    # Acknowledgements
    Malformed("puback empty", 4, "40 00", 0x81, "MQTT-2.2.1"),
    Malformed("puback id 0", 5, "40 02 0000", 0x82, "MQTT-2.2.1-3"),
    Malformed("puback too long", 4, "40 03 0001 00", 0x81, "MQTT-2.1.4"),
    Malformed("puback reason code", 5, "40 03 0001 92", 0x82, "MQTT-3.4.2-1"),
    Malformed("puback after properties", 5, "40 05 0001 00 00 00", 0x81, "MQTT-2.1.4"),
    Malformed("pubrec reason code", 5, "50 03 0001 01", 0x82, "MQTT-3.5.2-1"),
    Malformed("pubrel reason code", 5, "62 03 0001 80", 0x82, "MQTT-3.6.2-1"),
    Malformed("pubcomp reason code", 5, "70 03 0001 10", 0x82, "MQTT-3.7.2-1"),
    Malformed(
        "reason string twice", 5, "40 0C 0001 00 08 1F 0001 61 1F 0001 62", 0x82, "MQTT-3.2.2.3.9"
    ),
    # SUBSCRIBE, SUBACK
    Malformed("no filter", 4, "82 02 0001", 0x82, "MQTT-3.8.3-2"),
    Malformed("no filter", 5, "82 03 0001 00", 0x82, "MQTT-3.8.3-2"),
    Malformed("packet id 0", 5, "82 07 0000 00 0001 61 00", 0x82, "MQTT-2.2.1-3"),
    Malformed("no options", 4, "82 05 0001 0001 61", 0x81, "MQTT-3.8.3-2"),
    Malformed("filter empty", 4, "82 05 0001 0000 00", 0x8F, "MQTT-4.7.3-1"),
    Malformed("# inside", 4, "82 08 0001 0003 232F61 00", 0x8F, "MQTT-4.7.1-1"),
    Malformed("# in a level", 4, "82 07 0001 0002 6123 00", 0x8F, "MQTT-4.7.1-1"),
    Malformed("+ in a level", 5, "82 08 0001 00 0002 612B 00", 0x8F, "MQTT-4.7.1-2"),
    Malformed("QoS 3", 4, "82 06 0001 0001 61 03", 0x81, "MQTT-3.1.1:3.8.3-4"),
    Malformed("options of 5.0", 4, "82 06 0001 0001 61 04", 0x81, "MQTT-3.1.1:3.8.3-4"),
    Malformed("QoS 3", 5, "82 07 0001 00 0001 61 03", 0x82, "MQTT-3.8.3.1"),
    Malformed("reserved option 0x40", 5, "82 07 0001 00 0001 61 40", 0x81, "MQTT-3.8.3-5"),
    Malformed("reserved option 0x80", 5, "82 07 0001 00 0001 61 80", 0x81, "MQTT-3.8.3-5"),
    Malformed("retain handling 3", 5, "82 07 0001 00 0001 61 30", 0x82, "MQTT-3.8.3.1"),
    Malformed(
        "no local, shared", 5, "82 10 0001 00 000A 2473686172652F672F61 04", 0x82, "MQTT-3.8.3-4"
    ),
    Malformed(
        "share without name", 5, "82 0F 0001 00 0009 2473686172652F2F61 00", 0x8F, "MQTT-4.8.2-1"
    ),
    Malformed(
        "share without filter", 5, "82 0E 0001 00 0008 2473686172652F67 00", 0x8F, "MQTT-4.8.2-2"
    ),
    Malformed(
        "share name with +", 5, "82 10 0001 00 000A 2473686172652F2B2F61 00", 0x8F, "MQTT-4.8.2-2"
    ),
    Malformed(
        "two subscription identifiers",
        5,
        "82 0B 0001 04 0B 01 0B 02 0001 61 00",
        0x82,
        "MQTT-3.8.2.1.2",
    ),
    Malformed("suback without codes", 4, "90 02 0001", 0x82, "MQTT-3.9.3"),
    Malformed("suback code 3", 4, "90 03 0001 03", 0x82, "MQTT-3.1.1:3.9.3-2"),
    Malformed("suback code 0x87 in 3.1.1", 4, "90 03 0001 87", 0x82, "MQTT-3.1.1:3.9.3-2"),
    Malformed("suback code 0x11", 5, "90 04 0001 00 11", 0x82, "MQTT-3.9.3-2"),
    Malformed("subscribe to a client", 4, "82 06 0001 0001 61 00", 0x82, "", "client"),
    # UNSUBSCRIBE, UNSUBACK
    Malformed("unsubscribe without filter", 4, "A2 02 0001", 0x82, "MQTT-3.10.3-2"),
    Malformed("unsubscribe without filter", 5, "A2 03 0001 00", 0x82, "MQTT-3.10.3-2"),
    Malformed("unsubscribe bad filter", 4, "A2 06 0001 0002 2323", 0x8F, "MQTT-4.7.1-1"),
    Malformed("unsuback with codes in 3.1.1", 4, "B0 03 0001 00", 0x81, "MQTT-2.1.4"),
    Malformed("unsuback without codes", 5, "B0 03 0001 00", 0x82, "MQTT-3.11.3"),
    Malformed("unsuback code 0x01", 5, "B0 04 0001 00 01", 0x82, "MQTT-3.11.3-2"),
    # PINGREQ, PINGRESP, DISCONNECT, AUTH
    Malformed("pingreq with a body", 4, "C0 01 00", 0x81, "MQTT-2.1.4"),
    Malformed("pingresp with a body", 5, "D0 01 00", 0x81, "MQTT-2.1.4"),
    Malformed("disconnect with a body", 4, "E0 01 00", 0x81, "MQTT-2.1.4"),
    Malformed("disconnect reason code", 5, "E0 01 10", 0x82, "MQTT-3.14.2-1"),
    Malformed("disconnect after properties", 5, "E0 03 00 00 00", 0x81, "MQTT-2.1.4"),
    Malformed("disconnect of a server", 5, "E0 01 8E", 0x82, "MQTT-3.14.2-1", "server"),
    Malformed("disconnect of a client", 5, "E0 01 04", 0x82, "MQTT-3.14.2-1", "client"),
    Malformed("disconnect of a 3.1.1 server", 4, "E0 00", 0x82, "", "client"),
    Malformed(
        "session expiry from a server",
        5,
        "E0 07 00 05 11 00000001",
        0x82,
        "MQTT-3.14.2-2",
        "client",
    ),
    Malformed("auth reason code", 5, "F0 02 01 00", 0x82, "MQTT-3.15.2-1"),
    Malformed("auth without method", 5, "F0 02 18 00", 0x82, "MQTT-3.15.2.2.2"),
    Malformed("auth without property length", 5, "F0 01 18", 0x81, "MQTT-1.5.5"),
    Malformed(
        "auth success from a client", 5, "F0 06 00 04 15 0001 6D", 0x82, "MQTT-3.15.2-1", "server"
    ),
    Malformed(
        "re-authenticate from a server",
        5,
        "F0 06 19 04 15 0001 6D",
        0x82,
        "MQTT-3.15.2-1",
        "client",
    ),
]
