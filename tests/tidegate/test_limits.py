"""Limits of an edge and of a cloud as they are by default: what one takes the other takes too."""

from __future__ import annotations

import random

import pytest

from bridge.batch import Encoder
from bridge.envelope import CONTENT_TYPE
from bridge.readings import Readings
from cloud.config import CloudConfig
from edge.config import EdgeConfig
from mqtt.codec import encode
from mqtt.packets import V5, Publish

SHORT = "devices/d/t"


def largest_payload(topic: str, packet_bytes_max: int) -> bytes:
    """Return a payload that nothing makes smaller, of the largest PUBLISH that is taken."""
    overhead = len(encode(Publish(topic, bytes(packet_bytes_max // 2), 1, packet_id=1), V5))
    overhead -= packet_bytes_max // 2
    return random.Random(1).randbytes(packet_bytes_max - overhead - 1)


@pytest.mark.parametrize("topic", [SHORT, "t" * 65_535])
def test_the_largest_publish_an_edge_takes_goes_up_in_a_packet_the_cloud_takes(topic: str) -> None:
    edge, cloud = EdgeConfig(), CloudConfig()
    payload = largest_payload(topic, edge.broker.maximum_packet_size_bytes)
    gateway = "g" * 200
    readings = Readings([1], [(topic, "d")], [0], [1_700_000_000_000_000], [1], [payload])
    batch = Encoder(gateway, 1).encode(readings)
    packet = Publish(f"tidegate/v1/up/{gateway}", batch, 1, packet_id=1)
    size = len(encode(packet, V5)) + len(CONTENT_TYPE) + 16
    if topic == SHORT:
        assert size > edge.broker.maximum_packet_size_bytes  # a limit alike would not do
    assert size <= cloud.broker.maximum_packet_size_bytes
    assert len(batch) <= cloud.ingest.batch_bytes_max
