"""100,000 subscriptions, a third of them each exact, with `+` and with `#`; then publishing.

1,000 clients; each message matches exactly one subscription, over as many topics as there are
subscriptions, used in turn, so that no broker gets by with one topic's answer. What the broker's
memory grew by is divided by the subscriptions, the clients' own share included.

    tidegate bench subscriptions
"""

from __future__ import annotations

from functools import partial

from benchmarks.brokers import RunningBroker
from benchmarks.compare import (
    Figure,
    Row,
    alternate,
    figure_of,
    parser_of,
    raise_descriptor_limit,
    routing_starts,
)
from benchmarks.compare import report as print_report
from benchmarks.flow import FlowSpec, spawn_flow

__all__ = ["main"]

_FILTERS = ("fleet/0{n:06d}/temp", "fleet/1{n:06d}/+", "fleet/2{n:06d}/#")
_TOPICS = ("fleet/0{n:06d}/temp", "fleet/1{n:06d}/temp", "fleet/2{n:06d}/temp")


def _measure(
    broker: RunningBroker, clients: int, each: int, duration_s: float
) -> dict[str, Figure]:
    report = spawn_flow(
        FlowSpec(
            port=broker.port,
            pid=broker.pid,
            subscribers=clients,
            topics=_TOPICS,
            topics_each=clients * each,
            filters=_FILTERS,
            filters_each=each,
            window=200,
            duration_s=duration_s,
        )
    )
    count = clients * each * len(_FILTERS)
    cores = report.broker_core_share, report.generator_core_share
    return {
        "subscribe": figure_of(
            count / report.subscribe_s, report.subscribe_broker_s / report.subscribe_s, 0.0
        ),
        "memory": Figure(report.subscriptions_bytes / count),
        "rate": figure_of(report.deliveries_per_s, *cores),
    }


def main() -> None:
    """Run and print a table, then the same as JSON."""
    parser = parser_of(__doc__, runs=3, routing=True)
    parser.add_argument("--clients", type=int, default=1000, help="that subscribe [1000]")
    parser.add_argument("--each", type=int, default=34, help="times three filters a client [34]")
    options = parser.parse_args()
    if options.quick:
        options.clients, options.each, options.runs, options.duration_s = 10, 4, 1, 0.2
    raise_descriptor_limit(options.clients)
    topics = options.clients * options.each * len(_FILTERS)
    measure = partial(
        _measure,
        clients=options.clients,
        each=options.each,
        duration_s=options.duration_s,
    )
    found = alternate(measure, options.runs, routing_starts(options))
    name = f"{topics:,} subscriptions"
    print_report(
        [
            Row(f"{name}: taken", "a second", found["subscribe"], 1.0),
            Row(f"{name}: memory each", "bytes", found["memory"], 0.0, lower_is_better=True),
            Row(f"{name}: publish over {topics:,} topics", "message/s", found["rate"], 1.0),
        ],
        only_json=options.json,
    )


if __name__ == "__main__":
    main()
