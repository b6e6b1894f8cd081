"""A node's state as records for the API, the console and `tidegate status`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from bridge.intervals import IntervalSet
from cloud.gateways import GatewayLink
from cloud.ledger import Balance
from cloud.ledger_account import SourceBalance
from cloud.sinks.runner import SinkStats
from cloud.sinks.schema import epoch_text
from cloud.stream.contract import SourceLedger, StreamStats
from cloud.views import GatewayView, GivenUpView, LedgerView, PartitionView

if TYPE_CHECKING:
    from cloud.cluster.lease_keys import LeaseHolder  # NATS is an extra

__all__ = ["gateway_views", "ledger_views", "partition_views"]

_GAPS_SHOWN = 20
_LOSSES_SHOWN = 20


def gateway_views(
    sources: Sequence[SourceLedger],
    seen: Sequence[GatewayLink],
    others: Mapping[str, GatewayLink] | None = None,
) -> list[GatewayView]:
    """Return every gateway the stream or a node has heard of, by name.

    Args:
        sources: What came of each, at any node.
        seen: What this process saw itself.
        others: What the other nodes of a cluster saw, by gateway.
    """
    by_name: dict[str, list[SourceLedger]] = {}
    for line in sources:
        by_name.setdefault(line.gateway, []).append(line)
    links = {one.gateway: one for one in seen}
    for name, link in (others or {}).items():
        if name not in links or link.newer_than(links[name]):
            links[name] = link
    return [
        _gateway_view(name, by_name.get(name, []), links.get(name) or GatewayLink(name))
        for name in sorted(by_name.keys() | {n for n, one in links.items() if one.last_batch_us})
    ]


def _gateway_view(name: str, lines: Sequence[SourceLedger], link: GatewayLink) -> GatewayView:
    epoch = link.epoch
    if epoch is None and len(lines) == 1:
        epoch = lines[0].epoch
    return GatewayView(
        gateway=name,
        connected=link.connected,
        peer=link.peer,
        connected_us=link.connected_us,
        last_batch_us=link.last_batch_us,
        last_event_us=link.last_event_us,
        epoch="" if epoch is None else epoch_text(epoch),
        readings=sum(last - first + 1 for line in lines for first, last in line.held),
        backlog_readings=sum(map(_backlog, lines)),
        lag_s=link.lag_s,
        node=link.node,
    )


def _backlog(line: SourceLedger) -> int:
    """Return how many readings were assigned that neither came nor were given up."""
    here = IntervalSet(line.held)
    given_up = 0
    for first, last in IntervalSet((s.first_seq, s.last_seq) for s in line.given_up):
        absent = sum(b - a + 1 for a, b in here.missing(first, last))
        count = sum(s.count for s in line.given_up if first <= s.first_seq <= last)
        given_up += min(absent, count)
    before = line.origin.after_seq if line.origin is not None else 0  # another epoch's
    return max(0, line.assigned - before - here.count() - given_up)


def ledger_views(report: Balance) -> list[LedgerView]:
    """Return the accounts, by gateway; of a gateway's epochs the one with most assigned last."""
    return [_ledger_view(source) for source in report.sources]


def _ledger_view(source: SourceBalance) -> LedgerView:
    gaps = [*source.lost, *source.absent, *(span for span, _ in source.unexplained)]
    newest = sorted(source.tombstones, key=lambda stone: stone.time_us, reverse=True)
    return LedgerView(
        gateway=source.gateway,
        epoch=epoch_text(source.epoch),
        assigned=source.assigned,
        held=source.held,
        stored=source.stored,
        given_up=source.given_up,
        dead_letters=source.dead_letters,
        waiting_edge=source.waiting_edge,
        waiting_stream=source.waiting_stream,
        missing=source.missing,
        balanced=source.balanced,
        gaps=tuple(sorted(gaps)[:_GAPS_SHOWN]),
        losses=tuple(
            GivenUpView(s.first_seq, s.last_seq, s.count, s.lane, s.reason, s.time_us)
            for s in newest[:_LOSSES_SHOWN]
        ),
    )


def partition_views(
    stream: StreamStats, sinks: Sequence[SinkStats], holders: Sequence[LeaseHolder] = ()
) -> list[PartitionView]:
    """Return the partitions that were ever written or are worked on, by number.

    Cursors and lag are of what this node works on; owners and tokens are of the whole cluster.
    """
    owners: dict[int, dict[str, str]] = {}
    tokens: dict[int, dict[str, int]] = {}
    for holder in holders:
        owners.setdefault(holder.partition, {})[holder.sink] = holder.node
        tokens.setdefault(holder.partition, {})[holder.sink] = holder.token
    return [
        PartitionView(
            partition=partition,
            last_position=stream.last_positions.get(partition, 0),
            cursors={s.name: s.positions[partition] for s in sinks if partition in s.positions},
            lag_entries={s.name: _lag(partition, s) for s in sinks if partition in s.positions},
            owners=owners.get(partition, {}),
            tokens=tokens.get(partition, {}),
        )
        for partition in sorted(stream.last_positions.keys() | owners.keys())
    ]


def _lag(partition: int, sink: SinkStats) -> int:
    return sink.lag[partition].entries if partition in sink.lag else 0
