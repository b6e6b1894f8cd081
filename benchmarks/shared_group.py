"""A shared subscription: publishers into a group of 8 members, QoS 0 and 1.

Each message goes to one member. MQTT 3.1.1 clients on both brokers: `$share/` is no matter of the
protocol's version to either. Topics are not captured.

    tidegate bench shared-group
"""

from __future__ import annotations

from functools import partial

from benchmarks.brokers import RunningBroker
from benchmarks.compare import Figure, Row, alternate, figure_of, parser_of, routing_starts
from benchmarks.compare import report as print_report
from benchmarks.flow import FlowSpec, spawn_flow

__all__ = ["main"]


def _rate(broker: RunningBroker, members: int, qos: int, duration_s: float) -> dict[str, Figure]:
    report = spawn_flow(
        FlowSpec(
            port=broker.port,
            pid=broker.pid,
            subscribers=members,
            filters=("$share/workers/bench/#",),
            qos=qos,
            window=200,
            duration_s=duration_s,
        )
    )
    cores = report.broker_core_share, report.generator_core_share
    return {"rate": figure_of(report.deliveries_per_s, *cores)}


def main() -> None:
    """Run the cases and print a table, then the same as JSON."""
    parser = parser_of(__doc__, routing=True)
    parser.add_argument("--members", type=int, default=8, help="of the group [8]")
    options = parser.parse_args()
    if options.quick:
        options.runs, options.duration_s = 1, 0.2
    rows = []
    for qos in (0, 1):
        measure = partial(_rate, members=options.members, qos=qos, duration_s=options.duration_s)
        found = alternate(measure, options.runs, routing_starts(options))
        rows.append(
            Row(f"shared group of {options.members}, QoS {qos}", "message/s", found["rate"], 1.0)
        )
    print_report(rows, only_json=options.json)


if __name__ == "__main__":
    main()
