"""What may come before CONNACK, read whole, byte by byte and with more behind it."""

from __future__ import annotations

import pytest

from mqtt.codec import encode
from mqtt.errors import MqttError, ProtocolError, UnsupportedProtocolVersion
from mqtt.packets import V5, V311, Auth, Connect, Disconnect, Packet, Pingreq, Publish
from mqtt.properties import AUTHENTICATION_METHOD
from mqtt.server_events import ServerLimits
from mqtt.server_handshake import Handshake

METHOD = {AUTHENTICATION_METHOD: "SCRAM-SHA-256"}


def connected(connect: Connect, behind: bytes = b"") -> Handshake:
    handshake = Handshake(ServerLimits(maximum_packet_size=100))
    version = connect.protocol_version
    assert handshake.receive_connect(encode(connect, version) + behind) == connect
    return handshake


@pytest.mark.parametrize("version", [V311, V5])
def test_a_connect_is_taken_whole_or_a_byte_at_a_time_and_tells_the_version(version: int) -> None:
    connect = Connect("c", version)
    data = encode(connect, version)
    assert connected(connect).version == version
    slow = Handshake(ServerLimits())
    taken = [slow.receive_connect(data[at : at + 1]) for at in range(len(data))]
    assert taken == [None] * (len(data) - 1) + [connect]
    assert (slow.version, slow.rest) == (version, b"")


def test_what_comes_behind_a_connect_is_kept_in_order() -> None:
    publish = encode(Publish("t", b"x"), V5)
    handshake = connected(Connect("c"), publish[:3])
    assert handshake.receive_data(publish[3:]) is None
    assert handshake.receive_data(encode(Pingreq(), V5)) is None
    assert handshake.rest == publish + encode(Pingreq(), V5)


@pytest.mark.parametrize(
    ("data", "code", "version"),
    [
        (encode(Pingreq(), V5), 0x82, 0),
        (b"\x10\x7f", 0x95, 0),
        (bytes.fromhex("100c 0006 4d5149736470 03 02 0000"), 0x84, 4),
        (bytes.fromhex("100c 0004 4d515454 05 01 0000 00 0000"), 0x81, 5),
    ],
)
def test_a_first_packet_at_fault_names_it_and_the_version_to_answer_in(
    data: bytes, code: int, version: int
) -> None:
    handshake = Handshake(ServerLimits(maximum_packet_size=100))
    with pytest.raises(MqttError) as caught:
        handshake.receive_connect(data)
    assert (caught.value.reason_code, handshake.version) == (code, version)
    assert isinstance(caught.value, UnsupportedProtocolVersion) == (code == 0x84)


@pytest.mark.parametrize("packet", [Auth(0x18, METHOD), Disconnect()])
def test_a_client_that_authenticates_goes_on_or_gives_up(packet: Packet) -> None:
    handshake = connected(Connect("c", properties=METHOD))
    data = encode(packet, V5)
    taken = [handshake.receive_data(data[at : at + 1]) for at in range(len(data))]
    assert taken == [None] * (len(data) - 1) + [packet]


@pytest.mark.conformance("MQTT-3.1.2-30")
def test_a_client_that_authenticates_sends_nothing_else() -> None:
    handshake = connected(Connect("c", properties=METHOD))
    with pytest.raises(ProtocolError, match="PUBLISH before the client has authenticated"):
        handshake.receive_data(b"\x30")


def test_not_more_than_a_packets_worth_is_kept_before_connack() -> None:
    handshake = connected(Connect("c"))
    assert handshake.receive_data(b"\x30" * 100) is None
    with pytest.raises(ProtocolError, match="too much before CONNACK"):
        handshake.receive_data(b"\x30")
