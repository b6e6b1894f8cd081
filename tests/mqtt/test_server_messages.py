"""Messages inside a server."""

from __future__ import annotations

from mqtt.server_messages import expiry_property


def test_what_is_left_of_an_expiry_as_a_property() -> None:
    assert expiry_property(10.5, 0.0) == b"\x02\x00\x00\x00\x0b"
    assert expiry_property(10.0, 99.0) == b"\x02\x00\x00\x00\x00"
    assert expiry_property(float(0xFFFF_FFFF), 0.0) == b"\x02\xff\xff\xff\xff"
