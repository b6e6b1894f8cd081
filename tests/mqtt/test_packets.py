"""Messages: one class a packet type, nothing but their fields, defaults of their own."""

from __future__ import annotations

import dataclasses
from typing import get_args

import pytest

from mqtt import packets
from mqtt.packets import PACKET_NAMES, Packet, Subscription, Will

CLASSES = get_args(Packet)


def test_there_is_one_class_for_every_packet_type() -> None:
    assert [cls.packet_type for cls in CLASSES] == list(range(1, 16))
    for cls in CLASSES:
        name = cls.__name__.upper()
        assert PACKET_NAMES[cls.packet_type] == name
        assert getattr(packets, name) == cls.packet_type


@pytest.mark.parametrize("cls", [*CLASSES, Will, Subscription], ids=lambda cls: cls.__name__)
def test_a_message_is_its_fields_and_shares_no_default(cls: type) -> None:
    required = {"packet_id": 1, "topic_name": "t", "topic_filter": "t"}
    required |= {"subscriptions": [], "topic_filters": [], "reason_codes": []}
    fields = dataclasses.fields(cls)
    arguments = {field.name: required[field.name] for field in fields if field.name in required}
    one, other = cls(**arguments), cls(**arguments)
    assert not hasattr(one, "__dict__")
    assert one == other
    if hasattr(one, "properties"):
        assert one.properties == {}
        assert one.properties is not other.properties
