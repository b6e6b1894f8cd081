"""Gateways as a node shows them: what came, and how the link is, here or at another node."""

from __future__ import annotations

from bridge.runs import Origin
from cloud.gateways import GatewayLink
from cloud.node_view import gateway_views
from cloud.stream.contract import SourceLedger

LEDGER = (SourceLedger("gw-1", 7, assigned=12, held=((1, 10),), given_up=()),)
HERE = GatewayLink("gw-1", last_batch_us=50, lag_s=0.5, epoch=7)


def test_a_gateway_that_nobody_has() -> None:
    (one,) = gateway_views(LEDGER, [HERE])
    assert (one.connected, one.node, one.last_batch_us) == (False, "", 50)
    assert (one.readings, one.backlog_readings, one.epoch) == (10, 2, f"{7:016x}")


def test_a_gateway_that_another_node_has() -> None:
    there = GatewayLink("gw-1", connected=True, peer="10.0.0.9:1", last_batch_us=40, node="two")
    (one,) = gateway_views(LEDGER, [HERE], {"gw-1": there})
    assert (one.connected, one.node, one.peer) == (True, "two", "10.0.0.9:1")
    assert (one.readings, one.last_batch_us) == (10, 40)


def test_whoever_heard_of_it_last_is_right_when_nobody_has_it() -> None:
    for last_us, node in ((40, ""), (60, "two")):
        there = GatewayLink("gw-1", last_batch_us=last_us, node="two")
        (one,) = gateway_views(LEDGER, [HERE], {"gw-1": there})
        assert (one.connected, one.node) == (False, node)


def test_a_gateway_whose_batches_only_another_node_has_heard_of() -> None:
    there = GatewayLink("gw-2", connected=True, last_batch_us=1, node="two")
    views = gateway_views(LEDGER, [], {"gw-2": there})
    assert [(one.gateway, one.connected, one.readings) for one in views] == [
        ("gw-1", False, 10),
        ("gw-2", True, 0),
    ]


def test_who_only_says_to_be_a_gateway_is_none() -> None:
    views = gateway_views(LEDGER, [GatewayLink("gw-1-redrive", connected=True)])
    assert [one.gateway for one in views] == ["gw-1"]


def test_what_another_epoch_gave_out_before_an_epoch_parted_waits_nowhere() -> None:
    parted = SourceLedger("gw-1", 8, 15, ((11, 13),), (), origin=Origin(10, 7))
    (one,) = gateway_views([*LEDGER, parted], [HERE])
    assert one.backlog_readings == 2 + 2
