"""Errors: one line for an operator, fault of peer and caller told apart, fit to travel."""

from __future__ import annotations

import pickle

import pytest

from mqtt.errors import (
    LocalProtocolError,
    MalformedPacket,
    MqttError,
    ProtocolError,
    UnsupportedProtocolVersion,
)

ERRORS = [
    MqttError(0x88, "no route"),
    ProtocolError(0x82, "second CONNECT", "MQTT-3.1.0-2"),
    MalformedPacket("QoS is 3", "MQTT-3.3.1-4"),
    UnsupportedProtocolVersion("MQIsdp", 3, "MQTT-3.1.2-1", 4),
    LocalProtocolError("QoS is 7"),
]


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
def test_an_error_is_one_line_with_code_name_detail_and_clause(error: MqttError) -> None:
    text = str(error)
    assert "\n" not in text
    assert text.startswith(f"0x{error.reason_code:02X} ")
    assert error.detail in text
    assert text.endswith(f"[{error.clause}]") == bool(error.clause)


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
def test_an_error_survives_pickling(error: MqttError) -> None:
    again = pickle.loads(pickle.dumps(error))
    assert type(again) is type(error)
    assert str(again) == str(error)
    assert vars(again) == vars(error)


def test_the_callers_fault_is_not_the_peers() -> None:
    assert not issubclass(LocalProtocolError, ProtocolError)
    assert issubclass(MalformedPacket, ProtocolError)


def test_the_wording() -> None:
    assert str(ERRORS[2]) == "0x81 malformed packet: QoS is 3 [MQTT-3.3.1-4]"
