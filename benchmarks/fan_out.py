"""Fan-out: one publisher, 100 and 1,000 subscribers, QoS 0 and 1, ours and mosquitto side by side.

The unit is a delivery. The publisher sends the next message when one before it has reached every
subscriber, so nothing is dropped and nothing piles up. Topics are not captured: this is routing.

    tidegate bench fan-out
    tidegate bench fan-out -- --runs 3 --subscribers 100
"""

from __future__ import annotations

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

_WINDOW = 20


def _measure(broker: RunningBroker, subscribers: int, qos: int, duration_s: float) -> Figure:
    report = spawn_flow(
        FlowSpec(
            port=broker.port,
            pid=broker.pid,
            subscribers=subscribers,
            copies=subscribers,
            qos=qos,
            window=_WINDOW,
            duration_s=duration_s,
        )
    )
    return figure_of(report.deliveries_per_s, report.broker_core_share, report.generator_core_share)


def main() -> None:
    """Run the cases and print a table, then the same as JSON."""
    parser = parser_of(__doc__, routing=True)
    parser.add_argument(
        "--subscribers", default="100,1000", help="numbers of subscribers [100,1000]"
    )
    options = parser.parse_args()
    sizes = [int(each) for each in options.subscribers.split(",")]
    if options.quick:
        sizes, options.runs, options.duration_s = [10], 1, 0.2
    raise_descriptor_limit(max(sizes))
    rows = []
    for size in sizes:
        for qos in (0, 1):
            found = alternate(
                lambda broker, size=size, qos=qos: {  # type: ignore[misc]
                    "rate": _measure(broker, size, qos, options.duration_s)
                },
                options.runs,
                routing_starts(options),
            )
            rows.append(Row(f"1 to {size:,}, QoS {qos}", "delivery/s", found["rate"], 1.0))
    print_report(rows, only_json=options.json)


if __name__ == "__main__":
    main()
