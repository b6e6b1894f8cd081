"""Who is connected, before and after its first batch."""

from __future__ import annotations

from bridge.batch import Batch
from bridge.envelope import LinkLane
from cloud.gateways import GatewaysSeen
from cloud.ingest_batches import BatchTaken
from cloud.node_view import gateway_views
from cloud.stream.contract import SourceLedger
from mqtt.broker.seams import ClientInfo
from runtime.clock import ManualClock
from tests.kit.readings import one_per_row

LEDGER = (SourceLedger("gw-1", 7, assigned=10, held=((1, 10),), given_up=()),)


def client(client_id: str) -> ClientInfo:
    return ClientInfo(client_id, 5, peer=f"of {client_id}")


def test_a_gateway_with_nothing_to_send_is_connected_after_the_node_was_started_anew() -> None:
    clock = ManualClock()
    seen = GatewaysSeen(clock)
    uplink, other = client("tidegate-gw-1"), client("a-device")
    seen.client_connected(uplink)
    seen.client_connected(other)
    (one,) = gateway_views(LEDGER, seen.links())
    assert (one.connected, one.peer, one.readings) == (True, "of tidegate-gw-1", 10)
    assert one.connected_us == clock.wall_us()
    seen.client_disconnected(other, 0)
    seen.client_disconnected(uplink, 0)
    assert not gateway_views(LEDGER, seen.links())[0].connected


def test_who_took_a_connections_place_stays() -> None:
    seen = GatewaysSeen(ManualClock())
    before, after = client("tidegate-gw-1"), client("tidegate-gw-1")
    seen.client_connected(before)
    seen.client_connected(after)
    seen.client_disconnected(before, 0x8E)
    assert [link.connected for link in seen.links()] == [True]


def test_a_batch_that_becomes_durable_after_its_client_has_gone_connects_nobody() -> None:
    clock = ManualClock()
    seen = GatewaysSeen(clock)
    readings = one_per_row(3)
    batch = Batch("gw-1", 7, LinkLane.LIVE, False, readings, ((1, 3),), (), 3, 0, 1)
    uplink, later = client("tidegate-gw-1"), client("tidegate-gw-1")
    seen.client_connected(uplink)
    seen.client_disconnected(uplink, 0)
    seen.batch_taken(BatchTaken(uplink, batch, clock.wall_us()))
    (link,) = seen.links()
    assert (link.connected, link.last_batch_us) == (False, clock.wall_us())
    seen.client_connected(later)
    seen.batch_taken(BatchTaken(later, batch, clock.wall_us()))
    seen.batch_taken(BatchTaken(uplink, batch, clock.wall_us()))  # one more of before
    assert [one.client for one in seen.all()] == [later]
